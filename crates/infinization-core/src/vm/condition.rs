//! What ails a VM that lives: its guest cannot go on or has no network, or its QEMU does not answer. One
//! place decides what that is, keeps it, and tells changes.
//!
//! A condition comes from what QEMU says now (`query-status`, `query-block`) and from the events that
//! say more (`GUEST_PANICKED`, `WATCHDOG`), and ends when the guest goes on; of the network the manager knows. It is beside the status,
//! which is a word that others write too. Neighbours: [`super::machine`] hears the monitor,
//! `getVMStatus` and the health monitor ask it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::context::VmContext;
use super::journal::{Actor, Kind, Note};
use super::live::LiveView;
use crate::events::now_ms;
use crate::qmp::{BlockInfo, IoStatus, QmpClient, QmpError, RunState, StatusInfo};

/// For asking QEMU what it is: one that hangs must not hold up anybody for long.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// What ails a living VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum Ailment {
    /// A disk's request failed on the host, and QEMU stopped the guest: it goes on, and tries again,
    /// when it is told to.
    IoError {
        /// Why.
        reason: IoErrorReason,
        /// The disk, as `queryBlockDevices` names it, if QEMU says which.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// The guest's kernel panicked. What follows is the guest's own choice.
    GuestPanicked {
        /// What the guest told of it, where it tells more (Hyper-V and s390 panics do).
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<Value>,
    },
    /// The emulated watchdog expired.
    Watchdog {
        /// What QEMU does about it: `pause`, `none`, …
        action: String,
    },
    /// QEMU stopped the guest because of a defect (run state `internal-error`).
    InternalError,
    /// The guest goes on, but its TAP is on no bridge.
    NetworkLost {
        /// Why.
        reason: NetworkLoss,
        /// The bridge it was on, or is to be on.
        bridge: String,
    },
    /// QEMU is there, but its monitor does not answer. What else ails the VM cannot be known.
    Unresponsive,
}

/// Why a disk's request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IoErrorReason {
    /// The file system the disk's file is on is full.
    Nospace,
    /// Anything else: the host's disk is broken, or not reached.
    Other,
}

/// Why a TAP is on no bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkLoss {
    /// There is no such bridge any more. When there is one of its name, the TAP joins that.
    BridgeGone,
    /// Somebody took it off a bridge that is still there, and may put it back.
    TakenOff,
    /// The TAP itself was deleted. QEMU cannot be given another one: it takes a stop and a start.
    TapGone,
}

/// What ails a VM, and since when that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is.
    #[serde(flatten)]
    pub ailment: Ailment,
    /// In milliseconds since the Unix epoch; a `Date` in JavaScript.
    pub since: u64,
}

impl Ailment {
    /// The public word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::IoError { .. } => "io-error",
            Self::GuestPanicked { .. } => "guest-panicked",
            Self::Watchdog { .. } => "watchdog",
            Self::InternalError => "internal-error",
            Self::NetworkLost { .. } => "network-lost",
            Self::Unresponsive => "unresponsive",
        }
    }

    fn with_time(self) -> Condition {
        Condition {
            ailment: self,
            since: now_ms(),
        }
    }
}

/// What is known of one QEMU's condition.
#[derive(Debug, Default)]
pub struct Health(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    guest: Option<Condition>,
    silent: Option<Condition>,
    network: Option<Condition>,
}

impl Known {
    /// A QEMU that does not answer hides what its guest's condition is, and a guest that cannot go on needs
    /// no network.
    fn shown(&self) -> Option<&Condition> {
        let hidden = self.guest.as_ref().or(self.network.as_ref());
        self.silent.as_ref().or(hidden)
    }
}

impl Health {
    /// What ails it now.
    pub fn condition(&self) -> Option<Condition> {
        self.lock().shown().cloned()
    }

    /// What ails its guest, as far as QEMU has said.
    pub(super) fn of_guest(&self) -> Option<Ailment> {
        let known = self.lock();
        known
            .guest
            .as_ref()
            .map(|condition| condition.ailment.clone())
    }

    /// Whether its TAP is on no bridge, as far as that was noticed.
    pub fn is_off_network(&self) -> bool {
        self.lock().network.is_some()
    }

    /// Changes what is known; answers what is shown before and after, if that differs.
    fn change(
        &self,
        change: impl FnOnce(&mut Known),
    ) -> Option<(Option<Condition>, Option<Condition>)> {
        let mut known = self.lock();
        let before = known.shown().cloned();
        change(&mut known);
        let after = known.shown().cloned();
        let word = |shown: &Option<Condition>| shown.as_ref().map(|one| one.ailment.clone());
        (word(&before) != word(&after)).then_some((before, after))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the time of a condition that goes on.
fn put(place: &mut Option<Condition>, ailment: Option<Ailment>) {
    let same = place.as_ref().map(|one| &one.ailment) == ailment.as_ref();
    if !same {
        *place = ailment.map(Ailment::with_time);
    }
}

impl VmContext {
    /// The guest's condition is this now.
    pub(super) fn guest_is(&self, live: &LiveView, ailment: Option<Ailment>, by: Actor) {
        let changed = live.health.change(|known| put(&mut known.guest, ailment));
        self.tell_condition(changed, by);
    }

    /// The guest's network is this now.
    pub fn network_is(&self, live: &LiveView, ailment: Option<Ailment>) {
        let changed = live.health.change(|known| put(&mut known.network, ailment));
        self.tell_condition(changed, Actor::Health);
    }

    /// QEMU answers, or does not.
    pub fn answers(&self, live: &LiveView, answers: bool) {
        let ailment = (!answers && live.process.is_alive()).then_some(Ailment::Unresponsive);
        let changed = live.health.change(|known| put(&mut known.silent, ailment));
        self.tell_condition(changed, Actor::Monitor);
    }

    /// QEMU's run state, asked now; `None` if it does not answer. Waits for no operation.
    pub async fn ask_run_state(&self, live: &Arc<LiveView>) -> Option<StatusInfo> {
        let asked = timeout(ANSWER_DEADLINE, live.qmp.query_status()).await;
        match asked {
            Ok(Ok(status)) => {
                self.answers(live, true);
                Some(status)
            }
            // A connection that is gone is told by whoever watches it: QEMU may just be ending.
            Ok(Err(_)) => None,
            Err(_elapsed) => {
                self.answers(live, false);
                None
            }
        }
    }

    fn tell_condition(&self, changed: Option<(Option<Condition>, Option<Condition>)>, by: Actor) {
        let Some((before, after)) = changed else {
            return;
        };
        let word = |shown: &Option<Condition>| match shown {
            Some(condition) => condition.ailment.kind(),
            None => "none",
        };
        let note = Note::of(Kind::Condition).by(by);
        let note = note.change(Some(word(&before).to_owned()), word(&after));
        let detail = after.as_ref().map(|one| json!(one.ailment));
        self.journal.note(note.detail(detail.unwrap_or_default()));
        let data = json!({
            "vmId": self.vm_id,
            "condition": after,
            "previous": before,
            "timestamp": now_ms(),
        });
        self.emit("vm:condition", data);
    }
}

/// What ails a guest whose QEMU is in this state; `known` is what events have said.
pub(super) async fn diagnose(
    qmp: &QmpClient,
    status: &StatusInfo,
    known: Option<Ailment>,
) -> Option<Ailment> {
    match status.status {
        RunState::IoError => {
            let drives: Result<Vec<BlockInfo>, QmpError> =
                match timeout(ANSWER_DEADLINE, qmp.query_block()).await {
                    Ok(drives) => drives,
                    Err(_elapsed) => Ok(Vec::new()),
                };
            Some(io_error(&drives.unwrap_or_default()))
        }
        RunState::GuestPanicked => Some(match known {
            Some(panic @ Ailment::GuestPanicked { .. }) => panic,
            _ => Ailment::GuestPanicked { info: None },
        }),
        RunState::Watchdog => Some(match known {
            Some(watchdog @ Ailment::Watchdog { .. }) => watchdog,
            _ => Ailment::Watchdog {
                action: "pause".to_owned(),
            },
        }),
        RunState::InternalError => Some(Ailment::InternalError),
        // A panic does not stop QEMU: the guest hangs in it, or restarts by itself.
        _ => known.filter(|known| {
            matches!(
                known,
                Ailment::GuestPanicked { .. } | Ailment::Watchdog { .. }
            )
        }),
    }
}

/// The disk whose last request failed.
fn io_error(drives: &[BlockInfo]) -> Ailment {
    let failed = |drive: &&BlockInfo| !matches!(drive.io_status, None | Some(IoStatus::Ok));
    let drive = drives.iter().find(failed);
    let full = drive.is_some_and(|drive| drive.io_status == Some(IoStatus::Nospace));
    Ailment::IoError {
        reason: if full {
            IoErrorReason::Nospace
        } else {
            IoErrorReason::Other
        },
        device: drive.map(|drive| drive.name().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drive(name: &str, qdev: &str, io_status: Option<&str>) -> BlockInfo {
        let mut drive = json!({
            "device": name, "qdev": qdev, "removable": false, "locked": false, "tray_open": null,
            "inserted": null,
        });
        if let Some(status) = io_status {
            drive["io-status"] = json!(status);
        }
        serde_json::from_value(drive).unwrap()
    }

    #[test]
    fn f15_f16_the_disk_that_failed_is_named_with_its_reason() {
        let good = || drive("", "/machine/peripheral/disk0/virtio-backend", Some("ok"));
        for (drives, told) in [
            (
                vec![
                    good(),
                    drive(
                        "",
                        "/machine/peripheral/disk1/virtio-backend",
                        Some("nospace"),
                    ),
                ],
                json!({ "kind": "io-error", "reason": "nospace", "device": "disk1" }),
            ),
            (
                vec![
                    drive("", "cdrom0", None),
                    drive("ide0", "x", Some("failed")),
                ],
                json!({ "kind": "io-error", "reason": "other", "device": "ide0" }),
            ),
            (
                vec![good()],
                json!({ "kind": "io-error", "reason": "other" }),
            ),
        ] {
            assert_eq!(json!(io_error(&drives)), told);
        }
    }

    #[test]
    fn a_condition_that_goes_on_keeps_its_time_and_is_told_once() {
        let health = Health::default();
        let panic = || Some(Ailment::GuestPanicked { info: None });
        let set = |ailment| health.change(|known| put(&mut known.guest, ailment));
        let (before, after) = set(panic()).unwrap();
        assert_eq!(
            (before, after.unwrap().ailment.kind()),
            (None, "guest-panicked")
        );
        assert_eq!(set(panic()), None);

        // A QEMU that does not answer hides it.
        let silent = |ailment| health.change(|known| put(&mut known.silent, ailment));
        let (_, after) = silent(Some(Ailment::Unresponsive)).unwrap();
        assert_eq!(after.unwrap().ailment.kind(), "unresponsive");
        assert_eq!(set(None), None, "nobody can see that now");
        assert_eq!(set(panic()), None);
        let (_, after) = silent(None).unwrap();
        assert_eq!(after.unwrap().ailment.kind(), "guest-panicked");
        let (_, after) = set(None).unwrap();
        assert_eq!((after, health.condition()), (None, None));
    }

    #[test]
    fn f24_a_lost_network_shows_while_nothing_worse_does() {
        let health = Health::default();
        let lost = |reason| {
            Some(Ailment::NetworkLost {
                reason,
                bridge: "br0".to_owned(),
            })
        };
        let network = |ailment| health.change(|known| put(&mut known.network, ailment));
        let (_, shown) = network(lost(NetworkLoss::TakenOff)).unwrap();
        let since = shown.as_ref().unwrap().since;
        assert_eq!(
            json!(shown),
            json!({ "kind": "network-lost", "reason": "taken-off", "bridge": "br0", "since": since })
        );
        assert!(network(lost(NetworkLoss::BridgeGone)).is_some());
        let worse = health.change(|known| put(&mut known.guest, Some(Ailment::InternalError)));
        assert_eq!(worse.unwrap().1.unwrap().ailment.kind(), "internal-error");
        assert_eq!(network(None), None, "it is hidden");
        assert!(!health.is_off_network());
    }

    #[test]
    fn is_spelled_as_the_public_contract_spells_it() {
        let condition = Condition {
            ailment: Ailment::Watchdog {
                action: "pause".to_owned(),
            },
            since: 7,
        };
        let spelled = json!({ "kind": "watchdog", "action": "pause", "since": 7 });
        assert_eq!(json!(condition), spelled);
        assert_eq!(
            json!(Ailment::Unresponsive),
            json!({ "kind": "unresponsive" })
        );
    }
}
