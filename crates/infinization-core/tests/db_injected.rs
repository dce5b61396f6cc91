//! The 16 operations over an object of the user's that is written down beforehand: the calls it gets,
//! what is made of its answers, and of its errors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use infinization_core::db::injected::{InjectedDatabase, METHODS};
use infinization_core::db::port::PortError;
use infinization_core::db::{ConfigurationUpdate, Database, DbError};
use infinization_core::error::{ErrorClass, ErrorCode};
use infinization_core::types::{InternalName, Secret};
use infinization_test_kit as kit;
use serde_json::{Value, json};

use kit::port::Answer::{self, Hangs, Throws};
use kit::port::{Script, error, row, says, script, vm};

fn database(port: &Arc<Script>) -> InjectedDatabase {
    let port: Arc<Script> = Arc::clone(port);
    InjectedDatabase::new(port)
}

#[tokio::test]
async fn each_operation_is_one_call_of_its_public_name() {
    let port = says(Value::Null);
    let (db, id) = (database(&port), vm("vm-1"));
    let name = InternalName::parse("one").unwrap();
    let update = ConfigurationUpdate {
        qemu_pid: Some(None),
        graphic_port: Some(Some(5900)),
        ..ConfigurationUpdate::default()
    };
    let _answers = (
        db.find_machine(&id).await,
        db.find_machine_by_internal_name(&name).await,
        db.find_machine_with_config(&id).await,
        db.find_running_vms().await,
        db.find_machines_by_statuses(&["off", "x"]).await,
        db.update_machine_status(&id, "off", &[]).await,
        db.update_machine_status(&id, "off", &["error"]).await,
        db.update_machine_configuration(&id, update).await,
        db.transition_vm_status(&id, "off", "starting", 3).await,
        db.clear_machine_configuration(&id).await,
        db.clear_volatile_machine_configuration(&id).await,
    );
    let _more_answers = (
        db.get_machine_internal_name(&id).await,
        db.get_machine_disk_path(&id).await,
        db.get_firewall_rules(&id).await,
        db.get_firewall_rules_split(&id).await,
        db.get_department_firewall_policy(&id).await,
        db.get_firewall_rule_set_id(&id).await,
    );
    let wanted = [
        ("findMachine", json!(["vm-1"])),
        ("findMachineByInternalName", json!(["one"])),
        ("findMachineWithConfig", json!(["vm-1"])),
        ("findRunningVMs", json!([])),
        ("findMachinesByStatuses", json!([["off", "x"]])),
        ("updateMachineStatus", json!(["vm-1", "off"])),
        (
            "updateMachineStatus",
            json!(["vm-1", "off", { "onlyIfNotIn": ["error"] }]),
        ),
        (
            "updateMachineConfiguration",
            json!(["vm-1", { "qemuPid": null, "graphicPort": 5900 }]),
        ),
        ("transitionVMStatus", json!(["vm-1", "off", "starting", 3])),
        ("clearMachineConfiguration", json!(["vm-1"])),
        ("clearVolatileMachineConfiguration", json!(["vm-1"])),
        ("getMachineInternalName", json!(["vm-1"])),
        ("getMachineDiskPath", json!(["vm-1"])),
        ("getFirewallRules", json!(["vm-1"])),
        ("getFirewallRulesSplit", json!(["vm-1"])),
        ("getDepartmentFirewallPolicy", json!(["vm-1"])),
        ("getFirewallRuleSetId", json!(["vm-1"])),
    ];
    let wanted = wanted.map(|(method, args)| json!({ "method": method, "args": args }));
    assert_eq!(port.asked(), wanted);
    let called = port.asked();
    let called = |name: &&str| called.iter().any(|it| it["method"] == **name);
    assert!(METHODS.iter().all(called));
}

/// An object that has only the 16 is asked by them.
#[tokio::test]
async fn the_disks_of_all_rows_come_of_the_operations_there_are() {
    let listed = |id: &str| json!({ "id": id, "status": "off", "internalName": id });
    let mut whole = row("a", "off", 1);
    whole["configuration"] = json!({ "diskPaths": ["/srv/a.qcow2"] });
    let port = script([
        Answer::Says(json!([listed("a"), listed("gone")])),
        Answer::Says(whole),
        Answer::Says(Value::Null),
    ]);
    let disks = database(&port).find_machine_disks().await.unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0].disk_paths, ["/srv/a.qcow2"]);
    let methods: Vec<Value> = port.asked().iter().map(|it| it["method"].clone()).collect();
    let one = "findMachineWithConfig";
    assert_eq!(methods, ["findMachinesByStatuses", one, one]);
}

#[tokio::test]
async fn answers_are_records_and_may_say_more() {
    let id = vm("vm-1");
    let found = database(&says(json!({ "id": "vm-1", "status": "off", "userId": 7 })));
    assert_eq!(
        found.find_machine(&id).await.unwrap().unwrap().status,
        "off"
    );
    let running = json!([{ "id": "a", "status": "running", "internalName": "a-1",
        "MachineConfiguration": { "qemuPid": 5, "tapDeviceName": null, "createdAt": "2026-01-01" } }]);
    let running = database(&says(running)).find_running_vms().await.unwrap();
    assert_eq!(running[0].configuration.clone().unwrap().qemu_pid, Some(5));
    let moved = json!({ "success": true, "newVersion": 4, "vmConfig": row("vm-1", "starting", 4) });
    let moved = database(&says(moved))
        .transition_vm_status(&id, "off", "starting", 3)
        .await;
    assert_eq!(moved.unwrap().new_version, 4);
    let split = json!({ "departmentRules": [{ "id": "d", "name": "d" }], "vmRules": [] });
    let split = database(&says(split))
        .get_firewall_rules_split(&id)
        .await
        .unwrap();
    assert_eq!((split.department_rules.len(), split.vm_rules.len()), (1, 0));
    let name = database(&says(json!("one")))
        .get_machine_internal_name(&id)
        .await;
    assert_eq!(name.unwrap().as_deref(), Some("one"));
}

#[tokio::test]
async fn what_is_no_record_is_query_failed() {
    let id = vm("vm-1");
    for wrong in [
        json!(true),
        json!({}),
        json!({ "id": 7, "status": "off" }),
        json!([]),
    ] {
        let db = database(&says(wrong.clone()));
        let errors: [DbError; 5] = [
            db.find_machine(&id).await.unwrap_err(),
            db.find_machine_with_config(&id).await.unwrap_err(),
            db.transition_vm_status(&id, "off", "starting", 3)
                .await
                .unwrap_err(),
            db.get_firewall_rules_split(&id).await.unwrap_err(),
            db.get_firewall_rule_set_id(&id).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.code, ErrorCode::QueryFailed, "{wrong}");
        }
    }
    // No rules at all are not the same as none.
    let error = database(&says(Value::Null))
        .get_firewall_rules_split(&id)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::QueryFailed);
}

async fn both(thrown: PortError) -> [DbError; 2] {
    let port = script([Throws(thrown)]);
    let db = database(&port);
    [
        db.find_machine(&vm("vm-1")).await.unwrap_err(),
        db.update_machine_status(&vm("vm-1"), "off", &[])
            .await
            .unwrap_err(),
    ]
}

#[tokio::test]
async fn i40_a_typed_error_keeps_its_code_whoever_made_it() {
    let codes = ErrorCode::ALL
        .iter()
        .filter(|code| code.class() == ErrorClass::Database);
    for code in codes {
        for name in ["PrismaAdapterError", "Error", "Object"] {
            let details = json!({ "currentStatus": "moving" });
            for told in both(error(
                name,
                Some(code.as_str()),
                "a sentence",
                details.clone(),
            ))
            .await
            {
                assert_eq!(told.code, *code, "{name}");
                assert_eq!(told.message, "a sentence");
                assert_eq!(Value::Object(told.details), details);
            }
        }
    }
}

#[tokio::test]
async fn any_other_error_is_the_adapters_or_the_networks() {
    use ErrorCode::{DbConnectionError, QueryFailed, UpdateFailed};
    for (name, code, of_read, of_write) in [
        (
            "Error",
            Some("ECONNREFUSED"),
            DbConnectionError,
            DbConnectionError,
        ),
        (
            "TypeError",
            Some("UND_ERR_CONNECT_TIMEOUT"),
            DbConnectionError,
            DbConnectionError,
        ),
        ("TimeoutError", None, DbConnectionError, DbConnectionError),
        ("TypeError", None, QueryFailed, UpdateFailed),
        ("Error", Some("VM_NOT_FOUND"), QueryFailed, UpdateFailed),
        ("Error", Some("P2025"), QueryFailed, UpdateFailed),
    ] {
        let [read, write] = both(error(name, code, "boom\nand more", Value::Null)).await;
        assert_eq!(
            (read.code, write.code),
            (of_read, of_write),
            "{name} {code:?}"
        );
        assert_eq!(read.message, "the database adapter failed: and more");
    }
}

#[tokio::test]
async fn f33_a_lost_race_is_known_by_its_words_where_its_facts_did_not_come() {
    let thrown = error(
        "PrismaAdapterError",
        Some("UPDATE_FAILED"),
        "gave way (P2034)",
        Value::Null,
    );
    let [_read, write] = both(thrown).await;
    assert_eq!(write.details["prismaCode"], "P2034");
}

#[tokio::test]
async fn i43_no_secret_leaves_with_an_error() {
    let update = ConfigurationUpdate {
        graphic_password: Some(Some(Secret::new("hunter2"))),
        ..ConfigurationUpdate::default()
    };
    let details = json!({ "body": "{\"graphicPassword\":\"hunter2\"}" });
    let port = script([Throws(error(
        "Error",
        Some("UPDATE_FAILED"),
        "400: hunter2",
        details,
    ))]);
    let failed = database(&port)
        .update_machine_configuration(&vm("vm-1"), update)
        .await;
    let told = format!("{:?}", failed.unwrap_err());
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_no_connection() {
    let hasty = database(&script([Hangs])).answering_within(Duration::from_millis(5));
    let error = hasty.find_running_vms().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DbConnectionError);
}

#[tokio::test]
async fn an_object_without_the_methods_is_told_so() {
    database(&says(json!([]))).probe().await.unwrap();
    let port = says(json!(["findMachine", "transitionVMStatus"]));
    let refused = database(&port).probe().await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SchemaMismatch);
    assert_eq!(
        refused.details["missing"],
        json!(["findMachine", "transitionVMStatus"])
    );
    assert_eq!(port.asked(), [json!({ "absent": METHODS })]);
}

/// It can only be told what not to write over, and not what it does not know.
#[tokio::test]
async fn an_object_is_asked_for_the_row_before_its_status_is_written() {
    let row = |status: &str| json!({ "id": "vm-1", "status": status });
    for (before, writes) in [
        (row("running"), true),
        (Value::Null, true),
        (row("error"), false),
        (row("quarantined"), false),
    ] {
        let port = says(before.clone());
        let db = database(&port);
        db.write_status_over(&vm("vm-1"), "off", &["running", "starting"])
            .await
            .unwrap();
        let asked = port.asked();
        assert_eq!(asked[0]["method"], "findMachine");
        assert_eq!(asked.len(), 1 + usize::from(writes), "{before}");
        if writes {
            let spared = asked[1]["args"][2]["onlyIfNotIn"].as_array().unwrap();
            assert!(spared.contains(&json!("error")) && !spared.contains(&json!("running")));
        }
    }
}
