//! Finds out what planning must know of the host and the row. Reads only: everything that can
//! refuse an operation refuses here, before the first side effect.
//!
//! The one thing it takes is the display port's reservation, which is given back when dropped.

use std::net::IpAddr;
use std::path::Path;

use super::context::VmContext;
use super::effects::image_format;
use super::planner::{Facts, RowClaim, TapState};
use crate::config::{AcceleratorChoice, DiskConfig, NetworkModel, VmConfig};
use crate::db::RuleSplit;
use crate::error::{ErrorCode, Failure};
use crate::firewall::Compiled;
use crate::host::accelerator;
use crate::host::bridge;
use crate::host::display_port::ReservedPort;
use crate::host::process::find_by_name;
use crate::host::qemu_img::{self, ImageFormat};
use crate::qemu::{Accelerator, name_argument};
use crate::types::{FirewallDefaultAction, HostPath};

/// How far above the wanted display port is searched.
const PORTS_TRIED: u16 = 100;

/// What was found out, and what must be kept while the plan runs.
pub(super) struct Gathered {
    pub(super) facts: Facts,
    pub(super) reserved: Reserved,
}

/// Kept while the VM lives, and told to the caller.
pub(super) struct Reserved {
    pub(super) display_port: ReservedPort,
    pub(super) warnings: Vec<String>,
}

impl VmContext {
    pub(super) async fn gather(
        &self,
        config: &VmConfig,
        rules: &RuleSplit,
        policy: Option<&str>,
        row: RowClaim,
        first_port: u16,
    ) -> Result<Gathered, Failure> {
        self.no_living_namesake(config).await?;
        let allowed = self
            .services
            .config
            .path_rules
            .allowed
            .clone()
            .unwrap_or_default();
        check_disks(config, &row, &allowed).await?;
        check_files(config)?;
        check_cpus(config)?;
        let addresses = bridge::addresses(&self.services.links, &config.network.bridge).await;
        let addresses = addresses.map_err(|error| {
            Failure::caused_by(
                ErrorCode::NetworkError,
                "the VM's bridge cannot be used",
                error,
            )
        })?;
        let bridge_addresses: Vec<IpAddr> = addresses.iter().map(|found| found.address).collect();
        let firewall = self.compile_firewall(config, rules, policy, bridge_addresses)?;
        let (display_address, mut warnings) = self.display_address(config).await?;
        warnings.extend(firewall_warnings(&firewall));
        let display_port = self.reserve_port(config, &display_address.to_string(), first_port)?;
        let facts = Facts {
            accelerator: choose_accelerator(config.accelerator)?,
            vhost: config.network.model == NetworkModel::VirtioNetPci
                && accelerator::vhost_net_available(),
            display_port: display_port.number(),
            display_address,
            tap: self.tap_state(config).await?,
            firewall,
            vars_template: vars_template(config)?,
            row,
            missing_directories: self.missing_directories(config),
            host_nodes: Vec::new(),
            directory: HostPath::parse(self.directory.display().to_string()).map_err(|error| {
                Failure::new(ErrorCode::InvalidConfig, format!("stateDir {error}"))
            })?,
        };
        Ok(Gathered {
            facts,
            reserved: Reserved {
                display_port,
                warnings,
            },
        })
    }

    /// Another machine's QEMU of the same internal name would share disks and sockets with ours.
    /// It is never touched; the operation is refused.
    async fn no_living_namesake(&self, config: &VmConfig) -> Result<(), Failure> {
        let namesakes = find_by_name(&name_argument(&config.internal_name)).await?;
        let Some(namesake) = namesakes.first() else {
            return Ok(());
        };
        let message = format!("a QEMU named {} is running already", config.internal_name);
        Err(Failure::new(ErrorCode::ResourceUnavailable, message).with("pid", namesake.pid()))
    }

    pub(super) fn compile_firewall(
        &self,
        config: &VmConfig,
        rules: &RuleSplit,
        policy: Option<&str>,
        bridge_addresses: Vec<IpAddr>,
    ) -> Result<Compiled, Failure> {
        let department = match policy {
            Some("ALLOW_ALL") => FirewallDefaultAction::Accept,
            _ => FirewallDefaultAction::Drop,
        };
        let default_action = config.firewall.default_action.unwrap_or(department);
        let compiled = self.services.compile_firewall(
            &self.vm_id,
            config.network.mac,
            bridge_addresses,
            rules,
            default_action,
        )?;
        if compiled.failures.is_empty() {
            return Ok(compiled);
        }
        // A rule that cannot be applied leaves the VM other than its owner meant: it is told, and
        // the rest protects it as far as it goes.
        for failure in &compiled.failures {
            tracing::warn!(vm = %self.vm_id, rule = %failure.rule_name, error = %failure.error, "firewall rule left out");
        }
        Ok(compiled)
    }

    async fn display_address(
        &self,
        config: &VmConfig,
    ) -> Result<(crate::config::BindAddress, Vec<String>), Failure> {
        let local = self.services.local_addresses().await?;
        let address = config.display.bind_on(&local).map_err(|why| {
            Failure::new(ErrorCode::InvalidConfig, format!("displayPassword {why}"))
        })?;
        let mut warnings = Vec::new();
        if address != config.display.address {
            warnings.push(format!(
                "displayAddr {} is not on this host: the display listens on {address}",
                config.display.address
            ));
        }
        Ok((address, warnings))
    }

    fn reserve_port(
        &self,
        config: &VmConfig,
        address: &str,
        first: u16,
    ) -> Result<ReservedPort, Failure> {
        let last = config
            .display
            .protocol
            .last_port()
            .min(first.saturating_add(PORTS_TRIED - 1));
        Ok(self.services.display_ports.reserve(address, first..=last)?)
    }

    async fn tap_state(&self, config: &VmConfig) -> Result<TapState, Failure> {
        let tap = &self.names.tap;
        let Some(link) = self.services.links.find(tap).await? else {
            return Ok(TapState::Absent);
        };
        if !link.is_tap() {
            let message = format!("{tap} exists and is not a TAP device");
            return Err(Failure::new(ErrorCode::DeviceAlreadyExists, message));
        }
        if link.carrier {
            let message = format!("TAP {tap} is in use by another process");
            return Err(Failure::new(ErrorCode::DeviceAlreadyExists, message));
        }
        let multi_queue = link.tun.is_some_and(|tun| tun.multi_queue);
        let wanted = config.network.queues > 1;
        Ok(if multi_queue == wanted {
            TapState::Kept
        } else {
            TapState::OtherQueues
        })
    }

    fn missing_directories(&self, config: &VmConfig) -> Vec<HostPath> {
        let settings = &self.services.config;
        let files = config.disks.iter().map(|disk| &disk.path);
        let parents = files.filter_map(|path| {
            let parent = path.as_path().parent()?.to_str()?;
            HostPath::parse(parent).ok()
        });
        let mut missing: Vec<HostPath> =
            [&settings.socket_dir, &settings.pid_dir, &settings.disk_dir]
                .into_iter()
                .cloned()
                .chain(parents)
                .filter(|path| !path.as_path().is_dir())
                .collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

fn check_cpus(config: &VmConfig) -> Result<(), Failure> {
    if config.cpu.numa_pinning {
        let message =
            "enableNumaCtlPinning: binding memory to host nodes is not part of this version";
        return Err(Failure::new(ErrorCode::ResourceUnavailable, message));
    }
    let Some(wanted) = &config.cpu.pinned_to else {
        return Ok(());
    };
    let online = accelerator::host_size()?.online_cpus;
    let offline: Vec<u32> = wanted
        .iter()
        .copied()
        .filter(|cpu| !online.contains(cpu))
        .collect();
    if offline.is_empty() {
        return Ok(());
    }
    let message = "cpuPinning names CPUs that are not online on this host";
    Err(Failure::new(ErrorCode::ResourceUnavailable, message).with("offline", offline))
}

fn choose_accelerator(wanted: AcceleratorChoice) -> Result<Accelerator, Failure> {
    let host = accelerator::detect();
    match wanted {
        AcceleratorChoice::Kvm | AcceleratorChoice::Auto if host.kvm_usable => Ok(Accelerator::Kvm),
        AcceleratorChoice::Tcg | AcceleratorChoice::Auto => Ok(Accelerator::Tcg),
        AcceleratorChoice::Kvm => {
            let message = format!(
                "accelerator is kvm, but KVM cannot be used here: {}",
                host.why
            );
            Err(Failure::new(ErrorCode::ResourceUnavailable, message))
        }
    }
}

/// A new disk must not exist; an existing one must be what its spec says.
async fn check_disks(
    config: &VmConfig,
    row: &RowClaim,
    allowed: &[HostPath],
) -> Result<(), Failure> {
    let creating = !matches!(row, RowClaim::Transition { .. });
    for disk in &config.disks {
        if creating {
            check_new_disk(disk, allowed).await?;
        } else {
            check_existing_disk(disk, allowed).await?;
        }
    }
    Ok(())
}

async fn check_new_disk(disk: &DiskConfig, allowed: &[HostPath]) -> Result<(), Failure> {
    if disk.path.as_path().symlink_metadata().is_ok() {
        let message = format!("disk {} exists already; it was left alone", disk.path);
        return Err(Failure::new(ErrorCode::DiskError, message).with("path", disk.path.as_str()));
    }
    if let Some(backing) = &disk.backing_file {
        inspect(backing, ImageFormat::Qcow2, allowed).await?;
    }
    Ok(())
}

async fn check_existing_disk(disk: &DiskConfig, allowed: &[HostPath]) -> Result<(), Failure> {
    if !disk.path.as_path().exists() {
        let message = format!("disk {} does not exist", disk.path);
        return Err(Failure::new(ErrorCode::DiskError, message).with("path", disk.path.as_str()));
    }
    inspect(&disk.path, image_format(disk), allowed).await
}

async fn inspect(
    path: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
) -> Result<(), Failure> {
    qemu_img::inspect(path, format, allowed)
        .await
        .map(drop)
        .map_err(|error| {
            Failure::caused_by(
                ErrorCode::DiskError,
                format!("disk {path} cannot be used"),
                error,
            )
            .with("path", path.as_str())
        })
}

/// Files the guest would not boot or would lose its keys without.
fn check_files(config: &VmConfig) -> Result<(), Failure> {
    let firmware = config
        .firmware
        .as_ref()
        .map(|firmware| ("uefiFirmware", &firmware.code));
    let files = [
        firmware,
        config.installer_iso.as_ref().map(|path| ("isoPath", path)),
        config
            .drivers_iso
            .as_ref()
            .map(|path| ("virtioDriversIso", path)),
        config
            .tpm_socket
            .as_ref()
            .map(|path| ("tpmSocketPath", path)),
        config
            .gpu
            .as_ref()
            .and_then(|gpu| gpu.romfile.as_ref())
            .map(|path| ("gpuRomfile", path)),
    ];
    let missing = files
        .into_iter()
        .flatten()
        .find(|(_, path)| !path.as_path().exists());
    let Some((field, path)) = missing else {
        return check_gpu(config);
    };
    let message = format!("{field}: {path} does not exist");
    Err(Failure::new(ErrorCode::ResourceUnavailable, message).with("path", path.as_str()))
}

fn check_gpu(config: &VmConfig) -> Result<(), Failure> {
    let Some(gpu) = &config.gpu else {
        return Ok(());
    };
    let device = Path::new("/sys/bus/pci/devices").join(gpu.address.to_string());
    if device.exists() {
        return Ok(());
    }
    let message = format!("gpuPciAddress: this host has no PCI device {}", gpu.address);
    Err(Failure::new(ErrorCode::ResourceUnavailable, message))
}

/// The firmware variables' template, unless the VM has its own variables already.
fn vars_template(config: &VmConfig) -> Result<Option<HostPath>, Failure> {
    let Some(firmware) = &config.firmware else {
        return Ok(None);
    };
    if firmware.vars.as_path().exists() {
        return Ok(None);
    }
    let templates = firmware
        .vars_templates()
        .map_err(|error| Failure::new(ErrorCode::InvalidConfig, format!("uefiFirmware {error}")))?;
    let found = templates
        .into_iter()
        .find(|template| template.as_path().exists());
    found.map(Some).ok_or_else(|| {
        let message = format!(
            "no variable store template for the firmware {}",
            firmware.code
        );
        Failure::new(ErrorCode::ResourceUnavailable, message)
    })
}

fn firewall_warnings(compiled: &Compiled) -> Vec<String> {
    let failed = compiled.failures.iter().map(|failure| {
        format!(
            "firewall rule {:?} was left out: {}",
            failure.rule_name, failure.error
        )
    });
    let degraded = compiled
        .degraded
        .iter()
        .map(|rule| format!("firewall rule {:?} is {}", rule.rule_name, rule.degradation));
    failed.chain(degraded).collect()
}
