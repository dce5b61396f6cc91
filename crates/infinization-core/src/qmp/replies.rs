//! What the typed commands answer, in QEMU's own spelling. Fields nobody here needs are left to
//! the raw reply; a field an older or newer QEMU may leave out is optional.

use serde::{Deserialize, Serialize};

use super::open_enum::open_enum;

/// The monitor's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Which QEMU answered.
    pub version: QemuVersion,
    /// What the monitor could negotiate (`oob`). We negotiate nothing.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// A QEMU's version and the package it came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuVersion {
    /// The version itself.
    pub qemu: VersionTriple,
    /// The distribution's name for it (`Debian 1:7.2+dfsg-7`), or empty.
    #[serde(default)]
    pub package: String,
}

/// `major.minor.micro`; orders as versions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct VersionTriple {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

open_enum! {
    /// What the machine is doing (QEMU's `RunState`).
    RunState {
        Running = "running",
        Paused = "paused",
        Shutdown = "shutdown",
        Inmigrate = "inmigrate",
        Postmigrate = "postmigrate",
        Prelaunch = "prelaunch",
        FinishMigrate = "finish-migrate",
        RestoreVm = "restore-vm",
        Suspended = "suspended",
        Watchdog = "watchdog",
        GuestPanicked = "guest-panicked",
        IoError = "io-error",
        Colo = "colo",
        Debug = "debug",
        InternalError = "internal-error",
        SaveVm = "save-vm",
    }
}

open_enum! {
    /// Whether a device's last request reached its disk.
    IoStatus {
        Ok = "ok",
        Failed = "failed",
        Nospace = "nospace",
    }
}

/// The answer to `query-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Whether vCPUs run.
    pub running: bool,
    /// TCG single-step mode; QEMU 9 no longer says it.
    #[serde(default)]
    pub singlestep: bool,
    /// Why they do or do not.
    pub status: RunState,
}

/// One vCPU of `query-cpus-fast`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfo {
    /// Counts from 0.
    pub cpu_index: u32,
    /// The QOM object.
    pub qom_path: String,
    /// The host thread that runs it. Under single-threaded TCG all vCPUs share one.
    pub thread_id: i32,
    /// Where it sits in the guest's topology.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub props: Option<CpuTopology>,
    /// The emulated architecture (`x86_64`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A vCPU's place in the guest's topology; what the machine has no notion of is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are QEMU's")]
pub struct CpuTopology {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_id: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub die_id: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_id: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<i64>,
}

/// One drive of `query-block`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// The classic `-drive` name; empty for drives made with `-blockdev`.
    pub device: String,
    /// The guest device's id, or its QOM path when it has none.
    pub qdev: Option<String>,
    /// Whether its medium can be taken out.
    pub removable: bool,
    /// Whether the guest has locked the tray.
    pub locked: bool,
    /// Absent for devices without a tray, and before a tray exists.
    pub tray_open: Option<bool>,
    /// Absent when the device does not report errors.
    #[serde(rename = "io-status")]
    pub io_status: Option<IoStatus>,
    /// The medium, if there is one.
    pub inserted: Option<InsertedMedium>,
}

/// The medium of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InsertedMedium {
    /// A path, or `json:{…}` where QEMU has no plain name for it.
    pub file: String,
    /// The block node.
    pub node_name: Option<String>,
    /// Opened read-only.
    pub ro: bool,
    /// The format driver (`qcow2`, `raw`).
    pub drv: String,
}

/// The answer to `query-vnc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VncInfo {
    /// Whether there is a VNC server.
    pub enabled: bool,
    /// The address it listens on.
    pub host: Option<String>,
    /// Its port, as text.
    pub service: Option<String>,
    /// `vnc` when a password is asked for, `none` when not.
    pub auth: Option<String>,
}

impl VncInfo {
    /// The TCP port it listens on.
    pub fn port(&self) -> Option<u16> {
        self.service.as_deref()?.parse().ok()
    }
}

/// The answer to `query-spice`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SpiceInfo {
    /// Whether there is a SPICE server.
    pub enabled: bool,
    /// The address it listens on.
    pub host: Option<String>,
    /// Its plain TCP port.
    pub port: Option<u16>,
    /// Its TLS port.
    pub tls_port: Option<u16>,
    /// `spice` when a password is asked for, `none` when not.
    pub auth: Option<String>,
}

/// The answer to `query-balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonInfo {
    /// Bytes of memory the guest has now.
    pub actual: u64,
}

impl BlockInfo {
    /// Its name: QEMU's own, else the id of the guest device.
    pub fn name(&self) -> &str {
        match self.device.as_str() {
            "" => device_id(self.qdev.as_deref().unwrap_or_default()),
            name => name,
        }
    }
}

/// `query-block` names a device by its QOM path: `/machine/peripheral/disk0` or, for a virtio disk,
/// `/machine/peripheral/disk0/virtio-backend`.
pub fn device_id(qdev: &str) -> &str {
    let inside = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    inside.split('/').next().unwrap_or(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_the_first_word_below_the_peripherals() {
        let table = [
            ("/machine/peripheral/disk0", "disk0"),
            ("/machine/peripheral/disk0/virtio-backend", "disk0"),
            ("disk1", "disk1"),
            ("", ""),
        ];
        for (qdev, id) in table {
            assert_eq!(device_id(qdev), id, "{qdev}");
        }
    }

    #[test]
    fn a_run_state_of_a_newer_qemu_is_kept() {
        let status: StatusInfo =
            serde_json::from_str(r#"{"status":"levitating","running":true,"more":[1]}"#).unwrap();
        assert_eq!(status.status, RunState::Other("levitating".into()));
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"running":true,"singlestep":false,"status":"levitating"}"#
        );
    }

    #[test]
    fn run_states_read_as_qemu_spells_them() {
        for (text, state) in [
            (r#""finish-migrate""#, RunState::FinishMigrate),
            (r#""restore-vm""#, RunState::RestoreVm),
            (r#""io-error""#, RunState::IoError),
            (r#""guest-panicked""#, RunState::GuestPanicked),
        ] {
            assert_eq!(serde_json::from_str::<RunState>(text).unwrap(), state);
            assert_eq!(serde_json::to_string(&state).unwrap(), text);
        }
    }

    #[test]
    fn a_blockdev_drive_without_medium_reads() {
        let drive = r#"{"io-status":"nospace","device":"","locked":false,"removable":true,
            "qdev":"cd0","tray_open":true,"type":"unknown"}"#;
        let drive: BlockInfo = serde_json::from_str(drive).unwrap();
        assert_eq!(drive.io_status, Some(IoStatus::Nospace));
        assert_eq!(drive.qdev.as_deref(), Some("cd0"));
        assert_eq!(drive.inserted, None);
    }

    #[test]
    fn the_vnc_port_is_a_number() {
        let vnc = r#"{"enabled":true,"host":"127.0.0.1","service":"5901","auth":"vnc"}"#;
        assert_eq!(
            serde_json::from_str::<VncInfo>(vnc).unwrap().port(),
            Some(5901)
        );
        let off: VncInfo = serde_json::from_str(r#"{"enabled":false}"#).unwrap();
        assert_eq!(off.port(), None);
    }
}
