//! Runs one external program to its end: no shell, a deadline, cancellation, bounded output.
//!
//! Every short-lived program the library starts (`nft`, `qemu-img`) goes through [`Program::run`].
//! QEMU itself outlives the call and has its own spawner ([`super::process`]).

mod talk;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::error::{Coded, ErrorCode};

use talk::{Pipes, Sink, end, talk};

/// How long a program may take to end after SIGTERM before it gets SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// More output than this on one stream ends the program: it protects our memory, no real answer comes near.
const MAX_OUTPUT: u64 = 64 * 1024 * 1024;

static STARTED: AtomicU64 = AtomicU64::new(0);

/// How many programs this process has started, for benchmarks that count them per operation.
pub fn programs_started() -> u64 {
    STARTED.load(Ordering::Relaxed)
}

pub(super) fn count_program() {
    STARTED.fetch_add(1, Ordering::Relaxed);
}

/// A program that could not be run to its end. An exit status other than 0 is not an error here.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ProgramError {
    #[error("{program} is not installed")]
    NotFound { program: String },
    #[error("{program} could not be started")]
    Spawn {
        program: String,
        source: std::io::Error,
    },
    #[error("talking to {program} failed")]
    Pipe {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} did not end within {deadline:?} and was ended")]
    Timeout { program: String, deadline: Duration },
    #[error("{program} was cancelled")]
    Cancelled { program: String },
    #[error("{program} printed more than {limit} bytes and was ended")]
    TooMuchOutput { program: String, limit: u64 },
}

impl Coded for ProgramError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ProgramNotFound,
            Self::Timeout { .. } => ErrorCode::Timeout,
            Self::Cancelled { .. } => ErrorCode::Aborted,
            Self::Spawn { .. } | Self::Pipe { .. } | Self::TooMuchOutput { .. } => {
                ErrorCode::SpawnFailed
            }
        }
    }

    fn context(&self) -> Map<String, Value> {
        let (Self::NotFound { program }
        | Self::Spawn { program, .. }
        | Self::Pipe { program, .. }
        | Self::Timeout { program, .. }
        | Self::Cancelled { program }
        | Self::TooMuchOutput { program, .. }) = self;
        Map::from_iter([("program".to_owned(), Value::from(program.as_str()))])
    }
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// The process it was.
    pub pid: Option<u32>,
    /// Exit code or signal.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// The last 8 KiB of standard error as text, for messages.
    pub fn stderr_tail(&self) -> String {
        const TAIL: usize = 8 * 1024;
        let from = self.stderr.len().saturating_sub(TAIL);
        String::from_utf8_lossy(&self.stderr[from..])
            .trim()
            .to_owned()
    }
}

/// What a program that was started left, whether it came to its own end or not.
#[derive(Debug)]
pub struct Ran {
    /// The process it was.
    pub pid: Option<u32>,
    /// Exit code or signal; `None` when even that could not be read.
    pub status: Option<ExitStatus>,
    /// What of its standard output was read.
    pub stdout: Vec<u8>,
    /// What of its standard error was read.
    pub stderr: Vec<u8>,
    /// Why it was ended before its own end.
    pub failure: Option<ProgramError>,
}

/// One run of a program, described before it starts.
#[derive(Debug)]
pub struct Program {
    name: String,
    args: Vec<OsString>,
    stdin: Input,
    stdout: Option<OwnedFd>,
    deadline: Option<Duration>,
    limits: Limits,
    cancel: CancellationToken,
    on_stdout: Option<tokio::sync::mpsc::UnboundedSender<Vec<u8>>>,
}

/// What a program is held to beside its deadline.
#[derive(Debug, Clone, Copy)]
struct Limits {
    max_output: u64,
    kill_grace: Duration,
}

/// What a program reads, which may be a secret.
struct Input(Zeroizing<Vec<u8>>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Program {
    /// `name` is looked up in `PATH`; there is no shell. The deadline is 30 s unless set.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            stdin: Input(Zeroizing::default()),
            stdout: None,
            deadline: Some(Duration::from_secs(30)),
            limits: Limits {
                max_output: MAX_OUTPUT,
                kill_grace: KILL_GRACE,
            },
            cancel: CancellationToken::new(),
            on_stdout: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Written to its standard input, which is then closed. Wiped afterwards, and never printed.
    #[must_use]
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Input(Zeroizing::new(bytes));
        self
    }

    /// What its standard output is, instead of what we read: a second thing to read, for a program that
    /// writes nothing there.
    #[must_use]
    pub fn stdout(mut self, descriptor: OwnedFd) -> Self {
        self.stdout = Some(descriptor);
        self
    }

    /// Ends the program when it takes longer; `None` leaves it to `cancel`. One that has ended by then has not, however
    /// long its pipes are read.
    #[must_use]
    pub fn deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Ends the program when it prints more than this many bytes on one stream; 64 MiB unless set.
    #[must_use]
    pub fn max_output(mut self, bytes: u64) -> Self {
        self.limits.max_output = bytes;
        self
    }

    /// How long it may take to end after SIGTERM before it gets SIGKILL; 5 s unless set.
    #[must_use]
    pub fn kill_grace(mut self, grace: Duration) -> Self {
        self.limits.kill_grace = grace;
        self
    }

    /// Ends the program when the token is cancelled.
    #[must_use]
    pub fn cancel(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Also sends standard output on as it comes (progress lines).
    #[must_use]
    pub fn on_stdout(mut self, sink: tokio::sync::mpsc::UnboundedSender<Vec<u8>>) -> Self {
        self.on_stdout = Some(sink);
        self
    }

    /// Runs it. Whatever happens, no child is left when this returns; dropping the future kills it. Who has its pipes
    /// from it and goes on is not waited for longer than a second, nor ended.
    pub async fn run(self) -> Result<Finished, ProgramError> {
        let program = self.name.clone();
        // Boxed: it would be the largest part of every future that runs a program.
        let ran = Box::pin(self.run_whole()).await?;
        let Ran {
            pid,
            status,
            stdout,
            stderr,
            failure,
        } = ran;
        match (failure, status) {
            (Some(failure), _) => Err(failure),
            (None, Some(status)) => Ok(Finished {
                pid,
                status,
                stdout,
                stderr,
            }),
            (None, None) => Err(ProgramError::Pipe {
                program,
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    /// As [`Program::run`]; one that was ended before its time has left something, too.
    pub async fn run_whole(mut self) -> Result<Ran, ProgramError> {
        let mut child = self.start()?;
        let pid = child.id();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let input = std::mem::take(&mut self.stdin.0);
        let mut pipes = Pipes::of(&mut child);
        let talk = talk(
            &mut child,
            &mut pipes,
            input,
            Sink {
                into: &mut stdout,
                limit: self.limits.max_output,
                also: self.on_stdout.take(),
            },
            Sink {
                into: &mut stderr,
                limit: self.limits.max_output,
                also: None,
            },
            expired(self.deadline),
        );
        let stop = tokio::select! {
            ended = talk => match ended {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err(Stop::Expired),
                Err(error) => Err(Stop::Broken(error)),
            },
            () = self.cancel.cancelled() => Err(Stop::Cancelled),
        };
        let (status, failure) = match stop {
            Ok(status) => (Some(status), None),
            Err(stop) => {
                let status = end(&mut child, &mut pipes, self.limits.kill_grace).await;
                (status, Some(self.failure_of(stop)))
            }
        };
        Ok(Ran {
            pid,
            status,
            stdout,
            stderr,
            failure,
        })
    }

    fn start(&mut self) -> Result<Child, ProgramError> {
        let stdout = self.stdout.take();
        let child = Command::new(&self.name)
            .args(&self.args)
            .env("LC_ALL", "C")
            .env("LANG", "C")
            .stdin(Stdio::piped())
            .stdout(stdout.map_or_else(Stdio::piped, Stdio::from))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let program = || self.name.clone();
        let child = child.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ProgramError::NotFound { program: program() },
            _ => ProgramError::Spawn {
                program: program(),
                source,
            },
        })?;
        count_program();
        Ok(child)
    }

    fn failure_of(&self, stop: Stop) -> ProgramError {
        let program = self.name.clone();
        match stop {
            Stop::Broken(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                let limit = self.limits.max_output;
                ProgramError::TooMuchOutput { program, limit }
            }
            Stop::Broken(source) => ProgramError::Pipe { program, source },
            Stop::Cancelled => ProgramError::Cancelled { program },
            Stop::Expired => {
                let deadline = self.deadline.unwrap_or_default();
                ProgramError::Timeout { program, deadline }
            }
        }
    }
}

/// Why a program is ended.
enum Stop {
    Broken(std::io::Error),
    Cancelled,
    Expired,
}

async fn expired(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_output_and_exit_code_without_a_shell() {
        let finished = Program::new("cat")
            .args(["-", "/nonexistent;id"])
            .stdin(b"hi".to_vec())
            .run()
            .await;
        let finished = finished.unwrap();
        assert_eq!(finished.stdout, b"hi");
        assert_eq!(finished.status.code(), Some(1));
        assert!(finished.stderr_tail().contains("/nonexistent;id"));
    }

    #[tokio::test]
    async fn an_absent_program_is_named() {
        let error = Program::new("no-such-program-here")
            .run()
            .await
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::ProgramNotFound);
    }

    #[tokio::test]
    async fn the_deadline_and_the_token_end_it() {
        let deadline = Some(Duration::from_millis(20));
        let error = Program::new("sleep")
            .args(["60"])
            .deadline(deadline)
            .run()
            .await;
        assert_eq!(error.unwrap_err().code(), ErrorCode::Timeout);

        let token = CancellationToken::new();
        token.cancel();
        let error = Program::new("sleep").args(["60"]).cancel(token).run().await;
        assert_eq!(error.unwrap_err().code(), ErrorCode::Aborted);
    }

    /// Its deadline falls into the second in which its pipes are read, whenever in that time it ends.
    #[tokio::test]
    async fn what_has_ended_in_time_has_not_expired() {
        for code in [0, 3] {
            let script = format!("echo said; sleep 300 & echo $! >&2; exit {code}");
            let ran = Program::new("sh")
                .args(["-c", script.as_str()])
                .deadline(Some(Duration::from_millis(900)))
                .run_whole()
                .await;
            let ran = ran.unwrap();
            let left: i32 = String::from_utf8_lossy(&ran.stderr).trim().parse().unwrap();
            let left = nix::unistd::Pid::from_raw(left);
            nix::sys::signal::kill(left, nix::sys::signal::Signal::SIGKILL).unwrap();
            assert!(ran.failure.is_none(), "{:?}", ran.failure);
            assert_eq!(ran.status.and_then(|status| status.code()), Some(code));
            assert_eq!(ran.stdout, b"said\n");
        }
    }
}
