//! What must be there before a command line can be written: descriptors, ports, files, the accelerator.

use std::os::fd::RawFd;

use crate::config::BindAddress;
use crate::types::HostPath;

/// What was acquired on the host for one run of a VM, as far as the command line needs it.
///
/// Descriptors are the numbers QEMU will see. What is `None` or empty here is left out of the
/// command line, whatever the configuration asks for: the plan has acquired or refused it before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquired {
    /// The accelerator that was found to work.
    pub accelerator: Accelerator,
    /// Where the console really listens.
    pub display: DisplayEndpoint,
    /// The monitor's listening socket.
    pub qmp: RawFd,
    /// One descriptor of the TAP per queue pair; empty is a VM without network.
    pub tap: Vec<RawFd>,
    /// One descriptor of `/dev/vhost-net` per queue pair; empty when the host has no vhost. Never
    /// left to QEMU to open: 7.2 aborts on an assertion when it cannot.
    pub vhost: Vec<RawFd>,
    /// Listening sockets of the channels into the guest.
    pub channels: ChannelListeners,
    /// UEFI variables exist and both files may be opened.
    pub firmware: Option<FirmwareFiles>,
    /// The control socket of a running swtpm.
    pub tpm_socket: Option<HostPath>,
    /// The encrypted disks.
    pub encrypted_disks: Vec<EncryptedDisk>,
    /// Host NUMA nodes guest memory is bound to; empty is any.
    pub host_nodes: Vec<u32>,
}

/// What opens an encrypted disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedDisk {
    /// Its place among the VM's disks.
    pub index: usize,
    /// A pipe with its key.
    pub key: RawFd,
    /// The encrypted files it lies on, nearest first. The same key opens them.
    pub below: Vec<HostPath>,
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// By the CPU.
    Kvm,
    /// By translation.
    Tcg,
}

impl Accelerator {
    /// QEMU's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Where the console really listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisplayEndpoint {
    /// The configured address, healed.
    pub address: BindAddress,
    /// The allocated port.
    pub port: u16,
}

/// Listening sockets of the channels into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelListeners {
    /// `org.qemu.guest_agent.0`.
    pub guest_agent: Option<RawFd>,
    /// `org.infinibay.agent`.
    pub infini_service: Option<RawFd>,
    /// The first serial port.
    pub serial_console: Option<SerialConsole>,
}

/// The first serial port: a socket for people, a file for later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialConsole {
    /// Its listening socket.
    pub listener: RawFd,
    /// Everything the guest writes is appended here too. QEMU opens it, so it must be writable by
    /// the user QEMU runs as.
    pub log: HostPath,
}

/// Files of the UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareFiles {
    /// Read-only code.
    pub code: HostPath,
    /// This VM's variables.
    pub vars: HostPath,
}
