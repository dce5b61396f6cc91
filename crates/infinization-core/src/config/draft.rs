//! A VM whose fields are checked one by one, before they are checked against each other.
//!
//! Both doors ([`super::create`], [`super::stored`]) fill a [`Draft`]; [`super::resolve`] makes a
//! [`super::VmConfig`] of it.

use super::{
    AcceleratorChoice, BindAddress, CacheMode, CpuModel, DiskBus, DiskConfig, DiskDefaults,
    DiskFormat, DiskLocation, DisplayProtocol, FirewallConfig, GuestUuid, MachineAddresses,
    MachineType, NetworkModel, PinningStrategy, RunAsUser, VmConfig,
};
use crate::types::{
    ByteSize, DiskKey, HostPath, InternalName, LinkName, MacAddr, PciAddress, Secret, VmId,
};

/// `None` is what the user left to us, or what was refused and is in the report.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the public API"
)]
pub(super) struct Draft {
    pub(super) id: Option<VmId>,
    pub(super) name: Option<String>,
    pub(super) internal_name: Option<InternalName>,
    pub(super) os: Option<String>,
    pub(super) uuid: Option<GuestUuid>,
    pub(super) accelerator: Option<AcceleratorChoice>,
    pub(super) machine: Option<MachineType>,
    pub(super) cores: Option<u32>,
    pub(super) cpu_model: Option<CpuModel>,
    pub(super) pinned_to: Option<Vec<u32>>,
    pub(super) numa_pinning: bool,
    pub(super) pinning_strategy: Option<PinningStrategy>,
    pub(super) ram: Option<ByteSize>,
    pub(super) hugepages: bool,
    pub(super) balloon: bool,
    pub(super) disks: Vec<DraftDisk>,
    pub(super) disk_bus: Option<DiskBus>,
    pub(super) cache: Option<CacheMode>,
    pub(super) installer_iso: Option<HostPath>,
    pub(super) drivers_iso: Option<HostPath>,
    pub(super) bridge: Option<LinkName>,
    pub(super) mac: Option<MacAddr>,
    pub(super) network_model: Option<NetworkModel>,
    pub(super) queues: Option<i64>,
    pub(super) addresses: MachineAddresses,
    pub(super) protocol: Option<DisplayProtocol>,
    pub(super) port: Option<i64>,
    pub(super) address: Option<BindAddress>,
    pub(super) password: Option<Secret>,
    pub(super) uefi: Option<HostPath>,
    pub(super) tpm_socket: Option<HostPath>,
    pub(super) guest_agent: Option<HostPath>,
    pub(super) infini_service: Option<HostPath>,
    pub(super) serial_console: bool,
    pub(super) gpu: Option<PciAddress>,
    pub(super) romfile: Option<HostPath>,
    pub(super) audio: bool,
    pub(super) usb_tablet: Option<bool>,
    pub(super) run_as_user: Option<RunAsUser>,
    pub(super) sandbox: bool,
    pub(super) firewall: FirewallConfig,
}

/// One disk of a [`Draft`].
#[derive(Debug, Default)]
pub(super) struct DraftDisk {
    /// Where a stored disk is, and one on the network; a new file gets the contract's path.
    pub(super) location: Option<DiskLocation>,
    pub(super) format: Option<DiskFormat>,
    pub(super) size: Option<ByteSize>,
    pub(super) bus: Option<DiskBus>,
    pub(super) cache: Option<CacheMode>,
    pub(super) discard: Option<bool>,
    pub(super) backing_file: Option<HostPath>,
    pub(super) key: Option<DiskKey>,
}

impl Draft {
    /// What the spec file of an earlier run says: everything except what belongs to that run
    /// alone (the installer CD, the lifted sandbox) and the password, which it does not hold.
    pub(super) fn from_spec(spec: &VmConfig) -> Self {
        let spec = spec.clone();
        let defaults = spec.disk_defaults;
        let disks = spec.disks.into_iter();
        Self {
            id: Some(spec.id),
            name: Some(spec.name),
            internal_name: Some(spec.internal_name),
            os: Some(spec.os),
            uuid: spec.uuid,
            accelerator: Some(spec.accelerator),
            machine: Some(spec.machine),
            cores: Some(spec.cpu.cores),
            cpu_model: Some(spec.cpu.model),
            pinned_to: spec.cpu.pinned_to,
            numa_pinning: spec.cpu.numa_pinning,
            pinning_strategy: Some(spec.cpu.pinning_strategy),
            ram: Some(spec.memory.size),
            hugepages: spec.memory.hugepages,
            balloon: spec.memory.balloon,
            disks: disks
                .map(|disk| DraftDisk::from_spec(disk, defaults))
                .collect(),
            disk_bus: Some(defaults.bus),
            cache: Some(defaults.cache),
            installer_iso: None,
            drivers_iso: spec.drivers_iso,
            bridge: Some(spec.network.bridge),
            mac: Some(spec.network.mac),
            network_model: Some(spec.network.model),
            queues: Some(spec.network.queues.into()),
            addresses: spec.network.addresses,
            protocol: Some(spec.display.protocol),
            port: Some(spec.display.port.into()),
            address: Some(spec.display.address),
            password: None,
            uefi: spec.firmware.map(|firmware| firmware.code),
            tpm_socket: spec.tpm_socket,
            guest_agent: spec.channels.guest_agent,
            infini_service: spec.channels.infini_service,
            serial_console: spec.channels.serial_console.is_some(),
            gpu: spec.gpu.as_ref().map(|gpu| gpu.address),
            romfile: spec.gpu.and_then(|gpu| gpu.romfile),
            audio: spec.audio,
            usb_tablet: Some(spec.usb_tablet),
            run_as_user: spec.run_as_user,
            sandbox: true,
            firewall: spec.firewall,
        }
    }
}

impl DraftDisk {
    /// A disk's own bus and cache stay its own; what it had from the VM follows the VM.
    fn from_spec(disk: DiskConfig, defaults: DiskDefaults) -> Self {
        Self {
            location: Some(disk.location),
            format: Some(disk.format),
            size: disk.size,
            bus: Some(disk.bus).filter(|bus| *bus != defaults.bus),
            cache: Some(disk.cache).filter(|cache| *cache != defaults.cache),
            discard: Some(disk.discard),
            backing_file: disk.backing_file,
            key: None,
        }
    }
}
