//! Writes: each with its guard in the same call, and tried again only where nothing was done.

use infinization_core::db::{ConfigurationUpdate, CpuPinning, Database, DbError, Transition};
use infinization_core::error::ErrorCode;
use infinization_core::types::Secret;
use serde_json::{Value, json};

use crate::database;
use crate::kit::port::Answer::{Says, Throws};
use crate::kit::port::{known, row, says, script, vm};

#[tokio::test]
async fn i39_a_status_is_written_with_its_guard_in_the_same_call() {
    for (guard, condition) in [
        (vec![], json!({ "id": "vm-1" })),
        (
            vec!["error", "moving"],
            json!({ "id": "vm-1", "status": { "notIn": ["error", "moving"] } }),
        ),
    ] {
        // No row is no error, nor is a client that says nothing.
        for answer in [json!({ "count": 0 }), json!({ "count": 1 }), Value::Null] {
            let port = says(answer);
            database(&port)
                .update_machine_status(&vm("vm-1"), "off", &guard)
                .await
                .unwrap();
            let wanted = json!({
                "model": "machine", "operation": "updateMany",
                "args": { "where": condition, "data": { "status": "off" } },
            });
            assert_eq!(port.asked(), [wanted]);
        }
    }
}

#[tokio::test]
async fn the_librarys_own_writes_name_what_they_go_over_and_what_they_spare() {
    let port = says(json!({ "count": 0 }));
    let db = database(&port);
    db.write_status_over(&vm("vm-1"), "off", &["running", "starting"])
        .await
        .unwrap();
    let asked = port.asked();
    assert_eq!(
        (asked.len(), &asked[0]["operation"]),
        (1, &json!("updateMany"))
    );
    let condition = &asked[0]["args"]["where"]["status"];
    assert_eq!(condition["in"], json!(["running", "starting"]));
    let spared = condition["notIn"].as_array().unwrap();
    for (word, is_spared) in [("error", true), ("moving", true), ("running", false)] {
        assert_eq!(spared.contains(&json!(word)), is_spared, "{word}");
    }
}

#[tokio::test]
async fn a_configuration_is_made_or_changed_by_what_was_given() {
    let port = says(Value::Null);
    let update = ConfigurationUpdate {
        qemu_pid: Some(Some(17)),
        bridge: Some(None),
        graphic_password: Some(Some(Secret::new("hunter2"))),
        disk_paths: Some(Some(vec!["/a".to_owned()])),
        cpu_pinning: Some(Some(CpuPinning { cores: vec![1] })),
        ..ConfigurationUpdate::default()
    };
    database(&port)
        .update_machine_configuration(&vm("vm-1"), update)
        .await
        .unwrap();
    let update = json!({
        "qemuPid": 17, "bridge": null, "graphicPassword": "hunter2", "diskPaths": ["/a"],
        "cpuPinning": { "cores": [1] },
    });
    let mut create = update.clone();
    create["machineId"] = json!("vm-1");
    let args = json!({ "where": { "machineId": "vm-1" }, "create": create, "update": update });
    let wanted = json!({ "model": "machineConfiguration", "operation": "upsert", "args": args });
    assert_eq!(port.asked(), [wanted]);
}

#[tokio::test]
async fn two_that_make_a_configuration_at_once_both_have_their_way() {
    let update = || ConfigurationUpdate {
        qemu_pid: Some(Some(17)),
        ..ConfigurationUpdate::default()
    };
    let port = script([Throws(known("P2002")), Says(Value::Null)]);
    let (db, id) = (database(&port), vm("vm-1"));
    db.update_machine_configuration(&id, update())
        .await
        .unwrap();
    assert_eq!(port.asked().len(), 2);
    let port = script([Throws(known("P2002"))]);
    let db = database(&port);
    let refused = db.update_machine_configuration(&id, update()).await;
    let error = refused.unwrap_err();
    assert_eq!(error.code, ErrorCode::ConstraintViolation);
    assert_eq!(port.asked().len(), 2, "once more and no more");
}

/// A client wants its own `DbNull` in a column of JSON, and may not be asked for it.
#[tokio::test]
async fn a_column_of_json_is_emptied_only_where_it_holds_something() {
    let unset = || ConfigurationUpdate {
        cpu_pinning: Some(None),
        disk_paths: Some(None),
        ..ConfigurationUpdate::default()
    };
    for (answer, rest) in [
        (Value::Null, None),
        (json!({ "diskPaths": null, "cpuPinning": null }), None),
        (
            json!({ "diskPaths": [], "cpuPinning": { "cores": [] } }),
            None,
        ),
        (
            json!({ "diskPaths": null, "cpuPinning": { "cores": [1] } }),
            Some(json!({ "cpuPinning": { "cores": [] } })),
        ),
        (
            json!({ "diskPaths": ["/a"], "cpuPinning": "torn" }),
            Some(json!({ "diskPaths": [], "cpuPinning": { "cores": [] } })),
        ),
    ] {
        let port = says(answer.clone());
        database(&port)
            .update_machine_configuration(&vm("vm-1"), unset())
            .await
            .unwrap();
        let asked = port.asked();
        let first = &asked[0]["args"];
        assert_eq!(first["update"], json!({}));
        assert_eq!(
            first["select"],
            json!({ "diskPaths": true, "cpuPinning": true })
        );
        let second = asked.get(1).map(|it| it["args"]["data"].clone());
        assert_eq!(second, rest, "{answer}");
    }
}

#[tokio::test]
async fn clearing_leaves_the_tap_where_it_shall() {
    let port = says(json!({ "count": 1 }));
    let db = database(&port);
    db.clear_machine_configuration(&vm("vm-1")).await.unwrap();
    db.clear_volatile_machine_configuration(&vm("vm-1"))
        .await
        .unwrap();
    let asked = port.asked();
    assert_eq!(
        asked[0]["args"]["data"],
        json!({ "qemuPid": null, "tapDeviceName": null, "qmpSocketPath": null })
    );
    assert_eq!(
        asked[1]["args"]["data"],
        json!({ "qemuPid": null, "qmpSocketPath": null })
    );
    assert_eq!(asked[1]["operation"], "updateMany");
    assert_eq!(asked[1]["args"]["where"], json!({ "machineId": "vm-1" }));
}

async fn transition(answers: Value) -> Result<Transition, DbError> {
    let db = database(&says(answers));
    db.transition_vm_status(&vm("vm-1"), "off", "starting", 3)
        .await
}

#[tokio::test]
async fn a_transition_is_a_read_and_a_conditional_write_in_one_transaction() {
    let port = says(json!([row("vm-1", "off", 3), { "count": 1 }]));
    let db = database(&port);
    let moved = db
        .transition_vm_status(&vm("vm-1"), "off", "starting", 3)
        .await
        .unwrap();
    assert_eq!(moved.new_version, 4);
    assert_eq!(
        (moved.vm.status.as_str(), moved.vm.version),
        ("starting", 4)
    );
    assert_eq!(port.asked().len(), 1, "nothing is asked outside of it");
    let steps = port.asked()[0]["transaction"].clone();
    let write = json!({
        "model": "machine", "operation": "updateMany",
        "args": {
            "where": { "id": "vm-1", "status": "off", "version": 3 },
            "data": { "status": "starting", "version": 4 },
        },
        "given": {
            "is": { "status": "off", "version": 3 }, "texts": ["configuration", "diskPaths"],
        },
    });
    assert_eq!(steps[0]["operation"], "findUnique");
    assert_eq!(steps[1], write);
    assert_eq!(steps[2]["given"], json!({ "is": { "count": 0 } }));
    assert_eq!(steps[2]["args"], steps[0]["args"]);
    assert_eq!(steps[3]["operation"], "findFirst");
    assert_eq!(steps[3]["given"], json!({ "is": { "count": 1 } }));
    assert_eq!(
        steps[3]["args"]["where"],
        json!({ "id": "vm-1", "version": 4 })
    );
    assert_eq!(steps[3]["args"]["select"], steps[0]["args"]["select"]);
    assert_eq!(steps.as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_transition_answers_the_row_as_it_is_after_it() {
    let before = row("vm-1", "off", 3);
    let mut after = row("vm-1", "starting", 4);
    after["cpuCores"] = json!(7);
    let moved = |answers| async { transition(answers).await.unwrap().vm };
    // Somebody changed it between the read and the write.
    let vm = moved(json!([before, { "count": 1 }, after])).await;
    assert_eq!((vm.status.as_str(), vm.cpu_cores), ("starting", 7));
    // A client that has no such call, or answers it with another row.
    for answers in [
        json!([before, { "count": 1 }]),
        json!([before, { "count": 1 }, null]),
        json!([before, { "count": 1 }, row("vm-1", "moving", 9)]),
    ] {
        let vm = moved(answers.clone()).await;
        let told = (vm.status.as_str(), vm.version, vm.cpu_cores);
        let wanted = (
            "starting",
            4,
            before["cpuCores"].as_i64().unwrap_or_default(),
        );
        assert_eq!(told, wanted, "{answers}");
    }
}

#[tokio::test]
async fn i40_each_way_to_lose_a_transition_has_its_code() {
    let none = json!({ "count": 0 });
    for (answers, code, status) in [
        (json!([null]), ErrorCode::MachineNotFound, None),
        (
            json!([row("vm-1", "off", 4)]),
            ErrorCode::VersionConflict,
            Some("off"),
        ),
        (
            json!([row("vm-1", "running", 4)]),
            ErrorCode::VersionConflict,
            Some("running"),
        ),
        (
            json!([row("vm-1", "moving", 3)]),
            ErrorCode::UpdateFailed,
            Some("moving"),
        ),
        // It changed or went between the read and the write.
        (
            json!([row("vm-1", "off", 3), none, null]),
            ErrorCode::MachineNotFound,
            None,
        ),
        (
            json!([row("vm-1", "off", 3), none, row("vm-1", "moving", 3)]),
            ErrorCode::UpdateFailed,
            Some("moving"),
        ),
        (
            json!([row("vm-1", "off", 3), none, row("vm-1", "off", 3)]),
            ErrorCode::VersionConflict,
            Some("off"),
        ),
        // A client that does not say how many rows it wrote.
        (
            json!([row("vm-1", "off", 3), null]),
            ErrorCode::VersionConflict,
            Some("off"),
        ),
        (Value::Null, ErrorCode::MachineNotFound, None),
    ] {
        let error = transition(answers.clone()).await.unwrap_err();
        assert_eq!(error.code, code, "{answers}");
        let told = error.details.get("currentStatus").and_then(Value::as_str);
        assert_eq!(told, status, "{answers}");
    }
}

#[tokio::test]
async fn f33_a_transaction_that_gives_way_is_tried_three_times_in_all() {
    let won = Says(json!([row("vm-1", "off", 3), { "count": 1 }]));
    for (answers, asked) in [
        (vec![Throws(known("P2034")), won.clone()], 2),
        (vec![Throws(known("P2034")), Throws(known("P2034")), won], 3),
    ] {
        let port = script(answers);
        let db = database(&port);
        db.transition_vm_status(&vm("vm-1"), "off", "starting", 3)
            .await
            .unwrap();
        assert_eq!(port.asked().len(), asked);
    }
    for code in ["P2034", "TransactionWriteConflict", "40001"] {
        let port = script([Throws(known(code))]);
        let (db, id) = (database(&port), vm("vm-1"));
        let lost = db.transition_vm_status(&id, "off", "starting", 3).await;
        let error = lost.unwrap_err();
        assert_eq!(error.code, ErrorCode::UpdateFailed, "{code}");
        assert_eq!(error.details["prismaCode"], "P2034", "{code}");
        assert_eq!(port.asked().len(), 3, "{code}");
    }
}

#[tokio::test]
async fn other_errors_of_a_transaction_are_not_tried_again() {
    let port = script([Throws(known("P2025"))]);
    let lost = database(&port)
        .transition_vm_status(&vm("vm-1"), "off", "starting", 3)
        .await;
    assert_eq!(lost.unwrap_err().code, ErrorCode::MachineNotFound);
    assert_eq!(port.asked().len(), 1);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_told() {
    let mut row = row("vm-1", "off", 3);
    row["configuration"] = json!({ "diskPaths": "corrupt" });
    let port = says(json!([row]));
    let refused = database(&port)
        .transition_vm_status(&vm("vm-1"), "off", "starting", 3)
        .await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::QueryFailed);
    assert_eq!(port.asked().len(), 1);
}

#[tokio::test]
async fn f33_any_write_that_gives_way_is_tried_again_and_no_read_is() {
    let port = script([Throws(known("P2034")), Says(json!({ "count": 1 }))]);
    let db = database(&port);
    db.update_machine_status(&vm("vm-1"), "off", &[])
        .await
        .unwrap();
    assert_eq!(port.asked().len(), 2);
    let port = script([Throws(known("P2034"))]);
    assert!(database(&port).find_machine(&vm("vm-1")).await.is_err());
    assert_eq!(port.asked().len(), 1);
}
