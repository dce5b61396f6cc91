//! The spec file: a VM's validated configuration, beside its ledger.
//!
//! It keeps what the user's schema has no column for (MAC, UUID, each disk's bus and cache, the
//! run-as user). The display password is not in it; it stays in the database.

use std::path::Path;
use std::{fs, io};

use super::context::VmContext;
use crate::config::{BindAddress, Parsed, StartOptions, StoredColumns, VmConfig};
use crate::db::VmRecord;
use crate::error::Failure;
use crate::host::state_file::{self, Durability, StateFileError};
use crate::types::VmId;

/// The file's name in the VM's state directory.
const FILE: &str = "spec.json";

/// What the last [`write`] replaced.
const PREVIOUS: &str = "spec.json.previous";

/// Writes the spec so that it survives a crash of the host. If asked, the one before is kept for
/// [`restore`].
pub(super) fn write(
    directory: &Path,
    config: &VmConfig,
    keep_previous: bool,
) -> Result<(), StateFileError> {
    let (path, previous) = (directory.join(FILE), directory.join(PREVIOUS));
    let kept = absent_is_fine(fs::remove_file(&previous)).and_then(|()| {
        let keep = || absent_is_fine(fs::hard_link(&path, &previous));
        if keep_previous { keep() } else { Ok(()) }
    });
    kept.map_err(|source| StateFileError::Write {
        path: previous.display().to_string(),
        source,
    })?;
    let body = serde_json::to_vec(config).map_err(|error| StateFileError::Write {
        path: path.display().to_string(),
        source: error.into(),
    })?;
    state_file::write(&path, &body, Durability::HostCrash)
}

/// An attempt begins that may come to its end before its [`write`]: what an earlier one kept is not its own to
/// restore.
pub(super) fn forget_previous(directory: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(directory.join(PREVIOUS)))
}

/// Undoes the last [`write`]; doing it again changes nothing.
pub(super) fn restore(directory: &Path) -> io::Result<()> {
    absent_is_fine(fs::rename(directory.join(PREVIOUS), directory.join(FILE)))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Reads the spec; `None` when there is none.
pub(super) fn read(directory: &Path) -> Result<Option<VmConfig>, StateFileError> {
    let path = directory.join(FILE);
    let Some(body) = state_file::read(&path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&body)
        .map(Some)
        .map_err(|_words| StateFileError::Torn {
            path: path.display().to_string(),
        })
}

/// What starts run: the row's columns, and the spec where there is no column.
pub(super) fn for_start(context: &VmContext, record: &VmRecord) -> Result<VmConfig, Failure> {
    of_columns(context, &columns(&context.vm_id, record))
}

/// The same for whoever is not about its console, of a record that may lack the password: an address that
/// needs one is not refused for want of it.
pub(super) fn without_console(context: &VmContext, record: &VmRecord) -> Result<VmConfig, Failure> {
    let columns = StoredColumns {
        graphic_host: Some(BindAddress::LOOPBACK.to_string()),
        graphic_password: None,
        ..columns(&context.vm_id, record)
    };
    of_columns(context, &columns)
}

fn of_columns(context: &VmContext, columns: &StoredColumns) -> Result<VmConfig, Failure> {
    let spec = read(&context.directory)?;
    let Parsed { config, warnings } =
        VmConfig::from_stored(columns, spec.as_ref(), &context.services.parser)?;
    for warning in warnings {
        tracing::warn!(vm = %context.vm_id, "{} {}", warning.path, warning.message);
    }
    Ok(config)
}

/// The configuration of one run.
pub(super) fn with_options(mut config: VmConfig, options: &StartOptions) -> VmConfig {
    config.sandbox &= !options.disable_sandbox;
    config.firewall.default_action = options
        .firewall_default_action
        .or(config.firewall.default_action);
    config
}

fn columns(vm_id: &VmId, record: &VmRecord) -> StoredColumns {
    let row = record.configuration.clone().unwrap_or_default();
    StoredColumns {
        id: vm_id.clone(),
        configured: record.configuration.is_some(),
        name: record.name.clone(),
        internal_name: record.internal_name.clone(),
        os: record.os.clone(),
        cpu_cores: record.cpu_cores,
        ram_gb: record.ram_gb,
        gpu_pci_address: record.gpu_pci_address.clone(),
        guest_agent_socket_path: row.guest_agent_socket_path,
        infini_service_socket_path: row.infini_service_socket_path,
        graphic_protocol: row.graphic_protocol,
        graphic_port: row.graphic_port,
        graphic_password: row.graphic_password,
        graphic_host: row.graphic_host,
        assigned_gpu_bus: row.assigned_gpu_bus,
        bridge: row.bridge,
        machine_type: row.machine_type,
        cpu_model: row.cpu_model,
        disk_bus: row.disk_bus,
        disk_cache_mode: row.disk_cache_mode,
        network_model: row.network_model,
        network_queues: row.network_queues,
        memory_balloon: row.memory_balloon,
        disk_paths: row.disk_paths,
        uefi_firmware: row.uefi_firmware,
        hugepages: row.hugepages,
        cpu_pinning: row.cpu_pinning.map(|pinning| pinning.cores),
        enable_numa_ctl_pinning: row.enable_numa_ctl_pinning,
        cpu_pinning_strategy: row.cpu_pinning_strategy,
        tpm_socket_path: row.tpm_socket_path,
        virtio_drivers_iso: row.virtio_drivers_iso,
        enable_audio: row.enable_audio,
        enable_usb_tablet: row.enable_usb_tablet,
    }
}
