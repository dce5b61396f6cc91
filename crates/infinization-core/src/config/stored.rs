//! The second door: a machine's row, and the spec file that remembers what no column holds.

use super::draft::{Draft, DraftDisk};
use super::fields::{Report, within};
use super::resolve::{Door, resolve};
use super::{
    ConfigError, Context, CpuConfig, DiskFormat, DiskLocation, DisplayProtocol, Parsed, VmConfig,
};
use crate::types::{ByteSize, HostPath, InternalName, InvalidValue, LinkName, Secret, VmId};

/// The bridge of a machine whose row names none: libvirt's, as in the public contract.
const DEFAULT_BRIDGE: &str = "virbr0";

/// The columns of a machine and its configuration row, as the database holds them: unchecked.
///
/// Field names are the columns'. A `None` is a null or missing column.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct StoredColumns {
    pub id: VmId,
    /// Whether the machine has a configuration row at all.
    pub configured: bool,
    pub name: String,
    pub internal_name: String,
    pub os: String,
    pub cpu_cores: i64,
    pub ram_gb: f64,
    pub gpu_pci_address: Option<String>,
    pub guest_agent_socket_path: Option<String>,
    pub infini_service_socket_path: Option<String>,
    pub graphic_protocol: Option<String>,
    pub graphic_port: Option<i64>,
    pub graphic_password: Option<Secret>,
    pub graphic_host: Option<String>,
    pub assigned_gpu_bus: Option<String>,
    pub bridge: Option<String>,
    pub machine_type: Option<String>,
    pub cpu_model: Option<String>,
    pub disk_bus: Option<String>,
    pub disk_cache_mode: Option<String>,
    pub network_model: Option<String>,
    pub network_queues: Option<i64>,
    pub memory_balloon: Option<bool>,
    pub disk_paths: Option<Vec<String>>,
    pub uefi_firmware: Option<String>,
    pub hugepages: Option<bool>,
    /// The `cores` of the `cpuPinning` column.
    pub cpu_pinning: Option<Vec<u32>>,
    pub enable_numa_ctl_pinning: Option<bool>,
    pub cpu_pinning_strategy: Option<String>,
    pub tpm_socket_path: Option<String>,
    pub virtio_drivers_iso: Option<String>,
    pub enable_audio: Option<bool>,
    pub enable_usb_tablet: Option<bool>,
}

impl StoredColumns {
    /// A machine of which only what every row has is known.
    pub fn new(id: VmId, internal_name: &str, os: &str, cpu_cores: i64, ram_gb: f64) -> Self {
        Self {
            id,
            configured: false,
            name: internal_name.to_owned(),
            internal_name: internal_name.to_owned(),
            os: os.to_owned(),
            cpu_cores,
            ram_gb,
            gpu_pci_address: None,
            guest_agent_socket_path: None,
            infini_service_socket_path: None,
            graphic_protocol: None,
            graphic_port: None,
            graphic_password: None,
            graphic_host: None,
            assigned_gpu_bus: None,
            bridge: None,
            machine_type: None,
            cpu_model: None,
            disk_bus: None,
            disk_cache_mode: None,
            network_model: None,
            network_queues: None,
            memory_balloon: None,
            disk_paths: None,
            uefi_firmware: None,
            hugepages: None,
            cpu_pinning: None,
            enable_numa_ctl_pinning: None,
            cpu_pinning_strategy: None,
            tpm_socket_path: None,
            virtio_drivers_iso: None,
            enable_audio: None,
            enable_usb_tablet: None,
        }
    }
}

impl VmConfig {
    /// Puts together what `startVM` starts.
    ///
    /// A column that is not null wins. Where it is null the spec speaks, as it does for all that
    /// has no column (MAC, UUID, the disks' own settings, the run-as user, …). Three columns decide
    /// even when they are null, because there null is how a user takes the thing away: the GPU, the
    /// drivers CD and CPU pinning. A spec of another machine is not looked at; empty text is null.
    pub fn from_stored(
        columns: &StoredColumns,
        spec: Option<&Self>,
        context: &Context,
    ) -> Result<Parsed, ConfigError> {
        let report = Report::default();
        let spec = spec.filter(|spec| spec.id == columns.id);
        let row = Row {
            columns,
            report: &report,
        };
        let config = resolve(row.merged(spec), Door::Stored, context, &report);
        report.conclude(config)
    }
}

struct Row<'a> {
    columns: &'a StoredColumns,
    report: &'a Report,
}

impl Row<'_> {
    fn merged(&self, spec: Option<&VmConfig>) -> Draft {
        let mut draft = spec.map_or_else(Draft::default, Draft::from_spec);
        draft.sandbox = true;
        self.identity(&mut draft);
        self.resources(&mut draft);
        self.devices(&mut draft);
        self.passthrough(&mut draft);
        self.display(&mut draft);
        draft.disks = self.disks(std::mem::take(&mut draft.disks));
        draft
    }

    fn identity(&self, draft: &mut Draft) {
        let columns = self.columns;
        draft.id = Some(columns.id.clone());
        draft.name = Some(columns.name.clone());
        draft.os = Some(columns.os.clone());
        let internal_name = InternalName::parse(columns.internal_name.as_str());
        draft.internal_name = self.report.check("internalName", internal_name);
    }

    fn resources(&self, draft: &mut Draft) {
        let columns = self.columns;
        let cores = within(columns.cpu_cores, &(1..=CpuConfig::MOST_CORES.into()));
        draft.cores = self.report.check("cpuCores", cores);
        let ram = ByteSize::from_gib(columns.ram_gb);
        draft.ram = self.report.check("ramGB", ram);
        self.text(
            &mut draft.machine,
            "machineType",
            columns.machine_type.as_ref(),
        );
        self.text(&mut draft.cpu_model, "cpuModel", columns.cpu_model.as_ref());
        let strategy = columns.cpu_pinning_strategy.as_ref();
        self.text(&mut draft.pinning_strategy, "cpuPinningStrategy", strategy);
        draft.numa_pinning = columns
            .enable_numa_ctl_pinning
            .unwrap_or(draft.numa_pinning);
        draft.hugepages = columns.hugepages.unwrap_or(draft.hugepages);
        draft.balloon = columns.memory_balloon.unwrap_or(draft.balloon);
        if columns.configured {
            draft.pinned_to.clone_from(&columns.cpu_pinning);
        }
    }

    fn devices(&self, draft: &mut Draft) {
        let columns = self.columns;
        self.text(&mut draft.disk_bus, "diskBus", columns.disk_bus.as_ref());
        self.text(
            &mut draft.cache,
            "diskCacheMode",
            columns.disk_cache_mode.as_ref(),
        );
        self.text(
            &mut draft.network_model,
            "networkModel",
            columns.network_model.as_ref(),
        );
        self.text(
            &mut draft.uefi,
            "uefiFirmware",
            columns.uefi_firmware.as_ref(),
        );
        self.text(
            &mut draft.tpm_socket,
            "tpmSocketPath",
            columns.tpm_socket_path.as_ref(),
        );
        let guest_agent = columns.guest_agent_socket_path.as_ref();
        self.text(&mut draft.guest_agent, "guestAgentSocketPath", guest_agent);
        let infini_service = columns.infini_service_socket_path.as_ref();
        self.text(
            &mut draft.infini_service,
            "infiniServiceSocketPath",
            infini_service,
        );
        self.text(&mut draft.bridge, "bridge", columns.bridge.as_ref());
        draft.bridge = draft
            .bridge
            .take()
            .or_else(|| LinkName::parse(DEFAULT_BRIDGE).ok());
        draft.queues = columns.network_queues.or(draft.queues);
        draft.audio = columns.enable_audio.unwrap_or(draft.audio);
        draft.usb_tablet = columns.enable_usb_tablet.or(draft.usb_tablet);
        if columns.configured {
            draft.drivers_iso = None;
            self.text(
                &mut draft.drivers_iso,
                "virtioDriversIso",
                columns.virtio_drivers_iso.as_ref(),
            );
        }
    }

    /// The ROM file belongs to one card: another card does not get it.
    fn passthrough(&self, draft: &mut Draft) {
        let before = draft.gpu.take();
        self.text(
            &mut draft.gpu,
            "assignedGpuBus",
            self.columns.assigned_gpu_bus.as_ref(),
        );
        self.text(
            &mut draft.gpu,
            "gpuPciAddress",
            self.columns.gpu_pci_address.as_ref(),
        );
        if draft.gpu != before || draft.gpu.is_none() {
            draft.romfile = None;
        }
    }

    fn display(&self, draft: &mut Draft) {
        let columns = self.columns;
        self.text(
            &mut draft.protocol,
            "graphicProtocol",
            columns.graphic_protocol.as_ref(),
        );
        draft.protocol.get_or_insert(DisplayProtocol::Spice);
        self.text(
            &mut draft.address,
            "graphicHost",
            columns.graphic_host.as_ref(),
        );
        draft.port = columns.graphic_port.or(draft.port).or(Some(0));
        let given = |password: &&Secret| !password.reveal().is_empty();
        draft.password = columns.graphic_password.as_ref().filter(given).cloned();
    }

    /// The row says which disks there are, the spec what it knows of each. A row without paths is
    /// one of an old release, which had one disk at the contract's path.
    fn disks(&self, mut known: Vec<DraftDisk>) -> Vec<DraftDisk> {
        let paths = self.columns.disk_paths.as_deref().unwrap_or_default();
        if paths.is_empty() {
            if known.is_empty() {
                known.push(DraftDisk::default());
            }
            return known;
        }
        let paths = paths.iter().enumerate();
        paths
            .filter_map(|(index, path)| {
                let of = |disk: &DraftDisk| disk.location.as_ref().map(DiskLocation::to_string);
                if let Some(at) = known
                    .iter()
                    .position(|disk| of(disk).as_ref() == Some(path))
                {
                    return Some(known.swap_remove(at));
                }
                let path = if DiskLocation::is_network_text(path) {
                    let why =
                        "is on the network and none of the disks the machine was created with";
                    Err(InvalidValue::new(why))
                } else {
                    HostPath::parse(path.as_str())
                };
                let path = self.report.check(format!("diskPaths[{index}]"), path)?;
                Some(unknown_disk(path))
            })
            .collect()
    }

    /// Overwrites `field` with a column that says something.
    fn text<T>(&self, field: &mut Option<T>, column: &str, value: Option<&String>)
    where
        T: TryFrom<String, Error = InvalidValue>,
    {
        if let Some(text) = value.filter(|text| !text.is_empty()) {
            *field = self.report.check(column, T::try_from(text.clone()));
        }
    }
}

fn unknown_disk(path: HostPath) -> DraftDisk {
    let raw = path.as_path().extension().is_some_and(|it| it == "raw");
    DraftDisk {
        format: Some(if raw {
            DiskFormat::Raw
        } else {
            DiskFormat::Qcow2
        }),
        location: Some(DiskLocation::File(path)),
        ..DraftDisk::default()
    }
}
