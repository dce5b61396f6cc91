//! Stands between the operations and the host: fails, aborts or kills at the step a test names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_core::{ErrorCode, Failure};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What happens at the chosen step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The action fails, having done nothing.
    Fail,
    /// The caller aborts before the action.
    Cancel,
    /// The action waits for what never comes, until it is aborted.
    Hang,
    /// A defect shows after the action.
    Panic,
    /// This process is killed before the action.
    KillBefore,
    /// This process is killed after the action.
    KillAfter,
}

/// Counts steps once armed, and acts at one of them.
#[derive(Debug)]
pub struct Meddler {
    deed: Deed,
    /// Steps still to pass; `usize::MAX` while not armed.
    left: AtomicUsize,
    /// The name of the step that was hit.
    hit: watch::Sender<Option<&'static str>>,
}

const UNARMED: usize = usize::MAX;

impl Meddler {
    pub fn new(deed: Deed) -> Arc<Self> {
        Arc::new(Self {
            deed,
            left: AtomicUsize::new(UNARMED),
            hit: watch::Sender::new(None),
        })
    }

    /// From now on the `step`-th action or release (0 is the next one) is hit.
    pub fn arm(&self, step: usize) {
        self.left.store(step, Ordering::SeqCst);
    }

    pub fn disarm(&self) {
        self.left.store(UNARMED, Ordering::SeqCst);
    }

    pub fn was_hit(&self) -> Option<&'static str> {
        *self.hit.borrow()
    }

    /// Returns once a step was hit.
    pub async fn hits(&self) {
        let mut hit = self.hit.subscribe();
        hit.wait_for(Option::is_some).await.unwrap();
    }

    /// As [`Meddler::was_hit`], once.
    pub fn took_hit(&self) -> Option<&'static str> {
        self.hit.send_replace(None)
    }

    pub fn wrapper(self: &Arc<Self>) -> EffectsWrapper {
        let meddler = Arc::clone(self);
        Arc::new(move |host| {
            Arc::new(Between {
                meddler: Arc::clone(&meddler),
                host,
            })
        })
    }

    fn is_due(&self, name: &'static str) -> bool {
        let passed =
            self.left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
                    UNARMED => None,
                    0 => Some(UNARMED),
                    left => Some(left - 1),
                });
        let due = passed == Ok(0);
        if due {
            self.hit.send_replace(Some(name));
        }
        due
    }
}

#[derive(Debug)]
struct Between {
    meddler: Arc<Meddler>,
    host: Arc<dyn Effects>,
}

pub fn die() -> ! {
    let me = nix::unistd::getpid();
    nix::sys::signal::kill(me, nix::sys::signal::SIGKILL).unwrap();
    std::process::abort();
}

#[async_trait]
impl Effects for Between {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let due = self.meddler.is_due(action.name());
        match (due, self.meddler.deed) {
            (true, Deed::Fail) => return Err(Failure::new(ErrorCode::HostFile, "meddled with")),
            (true, Deed::KillBefore) => die(),
            (true, Deed::Cancel) => cancel.cancel(),
            (true, Deed::Hang) => {
                cancel.cancelled().await;
                return Err(Failure::new(ErrorCode::Aborted, "meddled with"));
            }
            _ => {}
        }
        let done = self.host.perform(action, bench, cancel).await;
        match (due, self.meddler.deed) {
            (true, Deed::KillAfter) => die(),
            (true, Deed::Panic) => panic!("meddled with"),
            _ => done,
        }
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        // A failing release is tried again, which another test shows.
        let meddles = !matches!(self.meddler.deed, Deed::Fail | Deed::Cancel | Deed::Hang);
        let due = meddles && self.meddler.is_due(release.name());
        if due && self.meddler.deed == Deed::KillBefore {
            die();
        }
        let done = self.host.release(release, bench).await;
        match (due, self.meddler.deed) {
            (true, Deed::KillAfter) => die(),
            (true, Deed::Panic) => panic!("meddled with"),
            _ => done,
        }
    }
}
