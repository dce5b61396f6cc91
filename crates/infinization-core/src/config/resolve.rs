//! From a [`Draft`] to a [`VmConfig`]: defaults, presets, and the rules between fields.

mod console;
mod places;

use super::draft::{Draft, DraftDisk};
use super::fields::Report;
use super::{
    Context, CpuConfig, DiskBus, DiskConfig, DiskDefaults, DiskFormat, DiskLocation, GuestOs,
    MachineType, MemoryConfig, NetworkConfig, NetworkLocation, NetworkModel, PinningStrategy,
    Preset, VmConfig,
};
use crate::types::{ByteSize, HostPath, InternalName, VmNames};

/// Which door the draft came through. A stored VM exists already: its console's address may still
/// be healed, and it gets the channel every start has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Create,
    Stored,
}

/// More disks than this have no slot in the PCI layout (`qemu::pci`).
const MOST_DISKS: usize = 32;
/// Two channels with two places each.
const MOST_PIIX_DISKS: usize = 4;
const LEAST_MEMORY: ByteSize = ByteSize::mib(512);

/// Checks the draft's fields against each other and fills in what was left to us. `None` only when
/// the report names an issue.
pub(super) fn resolve(
    draft: Draft,
    door: Door,
    context: &Context,
    report: &Report,
) -> Option<VmConfig> {
    let os = draft.os.clone().unwrap_or_default();
    let rules = Rules {
        preset: GuestOs::detect(&os).preset(),
        door,
        context,
        report,
    };
    let disk_defaults = DiskDefaults {
        bus: draft.disk_bus.unwrap_or(rules.preset.bus),
        cache: draft.cache.unwrap_or(rules.preset.cache),
    };
    let machine = draft.machine.unwrap_or(MachineType::Q35);
    let name = draft.internal_name.clone();
    // Each of these reports on its own, so none may be skipped because an earlier one failed.
    let cpu = rules.cpu(&draft);
    let memory = rules.memory(&draft);
    let disks = rules.disks(&draft, disk_defaults, name.as_ref(), machine);
    let network = rules.network(&draft, cpu.as_ref().map(|cpu| cpu.cores));
    let display = rules.display(&draft);
    let firmware = rules.firmware(&draft, machine);
    let channels = rules.channels(&draft);
    let gpu = rules.gpu(&draft);
    let paths = name.as_ref().and_then(|name| rules.paths(name));
    rules.confine_isos(&draft);
    rules.sockets(&draft, &channels, paths.as_ref());
    Some(VmConfig {
        id: draft.id?,
        name: draft.name?,
        internal_name: name?,
        usb_tablet: draft
            .usb_tablet
            .unwrap_or_else(|| os.to_lowercase().contains("windows")),
        os,
        uuid: draft.uuid,
        accelerator: draft.accelerator.unwrap_or(context.accelerator),
        machine,
        cpu: cpu?,
        memory: memory?,
        disks: disks?,
        disk_defaults,
        installer_iso: draft.installer_iso,
        drivers_iso: draft.drivers_iso,
        network: network?,
        display: display?,
        firmware,
        tpm_socket: draft.tpm_socket,
        channels,
        gpu,
        audio: draft.audio,
        run_as_user: draft.run_as_user.or_else(|| context.run_as_user.clone()),
        sandbox: draft.sandbox,
        firewall: draft.firewall,
        paths: paths?,
    })
}

struct Rules<'a> {
    preset: Preset,
    door: Door,
    context: &'a Context,
    report: &'a Report,
}

impl Rules<'_> {
    fn cpu(&self, draft: &Draft) -> Option<CpuConfig> {
        let cores = draft.cores?;
        let host = self.context.host_cpus;
        if cores > host {
            let message = format!("is more than this host's {host} CPUs");
            self.report.warn("cpuCores", message);
        }
        if let Some(pins) = &draft.pinned_to {
            self.pins(pins);
        }
        Some(CpuConfig {
            cores,
            model: draft.cpu_model.clone().unwrap_or_default(),
            pinned_to: draft.pinned_to.clone(),
            numa_pinning: draft.numa_pinning,
            pinning_strategy: draft.pinning_strategy.unwrap_or(PinningStrategy::Basic),
        })
    }

    fn pins(&self, pins: &[u32]) {
        let host = self.context.host_cpus;
        if pins.is_empty() {
            self.report
                .refuse("cpuPinning", "must name at least one CPU");
        }
        if pins.iter().any(|cpu| *cpu >= host) {
            let message = format!(
                "must name CPUs of this host, 0 to {}",
                host.saturating_sub(1)
            );
            self.report.refuse("cpuPinning", message);
        }
        let mut sorted = pins.to_vec();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            self.report
                .refuse("cpuPinning", "must not name a CPU twice");
        }
    }

    fn memory(&self, draft: &Draft) -> Option<MemoryConfig> {
        let size = draft.ram?;
        let Context {
            host_memory,
            hugepage_size,
            ..
        } = self.context;
        if size < LEAST_MEMORY {
            self.report.refuse("ramGB", "must be at least 0.5");
        }
        if size > *host_memory {
            let message = format!(
                "must not be more than this host's {} MiB",
                host_memory.as_mib()
            );
            self.report.refuse("ramGB", message);
        }
        if draft.hugepages
            && !size
                .as_bytes()
                .is_multiple_of(hugepage_size.as_bytes().max(1))
        {
            let message = format!("must be a multiple of this host's huge page, {hugepage_size}");
            self.report.refuse("ramGB", message);
        }
        Some(MemoryConfig {
            size,
            hugepages: draft.hugepages,
            balloon: draft.balloon,
        })
    }

    fn disks(
        &self,
        draft: &Draft,
        defaults: DiskDefaults,
        name: Option<&InternalName>,
        machine: MachineType,
    ) -> Option<Vec<DiskConfig>> {
        if draft.disks.len() > MOST_DISKS {
            let message = format!("must hold at most {MOST_DISKS} disks");
            self.report.refuse("disks", message);
        }
        let disks: Vec<DiskConfig> = draft
            .disks
            .iter()
            .enumerate()
            .filter_map(|(index, disk)| self.disk(disk, defaults, index, name?))
            .collect();
        let piix = disks.iter().filter(|disk| disk.bus == DiskBus::Ide).count();
        if machine == MachineType::Pc && piix > MOST_PIIX_DISKS {
            let message = format!("must hold at most {MOST_PIIX_DISKS} ide disks on a pc machine");
            self.report.refuse("disks", message);
        }
        self.refuse_shared_locations(&disks);
        (disks.len() == draft.disks.len()).then_some(disks)
    }

    fn disk(
        &self,
        disk: &DraftDisk,
        defaults: DiskDefaults,
        index: usize,
        name: &InternalName,
    ) -> Option<DiskConfig> {
        let (format, location) = self.image(disk, index, name)?;
        if let Some(backing) = &disk.backing_file {
            self.confine(&format!("disks[{index}].backingFile"), backing);
            if format == DiskFormat::Raw {
                let message = "must be qcow2 when there is a backingFile";
                self.report
                    .refuse(format!("disks[{index}].format"), message);
            }
        }
        if disk.key.is_some() && (format == DiskFormat::Raw || disk.backing_file.is_some()) {
            let message = "is for qcow2 disks without a backingFile";
            self.report
                .refuse(format!("disks[{index}].encryptionKey"), message);
        }
        Some(DiskConfig {
            location,
            format,
            size: disk.size,
            bus: disk.bus.unwrap_or(defaults.bus),
            cache: disk.cache.unwrap_or(defaults.cache),
            discard: disk.discard.unwrap_or(true),
            backing_file: disk.backing_file.clone(),
            key: disk.key.clone(),
        })
    }

    /// Of what is on the network no header can be looked at beforehand, and any but a raw one may name files.
    fn image(
        &self,
        disk: &DraftDisk,
        index: usize,
        name: &InternalName,
    ) -> Option<(DiskFormat, DiskLocation)> {
        let Some(DiskLocation::Network(location)) = &disk.location else {
            let format = disk.format.unwrap_or(DiskFormat::Qcow2);
            let path = match disk.location.as_ref().and_then(DiskLocation::path) {
                Some(path) => {
                    self.confine(&format!("disks[{index}].path"), path);
                    path.clone()
                }
                None => self.new_disk(name, index, format)?,
            };
            return Some((format, DiskLocation::File(path)));
        };
        if disk.format.is_some_and(|format| format != DiskFormat::Raw) {
            let message = "must be raw, as the disk is on the network";
            self.report
                .refuse(format!("disks[{index}].format"), message);
        }
        self.confine_location(&format!("disks[{index}].location"), location);
        Some((DiskFormat::Raw, DiskLocation::Network(location.clone())))
    }

    fn refuse_shared_locations(&self, disks: &[DiskConfig]) {
        let mut seen: Vec<&NetworkLocation> = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let Some(location) = disk.location.network() else {
                continue;
            };
            if seen.iter().any(|other| location.is_same_disk(other)) {
                let message = "must be one that no other disk has";
                self.report
                    .refuse(format!("disks[{index}].location"), message);
            }
            seen.push(location);
        }
    }

    fn new_disk(&self, name: &InternalName, index: usize, format: DiskFormat) -> Option<HostPath> {
        let path = DiskConfig::default_path(&self.context.disk_dir, name, index, format);
        self.report.check(format!("disks[{index}]"), path)
    }

    fn network(&self, draft: &Draft, cores: Option<u32>) -> Option<NetworkConfig> {
        let model = draft.network_model.unwrap_or(self.preset.network_model);
        let mac = match draft.mac {
            Some(mac) => mac,
            None => VmNames::of(draft.id.as_ref()?).mac,
        };
        let queues = self.queues(draft.queues, cores?, model);
        let bridge = draft.bridge.clone()?;
        Some(NetworkConfig {
            bridge,
            mac,
            model,
            queues,
            addresses: draft.addresses.clone(),
        })
    }

    /// The contract clamps the queues instead of refusing them; the user hears of it.
    fn queues(&self, given: Option<i64>, cores: u32, model: NetworkModel) -> u8 {
        let most = match model {
            NetworkModel::VirtioNetPci => NetworkConfig::MOST_QUEUES,
            NetworkModel::E1000 => 1,
        };
        let wanted = given.unwrap_or_else(|| i64::from(cores).min(most.into()));
        let queues = u8::try_from(wanted.clamp(1, most.into())).unwrap_or(most);
        if i64::from(queues) != wanted {
            let message = format!("is {queues}: {} has 1 to {most}", model.as_str());
            self.report.warn("networkQueues", message);
        }
        queues
    }
}
