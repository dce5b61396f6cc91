//! QEMU's process: started without copying ours, watched through a descriptor, and never taken for
//! another.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`spawn`](spawn()) | what to start ([`SpawnSpec`]) and the way from there to a [`ProcessHandle`] |
//! | `vfork` | the clone and what the child does between it and `execve` |
//! | `descriptors` | which descriptor the child gets under which number, and what it closes |
//! | `handle` | [`ProcessHandle`]: wait for the exit, signal, end |
//! | `pidfd` | the system calls on a pidfd |
//! | `identity` | [`ProcessId`], [`adopt`], [`find_by_name`]: is this process that VM's QEMU? |
//! | `proc_files` | the pure parsers of `/proc/<pid>/{stat,cmdline}` |
//! | `stderr_log` | the file that keeps QEMU's last words |
//! | `start_failure` | what they say of a start that failed |
//!
//! Invariants: no signal goes to a number, only through a pidfd that was proven to be the right
//! process; dropping a handle never ends a process, because a VM outlives the library; nobody else's
//! child is ever reaped (`waitpid(-1)` does not occur).
//!
//! Neighbour: [`super::program`] runs short-lived programs to their end.

mod descriptors;
mod handle;
mod identity;
mod pidfd;
mod proc_files;
mod spawn;
mod start_failure;
mod stderr_log;
mod vfork;

use std::io;

use serde_json::{Map, Value};

pub use handle::{Exit, ProcessHandle};
pub use identity::{
    Identity, ProcessId, adopt, boot_id, find_by_name, find_by_names, identify, identify_by,
    is_alive, is_qemu_alive,
};
pub use proc_files::QemuMarks;
pub use rustix::process::Signal;
pub use spawn::{RunAs, SpawnSpec, spawn};
pub use start_failure::ended_while_starting;
pub use stderr_log::StderrLog;
pub use vfork::SpawnStep;

/// Returns when the process that has this number now has ended: at once if there is none.
pub async fn ended(pid: i32) -> std::io::Result<()> {
    let Some(process) = pidfd::open(pid)? else {
        return Ok(());
    };
    let events = pidfd::events(std::sync::Arc::new(process))?;
    events.readable().await.map(drop)
}

use crate::error::{Coded, ErrorCode};

/// A process that could not be started, found or ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ProcessError {
    #[error("{program} is not installed")]
    NotFound { program: String },
    #[error("{program} cannot be started with {what}")]
    Refused { program: String, what: String },
    #[error("{program} could not be started: {step} failed")]
    Spawn {
        program: String,
        step: SpawnStep,
        source: io::Error,
    },
    #[error("{program} did not start within 30 s")]
    SpawnTimeout { program: String },
    #[error("process {pid} could not be watched")]
    Watch { pid: i32, source: io::Error },
    #[error("the processes of this host could not be read")]
    Scan { source: io::Error },
    #[error("process {pid} could not be signalled")]
    Signal { pid: i32, source: io::Error },
    #[error("process {pid} is still alive 5 s after SIGKILL")]
    StillAlive { pid: i32 },
}

impl ProcessError {
    fn source_io(&self) -> Option<&io::Error> {
        match self {
            Self::Spawn { source, .. }
            | Self::Watch { source, .. }
            | Self::Scan { source }
            | Self::Signal { source, .. } => Some(source),
            Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::SpawnTimeout { .. }
            | Self::StillAlive { .. } => None,
        }
    }
}

impl Coded for ProcessError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ProgramNotFound,
            // A path that is not there, or a script whose interpreter is not.
            Self::Spawn {
                step: SpawnStep::Exec,
                source,
                ..
            } if source.kind() == io::ErrorKind::NotFound => ErrorCode::ProgramNotFound,
            Self::Refused { .. } | Self::Spawn { .. } | Self::Watch { .. } => {
                ErrorCode::SpawnFailed
            }
            Self::SpawnTimeout { .. } => ErrorCode::Timeout,
            Self::Scan { .. } => ErrorCode::IdentityUnknown,
            Self::Signal { .. } => ErrorCode::SignalFailed,
            Self::StillAlive { .. } => ErrorCode::StillAlive,
        }
    }

    fn context(&self) -> Map<String, Value> {
        let mut facts = Map::new();
        if let Self::NotFound { program }
        | Self::Refused { program, .. }
        | Self::Spawn { program, .. }
        | Self::SpawnTimeout { program } = self
        {
            facts.insert("program".to_owned(), Value::from(program.as_str()));
        }
        if let Self::Watch { pid, .. } | Self::Signal { pid, .. } | Self::StillAlive { pid } = self
        {
            facts.insert("pid".to_owned(), Value::from(*pid));
        }
        if let Some(errno) = self.source_io().and_then(io::Error::raw_os_error) {
            facts.insert("errno".to_owned(), Value::from(errno));
        }
        facts
    }
}
