//! Where each device sits on the PCI bus.
//!
//! Addresses are fixed by what a device is, never by what else the VM has: switching sound off must
//! not move the network card, because guests name interfaces and bind drivers by address. Video and
//! network sit where QEMU itself would have put them as the first two devices.

use serde::Serialize;

use super::args::Device;
use crate::config::MachineType;

/// What sits in a slot; the number is its distance from the machine's first free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    Video = 0,
    Net = 1,
    Channels = 2,
    Balloon = 3,
    Usb = 4,
    Audio = 5,
    Scsi = 6,
    Ahci = 7,
    Gpu = 8,
    Hotplug = 9,
}

/// Disks start here, eight functions to a slot.
const FIRST_DISK_SLOT: usize = 0x10;

/// A device's place: properties every PCI device shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct PciPlace {
    bus: String,
    /// `slot.function` in hex.
    addr: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    multifunction: bool,
}

impl PciPlace {
    /// The slot of a kind of device there is one of.
    pub(super) fn of(machine: MachineType, seat: Seat) -> Self {
        Self::at(machine, slot(machine, seat), None)
    }

    /// Function `function` of a slot several devices share.
    pub(super) fn shared(machine: MachineType, seat: Seat, function: usize) -> Self {
        Self::at(machine, slot(machine, seat), Some(function))
    }

    /// The place of virtio disk `index`.
    pub(super) fn disk(machine: MachineType, index: usize) -> Self {
        Self::at(machine, FIRST_DISK_SLOT + index / 8, Some(index % 8))
    }

    /// The one place behind a root port.
    pub(super) fn behind(port: &PcieRootPort) -> Self {
        Self {
            bus: port.id.clone(),
            addr: "00.0".to_owned(),
            multifunction: false,
        }
    }

    fn at(machine: MachineType, slot: usize, function: Option<usize>) -> Self {
        Self {
            bus: root_bus(machine).to_owned(),
            addr: format!("{slot:02x}.{}", function.unwrap_or(0)),
            // Function 0 tells the guest that there may be others.
            multifunction: function == Some(0),
        }
    }
}

fn root_bus(machine: MachineType) -> &'static str {
    match machine {
        MachineType::Q35 => "pcie.0",
        MachineType::Pc => "pci.0",
    }
}

fn slot(machine: MachineType, seat: Seat) -> usize {
    // Slot 0 is the host bridge; on pc slot 1 is the PIIX3.
    let first = match machine {
        MachineType::Q35 => 1,
        MachineType::Pc => 2,
    };
    first + seat as usize
}

/// `pcie-root-port`: a slot devices can be plugged into while the VM runs, and the only kind of
/// slot a passed-through graphics card of every make works in.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "pcie-root-port")]
pub(super) struct PcieRootPort {
    id: String,
    /// Chassis and slot number name the port to the guest and must be its own.
    chassis: usize,
    #[serde(flatten)]
    place: PciPlace,
}

impl Device for PcieRootPort {}

/// Empty ports for devices plugged in later. q35 alone: the slots of a `pc` take devices as is.
const HOTPLUG_PORTS: usize = 4;

impl PcieRootPort {
    /// The empty ports.
    pub(super) fn hotplug(machine: MachineType) -> Vec<Self> {
        let count = match machine {
            MachineType::Q35 => HOTPLUG_PORTS,
            MachineType::Pc => 0,
        };
        (0..count)
            .map(|index| Self {
                id: format!("hotplug{index}"),
                chassis: index + 1,
                place: PciPlace::shared(machine, Seat::Hotplug, index),
            })
            .collect()
    }

    /// The port of the passed-through card.
    pub(super) fn gpu(machine: MachineType) -> Self {
        Self {
            id: "gpu-port".to_owned(),
            chassis: HOTPLUG_PORTS + 1,
            place: PciPlace::of(machine, Seat::Gpu),
        }
    }
}
