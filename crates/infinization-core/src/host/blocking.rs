//! Work that may block, on a thread where nobody else waits for it.
//!
//! Where the host gives the runtime no thread, tokio panics. Here that is an error like any other:
//! it is the host's state, not a defect of ours, and a loop that meets it must go on. Neighbours:
//! everything of the host that asks the kernel with calls that wait.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error::{Coded, ErrorCode};

/// The work was not done, nor will it be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotDone {
    /// `RLIMIT_NPROC`, the cgroup's `pids.max`, or the end of memory.
    #[error("the host gives this process no more threads")]
    NoThread,
    /// The runtime ended first.
    #[error("the library is being shut down")]
    RuntimeEnds,
}

impl Coded for NotDone {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoThread => ErrorCode::SpawnFailed,
            Self::RuntimeEnds => ErrorCode::Closed,
        }
    }
}

impl From<NotDone> for io::Error {
    fn from(error: NotDone) -> Self {
        let kind = match error {
            NotDone::NoThread => io::ErrorKind::WouldBlock,
            NotDone::RuntimeEnds => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// A job that is in the runtime's queue, and can be taken back from it.
type Queued = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Does `work` where it may block. It is begun at once and goes on when the future is dropped; a
/// panic of it goes on in whoever waits.
pub(crate) fn blocking<T, Work>(
    work: Work,
) -> impl Future<Output = Result<T, NotDone>> + use<T, Work>
where
    T: Send + 'static,
    Work: FnOnce() -> T + Send + 'static,
{
    let (report, outcome) = oneshot::channel();
    let begun = begin(move || {
        let _unheard = report.send(catch_unwind(AssertUnwindSafe(work)));
    });
    async move {
        begun?;
        let done: Result<T, Box<dyn Any + Send>> =
            outcome.await.map_err(|_| NotDone::RuntimeEnds)?;
        Ok(done.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

fn begin(job: impl FnOnce() + Send + 'static) -> Result<(), NotDone> {
    let runtime = Handle::current();
    let job: Queued = Arc::new(Mutex::new(Some(Box::new(job))));
    let queued = Arc::clone(&job);
    let run = move || {
        if let Some(job) = take(&queued) {
            job();
        }
    };
    if catch_unwind(AssertUnwindSafe(|| runtime.spawn_blocking(run))).is_ok() {
        return Ok(());
    }
    // It stays queued for a thread that may come: what is told as not done must not be done then.
    match take(&job) {
        Some(_taken_back) => Err(NotDone::NoThread),
        None => Ok(()),
    }
}

fn take(job: &Queued) -> Option<Box<dyn FnOnce() + Send>> {
    job.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What `work` gives within `patience`, for a caller that is no task and must go on. `None` if it takes
/// longer, and then it goes on unheard, or if the host gives no thread for it.
pub(crate) fn promptly<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (report, outcome) = mpsc::channel();
    let begun = std::thread::Builder::new().spawn(move || {
        let _unheard = report.send(work());
    });
    begun.ok()?;
    outcome.recv_timeout(patience).ok()
}

/// [`blocking`] for a call of the file system.
pub(crate) async fn file_call<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking(call).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_the_result_or_the_panic() {
        assert_eq!(blocking(|| 7).await, Ok(7));
        let panicked = tokio::spawn(blocking(|| panic!("a defect"))).await;
        let panic = panicked.map(drop).unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"a defect"));
    }

    #[test]
    fn who_is_no_task_waits_no_longer_than_he_says() {
        assert_eq!(promptly(Duration::from_secs(60), || 7), Some(7));
        let (end, ended) = mpsc::channel::<()>();
        let hangs = move || ended.recv().is_ok();
        assert_eq!(promptly(Duration::from_millis(1), hangs), None);
        drop(end);
    }

    #[test]
    fn what_nobody_waits_for_is_done_all_the_same() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (done, seen) = std::sync::mpsc::channel();
        runtime.block_on(async {
            drop(blocking(move || done.send(()).unwrap()));
        });
        seen.recv().unwrap();
    }
}
