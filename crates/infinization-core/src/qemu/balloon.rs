//! The memory balloon.

use serde::Serialize;

use super::args::Device;
use super::pci::{PciPlace, Seat};
use crate::config::MachineType;

/// `virtio-balloon-pci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "virtio-balloon-pci")]
pub(super) struct VirtioBalloonPci {
    id: &'static str,
    #[serde(flatten)]
    place: PciPlace,
}

impl Device for VirtioBalloonPci {}

impl VirtioBalloonPci {
    pub(super) fn new(machine: MachineType) -> Self {
        Self {
            id: "balloon0",
            place: PciPlace::of(machine, Seat::Balloon),
        }
    }
}
