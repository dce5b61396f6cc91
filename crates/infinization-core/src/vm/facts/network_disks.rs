//! Disks on the network: that no other machine has them, whether QEMU has the driver, and what the server
//! says of them. Nothing is taken into use here.
//!
//! An NBD server lets any number of clients write to an export, and knows nothing of machines. So a new machine
//! gets no disk that another machine of this state directory has, whether that one runs or not. Asked when a
//! machine is created: a start finds its disks in the machine's own spec file, so none is new to it. Machines of
//! other hosts and of other state directories are not seen.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::about;
use crate::config::{DiskConfig, NbdLocation, NetworkLocation, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::{block_driver, nbd};
use crate::types::VmId;
use crate::vm::disk_uses::network_uses;

/// The disks on the network of machines that are being created in this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct NetworkDiskClaims {
    claimed: Arc<Mutex<Vec<Claimed>>>,
}

type Claimed = (VmId, NetworkLocation);

/// Disks that are kept from other machines' creates; dropping it ends that.
#[derive(Debug)]
pub(crate) struct NetworkDiskClaim {
    own: Vec<Claimed>,
    claims: NetworkDiskClaims,
}

impl NetworkDiskClaims {
    /// Claims all of them, or none and tells who is faster with which.
    fn claim(&self, own: Vec<Claimed>) -> Result<NetworkDiskClaim, Box<Claimed>> {
        let mut claimed = self.claimed();
        if let Some(taken) = own.iter().find_map(|own| taken_by(own, &claimed)) {
            return Err(Box::new(taken));
        }
        claimed.extend(own.iter().cloned());
        let claims = self.clone();
        Ok(NetworkDiskClaim { own, claims })
    }

    fn claimed(&self) -> MutexGuard<'_, Vec<Claimed>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NetworkDiskClaim {
    fn drop(&mut self) {
        let mut claimed = self.claims.claimed();
        for own in &self.own {
            // One of its own only: the machine may be planned at the same time.
            if let Some(at) = claimed.iter().position(|claim| claim == own) {
                claimed.swap_remove(at);
            }
        }
    }
}

/// Claims the machine's disks on the network for as long as it is being created, unless another machine has one:
/// one below `machines`, or one that is being created as well. Blocks.
pub(super) fn claim(
    config: &VmConfig,
    machines: &Path,
    claims: &NetworkDiskClaims,
) -> Result<NetworkDiskClaim, Failure> {
    let locations = config
        .disks
        .iter()
        .filter_map(|disk| disk.location.network());
    let own: Vec<Claimed> = locations
        .map(|location| (config.id.clone(), location.clone()))
        .collect();
    // First, so that of two creates at once the later one sees the earlier one's claim or its file.
    let claim = claims.claim(own).map_err(|taken| refused(config, &taken))?;
    if claim.own.is_empty() {
        return Ok(claim);
    }
    let others = network_uses(machines)?;
    match claim.own.iter().find_map(|own| taken_by(own, &others)) {
        Some(taken) => Err(refused(config, &taken)),
        None => Ok(claim),
    }
}

/// The entry of another machine's that is the same disk.
fn taken_by((vm_id, location): &Claimed, others: &[Claimed]) -> Option<Claimed> {
    let same = |(other, theirs): &&Claimed| other != vm_id && location.is_same_disk(theirs);
    others.iter().find(same).cloned()
}

fn refused(config: &VmConfig, (holder, location): &Claimed) -> Failure {
    let is_it = |disk: &DiskConfig| {
        let own = disk.location.network();
        own.is_some_and(|own| own.is_same_disk(location))
    };
    let index = config.disks.iter().position(is_it).unwrap_or_default();
    let message = format!("{location} is a disk of the machine {holder}");
    let failure = Failure::new(ErrorCode::ImageInUse, message)
        .with("disk", location.to_string())
        .with("users", vec![holder.as_str()]);
    let message = format!("disk {location} cannot be used");
    let failure = Failure::caused_by(ErrorCode::DiskError, message, failure);
    about(format!("disks[{index}].location"), failure)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ExportName, NbdServer};
    use crate::types::HostPath;

    fn disk(vm: &str, export: &str) -> Claimed {
        let location = NbdLocation {
            server: NbdServer::Unix(HostPath::parse("/run/nbd.sock").unwrap()),
            export: ExportName::parse(export).unwrap(),
            tls: None,
            reconnect_delay: 0,
        };
        (VmId::parse(vm).unwrap(), NetworkLocation::Nbd(location))
    }

    #[test]
    fn a_disk_is_one_machine_s_until_its_last_claim_is_dropped() {
        let claims = NetworkDiskClaims::default();
        let created = claims.claim(vec![disk("a", "1"), disk("a", "2")]).unwrap();
        let planned = claims.claim(vec![disk("a", "1")]).unwrap();
        let both = || vec![disk("b", "3"), disk("b", "1")];
        assert_eq!(*claims.claim(both()).unwrap_err(), disk("a", "1"));
        let other = claims.claim(vec![disk("b", "3")]);
        drop(other.expect("a claim that was refused has taken nothing"));
        drop(created);
        assert_eq!(*claims.claim(both()).unwrap_err(), disk("a", "1"));
        drop(planned);
        drop(claims.claim(both()).unwrap());
        assert!(claims.claimed().is_empty());
    }
}
