//! Frontends of disks and CDs, and the controllers they hang on.

use serde::Serialize;

use super::acquired::EncryptedDisk;
use super::args::{Device, ToArgs};
use super::blockdev::{Blockdev, Encrypted, node_of};
use super::network_disk::TlsCredentials;
use super::pci::{PciPlace, Seat};
use super::secret::{Secret, key_of};
use crate::config::{DiskBus, DiskConfig, MachineType, VmConfig};
use crate::types::HostPath;

/// `virtio-blk-pci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "virtio-blk-pci")]
struct VirtioBlkPci {
    #[serde(flatten)]
    frontend: Frontend,
    #[serde(flatten)]
    place: PciPlace,
}

/// `scsi-hd` on [`VirtioScsiPci`].
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "scsi-hd")]
struct ScsiHd {
    #[serde(flatten)]
    frontend: Frontend,
    bus: &'static str,
    #[serde(rename = "scsi-id")]
    scsi_id: usize,
}

/// `ide-hd`, on PIIX or AHCI.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "ide-hd")]
struct IdeHd {
    #[serde(flatten)]
    frontend: Frontend,
    #[serde(flatten)]
    port: AtaPort,
}

/// `ide-cd`. A CD is always ATA: every guest's installer can read that.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "ide-cd")]
struct IdeCd {
    id: String,
    drive: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootindex: Option<usize>,
    #[serde(flatten)]
    port: AtaPort,
}

/// `virtio-scsi-pci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "virtio-scsi-pci")]
struct VirtioScsiPci {
    id: &'static str,
    #[serde(flatten)]
    place: PciPlace,
}

/// `ich9-ahci`, beside the one q35 has built in.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "ich9-ahci")]
struct Ich9Ahci {
    id: String,
    #[serde(flatten)]
    place: PciPlace,
}

impl Device for VirtioBlkPci {}
impl Device for ScsiHd {}
impl Device for IdeHd {}
impl Device for IdeCd {}
impl Device for VirtioScsiPci {}
impl Device for Ich9Ahci {}

/// What every disk frontend has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Frontend {
    id: String,
    /// The block node.
    drive: String,
    bootindex: usize,
    write_cache: &'static str,
    werror: &'static str,
    rerror: &'static str,
}

/// What QEMU does when the host fails a request: the guest stands still, and the request is made again when it goes
/// on. A guest that is told of the error instead gives its file system up, though the storage may be back
/// in a minute.
const ON_ERROR: &str = "stop";

/// A place on an ATA bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct AtaPort {
    bus: String,
    unit: usize,
}

/// Hands out ATA places, in order.
///
/// q35 has six AHCI ports built in (`ide.0` to `ide.5`); `pc` has four PIIX places and no AHCI.
/// Whatever does not fit there hangs on AHCI controllers added for it.
#[derive(Debug)]
struct Ata {
    machine: MachineType,
    built_in: usize,
    added: usize,
}

const AHCI_PORTS: usize = 6;
const PIIX_PLACES: usize = 4;

impl Ata {
    fn new(machine: MachineType) -> Self {
        Self {
            machine,
            built_in: 0,
            added: 0,
        }
    }

    fn disk(&mut self, bus: DiskBus) -> AtaPort {
        match (self.machine, bus) {
            (MachineType::Pc, DiskBus::Sata) => self.added(),
            _ => self.first_free(),
        }
    }

    fn first_free(&mut self) -> AtaPort {
        let at = self.built_in;
        let (places, port) = match self.machine {
            MachineType::Q35 => (AHCI_PORTS, AtaPort::new("ide", at, 0)),
            MachineType::Pc => (PIIX_PLACES, AtaPort::new("ide", at / 2, at % 2)),
        };
        if at == places {
            return self.added();
        }
        self.built_in += 1;
        port
    }

    fn added(&mut self) -> AtaPort {
        let at = self.added;
        self.added += 1;
        AtaPort::new(&format!("ahci{}", at / AHCI_PORTS), at % AHCI_PORTS, 0)
    }

    fn controllers(&self) -> impl Iterator<Item = Ich9Ahci> {
        let machine = self.machine;
        (0..self.added.div_ceil(AHCI_PORTS)).map(move |index| Ich9Ahci {
            id: format!("ahci{index}"),
            place: PciPlace::shared(machine, Seat::Ahci, index),
        })
    }
}

impl AtaPort {
    fn new(controller: &str, bus: usize, unit: usize) -> Self {
        Self {
            bus: format!("{controller}.{bus}"),
            unit,
        }
    }
}

/// The arguments of all disks and CDs, controllers first.
pub(super) fn drives(config: &VmConfig, encrypted: &[EncryptedDisk]) -> Vec<String> {
    let machine = config.machine;
    let mut ata = Ata::new(machine);
    let mut drives = Vec::new();
    for (index, disk) in config.disks.iter().enumerate() {
        let encrypted = encrypted.iter().find(|of| of.index == index);
        drives.extend(disk_args(machine, index, disk, encrypted, &mut ata));
    }
    // The installer boots when disk 0 does not; nobody boots from the drivers.
    if let Some(iso) = &config.installer_iso {
        drives.extend(cd_args("cdrom0", iso, Some(INSTALLER_BOOTINDEX), &mut ata));
    }
    if let Some(iso) = &config.drivers_iso {
        drives.extend(cd_args("cdrom1", iso, None, &mut ata));
    }
    let mut args: Vec<String> = ata.controllers().flat_map(|ahci| ahci.to_args()).collect();
    if config.disks.iter().any(|disk| disk.bus == DiskBus::Scsi) {
        let place = PciPlace::of(machine, Seat::Scsi);
        args.extend(VirtioScsiPci { id: "scsi0", place }.to_args());
    }
    args.extend(drives);
    args
}

const INSTALLER_BOOTINDEX: usize = 2;

/// Disk 0, then the installer, then the other disks.
fn bootindex(index: usize) -> usize {
    match index {
        0 => 1,
        _ => INSTALLER_BOOTINDEX + index,
    }
}

fn disk_args(
    machine: MachineType,
    index: usize,
    disk: &DiskConfig,
    encrypted: Option<&EncryptedDisk>,
    ata: &mut Ata,
) -> Vec<String> {
    let id = node_of(index);
    let key = encrypted.map(|disk| Secret::of_disk(index, disk.key));
    let mut args: Vec<String> = key.iter().flat_map(ToArgs::to_args).collect();
    let tls = TlsCredentials::of(&id, &disk.location);
    args.extend(tls.map(|tls| tls.to_args()).unwrap_or_default());
    let opened = encrypted.map(|disk| Encrypted {
        key_secret: key_of(index),
        below: &disk.below,
    });
    args.extend(Blockdev::disk(id.clone(), disk, opened).to_args());
    let frontend = Frontend {
        drive: id.clone(),
        id,
        bootindex: bootindex(index),
        write_cache: if disk.cache.has_write_cache() {
            "on"
        } else {
            "off"
        },
        werror: ON_ERROR,
        rerror: ON_ERROR,
    };
    args.extend(match disk.bus {
        DiskBus::Virtio => {
            let place = PciPlace::disk(machine, index);
            VirtioBlkPci { frontend, place }.to_args()
        }
        DiskBus::Scsi => {
            let (bus, scsi_id) = ("scsi0.0", index);
            ScsiHd {
                frontend,
                bus,
                scsi_id,
            }
            .to_args()
        }
        DiskBus::Sata | DiskBus::Ide => {
            let port = ata.disk(disk.bus);
            IdeHd { frontend, port }.to_args()
        }
    });
    args
}

fn cd_args(id: &str, iso: &HostPath, bootindex: Option<usize>, ata: &mut Ata) -> Vec<String> {
    let mut args = Blockdev::raw(id.to_owned(), iso.as_str(), true).to_args();
    let cd = IdeCd {
        id: id.to_owned(),
        drive: id.to_owned(),
        bootindex,
        port: ata.first_free(),
    };
    args.extend(cd.to_args());
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ata_places_are_given_once_and_overflow_to_ahci() {
        let places = |machine, bus, count| -> Vec<String> {
            let mut ata = Ata::new(machine);
            (0..count)
                .map(|_| ata.disk(bus))
                .map(|port| format!("{}/{}", port.bus, port.unit))
                .collect()
        };
        assert_eq!(
            places(MachineType::Pc, DiskBus::Ide, 5),
            ["ide.0/0", "ide.0/1", "ide.1/0", "ide.1/1", "ahci0.0/0"]
        );
        assert_eq!(places(MachineType::Pc, DiskBus::Sata, 7)[6], "ahci1.0/0");
        assert_eq!(
            places(MachineType::Q35, DiskBus::Ide, 7)[5..],
            ["ide.5/0", "ahci0.0/0"]
        );
    }
}
