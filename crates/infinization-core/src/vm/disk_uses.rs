//! Which machine has which image, by what is noted in the state directory.

use std::path::Path;

use super::snapshot::files_of;
use super::spec;
use crate::host::state_file::StateFileError;
use crate::types::{HostPath, VmId};

/// Every disk and every layer of every machine below `machines`. Blocks. What cannot be read is an error:
/// a file nobody seems to have may be deleted.
pub fn disk_uses(machines: &Path) -> Result<Vec<(VmId, HostPath)>, StateFileError> {
    let entries = match std::fs::read_dir(machines) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            let path = machines.display().to_string();
            return Err(StateFileError::Read { path, source });
        }
    };
    let mut uses = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().into_string();
        let Some(vm_id) = name.ok().and_then(|name| VmId::parse(name).ok()) else {
            continue;
        };
        let directory = entry.path();
        let disks = spec::read(&directory)?.map(|spec| spec.disks);
        let disks = disks.into_iter().flatten().map(|disk| disk.path);
        let mut files: Vec<HostPath> = disks.chain(files_of(&directory)?).collect();
        files.sort();
        files.dedup();
        uses.extend(files.into_iter().map(|path| (vm_id.clone(), path)));
    }
    Ok(uses)
}
