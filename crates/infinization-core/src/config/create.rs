//! The first door: `VMCreateConfig` as JSON.

use serde_json::Value;

use super::draft::{Draft, DraftDisk};
use super::fields::{
    Fields, Report, boolean, elements, integer, integer_in, number, parsed, string, words_of_text,
};
use super::location;
use super::resolve::{Door, resolve};
use super::rules;
use super::{
    ConfigError, Context, CpuConfig, DiskLocation, FirewallConfig, MachineAddresses, Parsed,
    VmConfig,
};
use crate::error::ErrorCode;
use crate::types::{ByteSize, FirewallDefaultAction, InvalidValue, Secret};

/// qcow2 with 64 KiB clusters ends at 2 PiB: its first-level table may have 32 MiB.
const MOST_DISK_GIB: i64 = 2 << 20;

impl VmConfig {
    /// Reads what the user gave to `createVM`. All refused fields are named at once; unknown keys
    /// are warnings.
    pub fn parse(value: &Value, context: &Context) -> Result<Parsed, ConfigError> {
        let report = Report::default();
        let config = Fields::of("config", value, &report)
            .map(|fields| draft(&fields, &report))
            .and_then(|draft| resolve(draft, Door::Create, context, &report));
        report.conclude(config)
    }
}

fn draft(fields: &Fields<'_>, report: &Report) -> Draft {
    let draft = Draft {
        id: fields.required("vmId", parsed),
        name: fields.required("name", display_name),
        internal_name: fields.required("internalName", parsed),
        os: fields.required("os", words_of_text),
        uuid: fields.optional("uuid", parsed),
        accelerator: fields.optional("accelerator", parsed),
        machine: fields.optional("machineType", parsed),
        cores: fields.required("cpuCores", integer_in(1..=CpuConfig::MOST_CORES.into())),
        cpu_model: fields.optional("cpuModel", parsed),
        pinned_to: fields.optional("cpuPinning", cpu_numbers),
        numa_pinning: fields.flag("enableNumaCtlPinning", false),
        pinning_strategy: fields.optional("cpuPinningStrategy", parsed),
        ram: fields.required("ramGB", |value| ByteSize::from_gib(number(value)?)),
        hugepages: fields.flag("hugepages", false),
        balloon: fields.flag("memoryBalloon", false),
        disks: disks(fields, report),
        disk_bus: fields.optional("diskBus", parsed),
        cache: fields.optional("diskCacheMode", parsed),
        installer_iso: fields.optional("isoPath", parsed),
        drivers_iso: fields.optional("virtioDriversIso", parsed),
        bridge: fields.required("bridge", parsed),
        mac: fields.optional("macAddress", parsed),
        network_model: fields.optional("networkModel", parsed),
        queues: fields.optional("networkQueues", integer_in(1..=i64::MAX)),
        addresses: fields
            .optional("addresses", MachineAddresses::parse)
            .unwrap_or_default(),
        protocol: fields.required("displayType", parsed),
        port: fields.required("displayPort", integer_in(0..=i64::MAX)),
        address: fields.optional("displayAddr", parsed),
        password: fields.optional("displayPassword", |value| string(value).map(Secret::new)),
        uefi: fields.optional("uefiFirmware", parsed),
        tpm_socket: fields.optional("tpmSocketPath", parsed),
        guest_agent: fields.optional("guestAgentSocketPath", parsed),
        infini_service: fields.optional("infiniServiceSocketPath", parsed),
        serial_console: fields.flag("serialConsole", false),
        gpu: fields.optional("gpuPciAddress", parsed),
        romfile: fields.optional("gpuRomfile", parsed),
        audio: fields.flag("enableAudio", false),
        usb_tablet: fields.optional("enableUsbTablet", boolean),
        run_as_user: fields.optional("runAsUser", parsed),
        sandbox: !fields.flag("disableSandbox", false),
        firewall: firewall(fields, report),
    };
    refuse_unattended(fields, report);
    // An AbortSignal may travel in the same object; whoever called us has taken it.
    fields.skip(&["signal"]);
    fields.finish();
    draft
}

fn refuse_unattended(fields: &Fields<'_>, report: &Report) {
    if fields.has("unattendedInstall") {
        report.refuse_as(
            ErrorCode::ResourceUnavailable,
            "unattendedInstall",
            "asks for an unattended install, which is not part of this version; \
             give an installer prepared for it as isoPath",
        );
    }
}

/// `-name` used to carry it, so the contract keeps option separators out.
fn display_name(value: &Value) -> Result<String, InvalidValue> {
    let name = words_of_text(value)?;
    if name.contains([',', '=']) || name.chars().count() > 255 {
        return Err(InvalidValue::new(
            "must have at most 255 characters and not hold ',' or '='",
        ));
    }
    Ok(name)
}

fn cpu_numbers(value: &Value) -> Result<Vec<u32>, InvalidValue> {
    let refused = || InvalidValue::new("must be a list of CPU numbers");
    let numbers = value.as_array().ok_or_else(refused)?;
    numbers
        .iter()
        .map(|number| u32::try_from(integer(number)?).map_err(|_| refused()))
        .collect()
}

fn disks(fields: &Fields<'_>, report: &Report) -> Vec<DraftDisk> {
    let values = fields.required("disks", |value| match elements(value)? {
        [] => Err(InvalidValue::new("must hold at least one disk")),
        values => Ok(values),
    });
    let values = values.unwrap_or_default().iter().enumerate();
    values
        .filter_map(|(index, value)| {
            let fields = Fields::element("disks", index, value, report)?;
            Some(disk(&format!("disks[{index}]"), &fields, report))
        })
        .collect()
}

fn disk(at: &str, fields: &Fields<'_>, report: &Report) -> DraftDisk {
    let location = fields.optional("location", Ok);
    let location =
        location.and_then(|value| location::read(&format!("{at}.location"), value, report));
    let size = if fields.has("location") {
        refuse_file_options(at, fields, report);
        None
    } else {
        fields.required("sizeGB", integer_in::<u32>(1..=MOST_DISK_GIB))
    };
    let backing_file = fields.optional("backingFile", parsed);
    let key = fields.optional("encryptionKey", parsed);
    let disk = DraftDisk {
        location: location.map(DiskLocation::Network),
        format: fields.optional("format", parsed),
        size: size.map(|gib| ByteSize::mib(u64::from(gib) * 1024)),
        bus: fields.optional("bus", parsed),
        cache: fields.optional("cache", parsed),
        discard: fields.optional("discard", boolean),
        backing_file: backing_file.filter(|_| !fields.has("location")),
        key: key.filter(|_| !fields.has("location")),
    };
    fields.finish();
    disk
}

/// A disk on the network is neither made nor given a size by us.
fn refuse_file_options(at: &str, fields: &Fields<'_>, report: &Report) {
    for key in ["sizeGB", "backingFile", "encryptionKey"] {
        if fields.has(key) {
            report.refuse(format!("{at}.{key}"), "does not go with a location");
        }
    }
}

fn firewall(fields: &Fields<'_>, report: &Report) -> FirewallConfig {
    let values = fields.optional("firewallRules", elements);
    FirewallConfig {
        default_action: fields.optional("firewallDefaultAction", default_action),
        rules: rules::read("firewallRules", values.unwrap_or_default(), report),
    }
}

pub(super) fn default_action(value: &Value) -> Result<FirewallDefaultAction, InvalidValue> {
    match value.as_str() {
        Some("accept") => Ok(FirewallDefaultAction::Accept),
        Some("drop") => Ok(FirewallDefaultAction::Drop),
        _ => Err(InvalidValue::new("must be one of accept drop")),
    }
}
