//! Two machines with one MAC address would take each other's packets, so a new machine gets none that
//! another machine of this state directory has, whether that one runs or not.
//!
//! Asked when a machine is created. An address never changes afterwards, so a start need not ask. What
//! a machine has is in its spec file, and until a create has written that, among the claims.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{Issue, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::types::{MacAddr, VmId, VmNames};
use crate::vm::spec;

/// The addresses of machines that are being created in this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MacClaims {
    claimed: Arc<Mutex<HashMap<MacAddr, Holder>>>,
}

/// A machine that has claims on an address; more than one while it is being planned as well.
#[derive(Debug)]
struct Holder {
    vm_id: VmId,
    claims: usize,
}

/// An address that is kept from other machines' creates; dropping it ends that.
#[derive(Debug)]
pub(crate) struct MacClaim {
    mac: MacAddr,
    claims: MacClaims,
}

impl MacClaims {
    /// Claims `mac` for `vm_id`, or names who is faster.
    fn claim(&self, mac: MacAddr, vm_id: &VmId) -> Result<MacClaim, VmId> {
        let mut claimed = self.claimed();
        let holder = claimed.entry(mac).or_insert_with(|| Holder {
            vm_id: vm_id.clone(),
            claims: 0,
        });
        if holder.vm_id != *vm_id {
            return Err(holder.vm_id.clone());
        }
        holder.claims += 1;
        let claims = self.clone();
        Ok(MacClaim { mac, claims })
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<MacAddr, Holder>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MacClaim {
    fn drop(&mut self) {
        let mut claimed = self.claims.claimed();
        let Entry::Occupied(mut holder) = claimed.entry(self.mac) else {
            return;
        };
        holder.get_mut().claims -= 1;
        if holder.get().claims == 0 {
            holder.remove();
        }
    }
}

/// Claims the machine's address for as long as it is being created, unless another machine has it:
/// one below `machines`, or one that is being created as well.
pub(super) fn claim(
    config: &VmConfig,
    machines: &Path,
    claims: &MacClaims,
) -> Result<Result<MacClaim, Issue>, Failure> {
    // First, so that of two creates at once the later one sees the earlier one's claim or its file.
    let claim = match claims.claim(config.network.mac, &config.id) {
        Ok(claim) => claim,
        Err(holder) => return Ok(Err(taken(config, &holder))),
    };
    let holder = holder(config, machines)?;
    Ok(match holder {
        Some(holder) => Err(taken(config, &holder)),
        None => Ok(claim),
    })
}

fn taken(config: &VmConfig, holder: &VmId) -> Issue {
    let mac = config.network.mac;
    let message = format!("is {mac}, which is the address of the machine {holder}");
    Issue::invalid("macAddress", message)
}

/// Who else below `machines` has the machine's address.
fn holder(config: &VmConfig, machines: &Path) -> Result<Option<VmId>, Failure> {
    let mac = config.network.mac;
    let others = others(machines, &config.id).map_err(|error| {
        let path = machines.display().to_string();
        let message = format!("{path} could not be read: {error}");
        Failure::new(ErrorCode::StateFile, message).with("path", path)
    })?;
    let has_it = |other: &VmId| mac_of(&machines.join(other.as_str()), other) == mac;
    Ok(others.into_iter().find(has_it))
}

fn others(machines: &Path, own: &VmId) -> io::Result<Vec<VmId>> {
    let entries = match fs::read_dir(machines) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let ids = names.filter_map(|name| VmId::parse(name).ok());
    Ok(ids.filter(|id| id != own).collect())
}

/// The address in the machine's specification, or the one its id stands for.
fn mac_of(directory: &Path, id: &VmId) -> MacAddr {
    match spec::read(directory) {
        Ok(Some(config)) => config.network.mac,
        _ => VmNames::of(id).mac,
    }
}
