//! USB devices.

use serde::Serialize;

use super::args::{Device, ToArgs};
use super::pci::{PciPlace, Seat};
use crate::config::MachineType;

/// `qemu-xhci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "qemu-xhci")]
struct QemuXhci {
    id: &'static str,
    #[serde(flatten)]
    place: PciPlace,
}

/// `usb-tablet`: an absolute pointing device.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "usb-tablet")]
struct UsbTablet {
    id: &'static str,
    bus: &'static str,
}

impl Device for QemuXhci {}
impl Device for UsbTablet {}

/// A tablet on a controller of its own.
pub(super) fn tablet(machine: MachineType) -> Vec<String> {
    let controller = QemuXhci {
        id: "usb",
        place: PciPlace::of(machine, Seat::Usb),
    };
    let tablet = UsbTablet {
        id: "tablet0",
        bus: "usb.0",
    };
    [controller.to_args(), tablet.to_args()].concat()
}
