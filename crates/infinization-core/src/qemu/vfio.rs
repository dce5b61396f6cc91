//! A PCI function of the host, handed to the guest.

use serde::Serialize;

use super::args::{Device, ToArgs};
use super::pci::{PciPlace, PcieRootPort, Seat};
use crate::config::{GpuConfig, MachineType};
use crate::types::PciAddress;

/// `vfio-pci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "vfio-pci")]
struct VfioPci<'a> {
    id: &'static str,
    host: PciAddress,
    #[serde(skip_serializing_if = "Option::is_none")]
    romfile: Option<&'a str>,
    #[serde(flatten)]
    place: PciPlace,
}

impl Device for VfioPci<'_> {}

/// The card; on q35 behind a root port of its own, because some drivers refuse to work elsewhere.
pub(super) fn gpu(machine: MachineType, gpu: &GpuConfig) -> Vec<String> {
    let port = match machine {
        MachineType::Q35 => Some(PcieRootPort::gpu(machine)),
        MachineType::Pc => None,
    };
    let card = VfioPci {
        id: "gpu0",
        host: gpu.address,
        romfile: gpu.romfile.as_ref().map(AsRef::as_ref),
        place: port
            .as_ref()
            .map_or_else(|| PciPlace::of(machine, Seat::Gpu), PciPlace::behind),
    };
    let port = port.map(|port| port.to_args()).unwrap_or_default();
    [port, card.to_args()].concat()
}
