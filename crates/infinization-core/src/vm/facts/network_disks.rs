//! Disks on the network: whether QEMU has the driver, and what the server says of them. Nothing is taken
//! into use here.

use super::about;
use crate::config::{DiskConfig, NbdLocation, NetworkLocation};
use crate::error::{ErrorCode, Failure};
use crate::host::{block_driver, nbd};

/// Refuses the first disk that cannot be used.
pub(super) async fn check(disks: &[DiskConfig]) -> Result<(), Failure> {
    for (index, disk) in disks.iter().enumerate() {
        let usable = match disk.location.network() {
            None => continue,
            Some(NetworkLocation::Nbd(export)) => check_export(export).await,
            Some(NetworkLocation::Rbd(_)) => check_rbd().await,
        };
        usable.map_err(|failure| {
            let failure = failure.with("disk", disk.location.to_string());
            about(format!("disks[{index}].location"), failure)
        })?;
    }
    Ok(())
}

async fn check_export(location: &NbdLocation) -> Result<(), Failure> {
    let unusable = |why: String| {
        let location = NetworkLocation::Nbd(location.clone());
        let message = format!("disk {location} cannot be used: {why}");
        Failure::new(ErrorCode::DiskError, message)
    };
    let told = nbd::ask(location).await;
    let told = told.map_err(|error| unusable(Failure::from(error).to_string()))?;
    match told {
        Some(export) if export.read_only => {
            Err(unusable("its server lets nobody write to it".to_owned()))
        }
        Some(export) if export.size.as_bytes() == 0 => Err(unusable("it is empty".to_owned())),
        _ => Ok(()),
    }
}

async fn check_rbd() -> Result<(), Failure> {
    if block_driver::has_rbd().await? {
        return Ok(());
    }
    let message = "this host's QEMU has no rbd driver: install it (Debian: qemu-block-extra)";
    Err(Failure::new(ErrorCode::ResourceUnavailable, message))
}
