//! The words plans are written in: an [`Action`] acquires or changes something, a [`Release`] gives
//! it back.
//!
//! Both are data. A plan lists actions with their releases, [`super::effects`] performs them, the
//! ledger keeps the releases of what is held, and `planVM` shows all of it. None carries a secret.
//! A release is idempotent: what is absent has been released.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{DiskConfig, DisplayProtocol};
use crate::firewall::{self, Compiled, Transaction};
use crate::host::nft::Moment;
use crate::types::{HostPath, LinkName};

/// A descriptor that is made by one step and handed to QEMU by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Slot {
    /// The QMP monitor's listening socket.
    Monitor,
    /// The guest agent channel's listening socket.
    GuestAgent,
    /// The InfiniService channel's listening socket.
    InfiniService,
    /// The serial console's listening socket.
    SerialConsole,
    /// One queue of the TAP device.
    Tap(u8),
    /// One queue of vhost-net.
    Vhost(u8),
    /// A pipe with the key of an encrypted disk, which the spawn itself makes.
    DiskKey(u8),
}

/// One thing done to the host or the database.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(
    tag = "action",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Action {
    /// Makes a directory and its parents, mode 0755.
    MakeDirectory {
        /// Which one.
        path: HostPath,
    },
    /// Has the embedded store keep the keys of disks that are to be made, if it has a key of its own.
    KeepDiskKeys {
        /// The disks.
        paths: Vec<HostPath>,
    },
    /// Makes a disk image that does not exist yet.
    CreateDisk(Box<DiskConfig>),
    /// Copies the firmware's variable store for this VM.
    CopyFirmwareVars {
        /// The distribution's template.
        template: HostPath,
        /// The VM's own copy.
        path: HostPath,
    },
    /// Makes the persistent TAP device and opens its queues.
    CreateTap {
        /// The device.
        tap: LinkName,
        /// 1 to 4; more than one makes it `multi_queue`.
        queues: u8,
        /// Deletes the device of the last run first, which was made with other queues.
        replace: bool,
    },
    /// Opens the queues of the TAP device kept from the last run.
    OpenTap {
        /// The device.
        tap: LinkName,
        /// As it was made with.
        queues: u8,
    },
    /// Opens `/dev/vhost-net` once per queue.
    OpenVhost {
        /// How often.
        queues: u8,
    },
    /// Puts the TAP on the bridge and sets it up.
    AttachTap {
        /// The device.
        tap: LinkName,
        /// The bridge.
        bridge: LinkName,
    },
    /// Loads the VM's chains and its dispatch in one nftables transaction.
    LoadFirewall {
        /// What is loaded.
        #[serde(serialize_with = "as_nft_document")]
        rules: Box<Compiled>,
        /// When they were read: rules that were applied since go before.
        #[serde(skip)]
        as_of: Moment,
    },
    /// Binds and listens on a unix socket that QEMU gets as a descriptor.
    Listen {
        /// What it is for.
        slot: Slot,
        /// Where.
        path: HostPath,
    },
    /// Starts QEMU with its CPUs stopped, in a cgroup of its own where the host has cgroup v2.
    SpawnQemu(Box<Spawn>),
    /// Writes QEMU's pid for tools that look for it.
    WritePidFile {
        /// Where.
        path: HostPath,
    },
    /// Connects to the monitor and asks `query-status`.
    ConnectMonitor {
        /// The socket.
        path: HostPath,
    },
    /// Gives the display its password over the monitor.
    SetDisplayPassword {
        /// `vnc` or `spice`.
        protocol: DisplayProtocol,
    },
    /// Binds each vCPU's thread to a host CPU.
    PinVcpus {
        /// One host CPU per vCPU, in order, wrapping.
        cpus: Vec<u32>,
    },
    /// Lets the guest's CPUs run (`cont`).
    Continue,
    /// Inserts the machine into the embedded store, with status `starting`.
    InsertRow,
    /// Writes `starting` into the row of a machine that is to be made.
    TakeRow,
    /// Writes the row's status, but over nobody's claim.
    WriteStatus {
        /// The new status.
        status: &'static str,
    },
    /// Moves the row's status if status and version are still as expected.
    Transition {
        /// The status it must have.
        from: String,
        /// The new status.
        to: &'static str,
        /// The version it must have.
        version: i64,
    },
    /// Writes what the machine runs with into its configuration row.
    WriteConfiguration(Box<RowValues>),
    /// Writes the VM's validated configuration into its state directory, to survive a host crash.
    WriteSpec {
        /// Whether the one before is kept for [`Release::RestoreSpec`].
        keep_previous: bool,
    },
}

/// A plan shows the transaction as `nft -j` is given it.
fn as_nft_document<S: serde::Serializer>(
    rules: &Compiled,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    firewall::document(&Transaction::ensure_vm(rules)).serialize(serializer)
}

/// How one thing is given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "release",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Release {
    /// Removes a disk image or the firmware's variables.
    RemoveFile {
        /// Which one.
        path: HostPath,
    },
    /// Removes a socket.
    RemoveSocket {
        /// What listened on it.
        slot: Slot,
        /// Where it is.
        path: HostPath,
    },
    /// Removes the pidfile.
    RemovePidFile {
        /// Where it is.
        path: HostPath,
    },
    /// Deletes the TAP device.
    DeleteTap {
        /// The device.
        tap: LinkName,
    },
    /// Takes the TAP off its bridge and sets it down.
    DetachTap {
        /// The device.
        tap: LinkName,
    },
    /// Takes the TAP out of the dispatch maps: the port is closed, the chain stays.
    DetachFirewall,
    /// Removes the VM's chains.
    RemoveFirewall,
    /// Ends QEMU (SIGKILL, by pidfd) and waits for it to be gone.
    EndQemu,
    /// Removes the VM's empty cgroup.
    RemoveCgroup,
    /// Has the embedded store forget keys of disks.
    ForgetDiskKeys {
        /// The disks.
        paths: Vec<HostPath>,
    },
    /// Deletes the machine from the embedded store.
    DeleteRow,
    /// Puts the spec back that the machine had before the attempt, if it had one.
    RestoreSpec,
    /// Writes the status a failed attempt leaves.
    RestoreStatus {
        /// The status.
        status: String,
    },
}

/// How QEMU is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spawn {
    /// The program.
    pub binary: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Which descriptor arrives at which number.
    pub descriptors: Vec<(Slot, i32)>,
    /// The user QEMU runs as; ours when there is none.
    pub user: Option<String>,
    /// Where its standard error goes.
    pub log: HostPath,
}

/// The configuration columns that create and start write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "camelCase")]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct RowValues {
    pub tap_device_name: Option<String>,
    pub qmp_socket_path: Option<String>,
    pub guest_agent_socket_path: Option<String>,
    pub infini_service_socket_path: Option<String>,
    pub graphic_protocol: Option<String>,
    pub graphic_port: Option<u16>,
    pub graphic_host: Option<String>,
    pub assigned_gpu_bus: Option<String>,
    pub bridge: Option<String>,
    pub machine_type: Option<String>,
    pub cpu_model: Option<String>,
    pub disk_bus: Option<String>,
    pub disk_cache_mode: Option<String>,
    pub network_model: Option<String>,
    pub network_queues: Option<u32>,
    pub memory_balloon: Option<bool>,
    pub disk_paths: Option<Vec<String>>,
    pub uefi_firmware: Option<String>,
    pub hugepages: Option<bool>,
    pub cpu_pinning: Option<Vec<u32>>,
    pub enable_numa_ctl_pinning: Option<bool>,
    pub cpu_pinning_strategy: Option<String>,
    pub tpm_socket_path: Option<String>,
    pub virtio_drivers_iso: Option<String>,
    pub enable_audio: Option<bool>,
    pub enable_usb_tablet: Option<bool>,
}

impl Action {
    /// The name of [`Action::ConnectMonitor`].
    pub const CONNECT_MONITOR: &'static str = "connect monitor";

    /// Whether the action of this name claims the row: when it fails, nothing was begun.
    pub fn is_claim(name: &str) -> bool {
        ["insert row", "take row", "transition status"].contains(&name)
    }

    /// What it is done to, for journals: names and paths.
    pub fn subject(&self) -> Value {
        match self {
            Self::MakeDirectory { path }
            | Self::CopyFirmwareVars { path, .. }
            | Self::WritePidFile { path }
            | Self::ConnectMonitor { path } => json!({ "path": path }),
            Self::KeepDiskKeys { paths } => json!({ "paths": paths }),
            Self::CreateDisk(disk) => json!({ "path": disk.path() }),
            Self::CreateTap { tap, queues, .. } | Self::OpenTap { tap, queues } => {
                json!({ "tap": tap, "queues": queues })
            }
            Self::OpenVhost { queues } => json!({ "queues": queues }),
            Self::AttachTap { tap, bridge } => json!({ "tap": tap, "bridge": bridge }),
            Self::Listen { slot, path } => json!({ "slot": slot, "path": path }),
            Self::SpawnQemu(spawn) => json!({ "binary": spawn.binary, "user": spawn.user }),
            Self::SetDisplayPassword { protocol } => json!({ "protocol": protocol }),
            Self::PinVcpus { cpus } => json!({ "cpus": cpus }),
            Self::WriteStatus { status } => json!({ "status": status }),
            Self::Transition { from, to, version } => {
                json!({ "from": from, "to": to, "version": version })
            }
            Self::LoadFirewall { .. }
            | Self::Continue
            | Self::InsertRow
            | Self::TakeRow
            | Self::WriteConfiguration(_)
            | Self::WriteSpec { .. } => Value::Null,
        }
    }

    /// The status the row has after it, if it writes one.
    pub fn status(&self) -> Option<&'static str> {
        match self {
            Self::InsertRow | Self::TakeRow => Some("starting"),
            Self::WriteStatus { status } | Self::Transition { to: status, .. } => Some(status),
            _ => None,
        }
    }

    /// The action's name, for error texts, journals and progress.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MakeDirectory { .. } => "make directory",
            Self::KeepDiskKeys { .. } => "keep keys of disks",
            Self::CreateDisk(_) => "create disk",
            Self::CopyFirmwareVars { .. } => "copy firmware variables",
            Self::CreateTap { .. } => "create TAP",
            Self::OpenTap { .. } => "open TAP",
            Self::OpenVhost { .. } => "open vhost-net",
            Self::AttachTap { .. } => "attach TAP to bridge",
            Self::LoadFirewall { .. } => "load firewall",
            Self::Listen { .. } => "listen on socket",
            Self::SpawnQemu(_) => "spawn QEMU",
            Self::WritePidFile { .. } => "write pidfile",
            Self::ConnectMonitor { .. } => Self::CONNECT_MONITOR,
            Self::SetDisplayPassword { .. } => "set display password",
            Self::PinVcpus { .. } => "pin vCPUs",
            Self::Continue => "continue",
            Self::InsertRow => "insert row",
            Self::TakeRow => "take row",
            Self::WriteStatus { .. } => "write status",
            Self::Transition { .. } => "transition status",
            Self::WriteConfiguration(_) => "write configuration",
            Self::WriteSpec { .. } => "write spec",
        }
    }
}

impl Release {
    /// Whether this does all that `other` does, so that `other` need not be done.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::RemoveFirewall, Self::DetachFirewall) => true,
            (Self::DeleteTap { tap }, Self::DetachTap { tap: detached }) => tap == detached,
            _ => false,
        }
    }

    /// The file it removes, if it removes one.
    pub fn file(&self) -> Option<&HostPath> {
        match self {
            Self::RemoveFile { path }
            | Self::RemoveSocket { path, .. }
            | Self::RemovePidFile { path } => Some(path),
            _ => None,
        }
    }

    /// What is given back, for journals: names and paths.
    pub fn subject(&self) -> Value {
        let mut fields = json!(self);
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("release");
        }
        fields
    }

    /// The release's name, for error texts and alerts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RemoveFile { .. } => "remove file",
            Self::RemoveSocket { .. } => "remove socket",
            Self::RemovePidFile { .. } => "remove pidfile",
            Self::DeleteTap { .. } => "delete TAP",
            Self::DetachTap { .. } => "detach TAP from bridge",
            Self::DetachFirewall => "detach firewall",
            Self::RemoveFirewall => "remove firewall",
            Self::EndQemu => "end QEMU",
            Self::RemoveCgroup => "remove cgroup",
            Self::ForgetDiskKeys { .. } => "forget keys of disks",
            Self::DeleteRow => "delete row",
            Self::RestoreSpec => "restore spec",
            Self::RestoreStatus { .. } => "restore status",
        }
    }
}
