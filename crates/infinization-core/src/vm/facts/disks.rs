//! The disks: a new one must not exist, an existing one must be what its specification says, and no
//! other process may have it. Files behind a disk may be shared by readers.

use crate::config::DiskConfig;
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{self, ImageError, ImageFormat};
use crate::types::{DiskKey, HostPath};

use super::about;
use crate::vm::effects::image_format;

/// Refuses the first disk that cannot be used. No program is run.
pub(super) fn check(
    disks: &[DiskConfig],
    creating: bool,
    allowed: &[HostPath],
) -> Result<(), Failure> {
    for (index, disk) in disks.iter().enumerate() {
        let field = format!("disks[{index}]");
        if creating {
            check_new(&field, disk, allowed)?;
        } else {
            check_existing(&field, disk, allowed)?;
        }
    }
    Ok(())
}

fn check_new(field: &str, disk: &DiskConfig, allowed: &[HostPath]) -> Result<(), Failure> {
    let path = &disk.path;
    if path.as_path().symlink_metadata().is_ok() {
        let message = format!("disk {path} exists already; it was left alone");
        let failure = Failure::new(ErrorCode::DiskError, message);
        return Err(about(field, failure.with("path", path.as_str())));
    }
    let Some(backing) = &disk.backing_file else {
        return Ok(());
    };
    let stands = || {
        qemu_img::ensure_unwritten_now(backing)?;
        unwritten_chain(backing, ImageFormat::Qcow2, allowed, None)
    };
    stands().map_err(|error| unusable(&format!("{field}.backingFile"), backing, error))
}

fn check_existing(field: &str, disk: &DiskConfig, allowed: &[HostPath]) -> Result<(), Failure> {
    let path = &disk.path;
    if !path.as_path().exists() {
        let message = format!("disk {path} does not exist");
        let failure = Failure::new(ErrorCode::DiskError, message);
        return Err(about(field, failure.with("path", path.as_str())));
    }
    let runs = || {
        qemu_img::ensure_unused_now(path)?;
        unwritten_chain(path, image_format(disk), allowed, disk.key.as_ref())
    };
    runs().map_err(|error| unusable(field, path, error))
}

/// The image is sound, and nobody writes to a file behind it.
fn unwritten_chain(
    image: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<(), ImageError> {
    let found = qemu_img::inspect_with_key_now(image, format, allowed, key)?;
    found
        .backing_chain
        .iter()
        .try_for_each(qemu_img::ensure_unwritten_now)
}

fn unusable(field: &str, path: &HostPath, error: ImageError) -> Failure {
    let message = format!("disk {path} cannot be used");
    let failure = Failure::caused_by(ErrorCode::DiskError, message, error);
    about(field, failure.with("path", path.as_str()))
}
