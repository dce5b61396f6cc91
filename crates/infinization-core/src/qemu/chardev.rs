//! Character devices: the monitor, the channels into the guest, the serial port.
//!
//! We bind and listen, QEMU gets the listening descriptor: the socket is there before QEMU is, and a
//! client that connects at once is answered as soon as QEMU runs.

use std::os::fd::RawFd;

use serde::Serialize;

use super::args::{Device, Opts, ToArgs};
use super::pci::{PciPlace, Seat};
use super::{ChannelListeners, SerialConsole};
use crate::config::MachineType;
use crate::types::HostPath;

/// `-chardev socket` of a listening socket.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    pub(super) id: &'static str,
    pub(super) fd: RawFd,
    pub(super) logfile: Option<&'a HostPath>,
}

impl ToArgs for Listener<'_> {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-chardev")
            .head("socket")
            .with("id", self.id)
            .with("fd", self.fd)
            .on_off("server", true)
            .on_off("wait", false)
            .with_some("logfile", self.logfile)
            .with_some("logappend", self.logfile.map(|_| "on"))
            .args()
    }
}

/// `-chardev socket` that connects to `path`.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    pub(super) id: &'static str,
    pub(super) path: &'a HostPath,
}

impl ToArgs for Connection<'_> {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-chardev")
            .head("socket")
            .with("id", self.id)
            .with("path", self.path)
            .args()
    }
}

/// `-chardev spicevmc`: the SPICE client's agent channel.
#[derive(Debug)]
struct Spicevmc {
    id: &'static str,
    name: &'static str,
}

impl ToArgs for Spicevmc {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-chardev")
            .head("spicevmc")
            .with("id", self.id)
            .with("name", self.name)
            .args()
    }
}

/// `-mon` in QMP mode.
#[derive(Debug)]
struct Mon {
    chardev: &'static str,
}

impl ToArgs for Mon {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-mon")
            .with("chardev", self.chardev)
            .with("mode", "control")
            .args()
    }
}

/// `virtio-serial-pci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "virtio-serial-pci")]
struct VirtioSerialPci {
    id: &'static str,
    #[serde(flatten)]
    place: PciPlace,
}

/// `virtserialport`. `nr` is fixed, so that a channel keeps its number whichever others there are.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "virtserialport")]
struct Virtserialport {
    id: &'static str,
    bus: &'static str,
    nr: u32,
    chardev: &'static str,
    name: &'static str,
}

/// `isa-serial`: ttyS0, COM1.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "isa-serial")]
struct IsaSerial {
    id: &'static str,
    chardev: &'static str,
}

impl Device for VirtioSerialPci {}
impl Device for Virtserialport {}
impl Device for IsaSerial {}

/// The monitor on listening socket `fd`.
pub(super) fn monitor(fd: RawFd) -> Vec<String> {
    let listener = Listener {
        id: "qmp0",
        fd,
        logfile: None,
    };
    [listener.to_args(), Mon { chardev: "qmp0" }.to_args()].concat()
}

/// The first serial port.
pub(super) fn serial(console: &SerialConsole) -> Vec<String> {
    let listener = Listener {
        id: "serial0",
        fd: console.listener,
        logfile: Some(&console.log),
    };
    let port = IsaSerial {
        id: "ttyS0",
        chardev: "serial0",
    };
    [listener.to_args(), port.to_args()].concat()
}

/// The virtio channels. The SPICE agent has one only where the guest agent has none: both move the
/// pointer and the clipboard of one session, and the contract gives the guest agent precedence.
pub(super) fn channels(
    machine: MachineType,
    listeners: &ChannelListeners,
    spice: bool,
) -> Vec<String> {
    let mut ports = Vec::new();
    if let Some(fd) = listeners.guest_agent {
        ports.extend(channel("guest-agent0", 1, fd, "org.qemu.guest_agent.0"));
    }
    if let Some(fd) = listeners.infini_service {
        ports.extend(channel("infini-service0", 2, fd, "org.infinibay.agent"));
    }
    if spice && listeners.guest_agent.is_none() {
        let backend = Spicevmc {
            id: "vdagent0",
            name: "vdagent",
        };
        ports.extend(backend.to_args());
        ports.extend(port("vdagent0", 3, "com.redhat.spice.0").to_args());
    }
    if ports.is_empty() {
        return ports;
    }
    let controller = VirtioSerialPci {
        id: "virtio-serial0",
        place: PciPlace::of(machine, Seat::Channels),
    };
    [controller.to_args(), ports].concat()
}

fn channel(id: &'static str, nr: u32, fd: RawFd, name: &'static str) -> Vec<String> {
    let listener = Listener {
        id,
        fd,
        logfile: None,
    };
    [listener.to_args(), port(id, nr, name).to_args()].concat()
}

fn port(id: &'static str, nr: u32, name: &'static str) -> Virtserialport {
    Virtserialport {
        id,
        bus: "virtio-serial0.0",
        nr,
        chardev: id,
        name,
    }
}
