//! Turns a configuration and the facts about the host into a plan. Pure.
//!
//! The order carries the promises: the row is `starting` before anything exists; QEMU starts stopped;
//! the firewall is loaded before the TAP joins the bridge; the guest runs only once the bridge, the
//! password and the pinning are set.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use super::QEMU_LOG;
use super::SERIAL_LOG;
use super::action::{Action, Release, RowValues, Slot, Spawn};
use super::plan::{Lifetime, Operation, Plan, Step};
use crate::config::{BindAddress, VmConfig};
use crate::firewall::Compiled;
use crate::host::nft::Moment;
use crate::qemu::{
    Accelerator, Acquired, ChannelListeners, DisplayEndpoint, EncryptedDisk, FirmwareFiles,
    QemuCommand, SerialConsole,
};
use crate::types::{HostPath, InvalidValue, LinkName, VmNames};

/// The first descriptor number after stdin, stdout and stderr.
const FIRST_DESCRIPTOR: RawFd = 3;

/// The TAP device as the last run left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapState {
    /// There is none.
    Absent,
    /// It can be used again.
    Kept,
    /// It was made with another number of queues.
    OtherQueues,
}

/// What the row is like, and so how the plan claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowClaim {
    /// The embedded store has no row: the plan inserts it.
    Insert,
    /// A fresh row of the user's.
    Take,
    /// A start: from this status and version.
    Transition {
        /// `off` or `error`.
        from: String,
        /// The optimistic lock.
        version: i64,
    },
}

/// What was found out about the host and the row before planning.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// What QEMU runs with.
    pub accelerator: Accelerator,
    /// Whether the card can have vhost: it is virtio and `/dev/vhost-net` is there.
    pub vhost: bool,
    /// The display's port, already reserved.
    pub display_port: u16,
    /// The display's address, healed.
    pub display_address: BindAddress,
    /// The TAP device.
    pub tap: TapState,
    /// The compiled ruleset.
    pub firewall: Compiled,
    /// When its rules were read.
    pub firewall_as_of: Moment,
    /// The template to copy firmware variables from; `None` when the VM has its own already.
    pub vars_template: Option<HostPath>,
    /// The row.
    pub row: RowClaim,
    /// Directories that do not exist yet.
    pub missing_directories: Vec<HostPath>,
    /// The host CPU of each vCPU, starting over when there are fewer.
    pub pinned_cpus: Option<Vec<u32>>,
    /// Host NUMA nodes guest memory is bound to.
    pub host_nodes: Vec<u32>,
    /// The encrypted files that encrypted disks lie on, nearest first, by the disks' places.
    pub encrypted_below: BTreeMap<usize, Vec<HostPath>>,
    /// The VM's state directory.
    pub directory: HostPath,
}

impl Facts {
    fn encrypted_below(&self, disk: usize) -> Vec<HostPath> {
        self.encrypted_below.get(&disk).cloned().unwrap_or_default()
    }
}

/// What `createVM` will do.
pub(super) fn plan_create(
    config: &VmConfig,
    names: &VmNames,
    facts: &Facts,
) -> Result<Plan, InvalidValue> {
    let mut acquire = create_disks(config);
    acquire.extend(acquire_firmware(config, facts));
    acquire.extend(acquire_network(config, names, facts));
    acquire.extend(listen(config));
    let [claimed, mut prepared] = claim(facts);
    prepared.extend(keep_keys(config, facts));
    let mut stages = vec![claimed, prepared, acquire];
    stages.extend(launch(config, names, facts, Operation::Create)?);
    Ok(Plan {
        operation: Operation::Create,
        stages,
    })
}

/// What `startVM` will do.
pub(super) fn plan_start(
    config: &VmConfig,
    names: &VmNames,
    facts: &Facts,
) -> Result<Plan, InvalidValue> {
    let mut acquire = acquire_firmware(config, facts);
    acquire.extend(acquire_network(config, names, facts));
    acquire.extend(listen(config));
    let mut stages = Vec::from(claim(facts));
    stages.push(acquire);
    stages.extend(launch(config, names, facts, Operation::Start)?);
    Ok(Plan {
        operation: Operation::Start,
        stages,
    })
}

/// The row first: whoever does not get it touches nothing else. Then the directories everything
/// else goes into, and the spec.
fn claim(facts: &Facts) -> [Vec<Step>; 2] {
    let restore = |status: &str| Release::RestoreStatus {
        status: status.to_owned(),
    };
    let claim = match &facts.row {
        RowClaim::Insert => {
            Step::new(Action::InsertRow).undone_by(Lifetime::Attempt, Release::DeleteRow)
        }
        RowClaim::Take => Step::new(Action::TakeRow).undone_by(Lifetime::Attempt, restore("error")),
        RowClaim::Transition { from, version } => Step::new(Action::Transition {
            from: from.clone(),
            to: "starting",
            version: *version,
        })
        .undone_by(Lifetime::Attempt, restore("off")),
    };
    let directories = facts
        .missing_directories
        .iter()
        .map(|path| Step::new(Action::MakeDirectory { path: path.clone() }));
    let keep_previous = facts.row == RowClaim::Take;
    let mut spec = Step::new(Action::WriteSpec { keep_previous });
    if keep_previous {
        spec = spec.undone_by(Lifetime::Attempt, Release::RestoreSpec);
    }
    [vec![claim], directories.chain([spec]).collect()]
}

/// Before there is anything that only they open. A row that is new takes them with it as it goes.
fn keep_keys(config: &VmConfig, facts: &Facts) -> Option<Step> {
    let keyed = config.disks.iter().filter(|disk| disk.key.is_some());
    let paths: Vec<_> = keyed.filter_map(|disk| disk.path().cloned()).collect();
    if paths.is_empty() {
        return None;
    }
    let keep = Step::new(Action::KeepDiskKeys {
        paths: paths.clone(),
    });
    Some(match facts.row {
        RowClaim::Insert => keep,
        _ => keep.undone_by(Lifetime::Attempt, Release::ForgetDiskKeys { paths }),
    })
}

/// The keys stay on the bench: a plan holds no secret.
fn create_disks(config: &VmConfig) -> Vec<Step> {
    let disk = |disk: &crate::config::DiskConfig| {
        // One on the network is there already, and stays.
        let path = disk.path()?.clone();
        let undo = Release::RemoveFile { path };
        let disk = crate::config::DiskConfig {
            key: None,
            ..disk.clone()
        };
        let step = Step::new(Action::CreateDisk(Box::new(disk)));
        Some(step.undone_by(Lifetime::Data, undo))
    };
    config.disks.iter().filter_map(disk).collect()
}

fn acquire_firmware(config: &VmConfig, facts: &Facts) -> Vec<Step> {
    let (Some(firmware), Some(template)) = (&config.firmware, &facts.vars_template) else {
        return Vec::new();
    };
    let (template, path) = (template.clone(), firmware.vars.clone());
    let undo = Release::RemoveFile { path: path.clone() };
    let copy = Action::CopyFirmwareVars { template, path };
    vec![Step::new(copy).undone_by(Lifetime::Data, undo)]
}

fn acquire_network(config: &VmConfig, names: &VmNames, facts: &Facts) -> Vec<Step> {
    let (tap, queues) = (names.tap.clone(), config.network.queues);
    let delete = Release::DeleteTap { tap: tap.clone() };
    let make = |replace| Action::CreateTap {
        tap: tap.clone(),
        queues,
        replace,
    };
    let tap_step = match facts.tap {
        TapState::Absent => Step::new(make(false)).undone_by(Lifetime::Machine, delete),
        TapState::OtherQueues => Step::new(make(true)).undone_by(Lifetime::Machine, delete),
        TapState::Kept => Step::new(Action::OpenTap {
            tap: tap.clone(),
            queues,
        }),
    };
    let vhost = facts.vhost.then(|| Step::new(Action::OpenVhost { queues }));
    std::iter::once(tap_step).chain(vhost).collect()
}

/// A start keeps the chain when it fails; a create leaves none.
fn load_firewall(facts: &Facts, operation: Operation) -> Step {
    let load = Action::LoadFirewall {
        rules: Box::new(facts.firewall.clone()),
        as_of: facts.firewall_as_of,
    };
    let step = Step::new(load).undone_by(Lifetime::Run, Release::DetachFirewall);
    match operation {
        Operation::Create => step.undone_by(Lifetime::Machine, Release::RemoveFirewall),
        _ => step,
    }
}

fn listen(config: &VmConfig) -> Vec<Step> {
    sockets(config)
        .into_iter()
        .map(|(slot, path)| {
            let undo = Release::RemoveSocket {
                slot,
                path: path.clone(),
            };
            Step::new(Action::Listen { slot, path }).undone_by(Lifetime::Run, undo)
        })
        .collect()
}

/// What QEMU listens on, and where.
pub(super) fn sockets(config: &VmConfig) -> Vec<(Slot, HostPath)> {
    let channels = &config.channels;
    [
        (Slot::Monitor, Some(&config.paths.qmp_socket)),
        (Slot::GuestAgent, channels.guest_agent.as_ref()),
        (Slot::InfiniService, channels.infini_service.as_ref()),
        (Slot::SerialConsole, channels.serial_console.as_ref()),
    ]
    .into_iter()
    .filter_map(|(slot, path)| Some((slot, path?.clone())))
    .collect()
}

/// From the acquired parts to a running guest and its row.
fn launch(
    config: &VmConfig,
    names: &VmNames,
    facts: &Facts,
    operation: Operation,
) -> Result<Vec<Vec<Step>>, InvalidValue> {
    let detach = Release::DetachTap {
        tap: names.tap.clone(),
    };
    let attach = Action::AttachTap {
        tap: names.tap.clone(),
        bridge: config.network.bridge.clone(),
    };
    let pid_file = config.paths.pid_file.clone();
    let spawn = Step::new(Action::SpawnQemu(Box::new(spawn(config, facts)?)))
        .undone_by(Lifetime::Run, Release::RemoveCgroup)
        .undone_by(Lifetime::Run, Release::EndQemu);
    let mut before_running = vec![Step::new(attach).undone_by(Lifetime::Run, detach)];
    if config.display.password.is_some() {
        let protocol = config.display.protocol;
        before_running.push(Step::new(Action::SetDisplayPassword { protocol }));
    }
    if let Some(cpus) = &facts.pinned_cpus {
        before_running.push(Step::new(Action::PinVcpus { cpus: cpus.clone() }));
    }
    let row = Action::WriteConfiguration(Box::new(row_values(config, &names.tap, facts)));
    Ok(vec![
        vec![spawn],
        // The kernel takes as long for the ruleset as QEMU for its devices: both at once.
        vec![
            load_firewall(facts, operation),
            Step::new(Action::WritePidFile {
                path: pid_file.clone(),
            })
            .undone_by(Lifetime::Run, Release::RemovePidFile { path: pid_file }),
            Step::new(Action::ConnectMonitor {
                path: config.paths.qmp_socket.clone(),
            }),
            Step::new(row),
        ],
        before_running,
        vec![Step::new(Action::Continue)],
        vec![Step::new(Action::WriteStatus { status: "running" })],
    ])
}

fn spawn(config: &VmConfig, facts: &Facts) -> Result<Spawn, InvalidValue> {
    let queues = config.network.queues;
    let vhost = if facts.vhost { queues } else { 0 };
    let slots = sockets(config)
        .into_iter()
        .map(|(slot, _)| slot)
        .chain((0..queues).map(Slot::Tap))
        .chain((0..vhost).map(Slot::Vhost))
        .chain(key_slots(config));
    let descriptors: Vec<(Slot, RawFd)> = slots.zip(FIRST_DESCRIPTOR..).collect();
    let number: BTreeMap<Slot, RawFd> = descriptors.iter().copied().collect();
    let at = |slot: Slot| number.get(&slot).copied();
    let serial_console = match at(Slot::SerialConsole) {
        Some(listener) => Some(SerialConsole {
            listener,
            log: facts.directory.join(SERIAL_LOG)?,
        }),
        None => None,
    };
    let acquired = Acquired {
        accelerator: facts.accelerator,
        display: DisplayEndpoint {
            address: facts.display_address.clone(),
            port: facts.display_port,
        },
        qmp: at(Slot::Monitor).unwrap_or(FIRST_DESCRIPTOR),
        tap: (0..queues)
            .filter_map(|queue| at(Slot::Tap(queue)))
            .collect(),
        vhost: (0..vhost)
            .filter_map(|queue| at(Slot::Vhost(queue)))
            .collect(),
        channels: ChannelListeners {
            guest_agent: at(Slot::GuestAgent),
            infini_service: at(Slot::InfiniService),
            serial_console,
        },
        firmware: config.firmware.as_ref().map(|firmware| FirmwareFiles {
            code: firmware.code.clone(),
            vars: firmware.vars.clone(),
        }),
        tpm_socket: config.tpm_socket.clone(),
        encrypted_disks: key_slots(config)
            .filter_map(|slot| match slot {
                Slot::DiskKey(disk) => Some(EncryptedDisk {
                    index: usize::from(disk),
                    key: at(slot)?,
                    below: facts.encrypted_below(usize::from(disk)),
                }),
                _ => None,
            })
            .collect(),
        host_nodes: facts.host_nodes.clone(),
    };
    let QemuCommand { binary, args } = QemuCommand::new(config, &acquired);
    let user = config.run_as_user.as_ref().map(ToString::to_string);
    Ok(Spawn {
        binary,
        args,
        descriptors,
        user,
        log: facts.directory.join(QEMU_LOG)?,
    })
}

/// The disks whose keys are passed.
fn key_slots(config: &VmConfig) -> impl Iterator<Item = Slot> {
    let disks = (0..).zip(&config.disks);
    disks.filter_map(|(index, disk)| disk.key.as_ref().map(|_| Slot::DiskKey(index)))
}

fn row_values(config: &VmConfig, tap: &LinkName, facts: &Facts) -> RowValues {
    let path = |path: Option<&HostPath>| path.map(ToString::to_string);
    let disk = config.disks.first();
    RowValues {
        tap_device_name: Some(tap.to_string()),
        qmp_socket_path: Some(config.paths.qmp_socket.to_string()),
        guest_agent_socket_path: path(config.channels.guest_agent.as_ref()),
        infini_service_socket_path: path(config.channels.infini_service.as_ref()),
        graphic_protocol: Some(config.display.protocol.as_str().to_owned()),
        graphic_port: Some(facts.display_port),
        graphic_host: Some(facts.display_address.to_string()),
        assigned_gpu_bus: config.gpu.as_ref().map(|gpu| gpu.address.to_string()),
        bridge: Some(config.network.bridge.to_string()),
        machine_type: Some(config.machine.as_str().to_owned()),
        cpu_model: Some(config.cpu.model.to_string()),
        disk_bus: disk.map(|disk| disk.bus.as_str().to_owned()),
        disk_cache_mode: disk.map(|disk| disk.cache.as_str().to_owned()),
        network_model: Some(config.network.model.as_str().to_owned()),
        network_queues: Some(u32::from(config.network.queues)),
        memory_balloon: Some(config.memory.balloon),
        disk_paths: Some(
            config
                .disks
                .iter()
                .map(|disk| disk.location.to_string())
                .collect(),
        ),
        uefi_firmware: config
            .firmware
            .as_ref()
            .map(|firmware| firmware.code.to_string()),
        hugepages: Some(config.memory.hugepages),
        cpu_pinning: config.cpu.pinned_to.clone(),
        enable_numa_ctl_pinning: Some(config.cpu.numa_pinning),
        cpu_pinning_strategy: Some(config.cpu.pinning_strategy.as_str().to_owned()),
        tpm_socket_path: path(config.tpm_socket.as_ref()),
        virtio_drivers_iso: path(config.drivers_iso.as_ref()),
        enable_audio: Some(config.audio),
        enable_usb_tablet: Some(config.usb_tablet),
    }
}

#[cfg(test)]
mod tests;
