//! Which machine has which image, by what is noted in the state directory and by the rows.

use std::io;
use std::path::{Path, PathBuf};

use super::snapshot::{files_of, frozen_of};
use super::spec;
use crate::config::{DiskConfig, DiskFormat, NetworkLocation};
use crate::db::{Database, DbError, MachineDisks};
use crate::host::state_file::StateFileError;
use crate::types::{HostPath, InternalName, VmId};

/// Every disk and every layer of every machine below `machines`. Blocks. What cannot be read is an error:
/// a file nobody seems to have may be deleted.
pub fn disk_uses(machines: &Path) -> Result<Vec<(VmId, HostPath)>, StateFileError> {
    let mut uses = Vec::new();
    for (vm_id, directory) in directories(machines)? {
        let files = machine_files(&directory)?.into_iter();
        uses.extend(files.map(|path| (vm_id.clone(), path)));
    }
    Ok(uses)
}

/// Every disk and every layer of one machine. Blocks.
pub(super) fn machine_files(directory: &Path) -> Result<Vec<HostPath>, StateFileError> {
    let mut files = disks_of(directory)?;
    files.extend(files_of(directory)?);
    files.sort();
    files.dedup();
    Ok(files)
}

/// Of these only what the machines write to when they run: no layer that others lie on already. Blocks.
pub(super) fn written_files(machines: &Path) -> Result<Vec<(VmId, HostPath)>, StateFileError> {
    let mut written = Vec::new();
    for (vm_id, directory) in directories(machines)? {
        let mut files = disks_of(&directory)?;
        let frozen = frozen_of(&directory)?;
        let layers = files_of(&directory)?.into_iter();
        files.extend(layers.filter(|layer| !frozen.contains(layer)));
        written.extend(files.into_iter().map(|path| (vm_id.clone(), path)));
    }
    Ok(written)
}

/// Every disk on the network of every machine below `machines`, whether it runs or not. Blocks. What cannot be
/// read is an error: a disk nobody seems to have is written to.
pub(super) fn network_uses(
    machines: &Path,
) -> Result<Vec<(VmId, NetworkLocation)>, StateFileError> {
    let mut uses = Vec::new();
    for (vm_id, directory) in directories(machines)? {
        let disks = spec::read(&directory)?.map(|spec| spec.disks);
        let locations = disks.into_iter().flatten();
        let locations = locations.filter_map(|disk| disk.location.network().cloned());
        uses.extend(locations.map(|location| (vm_id.clone(), location)));
    }
    Ok(uses)
}

/// Every file that a row names as a machine's disk. What is no path, or of no machine of ours, names none.
pub async fn row_uses(
    database: &dyn Database,
    disk_dir: &HostPath,
) -> Result<Vec<(VmId, HostPath)>, DbError> {
    let rows = database.find_machine_disks().await?.into_iter();
    let uses = rows.filter_map(|row| {
        let vm_id = VmId::parse(row.id.as_str()).ok()?;
        let paths = paths_in(row, disk_dir).into_iter();
        Some(paths.map(move |path| (vm_id.clone(), path)))
    });
    Ok(uses.flatten().collect())
}

/// A row without paths is one of an old release, whose one disk is at the contract's path.
fn paths_in(row: MachineDisks, disk_dir: &HostPath) -> Vec<HostPath> {
    if row.disk_paths.is_empty() {
        let name = InternalName::parse(row.internal_name).ok();
        let path = name.map(|name| DiskConfig::default_path(disk_dir, &name, 0, DiskFormat::Qcow2));
        return path.into_iter().flatten().collect();
    }
    let paths = row.disk_paths.into_iter().map(HostPath::parse);
    paths.filter_map(Result::ok).collect()
}

/// Every file below `machines` that disks lie on because of external snapshots. Blocks.
pub fn frozen_layers(machines: &Path) -> Result<Vec<HostPath>, StateFileError> {
    let mut frozen = Vec::new();
    for (_, directory) in directories(machines)? {
        frozen.extend(frozen_of(&directory)?);
    }
    Ok(frozen)
}

fn disks_of(directory: &Path) -> Result<Vec<HostPath>, StateFileError> {
    let disks = spec::read(directory)?.map(|spec| spec.disks);
    let disks = disks.into_iter().flatten();
    Ok(disks.filter_map(|disk| disk.path().cloned()).collect())
}

/// What each machine keeps its files in. Blocks.
pub(super) fn directories(machines: &Path) -> Result<Vec<(VmId, PathBuf)>, StateFileError> {
    let failed = |source| StateFileError::Read {
        path: machines.display().to_string(),
        source,
    };
    let entries = match std::fs::read_dir(machines) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().into_string();
        let vm_id = name.ok().and_then(|name| VmId::parse(name).ok());
        all.extend(vm_id.map(|vm_id| (vm_id, entry.path())));
    }
    Ok(all)
}
