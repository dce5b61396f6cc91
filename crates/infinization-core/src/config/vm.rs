//! A whole configuration, every member of it checked: what planner and command line are made from.

use serde::{Deserialize, Serialize};

use super::{
    AcceleratorChoice, CpuConfig, DiskConfig, DiskDefaults, DisplayConfig, FirmwareConfig, GuestOs,
    GuestUuid, MachineType, NetworkConfig, RunAsUser,
};
use crate::types::{
    ByteSize, FirewallDefaultAction, FirewallRuleInput, HostPath, InternalName, PciAddress, VmId,
};

/// Everything about one VM that does not change while it runs. Holds only checked values.
///
/// Its serde form is the spec file kept beside the VM; the display password is not part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmConfig {
    /// The machine's id in the user's database.
    pub id: VmId,
    /// The name people gave it. It never reaches an argv.
    pub name: String,
    /// The name its disks, sockets and process carry.
    pub internal_name: InternalName,
    /// The guest's operating system in the user's words; [`VmConfig::guest_os`] understands it.
    pub os: String,
    /// SMBIOS system UUID. Without one QEMU gives none.
    pub uuid: Option<GuestUuid>,
    /// How the guest's instructions may be run.
    pub accelerator: AcceleratorChoice,
    /// Chipset.
    pub machine: MachineType,
    /// Virtual CPUs and where they may run.
    pub cpu: CpuConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// Disk 0 is the one it boots from. Never empty.
    pub disks: Vec<DiskConfig>,
    /// What a disk gets that names no bus or cache of its own: the row's `diskBus` and
    /// `diskCacheMode`.
    pub disk_defaults: DiskDefaults,
    /// Installer CD. It belongs to the run that `createVM` starts: later starts have none, because
    /// by then the file may be gone.
    pub installer_iso: Option<HostPath>,
    /// A second CD, in practice the virtio drivers for Windows.
    pub drivers_iso: Option<HostPath>,
    /// The one network card.
    pub network: NetworkConfig,
    /// SPICE or VNC.
    pub display: DisplayConfig,
    /// UEFI; `None` is BIOS.
    pub firmware: Option<FirmwareConfig>,
    /// Control socket of a running swtpm.
    pub tpm_socket: Option<HostPath>,
    /// Sockets into the guest.
    pub channels: ChannelsConfig,
    /// A PCI function handed to the guest.
    pub gpu: Option<GpuConfig>,
    /// A sound card, heard over SPICE (silent over VNC).
    pub audio: bool,
    /// An absolute pointing device, so that a console's pointer follows the mouse.
    pub usb_tablet: bool,
    /// Whom QEMU runs as; `None` keeps our own uid.
    pub run_as_user: Option<RunAsUser>,
    /// Whether QEMU's seccomp filter is on.
    pub sandbox: bool,
    /// What the firewall is told beside the database's rules.
    pub firewall: FirewallConfig,
    /// Where its run-time files go.
    pub paths: VmPaths,
}

impl VmConfig {
    /// Which family of guests `os` names.
    pub fn guest_os(&self) -> GuestOs {
        GuestOs::detect(&self.os)
    }
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryConfig {
    /// Whole MiB.
    pub size: ByteSize,
    /// Backed by huge pages, all taken at start; without enough of them QEMU does not start.
    pub hugepages: bool,
    /// A balloon device, so that memory can be taken back at run time.
    pub balloon: bool,
}

/// Unix sockets on the host that end in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelsConfig {
    /// `org.qemu.guest_agent.0`.
    pub guest_agent: Option<HostPath>,
    /// `org.infinibay.agent`.
    pub infini_service: Option<HostPath>,
    /// The first serial port.
    pub serial_console: Option<HostPath>,
}

/// A PCI function handed to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuConfig {
    /// Its address on the host.
    pub address: PciAddress,
    /// A video BIOS image to use instead of the card's own; inside the ROM directory.
    pub romfile: Option<HostPath>,
}

/// What the firewall is told beside the database's rules.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirewallConfig {
    /// Overrules the department's policy for packets no rule decides.
    pub default_action: Option<FirewallDefaultAction>,
    /// The VM's own rules, for the embedded store only.
    pub rules: Vec<FirewallRuleInput>,
}

/// Where a VM's run-time files go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmPaths {
    /// `{qmpSocketDir}/{internalName}.sock`.
    pub qmp_socket: HostPath,
    /// `{pidfileDir}/{internalName}.pid`, written and removed by us.
    pub pid_file: HostPath,
}
