//! Records as JSON, spelled as the public `InfinizationDatabase` spells them. For whoever speaks with
//! a database, or of one, in JavaScript.

use serde_json::{Map, Value, json};

use super::{
    ConfigurationUpdate, CpuPinning, DbError, Department, FirewallRuleSet, MachineConfiguration,
    RuleSplit, RunningVm, Transition, VmRecord,
};
use crate::error::ErrorCode;
use crate::types::{FirewallRuleInput, Secret};

/// `RunningVMRecord`.
pub fn running_vm(vm: &RunningVm) -> Value {
    json!({
        "id": vm.id,
        "status": vm.status,
        "internalName": vm.internal_name,
        "MachineConfiguration": vm.configuration.as_ref().map(volatile),
    })
}

/// `VMConfigRecord`. The display password is in it.
pub fn vm_record(vm: &VmRecord) -> Value {
    json!({
        "id": vm.id,
        "status": vm.status,
        "name": vm.name,
        "internalName": vm.internal_name,
        "os": vm.os,
        "cpuCores": vm.cpu_cores,
        "ramGB": vm.ram_gb,
        "diskSizeGB": vm.disk_size_gb,
        "gpuPciAddress": vm.gpu_pci_address,
        "configuration": vm.configuration.as_ref().map(configuration),
        "firewallRuleSet": vm.firewall_rule_set.as_ref().map(rule_set),
        "department": vm.department.as_ref().map(department),
        "version": vm.version,
    })
}

/// What `transitionVMStatus` answers.
pub fn transition(transition: &Transition) -> Value {
    json!({
        "success": true,
        "newVersion": transition.new_version,
        "vmConfig": vm_record(&transition.vm),
    })
}

/// What `getFirewallRulesSplit` answers.
pub fn rule_split(split: &RuleSplit) -> Value {
    json!({
        "departmentRules": rules(&split.department_rules),
        "vmRules": rules(&split.vm_rules),
    })
}

/// `FirewallRuleRecord[]`.
pub fn rules(rules: &[FirewallRuleInput]) -> Value {
    rules.iter().map(rule).collect()
}

fn rule(rule: &FirewallRuleInput) -> Value {
    let mut record = json!(rule);
    // A record has every column; as an input, an absent description stays absent.
    record["description"] = json!(rule.description);
    record
}

fn rule_set(set: &FirewallRuleSet) -> Value {
    json!({
        "id": set.id,
        "name": set.name,
        "internalName": set.internal_name,
        "priority": set.priority,
        "isActive": set.is_active,
        "rules": rules(&set.rules),
    })
}

fn department(department: &Department) -> Value {
    json!({
        "id": department.id,
        "name": department.name,
        "firewallRuleSet": department.firewall_rule_set.as_ref().map(rule_set),
    })
}

/// `MachineConfigurationRecord`: the five columns a scan needs.
fn volatile(row: &MachineConfiguration) -> Value {
    json!({
        "qemuPid": row.qemu_pid,
        "tapDeviceName": row.tap_device_name,
        "qmpSocketPath": row.qmp_socket_path,
        "guestAgentSocketPath": row.guest_agent_socket_path,
        "infiniServiceSocketPath": row.infini_service_socket_path,
    })
}

/// A column's value as JSON has it.
trait Column: Sized {
    /// What it must be; follows its name in a sentence.
    const KIND: &'static str;
    fn to_json(&self) -> Value;
    fn from_json(value: &Value) -> Option<Self>;
}

impl Column for i64 {
    const KIND: &'static str = "an integer";
    fn to_json(&self) -> Value {
        json!(self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_i64()
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
}

macro_rules! columns {
    ($($name:literal $field:ident)*) => {
        /// `ExtendedMachineConfigurationRecord`.
        fn configuration(row: &MachineConfiguration) -> Value {
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
