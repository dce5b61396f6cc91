//! Binds threads of other processes to CPUs.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};

/// A thread that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("thread {thread} could not be bound to CPU {cpu}")]
pub struct AffinityError {
    thread: i32,
    cpu: u32,
    source: nix::Error,
}

impl Coded for AffinityError {
    fn code(&self) -> ErrorCode {
        ErrorCode::ResourceUnavailable
    }

    fn context(&self) -> Map<String, Value> {
        Map::from_iter([
            ("cpu".to_owned(), Value::from(self.cpu)),
            ("errno".to_owned(), Value::from(self.source as i32)),
        ])
    }
}

/// Lets `thread` run on `cpu` alone (`sched_setaffinity(2)`; takes effect at once).
pub fn pin_thread(thread: i32, cpu: u32) -> Result<(), AffinityError> {
    let failed = |source| AffinityError {
        thread,
        cpu,
        source,
    };
    let mut set = CpuSet::new();
    set.set(usize::try_from(cpu).map_err(|_too_large| failed(nix::Error::EINVAL))?)
        .map_err(failed)?;
    sched_setaffinity(Pid::from_raw(thread), &set).map_err(failed)
}
