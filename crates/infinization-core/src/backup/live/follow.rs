//! Summing what QEMU's jobs write while they write it: afterwards the file would have to be read once more, and by then
//! it may not be in memory any more.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::super::pieces::Followed;
use super::super::{BackupError, off_thread};

/// There is no event for a cluster that is written. A few MiB are in that time.
const PAUSE: Duration = Duration::from_millis(10);

/// The files of all disks, each with what is followed of it, on a thread of their own.
pub(super) struct Following {
    /// Closed when it is to end.
    go_on: Sender<()>,
    work: JoinHandle<Result<Vec<Option<Followed>>, BackupError>>,
}

impl Following {
    pub(super) fn begin(files: Vec<Option<Followed>>) -> Self {
        let (go_on, ended) = mpsc::channel();
        let work = tokio::spawn(off_thread(move || Ok(follow(files, &ended))));
        Self { go_on, work }
    }

    /// Ends it, once nobody writes any more.
    pub(super) async fn end(self) -> Result<Vec<Option<Followed>>, BackupError> {
        drop(self.go_on);
        self.work.await.map_err(|_ended| BackupError::Cancelled)?
    }
}

fn follow(mut files: Vec<Option<Followed>>, ended: &Receiver<()>) -> Vec<Option<Followed>> {
    loop {
        let mut any = false;
        for place in &mut files {
            let caught_up = place.as_mut().map(|file| file.catch_up(|| goes_on(ended)));
            match caught_up {
                Some(Ok(more)) => any |= more,
                // Whoever sums the rest meets it again.
                Some(Err(error)) => {
                    tracing::debug!(%error, "a backup is summed when it is done");
                    *place = None;
                }
                None => {}
            }
        }
        if files.iter().all(Option::is_none) || !goes_on(ended) {
            return files;
        }
        if !any && ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
            return files;
        }
    }
}

fn goes_on(ended: &Receiver<()>) -> bool {
    ended.try_recv() == Err(TryRecvError::Empty)
}
