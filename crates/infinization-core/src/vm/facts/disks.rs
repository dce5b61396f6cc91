//! The disks: a new one must not exist, an existing one must be what its specification says, and no
//! other process may have it. Files behind a disk may be shared by readers, and no machine may write to them,
//! not even one that is off.

use std::collections::BTreeMap;

use super::about;
use super::host::Host;
use crate::config::DiskConfig;
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{self, ImageError, ImageFormat, Inspection};
use crate::types::{DiskKey, HostPath, VmId};
use crate::vm::effects::image_format;

/// Refuses the first disk that cannot be used. No program is run. Disks on the network have a check of their own.
/// Answers which encrypted files encrypted disks lie on, by the disks' places.
pub(super) fn check(host: &Host) -> Result<BTreeMap<usize, Vec<HostPath>>, Failure> {
    let mut encrypted_below = BTreeMap::new();
    for (index, disk) in host.config.disks.iter().enumerate() {
        let Some(path) = disk.path() else { continue };
        let field = format!("disks[{index}]");
        if host.creating {
            check_new(&field, path, disk, host)?;
        } else {
            let below = check_existing(&field, path, disk, host.allowed())?;
            encrypted_below.insert(index, below);
        }
    }
    encrypted_below.retain(|_, below| !below.is_empty());
    Ok(encrypted_below)
}

fn check_new(field: &str, path: &HostPath, disk: &DiskConfig, host: &Host) -> Result<(), Failure> {
    if path.as_path().symlink_metadata().is_ok() {
        let message = format!("disk {path} exists already; it was left alone");
        let failure = Failure::new(ErrorCode::DiskError, message);
        return Err(about(field, failure.with("path", path.as_str())));
    }
    let Some(backing) = &disk.backing_file else {
        return Ok(());
    };
    let stands = || -> Result<(), Failure> {
        qemu_img::ensure_unwritten_now(backing)?;
        let below = unwritten_chain(backing, ImageFormat::Qcow2, host.allowed(), None)?;
        refuse_written(backing, &below.backing_chain, &host.written)
    };
    stands().map_err(|error| unusable(&format!("{field}.backingFile"), backing, error))
}

/// Gives the encrypted files the disk lies on.
fn check_existing(
    field: &str,
    path: &HostPath,
    disk: &DiskConfig,
    allowed: &[HostPath],
) -> Result<Vec<HostPath>, Failure> {
    if !path.as_path().exists() {
        let message = format!("disk {path} does not exist");
        let failure = Failure::new(ErrorCode::DiskError, message);
        return Err(about(field, failure.with("path", path.as_str())));
    }
    let runs = || {
        qemu_img::ensure_unused_now(path)?;
        unwritten_chain(path, image_format(disk), allowed, disk.key.as_ref())
    };
    let found = runs().map_err(|error| unusable(field, path, error))?;
    Ok(found
        .encrypted_layers(path)
        .split_off(found.encrypted.min(1)))
}

/// The image is sound, and nobody writes to a file behind it.
fn unwritten_chain(
    image: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<Inspection, ImageError> {
    let found = qemu_img::inspect_with_key_now(image, format, allowed, key)?;
    let mut chain = found.backing_chain.iter();
    chain.try_for_each(qemu_img::ensure_unwritten_now)?;
    Ok(found)
}

/// What lies on a file that changes is lost when it does. A machine that is off holds no lock on its disk.
fn refuse_written(
    backing: &HostPath,
    below: &[HostPath],
    written: &[(VmId, HostPath)],
) -> Result<(), Failure> {
    let real = |path: &HostPath| path.as_path().canonicalize().ok();
    let needed: Vec<_> = below.iter().chain([backing]).filter_map(real).collect();
    let writer = written
        .iter()
        .find(|(_, path)| real(path).is_some_and(|path| needed.contains(&path)));
    let Some((vm_id, path)) = writer else {
        return Ok(());
    };
    let message = format!("VM {vm_id} writes to {path}, which the new disk would lie on");
    let failure = Failure::new(ErrorCode::ImageInUse, message).with("path", path.as_str());
    Err(failure.with("users", vec![vm_id.as_str()]))
}

fn unusable(field: &str, path: &HostPath, error: impl Into<Failure>) -> Failure {
    let message = format!("disk {path} cannot be used");
    let failure = Failure::caused_by(ErrorCode::DiskError, message, error);
    about(field, failure.with("path", path.as_str()))
}
