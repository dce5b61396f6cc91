//! How a long operation is bounded, stopped and watched, and who sees it through.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::ImageError;
use crate::host;
use crate::host::blocking::NotDone;
use crate::types::HostPath;

/// The terms of an operation whose length grows with the disk. The default has no end and no
/// audience.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Ends it with `ABORTED`.
    pub cancel: CancellationToken,
    /// Ends it with `TIMEOUT`.
    pub deadline: Option<Duration>,
    /// Is told how far it is, where `qemu-img` reports that (converting).
    pub progress: Option<Teller>,
}

/// Is told the part that is done, from 0 to 1: all that the program reports, in order, and before the program counts
/// as ended.
#[derive(Clone)]
pub struct Teller(Arc<dyn Fn(f64) + Send + Sync>);

impl Teller {
    /// `tell` is called where the program's output is read, and must not block.
    pub fn new(tell: impl Fn(f64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, part: f64) {
        (self.0)(part);
    }
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teller")
    }
}

/// Verbs that only touch metadata are done in milliseconds; this is for a hung file system.
const METADATA_DEADLINE: Duration = Duration::from_secs(600);

impl Job {
    /// The terms of a verb that only touches metadata.
    pub(super) fn short() -> Self {
        Self {
            deadline: Some(METADATA_DEADLINE),
            ..Self::default()
        }
    }

    /// Waits for `work`, but no longer than the caller wants it.
    pub(super) async fn unless_cancelled<T>(
        &self,
        path: &HostPath,
        work: impl Future<Output = T>,
    ) -> Result<T, ImageError> {
        tokio::select! {
            done = work => Ok(done),
            () = self.cancel.cancelled() => Err(ImageError::Cancelled { path: path.clone() }),
        }
    }
}

/// Runs `work` as a task. If the caller stops waiting, `work` is cancelled but still sees its
/// program end before it removes what it made.
pub(super) async fn supervised<T, F>(
    job: &Job,
    path: &HostPath,
    work: impl FnOnce(Job) -> F,
) -> Result<T, ImageError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ImageError>> + Send + 'static,
{
    let cancel = job.cancel.child_token();
    let _caller_left = cancel.clone().drop_guard();
    let job = Job {
        cancel,
        ..job.clone()
    };
    to_its_end(path, work(job)).await
}

/// Runs `work` as a task that goes on when the caller stops waiting: half a change to an image's
/// metadata is worse than one nobody waits for.
pub(super) async fn to_its_end<T: Send + 'static>(
    path: &HostPath,
    work: impl Future<Output = Result<T, ImageError>> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_runtime_ends) => Err(ImageError::Cancelled { path: path.clone() }),
        },
    }
}

/// Runs file system calls where they may block. They are begun at once.
pub(super) fn blocking<T, Work>(
    path: &HostPath,
    work: Work,
) -> impl Future<Output = Result<T, ImageError>> + use<T, Work>
where
    T: Send + 'static,
    Work: FnOnce() -> Result<T, ImageError> + Send + 'static,
{
    let (path, begun) = (path.clone(), host::blocking::blocking(work));
    async move {
        match begun.await {
            Ok(outcome) => outcome,
            Err(NotDone::RuntimeEnds) => Err(ImageError::Cancelled { path }),
            Err(not_done) => Err(ImageError::io(&path, not_done.into())),
        }
    }
}
