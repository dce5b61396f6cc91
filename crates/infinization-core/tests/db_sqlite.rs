//! The embedded store against real files: the 16 operations, conflicts, crashes and full disks.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

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

#[tokio::test]
async fn a_machine_is_found_in_every_way() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    let name = InternalName::parse("name-vm-1").unwrap();

    let found = db.find_machine(&id).await.unwrap().unwrap();
    assert_eq!((found.id.as_str(), found.status.as_str()), ("vm-1", "off"));
    let found = db
        .find_machine_by_internal_name(&name)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.internal_name, "name-vm-1");
    assert_eq!(found.configuration, None);
    let found = db.find_machine_with_config(&id).await.unwrap().unwrap();
    assert_eq!((found.version, found.cpu_cores, found.ram_gb), (1, 2, 1.5));
    assert!(found.department.is_none() && found.firewall_rule_set.is_none());
    let path = db.get_machine_disk_path(&id).await.unwrap().unwrap();
    assert_eq!(path, "/var/lib/infinization/disks/name-vm-1.qcow2");
    assert_eq!(db.get_department_firewall_policy(&id).await.unwrap(), None);
}

#[tokio::test]
async fn absence_is_none_and_not_an_error() {
    let store = Store::new().await;
    let (db, id) = (&store.db, vm("nobody"));
    let name = InternalName::parse("nobody").unwrap();
    assert!(db.find_machine(&id).await.unwrap().is_none());
    assert!(
        db.find_machine_by_internal_name(&name)
            .await
            .unwrap()
            .is_none()
    );
    assert!(db.find_machine_with_config(&id).await.unwrap().is_none());
    assert!(db.get_machine(&id).await.unwrap().is_none());
    assert!(db.get_machine_internal_name(&id).await.unwrap().is_none());
    assert!(db.get_machine_disk_path(&id).await.unwrap().is_none());
    assert!(db.get_firewall_rule_set_id(&id).await.unwrap().is_none());
    assert!(!db.delete_machine(&id).await.unwrap());
    db.update_machine_status(&id, "off", &[]).await.unwrap();
    db.clear_machine_configuration(&id).await.unwrap();
    db.clear_volatile_machine_configuration(&id).await.unwrap();
}

#[tokio::test]
async fn f33_writes_for_a_machine_that_is_gone_say_so() {
    let store = Store::new().await;
    let (db, id) = (&store.db, vm("nobody"));
    let gone = ErrorCode::MachineNotFound;
    assert_eq!(
        code(db.update_machine_configuration(&id, full_update()).await),
        gone
    );
    assert_eq!(
        code(db.transition_vm_status(&id, "off", "starting", 1).await),
        gone
    );
    assert_eq!(code(db.set_firewall_rules(&id, Vec::new()).await), gone);
    assert_eq!(code(db.get_firewall_rules(&id).await), gone);
    assert_eq!(code(db.get_firewall_rules_split(&id).await), gone);
}

#[tokio::test]
async fn machines_are_listed_by_status() {
    let store = Store::new().await;
    for (id, status) in [
        ("a", "running"),
        ("b", "error"),
        ("c", "running"),
        ("d", "off"),
    ] {
        store.db.insert_machine(machine(id)).await.unwrap();
        store
            .db
            .update_machine_status(&vm(id), status, &[])
            .await
            .unwrap();
    }
    let ids = |found: Vec<infinization_core::db::RunningVm>| {
        found.into_iter().map(|vm| vm.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(store.db.find_running_vms().await.unwrap()), ["a", "c"]);
    let found = store
        .db
        .find_machines_by_statuses(&["error", "off", "it's"])
        .await;
    assert_eq!(ids(found.unwrap()), ["b", "d"]);
    assert!(
        store
            .db
            .find_machines_by_statuses(&[])
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_status_is_not_written_over_a_guarded_one() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    db.update_machine_status(&id, "error", &[]).await.unwrap();
    db.update_machine_status(&id, "off", &["error", "rebuilding"])
        .await
        .unwrap();
    assert_eq!(status(&store).await, "error");
    db.update_machine_status(&id, "off", &["rebuilding"])
        .await
        .unwrap();
    assert_eq!(status(&store).await, "off");
    let version = db
        .find_machine_with_config(&id)
        .await
        .unwrap()
        .unwrap()
        .version;
    assert_eq!(version, 1, "only a transition counts up");
}

#[tokio::test]
async fn b19_absent_null_and_set_columns_differ() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    let configuration = || async {
        let found = db.find_machine_with_config(&id).await.unwrap().unwrap();
        found.configuration.unwrap()
    };
    db.update_machine_configuration(&id, full_update())
        .await
        .unwrap();
    let full = configuration().await;
    assert_eq!(full.disk_paths.as_ref().unwrap()[1], "/srv/ä.qcow2");
    assert_eq!(full.cpu_pinning.as_ref().unwrap().cores, [0, 2]);
    assert_eq!(full.graphic_password.as_ref().unwrap().reveal(), "hunter2");
    assert_eq!(
        (full.hugepages, full.network_queues),
        (Some(false), Some(4))
    );

    let update = ConfigurationUpdate {
        bridge: Some(None),
        graphic_port: Some(Some(5902)),
        ..ConfigurationUpdate::default()
    };
    db.update_machine_configuration(&id, update).await.unwrap();
    let changed = configuration().await;
    assert_eq!(
        (changed.bridge.as_deref(), changed.graphic_port),
        (None, Some(5902))
    );
    let mut expected = full;
    (expected.bridge, expected.graphic_port) = (None, Some(5902));
    assert_eq!(changed, expected, "what the update does not name stays");

    db.update_machine_configuration(&id, ConfigurationUpdate::default())
        .await
        .unwrap();
    assert_eq!(configuration().await, expected);
}

#[tokio::test]
async fn clearing_removes_what_belongs_to_a_run() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    db.update_machine_configuration(&id, full_update())
        .await
        .unwrap();
    let runtime = || async {
        let name = InternalName::parse("name-vm-1").unwrap();
        let found = db
            .find_machine_by_internal_name(&name)
            .await
            .unwrap()
            .unwrap();
        let found = found.configuration.unwrap();
        (
            found.qemu_pid,
            found.qmp_socket_path,
            found.tap_device_name,
            found.guest_agent_socket_path,
        )
    };
    let (tap, agent) = ("vnet-2d62b0035f".to_owned(), "/run/x/ga.sock".to_owned());
    db.clear_volatile_machine_configuration(&id).await.unwrap();
    assert_eq!(
        runtime().await,
        (None, None, Some(tap), Some(agent.clone()))
    );
    db.clear_machine_configuration(&id).await.unwrap();
    assert_eq!(runtime().await, (None, None, None, Some(agent)));
}

#[tokio::test]
async fn a_transition_counts_up_and_shows_the_row() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    let step = db
        .transition_vm_status(&id, "off", "starting", 1)
        .await
        .unwrap();
    assert_eq!((step.new_version, step.vm.status.as_str()), (2, "starting"));

    let stale = db.transition_vm_status(&id, "off", "starting", 1).await;
    assert_eq!(code(stale), ErrorCode::VersionConflict);
    let other = db
        .transition_vm_status(&id, "off", "starting", 2)
        .await
        .unwrap_err();
    assert_eq!(other.code, ErrorCode::UpdateFailed);
    assert_eq!(other.details["currentStatus"], "starting");

    store.sql("UPDATE machine SET version = NULL");
    let step = db
        .transition_vm_status(&id, "starting", "running", 1)
        .await
        .unwrap();
    assert_eq!(step.new_version, 2, "a null version reads as 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f33_of_50_concurrent_transitions_one_wins() {
    let store = Store::with_machine().await;
    let attempts: Vec<_> = (0..50)
        .map(|_| {
            let db = Arc::clone(&store.db);
            tokio::spawn(async move {
                db.transition_vm_status(&vm("vm-1"), "off", "starting", 1)
                    .await
            })
        })
        .collect();
    let mut won = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(step) => {
                won += 1;
                assert_eq!(step.new_version, 2);
            }
            Err(error) => assert_eq!(error.code, ErrorCode::VersionConflict),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn corrupt_disk_paths_are_never_dropped_silently() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    db.update_machine_configuration(&id, full_update())
        .await
        .unwrap();
    db.update_machine_status(&id, "running", &[]).await.unwrap();
    for corrupt in ["{\"a\":1}", "[1]", "[\"/a\"", "nonsense"] {
        store.sql(&format!(
            "UPDATE machine_configuration SET disk_paths = '{corrupt}'"
        ));
        let failed = db.find_machine_with_config(&id).await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::QueryFailed, "{corrupt} was taken");
        assert!(failed.message.contains("vm-1"), "{failed}");
    }
    let step = db.transition_vm_status(&id, "running", "off", 1).await;
    assert_eq!(code(step), ErrorCode::QueryFailed);
    assert_eq!(
        status(&store).await,
        "running",
        "a failed transition writes nothing"
    );
    assert_eq!(db.find_running_vms().await.unwrap().len(), 1);
    assert_eq!(db.list_machines().await.unwrap().len(), 1);
}

#[tokio::test]
async fn malformed_pinning_reads_as_none() {
    let store = Store::with_machine().await;
    let id = vm("vm-1");
    store
        .db
        .update_machine_configuration(&id, full_update())
        .await
        .unwrap();
    for malformed in ["{}", "[0]", "{\"cores\":[-1]}", "nonsense"] {
        store.sql(&format!(
            "UPDATE machine_configuration SET cpu_pinning = '{malformed}'"
        ));
        let found = store
            .db
            .find_machine_with_config(&id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(found.configuration.unwrap().cpu_pinning, None);
    }
}

#[tokio::test]
async fn machines_are_inserted_once_listed_in_order_and_deleted_whole() {
    let store = Store::with_machine().await;
    let db = &store.db;
    assert_eq!(
        code(db.insert_machine(machine("vm-1")).await),
        ErrorCode::ConstraintViolation
    );
    let same_name = NewMachine {
        id: vm("other"),
        ..machine("vm-1")
    };
    assert_eq!(
        code(db.insert_machine(same_name).await),
        ErrorCode::ConstraintViolation
    );
    db.insert_machine(machine("a")).await.unwrap();
    let listed: Vec<_> = db
        .list_machines()
        .await
        .unwrap()
        .into_iter()
        .map(|m| m.id)
        .collect();
    assert_eq!(listed, ["vm-1", "a"]);

    let id = vm("vm-1");
    db.update_machine_configuration(&id, full_update())
        .await
        .unwrap();
    db.set_firewall_rules(&id, vec![FirewallRuleInput::default()])
        .await
        .unwrap();
    assert!(db.delete_machine(&id).await.unwrap());
    assert!(db.get_machine(&id).await.unwrap().is_none());
    let rest: i64 = Connection::open(store.path())
        .unwrap()
        .query_row(
            "SELECT (SELECT count(*) FROM machine_configuration) \
             + (SELECT count(*) FROM firewall_rule)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(rest, 0);
}

#[tokio::test]
async fn a_stored_machine_knows_when_it_changed() {
    let store = Store::with_machine().await;
    let id = vm("vm-1");
    let made = store.db.get_machine(&id).await.unwrap().unwrap();
    assert_eq!(made.created_at, made.updated_at);
    assert!(
        made.created_at.ends_with('Z') && made.created_at.len() == 24,
        "{}",
        made.created_at
    );
    store.sql("UPDATE machine SET updated_at = '2000-01-01T00:00:00.000Z'");
    store
        .db
        .update_machine_status(&id, "starting", &[])
        .await
        .unwrap();
    let changed = store.db.get_machine(&id).await.unwrap().unwrap();
    assert_eq!(changed.created_at, made.created_at);
    assert!(changed.updated_at >= made.updated_at);
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

#[tokio::test]
async fn rules_come_back_as_given_lowest_priority_first() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    assert_eq!(db.get_firewall_rule_set_id(&id).await.unwrap(), None);
    assert!(db.get_firewall_rules(&id).await.unwrap().is_empty());

    let given = vec![rule("c", 500.0), rule("b", 500.0), rule("a", 0.5)];
    db.set_firewall_rules(&id, given.clone()).await.unwrap();
    let expected = [given[2].clone(), given[0].clone(), given[1].clone()];
    assert_eq!(db.get_firewall_rules(&id).await.unwrap(), expected);
    let split = db.get_firewall_rules_split(&id).await.unwrap();
    assert_eq!(
        (split.department_rules.len(), split.vm_rules),
        (0, expected.to_vec())
    );
    assert_eq!(
        db.get_firewall_rule_set_id(&id).await.unwrap().as_deref(),
        Some("vm-1")
    );
    let found = db.find_machine_with_config(&id).await.unwrap().unwrap();
    let set = found.firewall_rule_set.unwrap();
    assert_eq!(
        (set.id.as_str(), set.is_active, set.rules),
        ("vm-1", true, expected.to_vec())
    );

    db.set_firewall_rules(&id, vec![rule("", 1.0), rule("", 1.0)])
        .await
        .unwrap();
    let replaced = db.get_firewall_rules(&id).await.unwrap();
    assert_eq!(replaced.len(), 2);
    assert!(!replaced[0].id.is_empty() && replaced[0].id != replaced[1].id);
}

#[tokio::test]
async fn b28_a_refused_rule_set_leaves_the_old_one() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    db.set_firewall_rules(&id, vec![rule("a", 1.0)])
        .await
        .unwrap();
    let twice = vec![rule("x", 1.0), rule("x", 2.0)];
    assert_eq!(
        code(db.set_firewall_rules(&id, twice).await),
        ErrorCode::ConstraintViolation
    );
    assert_eq!(db.get_firewall_rules(&id).await.unwrap(), [rule("a", 1.0)]);
}

#[tokio::test]
async fn secrets_are_stored_but_never_printed() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    let update = full_update();
    assert!(!format!("{update:?}").contains("hunter2"));
    db.update_machine_configuration(&id, update).await.unwrap();
    let stored = db.get_machine(&id).await.unwrap().unwrap();
    assert!(!format!("{stored:?}").contains("hunter2"));

    store.sql("DROP TABLE machine_configuration");
    let error = db
        .update_machine_configuration(&id, full_update())
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::UpdateFailed);
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_file_and_its_journal_are_for_the_owner_only() {
    let store = Store::with_machine().await;
    for suffix in ["", "-wal", "-shm"] {
        let path = store.dir.path().join(format!("x.db{suffix}"));
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let wide = store.dir.path().join("wide.db");
    fs::write(&wide, "").unwrap();
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o644)).unwrap();
    let _open = SqliteDatabase::open(&wide).await.unwrap();
    assert_eq!(mode(&wide), 0o600);
}

#[tokio::test]
async fn the_last_handle_closes_the_file_and_another_finds_everything() {
    let store = Store::with_machine().await;
    let (path, wal) = (store.path(), store.dir.path().join("x.db-wal"));
    let Store { dir: _dir, db } = store;
    assert!(wal.exists());
    drop(db);
    let deadline = Instant::now() + Duration::from_secs(60);
    while wal.exists() {
        assert!(Instant::now() < deadline, "the connection was not closed");
        tokio::task::yield_now().await;
    }
    let again = SqliteDatabase::open(&path).await.unwrap();
    assert_eq!(again.list_machines().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_newer_or_foreign_file_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let foreign = [
        "CREATE TABLE theirs (x)",
        "PRAGMA user_version = 99; PRAGMA application_id = 0x696e667a",
        "PRAGMA user_version = -1",
    ];
    for sql in foreign {
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = (fs::read(&path).unwrap(), mode(&path));
        let refused = SqliteDatabase::open(&path).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::DbConnectionError, "{sql}");
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            before,
            "{sql}: touched"
        );
        fs::remove_file(&path).unwrap();
    }
    fs::write(
        &path,
        "this is no database, though long enough to be taken for one",
    )
    .unwrap();
    assert_eq!(
        code(SqliteDatabase::open(&path).await),
        ErrorCode::DbConnectionError
    );
    assert_eq!(
        code(SqliteDatabase::open(dir.path()).await),
        ErrorCode::DbConnectionError
    );
    let nowhere = dir.path().join("nowhere/x.db");
    assert_eq!(
        code(SqliteDatabase::open(&nowhere).await),
        ErrorCode::DbConnectionError
    );
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn two_processes_share_the_file() {
    let store = Store::with_machine().await;
    let second = SqliteDatabase::open(&store.path()).await.unwrap();
    let id = vm("vm-1");
    second
        .transition_vm_status(&id, "off", "starting", 1)
        .await
        .unwrap();
    let stale = store
        .db
        .transition_vm_status(&id, "off", "starting", 1)
        .await;
    assert_eq!(code(stale), ErrorCode::VersionConflict);
}

const WRITER: &str = "INFINIZATION_TEST_WRITER";

/// The other half of [`f18_kill_9_between_writes_loses_nothing_that_was_confirmed`]: writes and
/// confirms for ever when that test starts it, and does nothing otherwise.
#[tokio::test]
async fn writer_that_gets_killed() {
    let Some(path) = std::env::var_os(WRITER) else {
        return;
    };
    let db = SqliteDatabase::open(Path::new(&path)).await.unwrap();
    for version in 1.. {
        let step = db
            .transition_vm_status(&vm("vm-1"), "off", "off", version)
            .await;
        println!("\nconfirmed {}", step.unwrap().new_version);
    }
}

#[tokio::test]
async fn f18_kill_9_between_writes_loses_nothing_that_was_confirmed() {
    let store = Store::with_machine().await;
    for _ in 0..3 {
        store.sql("UPDATE machine SET version = 1");
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_that_gets_killed", "--nocapture"])
            .env(WRITER, store.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let confirmed =
            lines.filter_map(|line| line.unwrap().strip_prefix("confirmed ")?.parse().ok());
        let last: i64 = confirmed.take(50).last().unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();

        let after = SqliteDatabase::open(&store.path()).await.unwrap();
        let found = after
            .find_machine_with_config(&vm("vm-1"))
            .await
            .unwrap()
            .unwrap();
        assert!(found.version >= last, "{} < {last}", found.version);
        let sound: String = Connection::open(store.path())
            .unwrap()
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
    }
}

#[test]
fn f18_a_full_disk_refuses_writes_and_keeps_the_old_state() {
    kit::in_private_network(|| async {
        let disk = SmallDisk::new(512);
        let db = SqliteDatabase::open(&disk.path().join("x.db"))
            .await
            .unwrap();
        let id = vm("vm-1");
        db.insert_machine(machine("vm-1")).await.unwrap();
        disk.fill();

        let many = |_| rule("", 1.0);
        let refused = db
            .set_firewall_rules(&id, (0..2000).map(many).collect())
            .await
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::UpdateFailed, "{refused}");
        assert_eq!(db.find_machine(&id).await.unwrap().unwrap().status, "off");
        assert!(db.get_firewall_rules(&id).await.unwrap().is_empty());

        disk.relieve();
        db.update_machine_status(&id, "starting", &[])
            .await
            .unwrap();
        assert_eq!(
            db.find_machine(&id).await.unwrap().unwrap().status,
            "starting"
        );
    });
}
