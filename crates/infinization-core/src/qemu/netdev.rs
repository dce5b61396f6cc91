//! The network card and its TAP.

use std::os::fd::RawFd;

use serde::Serialize;

use super::args::{Device, Opts, ToArgs, colon_list};
use super::pci::{PciPlace, Seat};
use crate::config::{MachineType, NetworkConfig, NetworkModel};
use crate::types::MacAddr;

/// `-netdev tap`, by descriptor: QEMU needs no right to open `/dev/net/tun` and cannot choose
/// another interface.
#[derive(Debug)]
pub(super) struct Tap<'a> {
    pub(super) id: &'static str,
    /// One descriptor per queue pair.
    pub(super) fds: &'a [RawFd],
    pub(super) vhostfds: &'a [RawFd],
}

impl ToArgs for Tap<'_> {
    fn to_args(&self) -> Vec<String> {
        let (fd, vhostfd) = match self.fds.len() {
            1 => ("fd", "vhostfd"),
            _ => ("fds", "vhostfds"),
        };
        let opts = Opts::new("-netdev")
            .head("tap")
            .with("id", self.id)
            .with(fd, colon_list(self.fds));
        match self.vhostfds {
            [] => opts.args(),
            vhost => opts
                .on_off("vhost", true)
                .with(vhostfd, colon_list(vhost))
                .args(),
        }
    }
}

/// `virtio-net-pci`.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "virtio-net-pci")]
struct VirtioNetPci {
    #[serde(flatten)]
    nic: Nic,
    #[serde(skip_serializing_if = "Option::is_none")]
    mq: Option<bool>,
    /// Two per queue pair, one for the configuration, one for the control queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    vectors: Option<usize>,
    #[serde(flatten)]
    place: PciPlace,
}

/// `e1000`, which has one queue and no word for it.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "e1000")]
struct E1000 {
    #[serde(flatten)]
    nic: Nic,
    #[serde(flatten)]
    place: PciPlace,
}

impl Device for VirtioNetPci {}
impl Device for E1000 {}

#[derive(Debug, Serialize)]
struct Nic {
    id: &'static str,
    netdev: &'static str,
    mac: MacAddr,
}

const NETDEV: &str = "hostnet0";

/// The arguments of the card on the TAP's `fds`; without any there is no card. vhost is for virtio.
pub(super) fn network(
    machine: MachineType,
    network: &NetworkConfig,
    fds: &[RawFd],
    vhost: &[RawFd],
) -> Vec<String> {
    if fds.is_empty() {
        return Vec::new();
    }
    let place = PciPlace::of(machine, Seat::Net);
    let nic = Nic {
        id: "net0",
        netdev: NETDEV,
        mac: network.mac,
    };
    let (vhostfds, device) = match network.model {
        NetworkModel::VirtioNetPci => {
            let mq = (fds.len() > 1).then_some(true);
            let vectors = mq.map(|_| 2 * fds.len() + 2);
            (
                vhost,
                VirtioNetPci {
                    nic,
                    mq,
                    vectors,
                    place,
                }
                .to_args(),
            )
        }
        NetworkModel::E1000 => (&[][..], E1000 { nic, place }.to_args()),
    };
    let tap = Tap {
        id: NETDEV,
        fds,
        vhostfds,
    };
    [tap.to_args(), device].concat()
}
