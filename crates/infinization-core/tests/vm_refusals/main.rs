//! A refusal has the contract's code and no side effect.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod disks;
mod files;
mod hosts;

use std::fs;
use std::time::Duration;

use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit::{self as kit, nbd};
use kit::faults::start;
use kit::machine::{
    Host, consistent_status, create, delete, forced, never, next_event, qemus, vm_chains,
};
use nbd::NbdServer;
use serde_json::{Value, json};

/// Longer than a refusal takes on a loaded machine, shorter than a FIFO that nobody writes to.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Everything a refusal could have touched.
async fn snapshot(host: &Host, manager: &Manager) -> Value {
    json!({
        "rows": manager.list_vms().await.unwrap(),
        "links": host.links().await,
        "chains": vm_chains().await,
        "files": host.files(),
        "qemus": qemus(host.path()),
    })
}

/// A machine that is off.
async fn stopped(host: &Host, manager: &Manager, vm_id: &str) {
    create(host, manager, vm_id).await;
    manager
        .stop_vm(vm_id.into(), forced(), never())
        .await
        .unwrap();
}

/// Asserts that the machine is refused at once, and that nothing was touched.
async fn refused(host: &Host, manager: &Manager, machine: Value) -> Failure {
    let before = snapshot(host, manager).await;
    let create = manager.create_vm(machine, never());
    let outcome = tokio::time::timeout(AT_ONCE, create).await;
    let failure = outcome.expect("it is refused at once").unwrap_err();
    assert_eq!(snapshot(host, manager).await, before, "{failure}");
    failure
}

/// Asserts that the machine is not started, and that nothing was touched.
async fn not_started(host: &Host, manager: &Manager, vm_id: &str) -> Failure {
    let before = snapshot(host, manager).await;
    let outcome = tokio::time::timeout(AT_ONCE, start(manager, vm_id)).await;
    let failure = outcome.expect("it is refused at once").unwrap_err();
    assert_eq!(snapshot(host, manager).await, before, "{failure}");
    failure
}

/// The code of each refused field.
fn fields(failure: &Failure) -> Vec<(&str, &str)> {
    let issues = failure.chain().find_map(|it| it.context().get("issues"));
    let issues = issues.unwrap_or_else(|| panic!("no field is named: {failure:?}"));
    let issues = issues.as_array().unwrap().iter();
    issues
        .map(|issue| {
            let code = issue["code"].as_str().unwrap();
            (issue["path"].as_str().unwrap(), code)
        })
        .collect()
}

#[test]
fn every_verb_is_refused_before_initialize_and_after_shutdown() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = Manager::new(host.settings());
        assert!(!manager.is_initialized());
        for failure in refusals(&host, &manager).await {
            assert_eq!(failure.code(), ErrorCode::InvalidState, "{failure}");
        }
        assert_eq!(manager.get_active_vms(), Vec::<String>::new());
        assert!(!host.state_dir().exists(), "nothing was made");

        manager.initialize().await.unwrap();
        manager.initialize().await.unwrap();
        assert!(manager.is_initialized());
        manager.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
        for failure in refusals(&host, &manager).await {
            assert_eq!(failure.code(), ErrorCode::Closed, "{failure}");
        }
        let again = manager.initialize().await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::Closed);
        host.is_clean().await;
    });
}

async fn refusals(host: &Host, manager: &Manager) -> Vec<Failure> {
    let vm_id = || "early-1".to_owned();
    let machine = host.machine("early-1");
    [
        manager.plan_vm(machine.clone()).await,
        manager.create_vm(machine, never()).await,
        start(manager, "early-1").await,
        manager.stop_vm(vm_id(), Value::Null, never()).await,
        manager.restart_vm(vm_id()).await,
        manager.suspend_vm(vm_id()).await,
        manager.resume_vm(vm_id()).await,
        manager.reset_vm(vm_id()).await,
        manager.destroy_vm(vm_id()).await,
        manager.delete_vm(vm_id(), Value::Null).await,
        manager.get_vm_status(vm_id()).await,
        manager.get_vm(vm_id()).await,
        manager.list_vms().await,
        manager.set_firewall_rules(vm_id(), json!([])).await,
        manager.reconcile_startup_state(None).await,
        manager.check_all_vms().await,
        manager.check_orphan_processes().await,
    ]
    .into_iter()
    .map(Result::unwrap_err)
    .collect()
}

#[test]
fn a_machine_nobody_has_is_not_found_and_already_destroyed() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm_id = || "nobody-1".to_owned();
        let answers = [
            start(&manager, "nobody-1").await,
            manager.stop_vm(vm_id(), Value::Null, never()).await,
            manager.restart_vm(vm_id()).await,
            manager.suspend_vm(vm_id()).await,
            manager.resume_vm(vm_id()).await,
            manager.reset_vm(vm_id()).await,
            manager.delete_vm(vm_id(), Value::Null).await,
            manager.get_vm_status(vm_id()).await,
            manager.set_firewall_rules(vm_id(), json!([])).await,
        ];
        for answer in answers {
            let failure = answer.unwrap_err();
            assert_eq!(failure.code(), ErrorCode::VmNotFound);
            assert!(failure.to_string().contains("not found"), "{failure}");
            assert_eq!(failure.vm_id().unwrap().as_str(), "nobody-1");
        }
        assert_eq!(manager.get_vm(vm_id()).await.unwrap(), Value::Null);
        let destroyed = manager.destroy_vm(vm_id()).await.unwrap();
        assert_eq!(destroyed["success"], true);
        host.is_clean().await;
        let left = std::fs::read_dir(host.state_dir().join("vms")).unwrap();
        assert_eq!(left.count(), 0, "no directory of the machine is left");
    });
}

#[test]
fn a_create_of_a_machine_that_is_there_leaves_it_alone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "there-1").await;
        let before = snapshot(&host, &manager).await;
        let same = manager
            .create_vm(host.machine("there-1"), never())
            .await
            .unwrap_err();
        assert_eq!(same.code(), ErrorCode::InvalidState);
        assert_eq!(same.context()["currentStatus"], "running");
        assert_eq!(snapshot(&host, &manager).await, before);

        let mut namesake = host.machine("there-2");
        namesake["internalName"] = json!("there-1");
        let failure = manager.create_vm(namesake, never()).await.unwrap_err();
        assert!(failure.has(ErrorCode::ResourceUnavailable), "{failure:?}");
        assert_eq!(snapshot(&host, &manager).await, before);
        assert_eq!(
            consistent_status(&manager, "there-1").await["qmpStatus"],
            "running"
        );

        // An off machine's disk is its user's: a create does not write over it.
        manager
            .stop_vm("there-1".into(), forced(), never())
            .await
            .unwrap();
        let before = snapshot(&host, &manager).await;
        let failure = manager
            .create_vm(host.machine("there-1"), never())
            .await
            .unwrap_err();
        assert!(failure.has(ErrorCode::DiskError), "{failure:?}");
        assert_eq!(snapshot(&host, &manager).await, before);
        start(&manager, "there-1").await.unwrap();
        delete(&manager, "there-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_stopped_namesake_keeps_its_row_and_disk() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "same-1").await;
        manager
            .stop_vm("same-1".into(), forced(), never())
            .await
            .unwrap();
        let before = snapshot(&host, &manager).await;
        let mut namesake = host.machine("same-2");
        namesake["internalName"] = json!("same-1");
        manager.create_vm(namesake, never()).await.unwrap_err();
        assert_eq!(snapshot(&host, &manager).await, before);
        delete(&manager, "same-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_state_directory_has_one_manager() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "only-1").await;
        let second = Manager::new(host.settings());
        let failure = second.initialize().await.unwrap_err();
        assert_eq!(failure.code().as_str(), "STATE_DIR_LOCKED");
        assert!(!second.is_initialized());
        assert_eq!(
            consistent_status(&manager, "only-1").await["qmpStatus"],
            "running"
        );
        manager.shutdown().await.unwrap();
        second.initialize().await.unwrap();
        delete(&second, "only-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_plan_leaves_no_trace() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let before = snapshot(&host, &manager).await;
        let plan = manager.plan_vm(host.machine("plan-1")).await.unwrap();
        assert_eq!(plan["vmId"], "plan-1");
        assert_eq!(snapshot(&host, &manager).await, before);
        assert!(!host.state_dir().join("vms/plan-1").exists());
        assert!(!host.state_dir().join("disks").exists());
        let created = create(&host, &manager, "plan-1").await;
        assert_eq!(
            created["displayPort"], 5900,
            "the plan's port was given back"
        );
        let failure = manager.plan_vm(host.machine("plan-1")).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InvalidState);
        delete(&manager, "plan-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_its_owner_has_claimed_is_not_touched() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "mark-1").await;
        manager
            .stop_vm("mark-1".into(), forced(), never())
            .await
            .unwrap();
        host.claim("mark-1", "backing_up");
        let before = snapshot(&host, &manager).await;
        let failure = start(&manager, "mark-1").await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InvalidState);
        assert_eq!(failure.context()["currentStatus"], "backing_up");
        let failure = manager
            .create_vm(host.machine("mark-1"), never())
            .await
            .unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InvalidState);
        assert_eq!(snapshot(&host, &manager).await, before);

        host.claim("mark-1", "off");
        start(&manager, "mark-1").await.unwrap();
        host.claim("mark-1", "backing_up");
        let mut events = manager.subscribe();
        let pid = qemus(host.path())[0];
        kit::machine::send_signal(pid, nix::sys::signal::Signal::SIGKILL);
        next_event(&mut events, "crash").await;
        let status = consistent_status(&manager, "mark-1").await;
        assert_eq!(status["status"], "backing_up", "a crash keeps the claim");
        delete(&manager, "mark-1").await;
        host.is_clean().await;
    });
}

#[test]
fn verbs_on_a_guest_need_the_status_they_are_for() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "rule-1").await;
        let vm_id = || "rule-1".to_owned();
        let refused = |answer: Result<Value, Failure>, status: &str| {
            let failure = answer.unwrap_err();
            assert_eq!(failure.code(), ErrorCode::InvalidState, "{failure}");
            assert_eq!(failure.context()["currentStatus"], status);
            let allowed = ["allowedStatuses", "startableStatuses"];
            let context = failure.context();
            assert!(
                allowed.iter().any(|key| context.contains_key(*key)),
                "{failure:?}"
            );
        };
        refused(manager.resume_vm(vm_id()).await, "running");
        assert_eq!(
            start(&manager, "rule-1").await.unwrap()["message"],
            "VM is already running"
        );
        let mut events = manager.subscribe();
        manager.reset_vm(vm_id()).await.unwrap();
        // A guest that is suspended before its reset is carried out is in prelaunch.
        next_event(&mut events, "vm:reset").await;

        manager.suspend_vm(vm_id()).await.unwrap();
        refused(manager.suspend_vm(vm_id()).await, "suspended");
        refused(manager.reset_vm(vm_id()).await, "suspended");
        refused(start(&manager, "rule-1").await, "suspended");
        let status = consistent_status(&manager, "rule-1").await;
        assert_eq!(
            (&status["status"], &status["qmpStatus"]),
            (&json!("suspended"), &json!("paused"))
        );
        manager.resume_vm(vm_id()).await.unwrap();
        assert_eq!(
            consistent_status(&manager, "rule-1").await["qmpStatus"],
            "running"
        );

        manager.stop_vm(vm_id(), forced(), never()).await.unwrap();
        refused(manager.suspend_vm(vm_id()).await, "off");
        refused(manager.resume_vm(vm_id()).await, "off");
        refused(manager.reset_vm(vm_id()).await, "off");
        let again = manager.stop_vm(vm_id(), forced(), never()).await.unwrap();
        assert_eq!(again["message"], "VM is already off");
        delete(&manager, "rule-1").await;
        host.is_clean().await;
    });
}
