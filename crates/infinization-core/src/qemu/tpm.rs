//! A TPM 2.0 that swtpm emulates.

use serde::Serialize;

use super::args::{Device, Opts, ToArgs};
use super::chardev::Connection;
use crate::types::HostPath;

/// `-tpmdev emulator`.
#[derive(Debug)]
struct Emulator {
    id: &'static str,
    chardev: &'static str,
}

impl ToArgs for Emulator {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-tpmdev")
            .head("emulator")
            .with("id", self.id)
            .with("chardev", self.chardev)
            .args()
    }
}

/// `tpm-tis`: works with BIOS and UEFI on both chipsets, and is what guests made by earlier
/// releases have sealed their keys to.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "tpm-tis")]
struct TpmTis {
    id: &'static str,
    tpmdev: &'static str,
}

impl Device for TpmTis {}

/// The TPM whose control socket is at `socket`.
pub(super) fn tpm(socket: &HostPath) -> Vec<String> {
    let connection = Connection {
        id: "chrtpm",
        path: socket,
    };
    let emulator = Emulator {
        id: "tpmdev0",
        chardev: "chrtpm",
    };
    let device = TpmTis {
        id: "tpm0",
        tpmdev: "tpmdev0",
    };
    [connection.to_args(), emulator.to_args(), device.to_args()].concat()
}
