//! The contract's 28 configuration columns, named once, and their values as JSON.

use serde_json::{Map, Value, json};

use crate::db::{ConfigurationUpdate, CpuPinning, DbError, MachineConfiguration};
use crate::error::ErrorCode;
use crate::types::Secret;

/// A column's value as JSON has it.
trait Column: Sized {
    /// What it must be; follows its name in a sentence.
    const KIND: &'static str;
    fn to_json(&self) -> Value;
    fn from_json(value: &Value) -> Option<Self>;

    /// As databases hold it, which may be in a wider type. `name` is the column's.
    fn stored(name: &str, value: &Value) -> Result<Option<Self>, DbError> {
        of_its_type(name, Self::from_json(value))
    }
}

impl Column for i64 {
    const KIND: &'static str = "an integer";
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_i64()
    }
    fn stored(name: &str, value: &Value) -> Result<Option<Self>, DbError> {
        of_its_type(name, integer(value))
    }
}

impl Column for bool {
    const KIND: &'static str = "a boolean";
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Column for String {
    const KIND: &'static str = "a string";
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl Column for Secret {
    const KIND: &'static str = "a string";
    fn to_json(&self) -> Value {
        json!(self.reveal())
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().map(Self::new)
    }
}

impl Column for Vec<String> {
    const KIND: &'static str = "an array of strings";
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(String::from_json).collect()
    }
}

impl Column for CpuPinning {
    const KIND: &'static str = "an object with cores";
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        serde_json::from_value(value.clone()).ok()
    }
    /// Pinning is a wish, so a malformed one counts as none. So does one of no CPUs, which is how it
    /// is taken away where a column of JSON cannot be made null.
    fn stored(name: &str, value: &Value) -> Result<Option<Self>, DbError> {
        let pinning = Self::from_json(value);
        if pinning.is_none() {
            tracing::warn!("the column {name} is malformed; the machine is not pinned");
        }
        Ok(pinning.filter(|pinning| !pinning.cores.is_empty()))
    }
}

macro_rules! columns {
    ($($name:literal $field:ident)*) => {
        /// `ExtendedMachineConfigurationRecord`.
        pub(super) fn configuration(row: &MachineConfiguration) -> Value {
            json!({ $($name: row.$field.as_ref().map(Column::to_json),)* })
        }

        /// Reads a `MachineConfigUpdate`: null clears a column, an absent one stays as it is. What is no
        /// column, or not of its type, is `INVALID_INPUT`.
        pub fn configuration_update(
            given: &Map<String, Value>,
        ) -> Result<ConfigurationUpdate, DbError> {
            let mut update = ConfigurationUpdate::default();
            for (name, value) in given {
                match name.as_str() {
                    $($name => update.$field = Some(column(name, value)?),)*
                    _ => return Err(malformed(format!("{name} is no column"))),
                }
            }
            Ok(update)
        }

        /// The members of a `MachineConfigUpdate`: only what the update changes.
        pub(in crate::db) fn configuration_members(
            update: &ConfigurationUpdate,
        ) -> Map<String, Value> {
            let mut members = Map::new();
            $(if let Some(value) = &update.$field {
                members.insert($name.to_owned(), value.as_ref().map_or(Value::Null, Column::to_json));
            })*
            members
        }

        /// Reads what a database holds; a missing column is null. What is not of its column's type is
        /// `QUERY_FAILED`.
        pub(super) fn stored_configuration(
            given: &Map<String, Value>,
        ) -> Result<MachineConfiguration, DbError> {
            Ok(MachineConfiguration { $($field: stored($name, given)?,)* })
        }

        /// The 28 columns.
        pub(in crate::db) const COLUMNS: &[&str] = &[$($name),*];
    };
}

columns! {
    "qemuPid" qemu_pid
    "tapDeviceName" tap_device_name
    "qmpSocketPath" qmp_socket_path
    "guestAgentSocketPath" guest_agent_socket_path
    "infiniServiceSocketPath" infini_service_socket_path
    "graphicProtocol" graphic_protocol
    "graphicPort" graphic_port
    "graphicPassword" graphic_password
    "graphicHost" graphic_host
    "assignedGpuBus" assigned_gpu_bus
    "bridge" bridge
    "machineType" machine_type
    "cpuModel" cpu_model
    "diskBus" disk_bus
    "diskCacheMode" disk_cache_mode
    "networkModel" network_model
    "networkQueues" network_queues
    "memoryBalloon" memory_balloon
    "diskPaths" disk_paths
    "uefiFirmware" uefi_firmware
    "hugepages" hugepages
    "cpuPinning" cpu_pinning
    "enableNumaCtlPinning" enable_numa_ctl_pinning
    "cpuPinningStrategy" cpu_pinning_strategy
    "tpmSocketPath" tpm_socket_path
    "virtioDriversIso" virtio_drivers_iso
    "enableAudio" enable_audio
    "enableUsbTablet" enable_usb_tablet
}

fn column<T: Column>(name: &str, value: &Value) -> Result<Option<T>, DbError> {
    if value.is_null() {
        return Ok(None);
    }
    // The value is not told: it may be the password.
    let wrong = || malformed(format!("{name} must be {} or null", T::KIND));
    T::from_json(value).map(Some).ok_or_else(wrong)
}

fn stored<T: Column>(name: &str, given: &Map<String, Value>) -> Result<Option<T>, DbError> {
    let value = given.get(name).unwrap_or(&Value::Null);
    if value.is_null() {
        return Ok(None);
    }
    T::stored(name, value)
}

fn of_its_type<T: Column>(name: &str, read: Option<T>) -> Result<Option<T>, DbError> {
    let wrong = || {
        let message = format!("the column {name} is not {}", T::KIND);
        DbError::new(ErrorCode::QueryFailed, message)
    };
    read.map(Some).ok_or_else(wrong)
}

/// An integer, as a number or (BigInt, Decimal) as text.
pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_i64(),
    }
}

fn malformed(message: String) -> DbError {
    DbError::new(ErrorCode::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(given: &Value) -> Result<ConfigurationUpdate, DbError> {
        configuration_update(given.as_object().unwrap())
    }

    #[test]
    fn null_clears_a_column_and_an_absent_one_stays() {
        let read =
            update(&json!({ "qemuPid": null, "graphicPort": 5900, "diskPaths": ["/a"] })).unwrap();
        assert_eq!(
            read,
            ConfigurationUpdate {
                qemu_pid: Some(None),
                graphic_port: Some(Some(5900)),
                disk_paths: Some(Some(vec!["/a".to_owned()])),
                ..ConfigurationUpdate::default()
            }
        );
    }

    #[test]
    fn what_is_no_column_or_not_of_its_type_is_refused_without_its_value() {
        for given in [
            json!({ "qemuPid": "1" }),
            json!({ "qemuPid": 1.5 }),
            json!({ "graphicPassword": ["hunter2"] }),
            json!({ "diskPaths": ["/a", 1] }),
            json!({ "cpuPinning": { "cores": [-1] } }),
            json!({ "xml": "hunter2" }),
        ] {
            let error = update(&given).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidInput, "{given}");
            assert!(!error.message.contains("hunter2"), "{}", error.message);
        }
    }

    #[test]
    fn a_configuration_has_all_28_columns_and_the_password() {
        let row = MachineConfiguration {
            graphic_password: Some(Secret::new("hunter2")),
            cpu_pinning: Some(CpuPinning { cores: vec![1, 3] }),
            ..MachineConfiguration::default()
        };
        let shown = configuration(&row);
        assert_eq!(shown.as_object().unwrap().len(), 28);
        assert_eq!(shown["graphicPassword"], "hunter2");
        assert_eq!(shown["cpuPinning"], json!({ "cores": [1, 3] }));
        assert_eq!(shown["bridge"], Value::Null);
    }
}
