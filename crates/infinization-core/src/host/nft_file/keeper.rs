//! Keeps the file as the table is.
//!
//! It hears of every commit to the table, whoever makes it, and writes when there was none for a moment:
//! so a verb costs nothing, and a burst of them one program. What another program takes out is put back
//! within that moment by whoever looks after the firewall. A write that failed is told, and tried again.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{NftFileError, NftFiles};
use crate::host::nft::{Commits, NftError};

/// After the last commit, and longer than a repair takes.
const CALM: Duration = Duration::from_millis(500);
/// After the first, so that it is written while they never end.
const LATEST: Duration = Duration::from_secs(5);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// What the end waits for the last write.
const LAST_WRITE: Duration = Duration::from_secs(15);

/// Told of a write that failed.
pub type OnFailure = Box<dyn Fn(&NftFileError) + Send + Sync>;

/// Writes for as long as it is there. Dropped, it writes once more what is not written yet.
#[derive(Debug)]
pub struct Keeper {
    task: Mutex<Option<JoinHandle<()>>>,
    ending: CancellationToken,
    _ends: DropGuard,
}

impl Keeper {
    /// Hears of what is committed from now on, in the calling thread's network; writes what there is.
    /// Needs a runtime.
    pub fn start(files: NftFiles, failed: OnFailure) -> Self {
        let commits = Commits::to_filter();
        let ending = CancellationToken::new();
        let keep = keep(files, commits, failed, ending.clone());
        Self {
            task: Mutex::new(Some(tokio::spawn(keep))),
            _ends: ending.clone().drop_guard(),
            ending,
        }
    }

    /// Ends it, when everything is written.
    pub async fn close(&self) {
        self.ending.cancel();
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task
            && timeout(LAST_WRITE, task).await.is_err()
        {
            tracing::warn!("the firewall's file is not up to date");
        }
    }
}

async fn keep(
    files: NftFiles,
    commits: io::Result<Commits>,
    failed: OnFailure,
    ending: CancellationToken,
) {
    let mut commits = match commits {
        Ok(commits) => commits,
        Err(error) => return failed(&NftFileError::Nft(NftError::Netlink(error))),
    };
    let mut written = write(&files, &failed).await;
    loop {
        let heard = tokio::select! {
            heard = commits.next() => heard,
            () = sleep_until(Instant::now() + AGAIN), if !written => Ok(()),
            () = ending.cancelled() => {
                if !written || has_heard(&mut commits).await {
                    write(&files, &failed).await;
                }
                return;
            }
        };
        if let Err(error) = heard {
            return failed(&NftFileError::Nft(NftError::Netlink(error)));
        }
        calm(&mut commits, &ending).await;
        written = write(&files, &failed).await;
    }
}

/// Whether there was a commit that nobody has waited for.
async fn has_heard(commits: &mut Commits) -> bool {
    timeout(Duration::ZERO, commits.next()).await.is_ok()
}

/// Waits until there was no commit for a moment.
async fn calm(commits: &mut Commits, ending: &CancellationToken) {
    let latest = Instant::now() + LATEST;
    loop {
        let next = latest.min(Instant::now() + CALM);
        tokio::select! {
            // A socket that fails is told by the next to ask.
            heard = commits.next() => if heard.is_err() || Instant::now() >= latest { return },
            () = sleep_until(next) => return,
            () = ending.cancelled() => return,
        }
    }
}

/// Whether it is written. That there is no table yet is no failure: nothing is known of it.
async fn write(files: &NftFiles, failed: &OnFailure) -> bool {
    match files.write().await {
        Ok(()) | Err(NftFileError::NoTable) => true,
        Err(error) => {
            failed(&error);
            false
        }
    }
}
