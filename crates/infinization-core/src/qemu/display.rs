//! The console: SPICE with a QXL card, or VNC with a standard VGA.
//!
//! A password is never here: QEMU is told to want one, and gets it over the monitor
//! (`set_password`) before the guest runs. Until then nobody is let in.

use std::net::IpAddr;

use serde::Serialize;

use super::DisplayEndpoint;
use super::args::{Device, Opts, ToArgs};
use super::pci::{PciPlace, Seat};
use crate::config::{BindAddress, DisplayConfig, DisplayProtocol, MachineType};

/// `-spice`.
#[derive(Debug)]
pub(super) struct Spice<'a> {
    pub(super) port: u16,
    pub(super) addr: &'a BindAddress,
    /// Lets everybody in who can connect.
    pub(super) disable_ticketing: bool,
}

impl ToArgs for Spice<'_> {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-spice")
            .with("port", self.port)
            .with("addr", self.addr)
            .with_some("disable-ticketing", self.disable_ticketing.then_some("on"))
            .with("image-compression", "auto_glz")
            .with("jpeg-wan-compression", "auto")
            .with("zlib-glz-wan-compression", "auto")
            .with("streaming-video", "filter")
            .with("playback-compression", "on")
            .args()
    }
}

/// `-vnc`.
#[derive(Debug)]
pub(super) struct Vnc<'a> {
    pub(super) addr: &'a BindAddress,
    /// Display `n` is TCP port 5900 + `n`.
    pub(super) display: u16,
    pub(super) password: bool,
}

impl ToArgs for Vnc<'_> {
    fn to_args(&self) -> Vec<String> {
        let host = match self.addr {
            BindAddress::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            addr => addr.to_string(),
        };
        Opts::new("-vnc")
            .head(format_args!("{host}:{}", self.display))
            .with_some("password", self.password.then_some("on"))
            .args()
    }
}

/// `qxl-vga`: what SPICE draws best.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "qxl-vga")]
struct QxlVga {
    id: &'static str,
    vgamem_mb: u32,
    #[serde(flatten)]
    place: PciPlace,
}

/// `VGA`: the standard card.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "VGA")]
struct Vga {
    id: &'static str,
    #[serde(flatten)]
    place: PciPlace,
}

impl Device for QxlVga {}
impl Device for Vga {}

/// Enough for 2560x1600 in 32 bits.
const QXL_MIB: u32 = 16;

/// The arguments of the console and its graphics card.
pub(super) fn display(
    machine: MachineType,
    display: &DisplayConfig,
    endpoint: &DisplayEndpoint,
) -> Vec<String> {
    let has_password = display.password.is_some();
    let place = PciPlace::of(machine, Seat::Video);
    let id = "video0";
    let (console, card) = match display.protocol {
        DisplayProtocol::Spice => {
            let spice = Spice {
                port: endpoint.port,
                addr: &endpoint.address,
                disable_ticketing: !has_password,
            };
            let vgamem_mb = QXL_MIB;
            (
                spice.to_args(),
                QxlVga {
                    id,
                    vgamem_mb,
                    place,
                }
                .to_args(),
            )
        }
        DisplayProtocol::Vnc => {
            let vnc = Vnc {
                addr: &endpoint.address,
                display: endpoint.port.saturating_sub(DisplayConfig::FIRST_PORT),
                password: has_password,
            };
            (vnc.to_args(), Vga { id, place }.to_args())
        }
    };
    [console, card].concat()
}
