//! Finishing a disk's copy: compressed if it is to be, on the disk, and summed.

use std::fs;

use super::create::Creation;
use super::draft::Draft;
use super::folder::{inside, remove_file};
use super::kinds::Compression;
use super::manifest::DiskRecord;
use super::names::disk_file;
use super::pass::Pass;
use super::pieces::{self, Followed};
use super::prepare::Prepared;
use super::progress::{Reporter, Work};
use super::{BackupError, digest, off_thread};
use crate::host::qemu_img::{DiskState, ImageFormat, Parent};
use crate::types::HostPath;

/// What the seals of one backup have in common.
#[derive(Clone, Copy)]
pub(super) struct Seal<'a> {
    pub(super) creation: &'a Creation,
    pub(super) prepared: &'a Prepared,
    pub(super) draft: &'a Draft,
    pub(super) reporter: &'a Reporter,
}

/// A disk whose image is in the draft's folder.
pub(super) struct Copied {
    /// Which disk it is.
    pub(super) n: usize,
    /// As the guest sees it, in bytes.
    pub(super) size: u64,
    /// What the image builds on.
    pub(super) parent: Option<Parent>,
    /// What was summed while it was written.
    pub(super) followed: Option<Followed>,
    /// How the disk was found before and after.
    pub(super) state: Option<DiskState>,
}

impl Seal<'_> {
    /// Compresses the image if it is to be, flushes it, and sums what was not summed yet.
    pub(super) async fn disk(self, copied: Copied) -> Result<DiskRecord, BackupError> {
        let Self {
            creation, draft, ..
        } = self;
        let Copied {
            n,
            size,
            parent,
            followed,
            state,
        } = copied;
        let encrypted = self.prepared.encryption[n].is_some();
        let compression = creation.compression(encrypted);
        let [packing, summing] = [Work::Pack, Work::Sum].map(|work| self.reporter.step(n, work));
        let disk = creation.request.disks[n].clone();
        let (image, cancel) = (draft.image(n)?, creation.terms.cancel.clone());
        let name = disk_file(n, compression);
        let file = inside(&draft.folder, &name)?;
        off_thread(move || {
            let mut image_size = None;
            if compression == Compression::Gzip {
                let length = length_of(&image)?;
                image_size = Some(length);
                digest::gzip(&image, &file, &Pass::told(packing, length, &cancel))?;
                remove_file(&image)?;
            }
            let pass = Pass::told(summing, length_of(&file)?, &cancel);
            let measure = match followed {
                Some(followed) => followed.flush_and_sum(&file, &pass)?,
                None => pieces::flush_and_sum(&file, &pass)?,
            };
            Ok(DiskRecord {
                source_path: disk.path,
                source_format: disk.format,
                backup_path: name,
                original_size: size,
                backup_size: measure.length,
                image_size,
                format: ImageFormat::Qcow2,
                backing_file: parent.map(|parent| parent.name),
                encrypted,
                sha256: None,
                blake3: Some(measure.checksum),
                source_state: state,
            })
        })
        .await
    }
}

fn length_of(file: &HostPath) -> Result<u64, BackupError> {
    let found = fs::metadata(file.as_path());
    let found = found.map_err(|error| BackupError::io(file, error))?;
    Ok(found.len())
}
