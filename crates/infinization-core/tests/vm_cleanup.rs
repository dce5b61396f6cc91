//! Clean-ups that get stuck: what is left is told, kept on the ledger, and given back on request.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use infinization_core::host::state_file;
use infinization_core::types::{LinkName, VmId, VmNames};
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::faults::start;
use kit::machine::{
    Host, consistent_status, delete, forced, never, next_event, qemus, send_signal, vm_chains,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Lets no release of these names succeed.
#[derive(Debug, Default)]
struct Stuck(Mutex<Vec<&'static str>>);

impl Stuck {
    fn on(names: &[&'static str]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(names.to_vec())))
    }

    fn loosen(&self) {
        self.0.lock().unwrap().clear();
    }

    fn wrapper(self: &Arc<Self>) -> EffectsWrapper {
        let stuck = Arc::clone(self);
        Arc::new(move |host| {
            let stuck = Arc::clone(&stuck);
            Arc::new(Between { stuck, host })
        })
    }
}

#[derive(Debug)]
struct Between {
    stuck: Arc<Stuck>,
    host: Arc<dyn Effects>,
}

#[async_trait]
impl Effects for Between {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        self.host.perform(action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        let stuck = self.stuck.0.lock().unwrap().contains(&release.name());
        if stuck {
            return Err(Failure::new(ErrorCode::NetworkError, "device busy"));
        }
        self.host.release(release, bench).await
    }
}

fn tap(vm_id: &str) -> LinkName {
    VmNames::of(&VmId::parse(vm_id).unwrap()).tap
}

async fn is_attached(host: &Host, vm_id: &str) -> bool {
    let link = host.links.find(&tap(vm_id)).await.unwrap();
    link.is_some_and(|link| link.master.is_some())
}

/// How many entries the ledger has that are of a run.
fn left_of_run(host: &Host, vm_id: &str) -> usize {
    let path = host.state_dir().join("vms").join(vm_id).join("ledger.json");
    let body = state_file::read(&path).unwrap().unwrap();
    let ledger: Value = serde_json::from_slice(&body).unwrap();
    let entries = ledger["entries"].as_array().unwrap();
    let of_run = entries.iter().filter(|entry| entry["lifetime"] == "run");
    of_run.count()
}

#[test]
fn what_a_crash_leaves_is_told_and_given_back_on_request() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let stuck = Stuck::on(&["detach TAP from bridge", "remove socket"]);
        let manager = host.manager_with(Some(stuck.wrapper())).await;
        let mut events = manager.subscribe();
        let created = manager.create_vm(host.machine("left-1"), never()).await;
        let pid = created.unwrap()["pid"].as_i64().unwrap();
        let other = manager.create_vm(host.machine("left-2"), never()).await;
        let other = other.unwrap();
        send_signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
        let alert = next_event(&mut events, "cleanup-alert").await;
        assert_eq!(alert.data["vmId"], "left-1");
        let failed = alert.data["failedResources"].as_array().unwrap();
        let of_tap = failed.iter().find(|one| one["type"] == "TAP_DEVICE");
        let of_tap = of_tap.unwrap();
        assert_eq!(of_tap["identifier"], tap("left-1").to_string());
        assert_eq!(of_tap["attempts"], 3);
        assert_eq!(of_tap["lastError"], "device busy");
        let left = failed.len();
        assert_eq!(left_of_run(&host, "left-1"), left);
        assert!(is_attached(&host, "left-1").await);
        let row = manager.get_vm("left-1".into()).await.unwrap();
        assert_eq!(row["status"], "off");
        assert_ne!(row["pid"], Value::Null, "the columns wait for the clean-up");

        // As long as it is stuck it is told again.
        let retried = manager.retry_cleanup("left-1".into()).await.unwrap();
        assert_eq!(retried["failedCleanups"], left);
        next_event(&mut events, "cleanup-alert").await;

        stuck.loosen();
        let retried = manager.retry_cleanup("left-1".into()).await.unwrap();
        assert_eq!(retried["vmId"], "left-1");
        assert_eq!(retried["totalResources"], left);
        assert_eq!(retried["successfulCleanups"], left);
        assert_eq!(retried["resources"][0]["status"], "SUCCESS");
        assert!(!is_attached(&host, "left-1").await);
        assert_eq!(left_of_run(&host, "left-1"), 0);
        let row = manager.get_vm("left-1".into()).await.unwrap();
        assert_eq!(row["pid"], Value::Null);
        let status = consistent_status(&manager, "left-1").await;
        assert_eq!(status["lastExit"]["signal"], 9, "the cause stays known");
        let again = manager.retry_cleanup("left-1".into()).await.unwrap();
        assert_eq!(again["totalResources"], 0);

        // The other machine was not touched.
        assert!(is_attached(&host, "left-2").await);
        let socket = other["qmpSocketPath"].as_str().unwrap();
        assert!(std::path::Path::new(socket).exists());
        for vm_id in ["left-1", "left-2"] {
            start(&manager, vm_id).await.unwrap();
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn nothing_of_a_machine_that_runs_is_given_back() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let stuck = Stuck::on(&["detach TAP from bridge"]);
        let manager = host.manager_with(Some(stuck.wrapper())).await;
        let machine = host.machine("left-3");
        manager.create_vm(machine, never()).await.unwrap();
        let stop = manager.stop_vm("left-3".into(), forced(), never());
        assert_eq!(stop.await.unwrap()["success"], true);
        stuck.loosen();
        start(&manager, "left-3").await.unwrap();
        let retried = manager.retry_cleanup("left-3".into()).await.unwrap();
        assert_eq!(retried["totalResources"], 0);
        assert!(is_attached(&host, "left-3").await);
        assert_eq!(qemus(host.path()).len(), 1);
        delete(&manager, "left-3").await;
        host.is_clean().await;
    });
}

#[test]
fn a_destroy_that_got_stuck_is_finished_on_request() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let stuck = Stuck::on(&["delete TAP"]);
        let manager = host.manager_with(Some(stuck.wrapper())).await;
        let machine = host.machine("left-4");
        manager.create_vm(machine, never()).await.unwrap();
        let failure = manager.destroy_vm("left-4".into()).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::CleanupFailed);
        assert_eq!(host.links().await, [tap("left-4").to_string()]);

        let retried = manager.retry_cleanup("left-4".into()).await.unwrap();
        assert_eq!(retried["failedCleanups"], 1);
        let resources = retried["resources"].as_array().unwrap();
        let failed = resources.iter().find(|one| one["status"] == "FAILED");
        assert_eq!(failed.unwrap()["type"], "TAP_DEVICE");
        stuck.loosen();
        let retried = manager.retry_cleanup("left-4".into()).await.unwrap();
        assert_eq!(retried["failedCleanups"], 0);
        assert_eq!(host.links().await, Vec::<String>::new());
        assert_eq!(vm_chains().await, Vec::<String>::new());
        delete(&manager, "left-4").await;
        host.is_clean().await;
    });
}

#[test]
fn i01_a_create_that_could_not_be_undone_is_told_and_undone_on_request() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let stuck = Stuck::on(&["delete TAP", "delete row"]);
        let manager = host.manager_with(Some(stuck.wrapper())).await;
        let mut events = manager.subscribe();
        let mut machine = host.machine("left-6");
        // It shows only when QEMU is started.
        machine["runAsUser"] = json!("65533:65533");
        std::fs::set_permissions(host.path(), Permissions::from_mode(0o700)).unwrap();
        let failure = manager.create_vm(machine, never()).await.unwrap_err();
        let left = failure.chain().find_map(|it| it.context().get("notUndone"));
        assert_eq!(left.unwrap().as_array().unwrap().len(), 2, "{failure:?}");
        let alert = next_event(&mut events, "cleanup-alert").await;
        assert_eq!(alert.data["failedResources"].as_array().unwrap().len(), 2);
        assert_eq!(host.links().await, [tap("left-6").to_string()]);

        let retried = manager.retry_cleanup("left-6".into()).await.unwrap();
        assert_eq!(retried["failedCleanups"], 2);
        stuck.loosen();
        let retried = manager.retry_cleanup("left-6".into()).await.unwrap();
        assert_eq!(retried["failedCleanups"], 0);
        assert_eq!(retried["successfulCleanups"], 2);
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        host.is_clean().await;
    });
}

#[test]
fn a_machine_that_nobody_knows_has_nothing_left() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let retried = manager.retry_cleanup("left-5".into()).await.unwrap();
        assert_eq!(retried["resources"], json!([]));
        let failure = manager.retry_cleanup("../x".into()).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InvalidConfig);
        host.is_clean().await;
    });
}
