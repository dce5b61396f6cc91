//! A VM's snapshots as one list, out of what each of its disks has.

use serde::Serialize;

use super::notes::Notes;
use crate::config::{DiskFormat, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{ImageError, SnapshotInfo, SnapshotName};
use crate::types::{ByteSize, DiskKey, HostPath};

/// `VMSnapshot`: one snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// The text it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it was made: ISO 8601, UTC, to the millisecond.
    pub date: String,
    /// Whether the guest's memory is in it.
    pub memory: bool,
    /// The size of that memory, in bytes.
    pub vm_size: ByteSize,
    /// How long the machine had run: `HH:MM:SS.mmm`.
    pub vm_clock: String,
    /// Whether every disk has it. Others cannot be reverted to.
    pub complete: bool,
    /// The disks that have it.
    pub disks: Vec<HostPath>,
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its place among the VM's disks.
    pub(super) index: usize,
    pub(super) path: HostPath,
    pub(super) format: DiskFormat,
    /// Of an encrypted one, where it is needed.
    pub(super) key: Option<DiskKey>,
}

/// A disk, and the snapshots it has.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) disk: Disk,
    pub(super) snapshots: Vec<SnapshotInfo>,
}

/// The disks that are files.
pub(super) fn of(config: &VmConfig) -> Vec<Disk> {
    let disk = |(index, disk): (usize, &crate::config::DiskConfig)| {
        Some(Disk {
            index,
            path: disk.path()?.clone(),
            format: disk.format,
            key: disk.key.clone(),
        })
    };
    config.disks.iter().enumerate().filter_map(disk).collect()
}

/// A snapshot is of all disks, and one on the network is not ours to snapshot.
pub(super) fn refuse_network(config: &VmConfig) -> Result<(), Failure> {
    let elsewhere = config.disks.iter().find_map(|disk| disk.location.network());
    let Some(location) = elsewhere else {
        return Ok(());
    };
    let message = format!("the disk {location} is on the network, and has no snapshots here");
    let failure = Failure::new(ErrorCode::NetworkDisk, message);
    Err(failure.with("disk", location.to_string()))
}

/// Only qcow2 has internal snapshots, and a snapshot is of all disks.
pub(super) fn refuse_raw<'d>(disks: impl IntoIterator<Item = &'d Disk>) -> Result<(), ImageError> {
    let raw = disks
        .into_iter()
        .find(|disk| disk.format != DiskFormat::Qcow2);
    match raw {
        None => Ok(()),
        Some(disk) => Err(ImageError::Format {
            path: disk.path.clone(),
            why: format!("is {}, which has no snapshots", disk.format.as_str()),
        }),
    }
}

impl Listed {
    pub(super) fn has(&self, name: &SnapshotName) -> bool {
        self.find(name).is_some()
    }

    pub(super) fn find(&self, name: &SnapshotName) -> Option<&SnapshotInfo> {
        let mut snapshots = self.snapshots.iter();
        snapshots.find(|snapshot| snapshot.name == name.as_str())
    }
}

/// `SNAPSHOT_ALREADY_EXISTS` if any disk has one of this name.
pub(super) fn refuse_taken(listed: &[Listed], name: &SnapshotName) -> Result<(), ImageError> {
    match listed.iter().find(|listed| listed.has(name)) {
        None => Ok(()),
        Some(listed) => Err(ImageError::SnapshotAlreadyExists {
            path: listed.disk.path.clone(),
            name: name.as_str().to_owned(),
        }),
    }
}

/// `SNAPSHOT_NOT_FOUND` unless every disk has it.
pub(super) fn require(listed: &[Listed], name: &SnapshotName) -> Result<(), ImageError> {
    match listed.iter().find(|listed| !listed.has(name)) {
        None => Ok(()),
        Some(listed) => Err(ImageError::SnapshotNotFound {
            path: listed.disk.path.clone(),
            name: name.as_str().to_owned(),
        }),
    }
}

/// Oldest first; of one moment, by name.
pub(super) fn gather(listed: &[Listed], notes: &Notes) -> Vec<Snapshot> {
    let mut gathered: Vec<Snapshot> = Vec::new();
    for Listed { disk, snapshots } in listed {
        for snapshot in snapshots {
            match gathered.iter_mut().find(|one| one.name == snapshot.name) {
                Some(known) => known.also_on(disk, snapshot),
                None => gathered.push(Snapshot::first_on(disk, snapshot, notes)),
            }
        }
    }
    for snapshot in &mut gathered {
        snapshot.complete = snapshot.disks.len() == listed.len();
    }
    gathered.sort_by(|a, b| (&a.date, &a.name).cmp(&(&b.date, &b.name)));
    gathered
}

impl Snapshot {
    fn first_on(disk: &Disk, found: &SnapshotInfo, notes: &Notes) -> Self {
        let note = notes.get(&found.name);
        Self {
            name: found.name.clone(),
            description: note.and_then(|note| note.description.clone()),
            date: found.date.clone(),
            memory: found.vm_state_size.as_bytes() > 0,
            vm_size: found.vm_state_size,
            vm_clock: found.vm_clock.clone(),
            complete: false,
            disks: vec![disk.path.clone()],
        }
    }

    fn also_on(&mut self, disk: &Disk, found: &SnapshotInfo) {
        // An image may have two of one name, made by others.
        if self.disks.contains(&disk.path) {
            return;
        }
        self.disks.push(disk.path.clone());
        self.vm_size = self.vm_size.max(found.vm_state_size);
        self.memory |= found.vm_state_size.as_bytes() > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::notes::Note;
    use super::*;

    fn listed(index: usize, snapshots: &[(&str, &str, u64)]) -> Listed {
        let info = |&(name, date, bytes): &(&str, &str, u64)| SnapshotInfo {
            id: "1".to_owned(),
            name: name.to_owned(),
            vm_state_size: ByteSize::bytes(bytes),
            date: date.to_owned(),
            vm_clock: "00:00:01.000".to_owned(),
        };
        Listed {
            disk: Disk {
                index,
                path: HostPath::parse(format!("/srv/{index}.qcow2")).unwrap(),
                format: DiskFormat::Qcow2,
                key: None,
            },
            snapshots: snapshots.iter().map(info).collect(),
        }
    }

    #[test]
    fn one_list_out_of_two_disks() {
        let disks = [
            listed(0, &[("later", "2026-02", 0), ("first", "2026-01", 0)]),
            listed(1, &[("first", "2026-01", 4096), ("half", "2026-03", 0)]),
        ];
        let note = Note {
            description: Some("before the update".to_owned()),
            hardware: Vec::new(),
        };
        let notes = Notes::from_iter([("first".to_owned(), note)]);
        let gathered = gather(&disks, &notes);
        let told: Vec<_> = gathered
            .iter()
            .map(|one| (one.name.as_str(), one.complete, one.memory, one.disks.len()))
            .collect();
        let expected = [
            ("first", true, true, 2),
            ("later", false, false, 1),
            ("half", false, false, 1),
        ];
        assert_eq!(told, expected);
        assert_eq!(gathered[0].vm_size, ByteSize::bytes(4096));
        assert_eq!(
            gathered[0].description.as_deref(),
            Some("before the update")
        );
        assert_eq!(gathered[1].description, None);
    }

    #[test]
    fn a_name_is_taken_by_any_disk_and_found_on_all() {
        let name = SnapshotName::parse("s").unwrap();
        let (with, without) = (|at| listed(at, &[("s", "2026", 0)]), |at| listed(at, &[]));
        assert!(refuse_taken(&[without(0), without(1)], &name).is_ok());
        assert!(refuse_taken(&[without(0), with(1)], &name).is_err());
        assert!(require(&[with(0), with(1)], &name).is_ok());
        assert!(require(&[with(0), without(1)], &name).is_err());
    }
}
