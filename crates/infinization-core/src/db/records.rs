//! Rows as the library sees them. Field names are the public contract's, in camelCase on the wire.

use serde::{Deserialize, Serialize};

use crate::types::{FirewallRuleInput, Secret};

/// `MachineRecord`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The machine's id.
    pub id: String,
    /// One of the contract's statuses, or a marker of the consumer's.
    pub status: String,
}

/// `RunningVMRecord`: what the monitor and the reconciler need of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningVm {
    /// The machine's id.
    pub id: String,
    /// Its status.
    pub status: String,
    /// Its internal name.
    pub internal_name: String,
    /// The volatile columns; `None` when the machine has no configuration row.
    pub configuration: Option<MachineConfiguration>,
}

/// `ExtendedMachineConfigurationRecord`: the 28 columns, all of which may be null.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct MachineConfiguration {
    pub qemu_pid: Option<i64>,
    pub tap_device_name: Option<String>,
    pub qmp_socket_path: Option<String>,
    pub guest_agent_socket_path: Option<String>,
    pub infini_service_socket_path: Option<String>,
    pub graphic_protocol: Option<String>,
    pub graphic_port: Option<i64>,
    pub graphic_password: Option<Secret>,
    pub graphic_host: Option<String>,
    pub assigned_gpu_bus: Option<String>,
    pub bridge: Option<String>,
    pub machine_type: Option<String>,
    pub cpu_model: Option<String>,
    pub disk_bus: Option<String>,
    pub disk_cache_mode: Option<String>,
    pub network_model: Option<String>,
    pub network_queues: Option<i64>,
    pub memory_balloon: Option<bool>,
    pub disk_paths: Option<Vec<String>>,
    pub uefi_firmware: Option<String>,
    pub hugepages: Option<bool>,
    pub cpu_pinning: Option<CpuPinning>,
    pub enable_numa_ctl_pinning: Option<bool>,
    pub cpu_pinning_strategy: Option<String>,
    pub tpm_socket_path: Option<String>,
    pub virtio_drivers_iso: Option<String>,
    pub enable_audio: Option<bool>,
    pub enable_usb_tablet: Option<bool>,
}

/// The `cpuPinning` column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuPinning {
    /// Host CPU numbers.
    pub cores: Vec<u32>,
}

/// `MachineConfigUpdate`: `None` leaves a column as it is, `Some(None)` makes it null.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct ConfigurationUpdate {
    pub qemu_pid: Option<Option<i64>>,
    pub tap_device_name: Option<Option<String>>,
    pub qmp_socket_path: Option<Option<String>>,
    pub guest_agent_socket_path: Option<Option<String>>,
    pub infini_service_socket_path: Option<Option<String>>,
    pub graphic_protocol: Option<Option<String>>,
    pub graphic_port: Option<Option<i64>>,
    pub graphic_password: Option<Option<Secret>>,
    pub graphic_host: Option<Option<String>>,
    pub assigned_gpu_bus: Option<Option<String>>,
    pub bridge: Option<Option<String>>,
    pub machine_type: Option<Option<String>>,
    pub cpu_model: Option<Option<String>>,
    pub disk_bus: Option<Option<String>>,
    pub disk_cache_mode: Option<Option<String>>,
    pub network_model: Option<Option<String>>,
    pub network_queues: Option<Option<i64>>,
    pub memory_balloon: Option<Option<bool>>,
    pub disk_paths: Option<Option<Vec<String>>>,
    pub uefi_firmware: Option<Option<String>>,
    pub hugepages: Option<Option<bool>>,
    pub cpu_pinning: Option<Option<CpuPinning>>,
    pub enable_numa_ctl_pinning: Option<Option<bool>>,
    pub cpu_pinning_strategy: Option<Option<String>>,
    pub tpm_socket_path: Option<Option<String>>,
    pub virtio_drivers_iso: Option<Option<String>>,
    pub enable_audio: Option<Option<bool>>,
    pub enable_usb_tablet: Option<Option<bool>>,
}

/// What a machine's row says of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisks {
    /// The machine's id.
    pub id: String,
    /// Its internal name, by which the disk of a row without `diskPaths` is found.
    pub internal_name: String,
    /// The column; none where it is null or there is no configuration row.
    pub disk_paths: Vec<String>,
}

impl MachineDisks {
    pub(super) fn of(machine: VmRecord) -> Self {
        let paths = machine.configuration.and_then(|row| row.disk_paths);
        Self {
            id: machine.id,
            internal_name: machine.internal_name,
            disk_paths: paths.unwrap_or_default(),
        }
    }
}

/// `VMConfigRecord`: a machine with all that start reads.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct VmRecord {
    pub id: String,
    pub status: String,
    pub name: String,
    pub internal_name: String,
    pub os: String,
    pub cpu_cores: i64,
    pub ram_gb: f64,
    pub disk_size_gb: f64,
    pub gpu_pci_address: Option<String>,
    pub configuration: Option<MachineConfiguration>,
    pub firewall_rule_set: Option<FirewallRuleSet>,
    pub department: Option<Department>,
    /// Counted up by `transition_vm_status`; a null column reads as 1.
    pub version: i64,
}

/// `FirewallRuleSetRecord`.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct FirewallRuleSet {
    pub id: String,
    pub name: String,
    pub internal_name: String,
    pub priority: i64,
    pub is_active: bool,
    pub rules: Vec<FirewallRuleInput>,
}

/// `DepartmentRecord`.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct Department {
    pub id: String,
    pub name: String,
    pub firewall_rule_set: Option<FirewallRuleSet>,
}

/// What `transition_vm_status` answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The version after the step.
    pub new_version: i64,
    /// The row after the step.
    pub vm: VmRecord,
}

/// What `get_firewall_rules_split` answers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RuleSplit {
    /// The department's rules.
    pub department_rules: Vec<FirewallRuleInput>,
    /// The machine's own rules.
    pub vm_rules: Vec<FirewallRuleInput>,
}

impl RuleSplit {
    /// All rules in one list, lowest priority first; of equal ones the department's come first.
    pub fn merged(self) -> Vec<FirewallRuleInput> {
        let mut rules = [self.department_rules, self.vm_rules].concat();
        rules.sort_by(|one, other| one.priority.total_cmp(&other.priority));
        rules
    }
}
