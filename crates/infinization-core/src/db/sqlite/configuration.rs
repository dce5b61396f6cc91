//! The `machine_configuration` table: the contract's 28 columns, named once.

use rusqlite::types::{FromSql, Value};
use rusqlite::{Connection, Row, TransactionBehavior, params, params_from_iter};
use serde::Serialize;

use super::failure;
use super::vault::{PASSWORD, Vault};
use crate::db::{ConfigurationUpdate, CpuPinning, DbError, MachineConfiguration};
use crate::error::ErrorCode;
use crate::types::{Secret, VmId};

/// The columns the monitor needs of a running machine; reading no more keeps a corrupt column from
/// hiding the machine.
pub(super) const RUNTIME_COLUMNS: &str = "qemu_pid, tap_device_name, qmp_socket_path, \
     guest_agent_socket_path, infini_service_socket_path";

macro_rules! columns {
    ($($column:ident)*) => {
        fn read_row(row: &Row<'_>) -> Result<MachineConfiguration, DbError> {
            Ok(MachineConfiguration { $($column: Column::read(row, stringify!($column))?,)* })
        }

        /// What `update` says, as (column, value).
        fn changes(update: ConfigurationUpdate) -> Vec<(&'static str, Value)> {
            let ConfigurationUpdate { $($column,)* } = update;
            let mut changes = Vec::new();
            $(if let Some(value) = $column {
                let value = value.map_or(Value::Null, Column::into_value);
                changes.push((stringify!($column), value));
            })*
            changes
        }
    };
}

columns! {
    qemu_pid tap_device_name qmp_socket_path guest_agent_socket_path infini_service_socket_path
    graphic_protocol graphic_port graphic_password graphic_host assigned_gpu_bus bridge
    machine_type cpu_model disk_bus disk_cache_mode network_model network_queues memory_balloon
    disk_paths uefi_firmware hugepages cpu_pinning enable_numa_ctl_pinning cpu_pinning_strategy
    tpm_socket_path virtio_drivers_iso enable_audio enable_usb_tablet
}

/// The machine's configuration row, if it has one; its password only with the vault.
pub(super) fn find(
    db: &Connection,
    vault: Option<&Vault>,
    id: &str,
) -> Result<Option<MachineConfiguration>, DbError> {
    let mut statement = db
        .prepare_cached("SELECT * FROM machine_configuration WHERE machine_id = ?1")
        .map_err(failure::read)?;
    let mut rows = statement.query([id]).map_err(failure::read)?;
    let Some(row) = rows.next().map_err(failure::read)? else {
        return Ok(None);
    };
    let mut found = read_row(row)?;
    found.graphic_password = match (vault, found.graphic_password) {
        (None, _) => None,
        (Some(vault), None) => vault.find(db, id, PASSWORD)?,
        (Some(_), stored) => stored,
    };
    Ok(Some(found))
}

/// The [`RUNTIME_COLUMNS`] of a joined row.
pub(super) fn read_runtime(row: &Row<'_>) -> rusqlite::Result<MachineConfiguration> {
    Ok(MachineConfiguration {
        qemu_pid: row.get("qemu_pid")?,
        tap_device_name: row.get("tap_device_name")?,
        qmp_socket_path: row.get("qmp_socket_path")?,
        guest_agent_socket_path: row.get("guest_agent_socket_path")?,
        infini_service_socket_path: row.get("infini_service_socket_path")?,
        ..MachineConfiguration::default()
    })
}

/// Makes the row or changes it; columns the update does not name stay as they are. With a key, a password
/// is in the vault, and its column is empty.
pub(super) fn upsert(
    db: &mut Connection,
    vault: &Vault,
    id: &VmId,
    mut update: ConfigurationUpdate,
) -> Result<(), DbError> {
    let Some(password) = update.graphic_password.clone() else {
        return write(db, id, update);
    };
    let change = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::write)?;
    if vault.has_key() {
        update.graphic_password = Some(None);
    }
    write(&change, id, update)?;
    vault.put(&change, id.as_str(), PASSWORD, password.as_ref())?;
    change.commit().map_err(failure::write)
}

fn write(db: &Connection, id: &VmId, update: ConfigurationUpdate) -> Result<(), DbError> {
    let (columns, mut values): (Vec<_>, Vec<_>) = changes(update).into_iter().unzip();
    values.insert(0, Value::from(id.to_string()));
    db.prepare_cached(&upsert_statement(&columns))
        .and_then(|mut statement| statement.execute(params_from_iter(values)))
        .map_err(failure::write)?;
    Ok(())
}

fn upsert_statement(columns: &[&str]) -> String {
    let names = [&["machine_id"], columns].concat();
    let sets: Vec<_> = names
        .iter()
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let marks = vec!["?"; names.len()].join(", ");
    let (names, sets) = (names.join(", "), sets.join(", "));
    format!(
        "INSERT INTO machine_configuration ({names}) VALUES ({marks}) \
         ON CONFLICT (machine_id) DO UPDATE SET {sets}"
    )
}

/// Nulls pid, TAP name and monitor socket.
pub(super) fn clear(db: &Connection, id: &VmId) -> Result<(), DbError> {
    set_null(
        db,
        id,
        "qemu_pid = NULL, tap_device_name = NULL, qmp_socket_path = NULL",
    )
}

/// Nulls pid and monitor socket.
pub(super) fn clear_volatile(db: &Connection, id: &VmId) -> Result<(), DbError> {
    set_null(db, id, "qemu_pid = NULL, qmp_socket_path = NULL")
}

fn set_null(db: &Connection, id: &VmId, assignments: &str) -> Result<(), DbError> {
    let sql = format!("UPDATE machine_configuration SET {assignments} WHERE machine_id = ?1");
    db.execute(&sql, params![id.as_str()])
        .map_err(failure::write)?;
    Ok(())
}

/// A type that a nullable column holds.
trait Column: Sized {
    fn into_value(self) -> Value;
    fn read(row: &Row<'_>, column: &'static str) -> Result<Option<Self>, DbError>;
}

fn plain<T: FromSql>(row: &Row<'_>, column: &str) -> Result<Option<T>, DbError> {
    row.get(column).map_err(failure::read)
}

macro_rules! plain_column {
    ($($type:ty)*) => {
        $(impl Column for $type {
            fn into_value(self) -> Value {
                self.into()
            }

            fn read(row: &Row<'_>, column: &'static str) -> Result<Option<Self>, DbError> {
                plain(row, column)
            }
        })*
    };
}

plain_column! { i64 bool String }

impl Column for Secret {
    fn into_value(self) -> Value {
        self.reveal().to_owned().into()
    }

    fn read(row: &Row<'_>, column: &'static str) -> Result<Option<Self>, DbError> {
        Ok(plain::<String>(row, column)?.map(Self::new))
    }
}

/// Losing a disk silently could start a machine without its data: corrupt JSON is an error.
impl Column for Vec<String> {
    fn into_value(self) -> Value {
        json(&self)
    }

    fn read(row: &Row<'_>, column: &'static str) -> Result<Option<Self>, DbError> {
        let Some(text) = plain::<String>(row, column)? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map_err(|_| {
            DbError::new(
                ErrorCode::QueryFailed,
                format!("the column {column} is not a JSON list of strings"),
            )
        })
    }
}

/// Pinning is a wish, so a malformed one reads as none.
impl Column for CpuPinning {
    fn into_value(self) -> Value {
        json(&self)
    }

    fn read(row: &Row<'_>, column: &'static str) -> Result<Option<Self>, DbError> {
        let text = plain::<String>(row, column)?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }
}

fn json(value: &impl Serialize) -> Value {
    #[expect(
        clippy::expect_used,
        reason = "strings and numbers always have a JSON form"
    )]
    let text = serde_json::to_string(value).expect("plain data");
    text.into()
}
