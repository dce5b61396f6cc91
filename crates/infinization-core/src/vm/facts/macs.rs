//! Two machines with one MAC address would take each other's packets, so a new machine gets none that
//! another machine of this state directory has, whether that one runs or not.
//!
//! Asked when a machine is created. An address never changes afterwards, so a start need not ask.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::{Issue, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::types::{MacAddr, VmId, VmNames};
use crate::vm::spec;

/// What is wrong with the machine's address: another machine below `machines` has it.
pub(super) fn issues(config: &VmConfig, machines: &Path) -> Result<Option<Issue>, Failure> {
    let mac = config.network.mac;
    let others = others(machines, &config.id).map_err(|error| {
        let path = machines.display().to_string();
        let message = format!("{path} could not be read: {error}");
        Failure::new(ErrorCode::StateFile, message).with("path", path)
    })?;
    let holder = others
        .into_iter()
        .find(|other| mac_of(&machines.join(other.as_str()), other) == mac);
    Ok(holder.map(|holder| {
        let message = format!("is {mac}, which is the address of the machine {holder}");
        Issue::invalid("macAddress", message)
    }))
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
