//! Which machine has which image, by what is noted in the state directory.

use std::io;
use std::path::{Path, PathBuf};

use super::snapshot::{files_of, frozen_of};
use super::spec;
use crate::host::state_file::StateFileError;
use crate::types::{HostPath, VmId};

/// Every disk and every layer of every machine below `machines`. Blocks. What cannot be read is an error:
/// a file nobody seems to have may be deleted.
pub fn disk_uses(machines: &Path) -> Result<Vec<(VmId, HostPath)>, StateFileError> {
    let mut uses = Vec::new();
    for (vm_id, directory) in directories(machines)? {
        let disks = spec::read(&directory)?.map(|spec| spec.disks);
        let disks = disks.into_iter().flatten().map(|disk| disk.path);
        let mut files: Vec<HostPath> = disks.chain(files_of(&directory)?).collect();
        files.sort();
        files.dedup();
        uses.extend(files.into_iter().map(|path| (vm_id.clone(), path)));
    }
    Ok(uses)
}

/// Every file below `machines` that disks lie on because of external snapshots. Blocks.
pub fn frozen_layers(machines: &Path) -> Result<Vec<HostPath>, StateFileError> {
    let mut frozen = Vec::new();
    for (_, directory) in directories(machines)? {
        frozen.extend(frozen_of(&directory)?);
    }
    Ok(frozen)
}

fn directories(machines: &Path) -> Result<Vec<(VmId, PathBuf)>, StateFileError> {
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
