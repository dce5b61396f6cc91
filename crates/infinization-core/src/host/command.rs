//! A program of the user's, run to its end: what `CommandExecutor` does.
//!
//! What it printed is the answer, or part of the error that says why there is none. In an error no secret is
//! told: neither what looks like one ([`redacted`]) nor what the program was given to read. The arguments are in none.
//!
//! Neighbour: [`super::program`] runs it, as it runs our own.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::program::{Program, ProgramError, Ran};
use crate::config::CommandOptions;
use crate::error::{Coded, ErrorCode};
use crate::secrets::redacted;

/// How much of a program's last words is in the message.
const TAIL: usize = 8 * 1024;
/// How much of what it printed is in an error.
const KEPT: usize = 16 * 1024 * 1024;
/// A shorter text that was read is no secret: taking it out would only garble what is told.
const SHORTEST_SECRET: usize = 4;

/// A command that did not give an answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started, or it was cancelled.
    #[error(transparent)]
    NotRun(ProgramError),
    /// It ended otherwise than with exit code 0, or was ended.
    #[error("{0}")]
    Failed(Box<Failed>),
}

/// How a command failed, and what it said.
#[derive(Debug)]
pub struct Failed {
    program: String,
    status: Option<ExitStatus>,
    ended: Option<ProgramError>,
    stdout: String,
    stderr: String,
}

impl Coded for CommandError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotRun(error) => error.code(),
            Self::Failed(failed) if failed.timed_out() => ErrorCode::Timeout,
            Self::Failed(_) => ErrorCode::ProcessCommandFailed,
        }
    }

    fn context(&self) -> Map<String, Value> {
        match self {
            Self::NotRun(error) => error.context(),
            Self::Failed(failed) => failed.facts(),
        }
    }
}

impl Failed {
    fn of(program: String, ran: Ran, options: &CommandOptions) -> Self {
        let said = |bytes: &[u8]| {
            let end = &bytes[bytes.len().saturating_sub(KEPT)..];
            // First what is known whole: of an input with a blank in it the other would leave a part.
            redacted(&without_input(&String::from_utf8_lossy(end), options))
        };
        Self {
            stdout: said(&ran.stdout),
            stderr: said(&ran.stderr),
            program,
            status: ran.status,
            ended: ran.failure,
        }
    }

    fn timed_out(&self) -> bool {
        matches!(self.ended, Some(ProgramError::Timeout { .. }))
    }

    fn facts(&self) -> Map<String, Value> {
        let signal = self.status.and_then(|status| status.signal());
        let facts = [
            ("program", Value::from(self.program.as_str())),
            (
                "exitCode",
                self.status.and_then(|status| status.code()).into(),
            ),
            ("signal", signal.map(signal_name).into()),
            ("stdout", self.stdout.as_str().into()),
            ("stderr", self.stderr.as_str().into()),
            ("timedOut", self.timed_out().into()),
        ];
        facts
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect()
    }

    /// The end of standard error, or of standard output where that is empty.
    fn last_words(&self) -> &str {
        let said = [&self.stderr, &self.stdout].map(|text| text.trim());
        let said = if said[0].is_empty() { said[1] } else { said[0] };
        let from = said.len().saturating_sub(TAIL);
        let from = (from..=said.len()).find(|at| said.is_char_boundary(*at));
        &said[from.unwrap_or_default()..]
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.ended, self.status) {
            (Some(why), _) => write!(f, "{why}")?,
            (None, Some(status)) => write!(f, "{} {}", self.program, how(status))?,
            (None, None) => write!(f, "{} ended, and nobody knows how", self.program)?,
        }
        match self.last_words() {
            "" => Ok(()),
            words => write!(f, ": {words}"),
        }
    }
}

fn how(status: ExitStatus) -> String {
    let by_signal = |signal| format!("was ended by {}", signal_name(signal));
    let by_code = || format!("ended with exit code {}", status.code().unwrap_or_default());
    status.signal().map_or_else(by_code, by_signal)
}

/// Runs a command; its standard output, or why there is none. A failure is logged, as a warning unless one is
/// expected or the caller has cancelled it.
pub async fn run(
    program: String,
    args: Vec<String>,
    options: CommandOptions,
    cancel: CancellationToken,
) -> Result<Vec<u8>, CommandError> {
    let answer = run_quietly(&program, args, &options, cancel).await;
    if let Err(error) = &answer {
        if options.expect_non_zero_exit || error.code() == ErrorCode::Aborted {
            tracing::debug!("{error}");
        } else {
            tracing::warn!("{error}");
        }
    }
    answer
}

async fn run_quietly(
    program: &str,
    args: Vec<String>,
    options: &CommandOptions,
    cancel: CancellationToken,
) -> Result<Vec<u8>, CommandError> {
    if cancel.is_cancelled() {
        let program = program.to_owned();
        return Err(CommandError::NotRun(ProgramError::Cancelled { program }));
    }
    let input = options
        .stdin
        .as_ref()
        .map(|stdin| stdin.reveal().as_bytes().to_vec());
    let ran = Program::new(program)
        .args(args)
        .stdin(input.unwrap_or_default())
        .deadline(options.timeout)
        .max_output(options.max_output)
        .kill_grace(options.kill_grace)
        .cancel(cancel)
        .run_whole()
        .await;
    let ran = ran.map_err(CommandError::NotRun)?;
    match ran {
        Ran {
            failure: Some(error @ ProgramError::Cancelled { .. }),
            ..
        } => Err(CommandError::NotRun(error)),
        Ran {
            failure: None,
            status: Some(status),
            stdout,
            ..
        } if status.success() => Ok(stdout),
        failed => {
            let failed = Failed::of(program.to_owned(), failed, options);
            Err(CommandError::Failed(Box::new(failed)))
        }
    }
}

/// A password that was typed in may be echoed. What has several lines is no password.
fn without_input(said: &str, options: &CommandOptions) -> String {
    let input = options.stdin.as_ref().map(|stdin| stdin.reveal().trim());
    match input {
        Some(input) if input.len() >= SHORTEST_SECRET && !input.contains('\n') => {
            said.replace(input, "***")
        }
        _ => said.to_owned(),
    }
}

fn signal_name(number: i32) -> String {
    let known = nix::sys::signal::Signal::try_from(number);
    known.map_or_else(
        |_real_time| format!("SIG{number}"),
        |signal| signal.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::types::Secret;

    async fn sh(script: &str, options: CommandOptions) -> Result<Vec<u8>, CommandError> {
        let args = vec!["-c".to_owned(), script.to_owned()];
        run("sh".to_owned(), args, options, CancellationToken::new()).await
    }

    #[tokio::test]
    async fn the_answer_is_what_it_prints_in_the_plain_locale() {
        let stdin = Some(Secret::new("in"));
        let options = CommandOptions {
            stdin,
            ..CommandOptions::default()
        };
        let said = sh("cat; echo \" $LC_ALL $LANG\"; echo no >&2", options).await;
        assert_eq!(said.unwrap(), b"in C C\n");
    }

    #[tokio::test]
    async fn a_failure_has_what_was_said_and_no_secret() {
        let stdin = Some(Secret::new("hunter2\n"));
        let options = CommandOptions {
            stdin,
            ..CommandOptions::default()
        };
        let error = sh("cat; echo 'password=tr0ub4dor,x' >&2; exit 3", options)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "sh ended with exit code 3: password=***,x"
        );
        assert_eq!(error.code(), ErrorCode::ProcessCommandFailed);
        let facts = error.context();
        assert_eq!(
            (&facts["exitCode"], &facts["signal"]),
            (&json!(3), &json!(null))
        );
        assert_eq!(
            (&facts["stdout"], &facts["stderr"]),
            (&json!("***\n"), &json!("password=***,x\n"))
        );
    }

    #[tokio::test]
    async fn what_it_leaves_behind_is_not_waited_for() {
        let options = CommandOptions {
            timeout: Some(Duration::from_secs(30)),
            ..CommandOptions::default()
        };
        let said = sh("sleep 300 & echo $!", options).await.unwrap();
        let left: i32 = String::from_utf8(said).unwrap().trim().parse().unwrap();
        let left = nix::unistd::Pid::from_raw(left);
        nix::sys::signal::kill(left, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn what_was_read_is_taken_out_whole() {
        for secret in ["tail, and; more&so \"on\"", "it's"] {
            let options = CommandOptions {
                stdin: Some(Secret::new(secret)),
                ..CommandOptions::default()
            };
            let script = "printf 'password='; cat; echo ' no' >&2; exit 3";
            let error = sh(script, options).await.unwrap_err();
            assert_eq!(error.context()["stdout"], "password=***", "{secret:?}");
        }
    }

    #[tokio::test]
    async fn b16_what_takes_too_long_or_says_too_much_is_ended() {
        let options = || CommandOptions {
            timeout: Some(Duration::from_secs(2)),
            kill_grace: Duration::from_secs(2),
            ..CommandOptions::default()
        };
        for (script, signal) in [
            ("echo begun; exec sleep 60", "SIGTERM"),
            (
                "trap '' TERM; echo begun; while :; do sleep 0.05; done",
                "SIGKILL",
            ),
        ] {
            let error = sh(script, options()).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Timeout, "{error}");
            let facts = error.context();
            assert_eq!(
                (&facts["signal"], &facts["timedOut"]),
                (&json!(signal), &json!(true))
            );
            assert_eq!(facts["stdout"], "begun\n");
        }
        let options = CommandOptions {
            max_output: 1000,
            ..CommandOptions::default()
        };
        let error = sh("yes", options).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ProcessCommandFailed, "{error}");
        assert_eq!(error.context()["timedOut"], false);
    }

    #[tokio::test]
    async fn a_long_complaint_is_cut_at_a_character() {
        let options = CommandOptions {
            expect_non_zero_exit: true,
            ..CommandOptions::default()
        };
        let script = "i=0; while [ $i -lt 3000 ]; do printf 'ä€x' >&2; i=$((i+1)); done; exit 1";
        let error = sh(script, options).await.unwrap_err().to_string();
        assert!(
            error.len() <= TAIL + 40 && error.ends_with("ä€x"),
            "{}",
            error.len()
        );
    }
}
