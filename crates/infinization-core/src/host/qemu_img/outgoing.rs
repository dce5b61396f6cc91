//! An image whose bytes go elsewhere, as its file has them.
//!
//! As long as it is read nobody may write to it: the locks are QEMU's own ([`super::in_use`]), so that a machine that
//! would start on it is refused, in this process and in any other.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::in_use::{Unchanged, keep_unchanged_now};
use super::inspect::header_of;
use super::job::blocking;
use super::{ImageError, ImageFormat, Job, lock};
use crate::types::HostPath;

/// The most that is read at once.
const PIECE: u64 = 1 << 20;

/// An image that is being read. Dropping it lets go of the image.
#[derive(Debug)]
pub struct Outgoing {
    path: HostPath,
    file: Arc<Unchanged>,
    length: u64,
    at: u64,
}

impl Outgoing {
    /// Opens the image. One that lies on another is no whole disk (`INVALID_FORMAT`).
    pub async fn begin(
        path: &HostPath,
        format: ImageFormat,
        job: &Job,
    ) -> Result<Self, ImageError> {
        let image = path.clone();
        let opened = lock::shared(path, move || {
            let file = keep_unchanged_now(&image)?;
            let length = file.file().metadata();
            let length = length
                .map_err(|source| ImageError::io(&image, source))?
                .len();
            if format == ImageFormat::Qcow2
                && let Some(backing) = header_of(&image)?.backing
            {
                let why = format!("lies on {:?}, and is no disk without it", backing.name);
                return Err(ImageError::format(&image, why));
            }
            Ok(Self {
                path: image,
                file: Arc::new(file),
                length,
                at: 0,
            })
        });
        let (_settled, outgoing) = job.unless_cancelled(path, opened).await??;
        Ok(outgoing)
    }

    /// How many bytes the file has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The next bytes, at most a MiB; none at the end.
    pub async fn read(&mut self) -> Result<Vec<u8>, ImageError> {
        let (file, at) = (Arc::clone(&self.file), self.at);
        let wanted = (self.length - at).min(PIECE);
        let path = self.path.clone();
        let piece = blocking(&self.path, move || {
            let mut piece = vec![0; usize::try_from(wanted).unwrap_or_default()];
            let read = file.file().read_exact_at(&mut piece, at);
            read.map_err(|source| ImageError::io(&path, source))?;
            Ok(piece)
        });
        let piece = piece.await?;
        self.at += wanted;
        Ok(piece)
    }
}
