//! Records as JSON, spelled as the public `InfinizationDatabase` spells them. For whoever speaks with
//! a database, or of one, in JavaScript. Neighbours: [`columns`] names the configuration's columns
//! once, [`reading`] makes records of what others' databases answer.

mod columns;
pub(super) mod reading;

use serde_json::{Map, Value, json};

use super::{
    DbError, Department, FirewallRuleSet, MachineConfiguration, RuleSplit, RunningVm, Transition,
    VmRecord,
};
use crate::types::FirewallRuleInput;

use columns::configuration;
pub use columns::configuration_update;
pub(super) use columns::{COLUMNS, configuration_members};

/// Reads a `MachineConfigurationRecord`; a missing column is null.
pub fn machine_configuration(given: &Map<String, Value>) -> Result<MachineConfiguration, DbError> {
    columns::stored_configuration(given)
}

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
