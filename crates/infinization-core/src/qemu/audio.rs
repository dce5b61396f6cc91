//! Sound.

use serde::Serialize;

use super::args::{Device, ToArgs, json};
use super::pci::{PciPlace, Seat};
use crate::config::{DisplayProtocol, MachineType};

/// `-audiodev`.
#[derive(Debug, Serialize)]
struct Audiodev {
    driver: &'static str,
    id: &'static str,
}

impl ToArgs for Audiodev {
    fn to_args(&self) -> Vec<String> {
        json("-audiodev", self)
    }
}

/// `intel-hda`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "intel-hda")]
struct IntelHda {
    id: &'static str,
    #[serde(flatten)]
    place: PciPlace,
}

/// `hda-duplex`: line out and line in.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "hda-duplex")]
struct HdaDuplex {
    id: &'static str,
    bus: &'static str,
    audiodev: &'static str,
}

impl Device for IntelHda {}
impl Device for HdaDuplex {}

/// A sound card that plays to the SPICE client. Without SPICE there is nobody to play to: the
/// `spice` backend would not start, `none` does.
pub(super) fn audio(machine: MachineType, protocol: DisplayProtocol) -> Vec<String> {
    let backend = Audiodev {
        driver: match protocol {
            DisplayProtocol::Spice => "spice",
            DisplayProtocol::Vnc => "none",
        },
        id: "audio0",
    };
    let controller = IntelHda {
        id: "sound0",
        place: PciPlace::of(machine, Seat::Audio),
    };
    let codec = HdaDuplex {
        id: "sound0-codec0",
        bus: "sound0.0",
        audiodev: "audio0",
    };
    [backend.to_args(), controller.to_args(), codec.to_args()].concat()
}
