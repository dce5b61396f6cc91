use crate::types::{Secret, VmId};

/// The columns of a machine and its configuration row, as the database holds them: unchecked.
///
/// Field names are the columns'. A `None` is a null or missing column.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the column of the same name in the public contract"
)]
pub struct StoredColumns {
    pub id: VmId,
    pub name: String,
    pub internal_name: String,
    pub os: String,
    pub cpu_cores: i64,
    pub ram_gb: f64,
    pub disk_size_gb: f64,
    pub gpu_pci_address: Option<String>,
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
    /// The `cores` of the `cpuPinning` column.
    pub cpu_pinning: Option<Vec<u32>>,
    pub enable_numa_ctl_pinning: Option<bool>,
    pub cpu_pinning_strategy: Option<String>,
    pub tpm_socket_path: Option<String>,
    pub virtio_drivers_iso: Option<String>,
    pub enable_audio: Option<bool>,
    pub enable_usb_tablet: Option<bool>,
}
