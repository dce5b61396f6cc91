//! The outbox before the real store, with a switch between them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use infinization_core::ErrorCode;
use infinization_core::db::outbox::{Notice, Outbox};
use infinization_core::db::sqlite::{NewMachine, SqliteDatabase};
use infinization_core::db::{ConfigurationUpdate, Database, DbError};
use infinization_core::types::{InternalName, VmId};
use infinization_test_kit as kit;
use kit::machine::PATIENCE;
use kit::switch::{Mode, Switch, away};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout};

const GUARD: [&str; 2] = ["error", "backing_up"];

struct Bench {
    outbox: Arc<Outbox>,
    switch: Arc<Switch>,
    store: Arc<SqliteDatabase>,
    notices: UnboundedReceiver<Notice>,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// With so many machines that are off: `vm-0`, `vm-1` …
    async fn with(machines: usize) -> Self {
        Self::new(machines, Duration::from_secs(120)).await
    }

    async fn new(machines: usize, gives_up_after: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteDatabase::open(&directory.path().join("x.db"))
            .await
            .unwrap();
        for number in 0..machines {
            store.insert_machine(machine(number)).await.unwrap();
        }
        let switch = Switch::new();
        let rows: Arc<dyn Database> = Arc::<SqliteDatabase>::clone(&store);
        let (outbox, notices) = Outbox::giving_up_after(gives_up_after, switch.before(rows));
        Self {
            outbox,
            switch,
            store,
            notices,
            _directory: directory,
        }
    }

    async fn writes(&self, number: usize, status: &str) {
        let written = self
            .outbox
            .update_machine_status(id(number), status, &GUARD);
        written.await.unwrap();
    }

    /// The row, whatever the outbox keeps.
    async fn row(&self, number: usize) -> String {
        let row = self.store.find_machine(id(number)).await.unwrap();
        row.unwrap().status
    }

    async fn notice(&mut self) -> Notice {
        let told = timeout(PATIENCE, self.notices.recv()).await;
        told.expect("a notice in time").unwrap()
    }

    /// Waits for the end of the outage; answers how much was delivered and lost.
    async fn is_back(&mut self) -> (usize, usize) {
        match self.notice().await {
            Notice::Back { delivered, lost } => (delivered, lost),
            other => panic!("{other:?}"),
        }
    }

    async fn is_away(&mut self) {
        let told = self.notice().await;
        assert!(matches!(told, Notice::Away { .. }), "{told:?}");
    }

    fn told_nothing(&mut self) {
        let told = self.notices.try_recv();
        assert!(told.is_err(), "{told:?}");
    }
}

/// Lives as long as the test, so that a write of it can be awaited anywhere.
fn id(number: usize) -> &'static VmId {
    Box::leak(Box::new(VmId::parse(format!("vm-{number}")).unwrap()))
}

fn machine(number: usize) -> NewMachine {
    NewMachine {
        id: id(number).clone(),
        internal_name: InternalName::parse(format!("vm-{number}")).unwrap(),
        name: "a machine".to_owned(),
        os: "linux".to_owned(),
        cpu_cores: 1,
        ram_gb: 1.0,
        disk_size_gb: 1.0,
        gpu_pci_address: None,
        status: "off",
        firewall_rules: Vec::new(),
    }
}

fn refusal(code: ErrorCode, details: &serde_json::Value) -> DbError {
    let mut error = DbError::new(code, "no");
    error.details = details.as_object().cloned().unwrap();
    error
}

#[tokio::test]
async fn a_database_that_is_there_is_written_at_once() {
    let mut bench = Bench::with(1).await;
    bench.writes(0, "running").await;
    assert_eq!(bench.row(0).await, "running");
    assert_eq!(bench.outbox.kept(), 0);
    bench.told_nothing();
}

#[tokio::test]
async fn f31_what_was_kept_is_delivered_in_order() {
    let mut bench = Bench::with(2).await;
    bench.switch.turn(Mode::Down);
    for status in ["running", "suspended", "running", "off"] {
        bench.writes(0, status).await;
    }
    let cleared = bench.outbox.clear_volatile_machine_configuration(id(0));
    cleared.await.unwrap();
    bench.writes(1, "running").await;
    bench.is_away().await;
    assert_eq!(bench.row(0).await, "off");
    assert_eq!(bench.outbox.kept(), 6);

    bench.switch.turn(Mode::Up);
    assert_eq!(bench.is_back().await, (6, 0));
    let order = ["running", "suspended", "running", "off", "clear volatile"];
    assert_eq!(bench.switch.made("vm-0"), order);
    assert_eq!(bench.row(1).await, "running");
    bench.told_nothing();
}

#[tokio::test]
async fn f32_a_database_that_hangs_holds_nobody_up_for_long() {
    let mut bench = Bench::with(3).await;
    bench.switch.turn(Mode::Hangs);
    bench.writes(0, "running").await;
    bench.is_away().await;
    // It is known now: nobody waits any more.
    let began = Instant::now();
    for number in 0..3 {
        for status in ["suspended", "running", "off"] {
            bench.writes(number, status).await;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    bench.switch.turn(Mode::Up);
    bench.is_back().await;
    let order = ["running", "suspended", "running", "off"];
    assert_eq!(
        bench.switch.made("vm-0"),
        order,
        "the one that hung was first"
    );
    assert_eq!(bench.switch.made("vm-2"), order[1..]);
}

#[tokio::test]
async fn f32_a_database_that_is_slow_is_not_away() {
    let mut bench = Bench::with(2).await;
    bench.switch.turn(Mode::Slow(Duration::from_secs(4)));
    let began = Instant::now();
    bench.writes(0, "running").await;
    assert!(began.elapsed() < Duration::from_secs(4), "nobody waits on");
    assert!(bench.outbox.keeps(id(0)));
    let row = bench.outbox.find_machine(id(0)).await.unwrap().unwrap();
    assert_eq!(row.status, "running");
    bench.told_nothing();

    // Nor does it stay away when it is back and slow.
    bench.switch.turn(Mode::Down);
    bench.outbox.find_machine(id(1)).await.unwrap_err();
    bench.is_away().await;
    bench.switch.turn(Mode::Slow(Duration::from_secs(4)));
    bench.outbox.find_machine(id(1)).await.unwrap();
    assert_eq!(bench.is_back().await, (0, 0));
}

#[tokio::test]
async fn b14_while_writes_are_kept_a_read_fails_and_is_never_stale() {
    let mut bench = Bench::with(2).await;
    bench.writes(0, "running").await;
    bench.switch.turn(Mode::Refuses(refusal(
        ErrorCode::UpdateFailed,
        &json!({ "sqliteCode": 13 }),
    )));
    bench.writes(0, "off").await;
    // It would answer reads, but what it says of this machine is old.
    let (vm, outbox) = (id(0), &bench.outbox);
    let failed = [
        outbox.find_machine(vm).await.unwrap_err(),
        outbox.find_machine_with_config(vm).await.unwrap_err(),
        outbox
            .find_machine_by_internal_name(&InternalName::parse("vm-0").unwrap())
            .await
            .unwrap_err(),
        outbox
            .transition_vm_status(vm, "running", "starting", 1)
            .await
            .unwrap_err(),
        outbox
            .answering()
            .update_machine_status(vm, "backing_up", &[])
            .await
            .unwrap_err(),
    ];
    for error in failed {
        assert_eq!(error.code, ErrorCode::DbConnectionError, "{error}");
    }
    let other = outbox.find_machine(id(1)).await.unwrap().unwrap();
    assert_eq!(other.status, "off", "of another machine nothing is kept");
    let name = InternalName::parse("vm-1").unwrap();
    let named = outbox.find_machine_by_internal_name(&name).await;
    assert!(named.unwrap().is_some());
    // Lists go on without it, whatever its row says.
    let off = outbox.find_machines_by_statuses(&["off"]).await.unwrap();
    assert_eq!(off.len(), 1);
    assert_eq!(off[0].id, "vm-1");
    assert_eq!(outbox.find_running_vms().await.unwrap(), []);

    // The read itself delivers what it follows.
    bench.switch.turn(Mode::Up);
    let row = bench.outbox.find_machine(id(0)).await.unwrap().unwrap();
    assert_eq!(row.status, "off");
    bench.is_away().await;
    bench.is_back().await;
}

#[tokio::test]
async fn a_claim_made_meanwhile_survives_the_replay() {
    let mut bench = Bench::with(1).await;
    bench.switch.turn(Mode::Down);
    bench.writes(0, "running").await;
    bench.writes(0, "off").await;
    let (vm, guard) = (id(0), []);
    bench
        .store
        .update_machine_status(vm, "backing_up", &guard)
        .await
        .unwrap();
    bench.switch.turn(Mode::Up);
    bench.is_away().await;
    bench.is_back().await;
    assert_eq!(bench.row(0).await, "backing_up");
}

#[tokio::test]
async fn a_claim_is_never_kept() {
    let bench = Bench::with(1).await;
    bench.switch.turn(Mode::Down);
    let claim = bench
        .outbox
        .transition_vm_status(id(0), "off", "starting", 1);
    assert_eq!(claim.await.unwrap_err().code, ErrorCode::DbConnectionError);
    assert_eq!(bench.outbox.kept(), 0);
    let strict = bench.outbox.answering();
    let marked = strict.update_machine_status(id(0), "backing_up", &[]).await;
    assert_eq!(marked.unwrap_err().code, ErrorCode::DbConnectionError);
    bench.switch.turn(Mode::Up);
    let claim = bench
        .outbox
        .transition_vm_status(id(0), "off", "starting", 1);
    assert_eq!(claim.await.unwrap().vm.status, "starting");
}

#[tokio::test]
async fn f33_what_will_not_pass_is_told_at_once_and_not_kept() {
    for code in [
        ErrorCode::InvalidInput,
        ErrorCode::ConstraintViolation,
        ErrorCode::MachineNotFound,
        ErrorCode::VersionConflict,
    ] {
        let mut bench = Bench::with(1).await;
        bench.switch.turn(Mode::Refuses(refusal(code, &json!({}))));
        let write = bench.outbox.update_machine_status(id(0), "off", &GUARD);
        assert_eq!(write.await.unwrap_err().code, code);
        assert_eq!(bench.outbox.kept(), 0);
        bench.told_nothing();
    }
}

#[tokio::test]
async fn f33_the_row_of_a_machine_that_was_deleted_meanwhile_is_no_loss() {
    let mut bench = Bench::with(1).await;
    bench.switch.turn(Mode::Down);
    let update = ConfigurationUpdate::default();
    let written = bench.outbox.update_machine_configuration(id(0), update);
    written.await.unwrap();
    bench.writes(0, "off").await;
    bench.is_away().await;
    bench.store.delete_machine(id(0)).await.unwrap();
    bench.switch.turn(Mode::Up);
    assert_eq!(bench.is_back().await.1, 0);
}

#[tokio::test]
async fn a_kept_write_that_is_refused_for_good_is_told() {
    let mut bench = Bench::with(1).await;
    bench.switch.turn(Mode::Down);
    bench.writes(0, "running").await;
    bench.writes(0, "off").await;
    bench.is_away().await;
    let no = refusal(ErrorCode::UpdateFailed, &json!({ "prismaCode": "P2000" }));
    bench.switch.turn(Mode::Refuses(no));
    for status in ["running", "off"] {
        match bench.notice().await {
            Notice::Lost { vm_id, write, .. } => {
                assert_eq!((vm_id, write), (id(0).clone(), status.to_owned()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bench.is_back().await, (0, 2));
}

#[tokio::test]
async fn a_write_that_is_refused_without_a_reason_is_not_tried_for_ever() {
    let mut bench = Bench::new(1, Duration::from_millis(500)).await;
    let no = refusal(ErrorCode::UpdateFailed, &json!({}));
    bench.switch.turn(Mode::Refuses(no));
    bench.writes(0, "running").await;
    bench.is_away().await;
    assert!(bench.outbox.keeps(id(0)));
    let told = bench.notice().await;
    assert!(matches!(told, Notice::Lost { .. }), "{told:?}");
    assert_eq!(bench.is_back().await, (0, 1));
    let row = bench.outbox.find_machine(id(0)).await.unwrap().unwrap();
    assert_eq!(row.status, "off");
}

#[tokio::test]
async fn one_machine_that_is_refused_holds_up_no_other() {
    let mut bench = Bench::with(2).await;
    let full = refusal(ErrorCode::UpdateFailed, &json!({ "sqliteCode": 13 }));
    bench.switch.turn(Mode::RefusesOf("vm-0".to_owned(), full));
    bench.writes(0, "running").await;
    bench.writes(1, "running").await;
    bench.is_away().await;
    assert_eq!(bench.row(1).await, "running");
    assert!(bench.outbox.keeps(id(0)) && !bench.outbox.keeps(id(1)));
    bench.switch.turn(Mode::Up);
    assert_eq!(bench.is_back().await.1, 0);
    assert_eq!(bench.row(0).await, "running");
}

#[tokio::test]
async fn a_read_that_finds_nobody_begins_an_outage_and_a_read_that_finds_somebody_ends_it() {
    let mut bench = Bench::with(1).await;
    bench.switch.turn(Mode::Down);
    let read = bench.outbox.find_machine(id(0)).await;
    assert_eq!(read.unwrap_err().code, ErrorCode::DbConnectionError);
    bench.is_away().await;
    bench.writes(0, "running").await;
    bench.switch.turn(Mode::Up);
    // Of another machine: it wakes whoever delivers.
    let read = bench.outbox.get_machine_internal_name(id(0)).await;
    assert_eq!(read.unwrap().unwrap(), "vm-0");
    assert_eq!(bench.is_back().await, (1, 0));

    bench.switch.turn(Mode::Down);
    bench.outbox.find_machine(id(0)).await.unwrap_err();
    bench.is_away().await;
    // Nobody asks any more: it is looked for all the same.
    bench.switch.turn(Mode::Up);
    assert_eq!(bench.is_back().await, (0, 0));
}

#[tokio::test]
async fn a_database_that_is_away_is_looked_for_with_growing_pauses() {
    let mut bench = Bench::with(20).await;
    bench.switch.turn(Mode::Down);
    bench.writes(0, "running").await;
    bench.is_away().await;
    for number in 1..20 {
        bench.writes(number, "running").await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // After 0.25, 0.75 and 1.75 s.
    let asked = bench.switch.asked();
    assert!((2..=5).contains(&asked), "asked {asked} times");
    bench.switch.turn(Mode::Up);
    assert_eq!(bench.is_back().await, (20, 0));
}

#[tokio::test]
async fn closing_tries_a_last_time() {
    let mut bench = Bench::with(2).await;
    bench.switch.turn(Mode::Down);
    bench.writes(0, "running").await;
    bench.is_away().await;
    bench.switch.turn(Mode::Up);
    bench.outbox.close(PATIENCE).await;
    assert_eq!(bench.row(0).await, "running");

    // Afterwards nothing is kept: a write that is not made is told.
    bench.switch.turn(Mode::Down);
    let late = bench.outbox.update_machine_status(id(1), "running", &GUARD);
    assert_eq!(late.await.unwrap_err().code, away().code);
}

#[tokio::test]
async fn closing_waits_for_a_dead_database_no_longer_than_it_is_told_to() {
    let mut bench = Bench::with(1).await;
    bench.switch.turn(Mode::Hangs);
    bench.writes(0, "running").await;
    bench.is_away().await;
    let closed = timeout(PATIENCE, bench.outbox.close(Duration::from_millis(200)));
    closed.await.unwrap();
    assert_eq!(bench.row(0).await, "off");
}

#[tokio::test]
async fn nothing_is_delivered_for_a_machine_that_was_forgotten() {
    let mut bench = Bench::with(1).await;
    bench.switch.turn(Mode::Down);
    bench.writes(0, "running").await;
    bench.is_away().await;
    bench.outbox.forget(id(0));
    bench.switch.turn(Mode::Up);
    assert_eq!(bench.is_back().await, (0, 0));
    assert_eq!(bench.row(0).await, "off");
}
