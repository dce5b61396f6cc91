//! `StateSync`: one row at a time, asked for by the user.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::reaction::is_claimed;
use crate::db::{Database, VmRecord};
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::qmp::{QmpClient, StatusInfo};
use crate::types::VmId;
use crate::vm::status::{Status, UNTOUCHABLE, of_run_state};

/// For asking QEMU its state.
const DEADLINE: Duration = Duration::from_secs(5);

/// `SyncResult`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncResult {
    /// Whether the row says what it should.
    pub success: bool,
    /// The machine.
    pub vm_id: String,
    /// The row's status before; `unknown` when it could not be read.
    pub previous_status: String,
    /// The row's status now.
    pub new_status: String,
    /// When, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Why it does not, a code of `SyncErrorCode` first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Questions to a database about one machine.
#[derive(Debug, Clone)]
pub struct StateSync {
    database: Arc<dyn Database>,
}

/// What kept a row from being synchronised: a code of `SyncErrorCode`, and words.
struct Unsynchronised {
    code: &'static str,
    words: String,
    previous: Option<String>,
}

impl StateSync {
    /// Asks nothing yet.
    pub fn new(database: Arc<dyn Database>) -> Self {
        Self { database }
    }

    /// What QEMU's run state means for the column; an unknown one is `error`.
    pub fn status_of(run_state: &str) -> &'static str {
        match of_run_state(run_state) {
            Status::Running => "running",
            Status::Suspended => "suspended",
            Status::Off => "off",
            Status::Starting => "starting",
            _ => "error",
        }
    }

    /// Asks QEMU its state and writes what it means, unless the row says `error` or has a claim.
    pub async fn sync_state(&self, vm_id: &VmId, qmp: &QmpClient) -> SyncResult {
        let synchronised = async {
            let status = asked(qmp).await?;
            let previous = self.status(vm_id).await?;
            let new = if status.running {
                "running"
            } else {
                Self::status_of(status.status.as_str())
            };
            if is_claimed(&previous) || previous == new {
                return Ok((previous.clone(), previous));
            }
            self.write(vm_id, &previous, new, &UNTOUCHABLE).await
        };
        told(vm_id.as_str(), synchronised.await)
    }

    /// What the methods that do not fail answer to what they cannot even be asked; `code` is a word of
    /// `SyncErrorCode`.
    pub fn refused(vm_id: &str, code: &'static str, why: &Failure) -> SyncResult {
        let unsynchronised = Unsynchronised {
            code,
            words: why.to_string(),
            previous: None,
        };
        told(vm_id, Err(unsynchronised))
    }

    /// Writes the status as it was given, unless the row has it.
    pub async fn update_status_direct(&self, vm_id: &VmId, status: &str) -> SyncResult {
        let updated = async {
            let parsed = Status::parse(status);
            if matches!(parsed, Status::Marker(_) | Status::Rebuilding) {
                return Err(Unsynchronised {
                    code: "INVALID_STATUS",
                    words: format!("{status} is no status of the library's"),
                    previous: None,
                });
            }
            let previous = self.status(vm_id).await?;
            if previous == status {
                return Ok((previous.clone(), previous));
            }
            self.write(vm_id, &previous, status, &[]).await
        };
        told(vm_id.as_str(), updated.await)
    }

    /// Writes the status as it was given. No row is no error.
    pub async fn update_vm_status(&self, vm_id: &VmId, status: &str) -> Result<(), Failure> {
        let written = self.database.update_machine_status(vm_id, status, &[]);
        Ok(written.await?)
    }

    /// The row's status; `VM_NOT_FOUND` when there is no row.
    pub async fn vm_status(&self, vm_id: &VmId) -> Result<String, Failure> {
        let row = self.database.find_machine(vm_id).await?;
        row.map(|row| row.status).ok_or_else(|| not_found(vm_id))
    }

    /// The row's pid, if it has one.
    pub async fn vm_pid(&self, vm_id: &VmId) -> Result<Option<i64>, Failure> {
        let row = self.row(vm_id).await?;
        Ok(row.and_then(|row| row.configuration?.qemu_pid))
    }

    /// `{ tapDeviceName, hasCpuPinning }`, or null when there is no row.
    pub async fn vm_info(&self, vm_id: &VmId) -> Result<Value, Failure> {
        let info = |row: VmRecord| {
            let tap = row.configuration.and_then(|it| it.tap_device_name);
            json!({ "tapDeviceName": tap, "hasCpuPinning": false })
        };
        Ok(self.row(vm_id).await?.map_or(Value::Null, info))
    }

    /// Clears pid and QMP socket.
    pub async fn clear_volatile(&self, vm_id: &VmId) -> Result<(), Failure> {
        let cleared = self.database.clear_volatile_machine_configuration(vm_id);
        Ok(cleared.await?)
    }

    async fn row(&self, vm_id: &VmId) -> Result<Option<VmRecord>, Failure> {
        Ok(self.database.find_machine_without_password(vm_id).await?)
    }

    async fn status(&self, vm_id: &VmId) -> Result<String, Unsynchronised> {
        self.vm_status(vm_id)
            .await
            .map_err(|failure| Unsynchronised {
                code: match failure.code() {
                    ErrorCode::VmNotFound => "VM_NOT_FOUND",
                    _ => "DB_ERROR",
                },
                words: failure.to_string(),
                previous: None,
            })
    }

    /// What the row said, and what it says now: somebody may have put a claim there in between.
    async fn write(
        &self,
        vm_id: &VmId,
        previous: &str,
        new: &str,
        guard: &[&str],
    ) -> Result<(String, String), Unsynchronised> {
        let written = self.database.update_machine_status(vm_id, new, guard).await;
        written.map_err(|error| Unsynchronised {
            code: "DB_ERROR",
            words: error.to_string(),
            previous: Some(previous.to_owned()),
        })?;
        let now = self.status(vm_id).await;
        let now = now.map_err(|unsynchronised| Unsynchronised {
            previous: Some(previous.to_owned()),
            ..unsynchronised
        })?;
        Ok((previous.to_owned(), now))
    }
}

async fn asked(qmp: &QmpClient) -> Result<StatusInfo, Unsynchronised> {
    match timeout(DEADLINE, qmp.query_status()).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(no_monitor(error.to_string())),
        Err(_elapsed) => Err(no_monitor("query-status was not answered in time".into())),
    }
}

fn no_monitor(words: String) -> Unsynchronised {
    Unsynchronised {
        code: "QMP_UNAVAILABLE",
        words,
        previous: None,
    }
}

fn told(vm_id: &str, outcome: Result<(String, String), Unsynchronised>) -> SyncResult {
    let (statuses, error) = match outcome {
        Ok(statuses) => (statuses, None),
        Err(Unsynchronised {
            code,
            words,
            previous,
        }) => {
            let previous = previous.unwrap_or_else(|| "unknown".to_owned());
            let error = format!("{code}: {words}");
            ((previous.clone(), previous), Some(error))
        }
    };
    SyncResult {
        success: error.is_none(),
        vm_id: vm_id.to_owned(),
        previous_status: statuses.0,
        new_status: statuses.1,
        timestamp: now_ms(),
        error,
    }
}

fn not_found(vm_id: &VmId) -> Failure {
    Failure::new(ErrorCode::VmNotFound, format!("VM {vm_id} not found")).of_vm(vm_id)
}
