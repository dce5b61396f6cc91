//! What QEMU reports by itself: every event raw, and a typed view of those a VM's life depends on.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::open_enum::open_enum;

/// One event as QEMU sent it.
#[derive(Debug, Clone, Serialize)]
pub struct QmpEvent {
    /// Its name in QEMU's capitals.
    pub event: String,
    /// Its data: a JSON object, `{}` where QEMU sent none.
    pub data: Box<RawValue>,
    /// When QEMU says it happened: wall clock, for people. Order by arrival instead.
    pub timestamp: QmpTimestamp,
}

/// Wall-clock time of the host; both are -1 when QEMU could not read its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct QmpTimestamp {
    pub seconds: i64,
    pub microseconds: i64,
}

impl QmpTimestamp {
    /// What QEMU sends for "unknown".
    pub const UNKNOWN: Self = Self {
        seconds: -1,
        microseconds: -1,
    };
}

open_enum! {
    /// Who ended or reset the machine (QEMU's `ShutdownCause`).
    ShutdownCause {
        HostError = "host-error",
        HostQmpQuit = "host-qmp-quit",
        HostQmpSystemReset = "host-qmp-system-reset",
        HostSignal = "host-signal",
        HostUi = "host-ui",
        GuestShutdown = "guest-shutdown",
        GuestReset = "guest-reset",
        GuestPanic = "guest-panic",
        SubsystemReset = "subsystem-reset",
        SnapshotLoad = "snapshot-load",
    }
}

/// An event the lifecycle acts on, read out of a [`QmpEvent`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The machine ends (QEMU runs without `-no-shutdown`, so it exits next).
    Shutdown {
        /// The guest asked for it.
        guest: bool,
        /// Who ended it.
        reason: ShutdownCause,
    },
    /// The ACPI power button was pressed. The guest may ignore it: this ends nothing.
    Powerdown,
    /// vCPUs stopped. Also on I/O errors, panics, migration and snapshots: ask `query-status` why.
    Stop,
    /// vCPUs run again.
    Resume,
    /// The guest sleeps (ACPI S3).
    Suspend,
    /// The guest woke up from S3.
    Wakeup,
    /// The machine starts over.
    Reset {
        /// The guest asked for it.
        guest: bool,
        /// Who reset it.
        reason: ShutdownCause,
    },
    /// The guest's kernel panicked (with a pvpanic device).
    GuestPanicked {
        /// What QEMU does about it: `pause`, `poweroff`, `run`.
        action: String,
        /// What the guest told of it, as QEMU passes it on; most guests tell nothing.
        info: Option<Value>,
    },
    /// A disk request failed on the host.
    BlockIoError(BlockIoError),
    /// The emulated watchdog expired.
    Watchdog {
        /// What QEMU does about it: `reset`, `shutdown`, `poweroff`, `pause`, `debug`, `none`,
        /// `inject-nmi`.
        action: String,
    },
    /// The guest let an unplugged device go.
    DeviceDeleted {
        /// Its id, if it had one.
        device: Option<String>,
        /// Its QOM path.
        path: String,
    },
    /// Any other event; its name and data are in the [`QmpEvent`].
    Other,
}

/// Which disk failed, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BlockIoError {
    /// The classic `-drive` name; empty for drives made with `-blockdev`.
    pub device: String,
    /// The block node, if QEMU names it.
    pub node_name: Option<String>,
    /// `read` or `write`.
    pub operation: String,
    /// What QEMU does about it: `report`, `ignore`, or `stop` (the machine pauses).
    pub action: String,
    /// The file system is full.
    pub nospace: bool,
    /// The host's words, for people.
    pub reason: String,
}

impl QmpEvent {
    /// The typed view. An event counts even if its details cannot be read: they are then empty.
    pub fn kind(&self) -> EventKind {
        match self.event.as_str() {
            "SHUTDOWN" => {
                let Ending { guest, reason } = self.details();
                EventKind::Shutdown { guest, reason }
            }
            "RESET" => {
                let Ending { guest, reason } = self.details();
                EventKind::Reset { guest, reason }
            }
            "POWERDOWN" => EventKind::Powerdown,
            "STOP" => EventKind::Stop,
            "RESUME" => EventKind::Resume,
            "SUSPEND" => EventKind::Suspend,
            "WAKEUP" => EventKind::Wakeup,
            "GUEST_PANICKED" => {
                let Reaction { action, info } = self.details();
                EventKind::GuestPanicked { action, info }
            }
            "WATCHDOG" => EventKind::Watchdog {
                action: self.details::<Reaction>().action,
            },
            "BLOCK_IO_ERROR" => EventKind::BlockIoError(self.details()),
            "DEVICE_DELETED" => {
                let Deleted { device, path } = self.details();
                EventKind::DeviceDeleted { device, path }
            }
            _ => EventKind::Other,
        }
    }

    fn details<T: DeserializeOwned + Default>(&self) -> T {
        serde_json::from_str(self.data.get()).unwrap_or_default()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ending {
    guest: bool,
    reason: ShutdownCause,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reaction {
    action: String,
    info: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Deleted {
    device: Option<String>,
    path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(event: &str, data: &str) -> EventKind {
        let data = RawValue::from_string(data.to_owned()).unwrap();
        QmpEvent {
            event: event.to_owned(),
            data,
            timestamp: QmpTimestamp::UNKNOWN,
        }
        .kind()
    }

    #[test]
    fn reads_what_the_lifecycle_needs() {
        let full_disk = BlockIoError {
            node_name: Some("disk0".into()),
            operation: "write".into(),
            action: "stop".into(),
            nospace: true,
            reason: "No space left on device".into(),
            ..BlockIoError::default()
        };
        for (event, data, expected) in [
            (
                "SHUTDOWN",
                r#"{"guest":true,"reason":"guest-shutdown"}"#,
                EventKind::Shutdown {
                    guest: true,
                    reason: ShutdownCause::GuestShutdown,
                },
            ),
            (
                "RESET",
                r#"{"guest":false,"reason":"from-the-future"}"#,
                EventKind::Reset {
                    guest: false,
                    reason: ShutdownCause::Other("from-the-future".into()),
                },
            ),
            ("POWERDOWN", "{}", EventKind::Powerdown),
            (
                "GUEST_PANICKED",
                r#"{"action":"pause","info":{"type":"hyper-v","arg1":1}}"#,
                EventKind::GuestPanicked {
                    action: "pause".into(),
                    info: Some(serde_json::json!({ "type": "hyper-v", "arg1": 1 })),
                },
            ),
            (
                "BLOCK_IO_ERROR",
                r#"{"device":"","node-name":"disk0","operation":"write","action":"stop",
                    "nospace":true,"reason":"No space left on device"}"#,
                EventKind::BlockIoError(full_disk),
            ),
            (
                "DEVICE_DELETED",
                r#"{"path":"/machine/peripheral/nic1","device":"nic1"}"#,
                EventKind::DeviceDeleted {
                    device: Some("nic1".into()),
                    path: "/machine/peripheral/nic1".into(),
                },
            ),
            ("RTC_CHANGE", r#"{"offset":1}"#, EventKind::Other),
        ] {
            assert_eq!(kind(event, data), expected, "{event}");
        }
    }

    #[test]
    fn a_shutdown_with_unreadable_details_is_still_one() {
        let expected = EventKind::Shutdown {
            guest: false,
            reason: ShutdownCause::Other(String::new()),
        };
        assert_eq!(kind("SHUTDOWN", "{}"), expected);
        assert_eq!(kind("SHUTDOWN", r#"{"guest":"yes"}"#), expected);
        assert_eq!(kind("SHUTDOWN", "17"), expected);
    }
}
