//! The embedded store against real files: the 16 operations, conflicts, crashes and full disks.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod file;
mod operations;
mod rules;
mod secrets;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use infinization_core::ErrorCode;
use infinization_core::db::sqlite::{NewMachine, SqliteDatabase};
use infinization_core::db::{ConfigurationUpdate, CpuPinning, Database, DbError};
use infinization_core::types::{FirewallRuleInput, InternalName, Secret, VmId};
use infinization_test_kit as kit;
use kit::small_disk::SmallDisk;
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

/// A store in a directory of its own, and a way to reach behind its back.
struct Store {
    dir: TempDir,
    db: Arc<SqliteDatabase>,
}

impl Store {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = SqliteDatabase::open(&dir.path().join("x.db")).await;
        Self {
            dir,
            db: db.unwrap(),
        }
    }

    /// With the machine `vm-1`.
    async fn with_machine() -> Self {
        let store = Self::new().await;
        store.db.insert_machine(machine("vm-1")).await.unwrap();
        store
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.db")
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.path())
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }
}

fn machine(id: &str) -> NewMachine {
    NewMachine {
        id: vm(id),
        internal_name: InternalName::parse(format!("name-{id}")).unwrap(),
        name: format!("The machine {id}"),
        os: "debian".to_owned(),
        cpu_cores: 2,
        ram_gb: 1.5,
        disk_size_gb: 20.0,
        gpu_pci_address: None,
        status: "off",
        firewall_rules: Vec::new(),
    }
}

fn vm(id: &str) -> VmId {
    VmId::parse(id).unwrap()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, DbError>) -> ErrorCode {
    outcome.unwrap_err().code
}

async fn status(store: &Store) -> String {
    store
        .db
        .find_machine(&vm("vm-1"))
        .await
        .unwrap()
        .unwrap()
        .status
}

/// An update that names every column.
fn full_update() -> ConfigurationUpdate {
    let text = |text: &str| Some(Some(text.to_owned()));
    ConfigurationUpdate {
        qemu_pid: Some(Some(4711)),
        tap_device_name: text("vnet-2d62b0035f"),
        qmp_socket_path: text("/run/x/qmp.sock"),
        guest_agent_socket_path: text("/run/x/ga.sock"),
        infini_service_socket_path: text("/run/x/infini.sock"),
        graphic_protocol: text("spice"),
        graphic_port: Some(Some(5901)),
        graphic_password: Some(Some(Secret::new("hunter2"))),
        graphic_host: text("127.0.0.1"),
        assigned_gpu_bus: text("0000:01:00.0"),
        bridge: text("infinibr-1"),
        machine_type: text("q35"),
        cpu_model: text("host"),
        disk_bus: text("virtio"),
        disk_cache_mode: text("writeback"),
        network_model: text("virtio-net-pci"),
        network_queues: Some(Some(4)),
        memory_balloon: Some(Some(true)),
        disk_paths: Some(Some(vec![
            "/srv/a.qcow2".to_owned(),
            "/srv/ä.qcow2".to_owned(),
        ])),
        uefi_firmware: text("/usr/share/OVMF/OVMF_CODE_4M.fd"),
        hugepages: Some(Some(false)),
        cpu_pinning: Some(Some(CpuPinning { cores: vec![0, 2] })),
        enable_numa_ctl_pinning: Some(Some(true)),
        cpu_pinning_strategy: text("basic"),
        tpm_socket_path: text("/run/x/tpm.sock"),
        virtio_drivers_iso: text("/srv/virtio.iso"),
        enable_audio: Some(Some(true)),
        enable_usb_tablet: Some(Some(false)),
    }
}

fn rule(id: &str, priority: f64) -> FirewallRuleInput {
    FirewallRuleInput {
        id: id.to_owned(),
        name: format!("rule \"{id}\"; drop"),
        action: "ACCEPT".to_owned(),
        direction: "IN".to_owned(),
        priority,
        protocol: Some("tcp".to_owned()),
        dst_port_start: Some(22.0),
        src_ip_addr: Some("10.0.0.0".to_owned()),
        src_ip_mask: Some("8".to_owned()),
        connection_state: Some(json!({ "states": ["ESTABLISHED"] })),
        overrides_dept: true,
        ..FirewallRuleInput::default()
    }
}
