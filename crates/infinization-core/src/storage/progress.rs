//! How far a copy is, in bytes.

use serde::Serialize;
use tokio::sync::watch;

use crate::host::qemu_img::{ImageError, Job};
use crate::types::ByteSize;

/// `VolumeProgress`, without what JavaScript makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What is done.
    pub bytes: ByteSize,
    /// Of how many.
    pub total: ByteSize,
}

impl Default for Progress {
    fn default() -> Self {
        let nothing = ByteSize::bytes(0);
        Self {
            bytes: nothing,
            total: nothing,
        }
    }
}

/// Who is told, if anybody. Only the newest is kept for whoever is slow.
pub type Audience = Option<watch::Sender<Progress>>;

/// Does `work`, which reports its parts to the job that it is given, and tells what they come to of `total`.
pub(super) async fn told<T>(
    audience: &Audience,
    total: ByteSize,
    job: &Job,
    work: impl AsyncFnOnce(&Job) -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let Some(audience) = audience else {
        return work(job).await;
    };
    let (parts, mut heard) = watch::channel(0.0);
    let job = Job {
        progress: Some(parts),
        ..job.clone()
    };
    let tell = |bytes| audience.send_replace(Progress { bytes, total });
    let telling = async {
        while heard.changed().await.is_ok() {
            tell(part_of(total, *heard.borrow_and_update()));
        }
    };
    let working = async move {
        let done = work(&job).await;
        // The telling ends with the last sender.
        drop(job);
        done
    };
    let (done, ()) = tokio::join!(working, telling);
    if done.is_ok() {
        tell(total);
    }
    done
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a part of a size, for people; disks end far below 2^63"
)]
fn part_of(total: ByteSize, part: f64) -> ByteSize {
    let bytes = (total.as_bytes() as f64 * part.clamp(0.0, 1.0)) as u64;
    ByteSize::bytes(bytes.min(total.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_become_bytes_and_the_end_is_told_once_all_is_done() {
        let (sender, mut heard) = watch::channel(Progress::default());
        let total = ByteSize::bytes(1000);
        let (job, audience) = (Job::default(), Some(sender));
        let work = async |job: &Job| {
            let parts = job.progress.as_ref().unwrap();
            parts.send_replace(0.25);
            tokio::task::yield_now().await;
            Ok(())
        };
        told(&audience, total, &job, work).await.unwrap();
        assert_eq!(heard.borrow_and_update().bytes, total);
        assert_eq!(part_of(total, 0.25).as_bytes(), 250);
        assert_eq!(part_of(total, 7.0), total);
    }
}
