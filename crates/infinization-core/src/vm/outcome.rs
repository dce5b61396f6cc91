//! What the verbs answer: plain data, spelled as the public contract spells it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::condition::Condition;
use super::reconcile::{ReconcileAction, ReconcileResult};
use crate::types::VmId;

/// `VMCreateResult`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateResult {
    /// Always true: a failure rejects.
    pub success: bool,
    /// The machine's id.
    pub vm_id: VmId,
    /// Its TAP device.
    pub tap_device: String,
    /// Its monitor's socket.
    pub qmp_socket_path: String,
    /// The port its display listens on, which may not be the one asked for.
    pub display_port: u16,
    /// QEMU's pid.
    pub pid: i32,
    /// Its disks, in order.
    pub disk_paths: Vec<String>,
    /// Its pidfile.
    pub pid_file_path: String,
    /// The accelerator QEMU runs with.
    pub accelerator: &'static str,
    /// What was taken differently than asked, in sentences.
    pub warnings: Vec<String>,
}

/// `VMOperationResult`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationResult {
    /// Whether it was done. Only `restartVM` ever answers false.
    pub success: bool,
    /// A sentence for people.
    pub message: String,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The machine's id.
    pub vm_id: VmId,
    /// When, in milliseconds since the Unix epoch; a `Date` in JavaScript.
    pub timestamp: u64,
    /// Whether the guest did not go by itself. Only set by stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forced: Option<bool>,
    /// What was taken differently than asked, in sentences. Only set by starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl OperationResult {
    /// It was done.
    pub fn done(vm_id: &VmId, message: impl Into<String>) -> Self {
        Self {
            success: true,
            message: message.into(),
            error: None,
            vm_id: vm_id.clone(),
            timestamp: crate::events::now_ms(),
            forced: None,
            warnings: Vec::new(),
        }
    }

    /// It was not done, and that is an answer.
    pub fn failed(vm_id: &VmId, message: impl Into<String>, error: impl Into<String>) -> Self {
        Self {
            success: false,
            error: Some(error.into()),
            ..Self::done(vm_id, message)
        }
    }

    /// What the journal tells of it.
    pub(super) fn told(&self) -> Value {
        let mut told = Map::new();
        if let Some(forced) = self.forced {
            told.insert("forced".to_owned(), forced.into());
        }
        if let Some(error) = &self.error {
            told.insert("error".to_owned(), error.as_str().into());
        }
        told.into()
    }

    /// Says what was taken differently than asked.
    #[must_use]
    pub fn warned(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    /// Says whether force was needed.
    #[must_use]
    pub fn forced(mut self, forced: bool) -> Self {
        self.forced = Some(forced);
        self
    }
}

/// `VMStatusResult`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusResult {
    /// The machine's id.
    pub vm_id: VmId,
    /// The row's status.
    pub status: String,
    /// QEMU's run state; null when there is no QEMU or it does not answer.
    pub qmp_status: Option<String>,
    /// QEMU's pid.
    pub pid: Option<i32>,
    /// Seconds since QEMU started.
    pub uptime: Option<f64>,
    /// Whether QEMU is there.
    pub process_alive: bool,
    /// Whether QEMU is there but its monitor does not answer.
    pub unresponsive: bool,
    /// Whether the row and the process agree.
    pub consistent: bool,
    /// Its TAP device.
    pub tap_device: Option<String>,
    /// Its monitor's socket.
    pub qmp_socket_path: Option<String>,
    /// What ails it, if anything does.
    pub condition: Option<Condition>,
    /// How many events of this QEMU's monitor were dropped because they came too fast.
    pub missed_events: u64,
    /// Why QEMU last ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<EndCause>,
}

/// Why a QEMU ended. Kept in the ledger, so that it is known after our own restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndCause {
    /// `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`, `host-signal` (as QEMU's
    /// SHUTDOWN event says), or `oom-killed`, `watchdog`, `signal`, `exit-code`, `host-kill`,
    /// `host-reboot`, `unknown`.
    pub reason: String,
    /// When that was noticed, in milliseconds since the Unix epoch; a `Date` in JavaScript.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// What proves the reason, where QEMU did not say it itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// What the guest told of its panic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic: Option<Value>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// QEMU's last words on standard error, when it did not end well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
}

impl EndCause {
    /// A cause with no more to say.
    pub fn of(reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            ended_at: None,
            evidence: None,
            panic: None,
            signal: None,
            exit_code: None,
            stderr: None,
        }
    }

    /// The facts, for event payloads and error contexts.
    pub fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
}

/// `ReconcileSummary`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileSummary {
    /// How many rows were looked at.
    pub total_checked: usize,
    /// Machines whose QEMU is alive and ours.
    pub promoted_to_running: Vec<String>,
    /// Machines whose QEMU is gone.
    pub reset_to_off: Vec<String>,
    /// Machines that were being rebuilt.
    pub reset_to_error: Vec<String>,
    /// Machines that could not be judged.
    pub skipped: Vec<String>,
    /// When, in milliseconds since the Unix epoch; a `Date` in JavaScript.
    pub timestamp: u64,
    /// Machine by machine.
    pub results: Vec<ReconcileResult>,
}

impl ReconcileSummary {
    /// Sorts the machines by what became of them.
    pub fn of(results: Vec<ReconcileResult>) -> Self {
        let with = |action| {
            let those = results.iter().filter(move |one| one.action == action);
            those.map(|one| one.vm_id.clone()).collect()
        };
        Self {
            total_checked: results.len(),
            promoted_to_running: with(ReconcileAction::PromotedRunning),
            reset_to_off: with(ReconcileAction::ResetOff),
            reset_to_error: with(ReconcileAction::ResetError),
            skipped: with(ReconcileAction::Skipped),
            timestamp: crate::events::now_ms(),
            results,
        }
    }

    /// The payload of `reconcile-complete`.
    pub fn told(&self) -> Value {
        json!({
            "promotedToRunning": self.promoted_to_running,
            "resetToOff": self.reset_to_off,
            "resetToError": self.reset_to_error,
            "skipped": self.skipped,
            "timestamp": self.timestamp,
        })
    }
}
