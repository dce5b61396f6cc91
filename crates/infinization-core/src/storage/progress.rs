//! How far a copy is, in bytes.

use serde::Serialize;
use tokio::sync::watch;

use crate::host::qemu_img::{ConvertImage, ImageError, Job, Sharing, Teller, convert, info};
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

/// [`convert`], which tells how much of the source's disk is done.
pub async fn copy(image: &ConvertImage, audience: &Audience, job: &Job) -> Result<(), ImageError> {
    if audience.is_none() {
        return convert(image, job).await;
    }
    let source = info(&image.source, image.source_format, Sharing::Refuse).await?;
    let copying = async |job: &Job| convert(image, job).await;
    told(audience, source.virtual_size, job, copying).await
}

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
    let told = audience.clone();
    let tell = move |bytes| {
        told.send_replace(Progress { bytes, total });
    };
    let telling = tell.clone();
    let job = Job {
        progress: Some(Teller::new(move |part| telling(part_of(total, part)))),
        ..job.clone()
    };
    let done = work(&job).await?;
    tell(total);
    Ok(done)
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
            job.progress.as_ref().unwrap().tell(0.25);
            assert_eq!(heard.borrow_and_update().bytes.as_bytes(), 250);
            Ok(())
        };
        told(&audience, total, &job, work).await.unwrap();
        assert_eq!(heard.borrow_and_update().bytes, total);
        assert_eq!(part_of(total, 0.25).as_bytes(), 250);
        assert_eq!(part_of(total, 7.0), total);
    }
}
