//! Whose file it is while a QEMU that runs as somebody else writes into it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use super::super::{BackupError, off_thread};
use crate::host::qemu_img::{ImageError, ensure_unused};
use crate::types::HostPath;

/// Gives the file to the user that QEMU runs as, if that is not us: it opens the file itself.
pub(super) async fn give_to_qemu(file: &HostPath, disk: &HostPath) -> Result<(), BackupError> {
    let Err(ImageError::InUse {
        holder: Some(holder),
        ..
    }) = ensure_unused(disk).await
    else {
        return Ok(());
    };
    let file = file.clone();
    off_thread(move || {
        let failed = |error| BackupError::io(&file, error);
        let qemu = fs::metadata(format!("/proc/{}", holder.pid)).map_err(failed)?;
        let ours = fs::metadata(file.as_path()).map_err(failed)?;
        if (qemu.uid(), qemu.gid()) == (ours.uid(), ours.gid()) {
            return Ok(());
        }
        chown(file.as_path(), Some(qemu.uid()), Some(qemu.gid())).map_err(failed)
    })
    .await
}

/// Makes the file ours again.
pub(super) async fn take_back(file: &HostPath) -> Result<(), BackupError> {
    let file = file.clone();
    off_thread(move || {
        let ours = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        let failed = |error| BackupError::io(&file, error);
        let found = fs::metadata(file.as_path()).map_err(failed)?;
        if (found.uid(), found.gid()) == ours {
            return Ok(());
        }
        chown(file.as_path(), Some(ours.0), Some(ours.1)).map_err(failed)
    })
    .await
}
