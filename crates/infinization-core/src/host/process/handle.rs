//! A process by its pidfd: no signal can hit another, and its end is an event.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::pidfd::{self, Remembered, Status};
use super::{ProcessError, ProcessId};

/// How long a process may take to disappear after SIGKILL: longer means it hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How long an ended process that is not our child may stay unreaped before its exit is reported
/// without a cause. A container's PID 1 may take seconds; the crash must not wait for it.
const REAP_WAIT: Duration = Duration::from_millis(500);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It was not our child, and the kernel (before 6.15) or a late parent does not tell.
    Unknown,
}

impl Exit {
    pub(super) fn of(code: Option<i32>, signal: Option<i32>) -> Option<Self> {
        code.map(Self::Code).or(signal.map(Self::Signal))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::Unknown => f.write_str("an unknown cause"),
        }
    }
}

/// A process that cannot be confused with another: its pidfd is held from the start.
///
/// Clones are the same process. Dropping them leaves it running; if it is our child, it is still
/// reaped when it ends.
#[derive(Debug, Clone)]
pub struct ProcessHandle(Arc<Held>);

#[derive(Debug)]
struct Held {
    id: ProcessId,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl ProcessHandle {
    /// Starts to watch; `status` says whether the exit status is ours to take. Needs a runtime.
    pub(super) fn watch(id: ProcessId, pidfd: Arc<OwnedFd>, status: Status) -> io::Result<Self> {
        let events = pidfd::events(Arc::clone(&pidfd))?;
        let (tell, exit) = watch::channel(None);
        tokio::spawn(async move {
            let end = exit_of(&events, status).await;
            tell.send_replace(Some(end));
        });
        Ok(Self(Arc::new(Held { id, pidfd, exit })))
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.id.pid
    }

    /// What tells it apart from every other process, for the state file.
    pub fn id(&self) -> &ProcessId {
        &self.0.id
    }

    /// Whether it runs. An ended process that nobody has reaped yet does not.
    pub fn is_alive(&self) -> bool {
        // A poll that fails (out of memory) proves no end.
        !pidfd::has_ended(self.0.pidfd.as_fd()).unwrap_or(false)
    }

    /// Whether this JSON is on its command line, as a part of an argument or all of it. Unreadable counts as
    /// not.
    pub fn was_told_of(&self, json: &str) -> bool {
        let cmdline = std::fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        cmdline
            .windows(json.len())
            .any(|part| part == json.as_bytes())
    }

    /// Resolves when it has ended, for every waiter, also when that was long ago.
    pub fn exited(&self) -> impl Future<Output = Exit> + Send + use<> {
        let mut exit = self.0.exit.clone();
        async move {
            let ended = match exit.wait_for(Option::is_some).await {
                Ok(ended) => *ended,
                Err(_) => None,
            };
            match ended {
                Some(end) => end,
                // The runtime that watched is shutting down. That is no news of the process.
                None => pending().await,
            }
        }
    }

    /// Sends a signal. To a process that has ended already this does nothing, and is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let pid = self.pid();
        pidfd::send(self.0.pidfd.as_fd(), signal)
            .map_err(|source| ProcessError::Signal { pid, source })
    }

    /// SIGTERM, `grace` to end by itself, then as [`Self::kill_now`]. A stopped process goes on, to
    /// act on the signal.
    pub async fn terminate(&self, grace: Duration) -> Result<Exit, ProcessError> {
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT)?;
        match timeout(grace, self.exited()).await {
            Ok(exit) => Ok(exit),
            Err(_) => self.kill_now().await,
        }
    }

    /// SIGKILL, and waits until it is gone; [`ProcessError::StillAlive`] after 5 s.
    pub async fn kill_now(&self) -> Result<Exit, ProcessError> {
        self.signal(Signal::KILL)?;
        let pid = self.pid();
        timeout(KILL_WAIT, self.exited())
            .await
            .map_err(|_| ProcessError::StillAlive { pid })
    }
}

async fn exit_of(events: &AsyncFd<Arc<OwnedFd>>, status: Status) -> Exit {
    wait_for_end(events).await;
    if let Some(exit) = pidfd::child_exit(events.get_ref().as_fd(), status) {
        return exit;
    }
    match pidfd::remembered_exit(events.get_ref()) {
        Remembered::Exit(exit) => return exit,
        Remembered::Never => return Exit::Unknown,
        Remembered::NotYet => wait_for_reaping(events).await,
    }
    match pidfd::remembered_exit(events.get_ref()) {
        Remembered::Exit(exit) => exit,
        Remembered::NotYet | Remembered::Never => Exit::Unknown,
    }
}

async fn wait_for_end(events: &AsyncFd<Arc<OwnedFd>>) {
    loop {
        let Ok(mut ready) = events.readable().await else {
            // The runtime is going away, and this task with it.
            return pending().await;
        };
        match pidfd::has_ended(ready.get_inner().as_fd()) {
            Ok(ended) => {
                ready.clear_ready();
                if ended {
                    return;
                }
            }
            // Out of memory: the readiness stays, so that the end is not missed.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// A pidfd becomes ready once more (hang-up) when the parent reaps the process.
async fn wait_for_reaping(events: &AsyncFd<Arc<OwnedFd>>) {
    // Late or failing, the answer is the same: the cause stays unknown.
    let _late = timeout(REAP_WAIT, events.readable()).await;
}
