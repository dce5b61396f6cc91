//! A program of the user's, run to its end: what `CommandExecutor` does.
//!
//! What it printed is the answer, or part of the error that says why there is none. In an error no secret is
//! told: neither what looks like one, nor what the program was given to read or as a secret argument
//! ([`redacted_with`]). The arguments are in none.
//!
//! Neighbour: [`super::program`] runs it, as it runs our own.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::blocking::blocking;
use super::program::{Program, ProgramError, Ran};
use crate::config::CommandOptions;
use crate::error::{Coded, ErrorCode};
use crate::secrets::{redacted_with, secrets_among};
use crate::types::Secret;

/// How much of a program's last words is in the message.
const TAIL: usize = 8 * 1024;
/// How much of what it printed is in an error.
const KEPT: usize = 16 * 1024 * 1024;

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
    async fn of(program: String, ran: Ran, args: Vec<String>, input: Option<Secret>) -> Self {
        let exchange = Arc::new(Exchange {
            args,
            input,
            said: [ran.stdout, ran.stderr],
        });
        let same = Arc::clone(&exchange);
        // So much text takes long enough to hold up whoever else this thread has to serve.
        let words = blocking(move || same.told()).await;
        // Where the host has no thread for it, it has to be done all the same.
        let [stdout, stderr] = words.unwrap_or_else(|_not_done| exchange.told());
        Self {
            stdout,
            stderr,
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

/// What a program was given, and what it said.
struct Exchange {
    args: Vec<String>,
    input: Option<Secret>,
    said: [Vec<u8>; 2],
}

impl Exchange {
    fn told(&self) -> [String; 2] {
        let secrets = self.secrets();
        self.said
            .each_ref()
            .map(|said| redacted_with(&String::from_utf8_lossy(kept(said)), &secrets))
    }

    /// What it may repeat that nobody else should read. Of an input that has several lines none is a password.
    fn secrets(&self) -> Vec<Secret> {
        let input = self.input.as_ref().map(|input| input.reveal().trim());
        let input = input.filter(|input| !input.contains('\n'));
        let mut secrets = secrets_among(&self.args);
        secrets.extend(input.map(Secret::new));
        secrets
    }
}

/// The end, by whole lines if not all: half a line may be a secret that nobody can tell any more.
fn kept(said: &[u8]) -> &[u8] {
    if said.len() <= KEPT {
        return said;
    }
    let end = &said[said.len() - KEPT..];
    let half = end.iter().position(|byte| *byte == b'\n');
    half.map_or(&[], |half| &end[half + 1..])
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
        .args(&args)
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
            let failed = Failed::of(program.to_owned(), failed, args, options.stdin.clone()).await;
            Err(CommandError::Failed(Box::new(failed)))
        }
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
    async fn i43_a_secret_argument_is_not_told_when_it_is_repeated() {
        let script = r#"echo "bad option: $0, $2" >&2; exit 3"#;
        for secret in ["--password=my, secret word", "my: --secret=word"] {
            let args = ["-c", script, secret, "--password", secret].map(str::to_owned);
            let options = CommandOptions::default();
            let ran = run(
                "sh".to_owned(),
                args.into(),
                options,
                CancellationToken::new(),
            );
            let error = ran.await.unwrap_err();
            let said = error.context()["stderr"].as_str().unwrap().to_owned();
            assert!(said.starts_with("bad option: "), "{said}");
            let tells = |said: &str| said.replace("--password=***", "").contains("word");
            assert!(!tells(&said) && !tells(&error.to_string()), "{said}");
        }
    }

    #[test]
    fn what_was_said_is_gone_through_on_no_thread_that_serves_others() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (free, taken) = std::sync::mpsc::channel::<()>();
        let error = runtime.block_on(async {
            // The one thread there is for work that takes its time.
            let busy = tokio::task::spawn_blocking(move || taken.recv().is_err());
            let failing = sh("echo secret=word; exit 3", CommandOptions::default());
            tokio::pin!(failing);
            let early = tokio::time::timeout(Duration::from_secs(1), &mut failing).await;
            assert!(early.is_err(), "it was done here");
            drop(free);
            assert!(busy.await.unwrap());
            failing.await.unwrap_err()
        });
        assert_eq!(error.context()["stdout"], "secret=***\n");
    }

    #[test]
    fn a_line_that_is_cut_is_not_told() {
        let mut said = b"password=hunter2\n".repeat(KEPT / 17 + 1);
        assert!(kept(&said).len() > KEPT - 17 && kept(&said).starts_with(b"password"));
        said.truncate(KEPT);
        assert_eq!(kept(&said).len(), KEPT);
        assert_eq!(kept(&vec![b'x'; KEPT + 1]), b"");
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
