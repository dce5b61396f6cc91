//! The rows of the database.

use super::{HostEffects, config, missing};
use crate::config::VmConfig;
use crate::db::outbox::may_have_happened;
use crate::db::sqlite::NewMachine;
use crate::db::{ConfigurationUpdate, CpuPinning, Database as _, DbError};
use crate::error::{ErrorCode, Failure};
use crate::types::HostPath;
use crate::vm::action::RowValues;
use crate::vm::bench::Bench;
use crate::vm::disk_keys::keys_of;
use crate::vm::status::{OURS, STARTABLE};

impl HostEffects {
    pub(super) async fn write_status(&self, status: &str) -> Result<(), Failure> {
        let database = &self.services.database;
        Ok(database
            .write_status_over(&self.vm_id, status, &OURS)
            .await?)
    }

    pub(super) async fn insert_row(&self, bench: &Bench) -> Result<(), Failure> {
        let store = self.services.embedded.as_ref();
        let store = store.ok_or_else(|| missing("embedded store"))?;
        self.services.outbox.settle(&self.vm_id).await?;
        Ok(store.insert_machine(new_machine(config(bench)?)).await?)
    }

    pub(super) async fn take_row(&self, bench: &Bench) -> Result<(), Failure> {
        let Some(store) = &self.services.embedded else {
            return self.take_their_row().await;
        };
        self.services.outbox.settle(&self.vm_id).await?;
        let machine = new_machine(config(bench)?);
        if store.replace_machine(machine).await? {
            return Ok(());
        }
        Err(self.row_changed())
    }

    /// A database of the user's own keeps no keys.
    pub(super) async fn keep_disk_keys(&self, bench: &Bench) -> Result<(), Failure> {
        let Some(store) = &self.services.embedded else {
            return Ok(());
        };
        let keys = keys_of(&config(bench)?);
        Ok(store.keep_disk_keys(&self.vm_id, keys).await?)
    }

    pub(super) async fn forget_disk_keys(&self, paths: &[HostPath]) -> Result<(), Failure> {
        let Some(store) = &self.services.embedded else {
            return Ok(());
        };
        Ok(store.forget_disk_keys(&self.vm_id, paths.to_vec()).await?)
    }

    /// A row of the user's own database: claimed as a start does, so that of two creates one gets it.
    async fn take_their_row(&self) -> Result<(), Failure> {
        let database = self.services.outbox.answering();
        let row = database.find_machine_without_password(&self.vm_id).await?;
        let row = row.ok_or_else(|| {
            let message = format!("VM {} not found", self.vm_id);
            Failure::new(ErrorCode::VmNotFound, message).of_vm(&self.vm_id)
        })?;
        if !STARTABLE.contains(&row.status.as_str()) {
            return Err(self.row_changed().with("currentStatus", row.status));
        }
        Ok(self.claim(&row.status, "starting", row.version).await?)
    }

    fn row_changed(&self) -> Failure {
        let message = "the machine's status changed before it could be made";
        Failure::new(ErrorCode::InvalidState, message).of_vm(&self.vm_id)
    }

    /// Moves the row to `to` for a launch.
    pub(super) async fn claim(&self, from: &str, to: &str, version: i64) -> Result<(), DbError> {
        let outbox = &self.services.outbox;
        let claimed = outbox
            .transition_vm_status(&self.vm_id, from, to, version)
            .await;
        match claimed {
            Ok(_) => {
                // The version is another now: an earlier claim that comes late finds nothing.
                self.services.marks.claimed.remove(&self.vm_id);
                Ok(())
            }
            Err(error) => Err(self.unclaim(from, error).await),
        }
    }

    /// A claim whose answer was lost may have been made: the row is given back as soon as it can be.
    async fn unclaim(&self, before: &str, error: DbError) -> DbError {
        if may_have_happened(&error) {
            self.services.marks.claimed.insert(&self.vm_id);
            let database = &self.services.database;
            let given_back = database
                .write_status_over(&self.vm_id, before, &["starting"])
                .await;
            if let Err(error) = given_back {
                tracing::warn!(vm = %self.vm_id, %error, "the row may still be claimed");
            }
        }
        error
    }
}

/// A row of the embedded store.
fn new_machine(config: VmConfig) -> NewMachine {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52 MiB")]
    let gib = |mib: u64| mib as f64 / 1024.0;
    let disk = config.disks.first().and_then(|disk| disk.size);
    NewMachine {
        id: config.id,
        internal_name: config.internal_name,
        name: config.name,
        os: config.os,
        cpu_cores: config.cpu.cores,
        ram_gb: gib(config.memory.size.as_mib()),
        disk_size_gb: disk.map_or(0.0, |size| gib(size.as_mib())),
        gpu_pci_address: config.gpu.map(|gpu| gpu.address.to_string()),
        status: "starting",
        firewall_rules: config.firewall.rules,
    }
}

pub(super) fn configuration(values: &RowValues) -> ConfigurationUpdate {
    let values = values.clone();
    ConfigurationUpdate {
        tap_device_name: Some(values.tap_device_name),
        qmp_socket_path: Some(values.qmp_socket_path),
        guest_agent_socket_path: Some(values.guest_agent_socket_path),
        infini_service_socket_path: Some(values.infini_service_socket_path),
        graphic_protocol: Some(values.graphic_protocol),
        graphic_port: Some(values.graphic_port.map(i64::from)),
        graphic_host: Some(values.graphic_host),
        assigned_gpu_bus: Some(values.assigned_gpu_bus),
        bridge: Some(values.bridge),
        machine_type: Some(values.machine_type),
        cpu_model: Some(values.cpu_model),
        disk_bus: Some(values.disk_bus),
        disk_cache_mode: Some(values.disk_cache_mode),
        network_model: Some(values.network_model),
        network_queues: Some(values.network_queues.map(i64::from)),
        memory_balloon: Some(values.memory_balloon),
        disk_paths: Some(values.disk_paths),
        uefi_firmware: Some(values.uefi_firmware),
        hugepages: Some(values.hugepages),
        cpu_pinning: Some(values.cpu_pinning.map(|cores| CpuPinning { cores })),
        enable_numa_ctl_pinning: Some(values.enable_numa_ctl_pinning),
        cpu_pinning_strategy: Some(values.cpu_pinning_strategy),
        tpm_socket_path: Some(values.tpm_socket_path),
        virtio_drivers_iso: Some(values.virtio_drivers_iso),
        enable_audio: Some(values.enable_audio),
        enable_usb_tablet: Some(values.enable_usb_tablet),
        ..ConfigurationUpdate::default()
    }
}
