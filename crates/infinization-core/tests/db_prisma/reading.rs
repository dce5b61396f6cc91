//! Reads: which rows and columns are asked for, and what is made of odd answers.

use infinization_core::db::{Database, VmRecord};
use infinization_core::error::ErrorCode;
use infinization_core::types::InternalName;
use serde_json::{Value, json};

use crate::kit::port::{Answer, error, known, row, says, script, vm};
use crate::{database, of_node};

/// What `find_machine_with_config` makes of a row that differs from a plain one.
async fn record(change: impl FnOnce(&mut Value)) -> Result<VmRecord, ErrorCode> {
    let mut row = row("vm-1", "off", 3);
    change(&mut row);
    let found = database(&says(row))
        .find_machine_with_config(&vm("vm-1"))
        .await;
    found.map(Option::unwrap).map_err(|error| error.code)
}

#[tokio::test]
async fn a_machine_is_looked_up_by_its_id() {
    let port = says(json!({ "id": "vm-1", "status": "backing_up" }));
    let found = database(&port)
        .find_machine(&vm("vm-1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.id.as_str(), found.status.as_str()),
        ("vm-1", "backing_up")
    );
    let wanted = json!({
        "model": "machine", "operation": "findUnique",
        "args": { "where": { "id": "vm-1" }, "select": { "id": true, "status": true } },
    });
    assert_eq!(port.asked(), [wanted]);
}

#[tokio::test]
async fn b14_null_is_absence_and_nothing_else_is() {
    let (port, id) = (says(Value::Null), vm("vm-1"));
    let db = database(&port);
    let name = InternalName::parse("vm-1").unwrap();
    assert!(db.find_machine(&id).await.unwrap().is_none());
    assert!(
        db.find_machine_by_internal_name(&name)
            .await
            .unwrap()
            .is_none()
    );
    assert!(db.find_machine_with_config(&id).await.unwrap().is_none());
    assert!(db.get_machine_internal_name(&id).await.unwrap().is_none());
    assert!(db.get_machine_disk_path(&id).await.unwrap().is_none());
    assert!(
        db.get_department_firewall_policy(&id)
            .await
            .unwrap()
            .is_none()
    );
    assert!(db.get_firewall_rule_set_id(&id).await.unwrap().is_none());
    for wrong in [
        json!(0),
        json!("vm-1"),
        json!([]),
        json!({}),
        json!({ "id": "vm-1" }),
    ] {
        let error = database(&says(wrong.clone()))
            .find_machine(&id)
            .await
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::QueryFailed, "{wrong}");
    }
}

#[tokio::test]
async fn the_disks_of_all_rows_are_one_query_whatever_their_status() {
    let answer = json!([
        { "id": "a", "internalName": "a-1", "configuration": { "diskPaths": ["/srv/a.qcow2"] } },
        { "id": "b", "internalName": "b-1", "configuration": null },
    ]);
    let port = says(answer);
    let disks = of_node(&port).find_machine_disks().await.unwrap();
    assert_eq!(disks[0].disk_paths, ["/srv/a.qcow2"]);
    assert_eq!(
        (disks[1].internal_name.as_str(), disks[1].disk_paths.len()),
        ("b-1", 0)
    );
    assert_eq!(port.asked().len(), 1);
    assert_eq!(
        port.asked()[0]["args"]["where"],
        json!({ "nodeId": "node-a" })
    );
    let torn = json!([{ "id": "a", "internalName": "a", "configuration": { "diskPaths": [7] } }]);
    let torn = database(&says(torn)).find_machine_disks().await;
    assert_eq!(torn.unwrap_err().code, ErrorCode::QueryFailed);
}

#[tokio::test]
async fn f31_rows_that_nobody_changed_are_asked_for_and_a_schema_that_cannot_tell_has_none() {
    let port = says(json!([]));
    let db = of_node(&port);
    let found = db.find_machines_unchanged_since(&["rebuilding"], 951_782_400_007);
    assert_eq!(found.await.unwrap(), []);
    let wanted = json!({
        "nodeId": "node-a", "status": { "in": ["rebuilding"] },
        "updatedAt": { "lt": "2000-02-29T00:00:00.007Z" },
    });
    assert_eq!(port.asked()[0]["args"]["where"], wanted);
    let unknown = "Unknown argument `updatedAt`. Available options are marked with ?.";
    let unknown = error("PrismaClientValidationError", None, unknown, Value::Null);
    for (thrown, outcome) in [
        (unknown, Ok(Vec::new())),
        (known("P1001"), Err(ErrorCode::DbConnectionError)),
    ] {
        let db = database(&script([Answer::Throws(thrown)]));
        let found = db.find_machines_unchanged_since(&["rebuilding"], 0).await;
        assert_eq!(found.map_err(|error| error.code), outcome);
    }
}

#[tokio::test]
async fn a_list_that_is_none_is_an_error_and_no_crash() {
    for answer in [Value::Null, json!({}), json!([null])] {
        let db = database(&says(answer.clone()));
        let error = db.find_running_vms().await.unwrap_err();
        assert_eq!(error.code, ErrorCode::QueryFailed, "{answer}");
        let error = db.find_machines_by_statuses(&["off"]).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::QueryFailed, "{answer}");
    }
}

#[tokio::test]
async fn lists_are_of_one_node_if_there_is_one() {
    let name = InternalName::parse("vm-1").unwrap();
    let table = [
        (
            None,
            json!({ "status": "running" }),
            json!({ "status": { "in": ["off", "x"] } }),
        ),
        (
            Some("node-a"),
            json!({ "status": "running", "nodeId": "node-a" }),
            json!({ "status": { "in": ["off", "x"] }, "nodeId": "node-a" }),
        ),
    ];
    for (node, running, by_statuses) in table {
        let port = says(json!([]));
        let db = if node.is_some() {
            of_node(&port)
        } else {
            database(&port)
        };
        assert_eq!(db.find_running_vms().await.unwrap(), []);
        assert_eq!(
            db.find_machines_by_statuses(&["off", "x"]).await.unwrap(),
            []
        );
        let _an_answer_is_no_list = db.find_machine_by_internal_name(&name).await;
        let asked = port.asked();
        let wheres: Vec<&Value> = asked.iter().map(|it| &it["args"]["where"]).collect();
        let mut by_name = json!({ "internalName": "vm-1" });
        if let Some(node) = node {
            by_name["nodeId"] = json!(node);
        }
        assert_eq!(wheres, [&running, &by_statuses, &by_name]);
        let operations: Vec<&Value> = asked.iter().map(|it| &it["operation"]).collect();
        assert_eq!(operations, ["findMany", "findMany", "findFirst"]);
    }
}

#[tokio::test]
async fn a_scanned_machine_has_its_five_columns() {
    let port = says(json!([
        { "id": "a", "status": "running", "internalName": "a-1", "configuration": null },
        { "id": "b", "status": "running", "internalName": "b-1", "configuration": {
            "qemuPid": "4711", "tapDeviceName": "vnet-1", "qmpSocketPath": null,
            "guestAgentSocketPath": "/run/ga", "infiniServiceSocketPath": null } },
    ]));
    let found = database(&port).find_running_vms().await.unwrap();
    assert_eq!(found[0].configuration, None);
    let columns = found[1].configuration.clone().unwrap();
    // A BigInt comes as text.
    assert_eq!(columns.qemu_pid, Some(4711));
    assert_eq!(columns.tap_device_name.as_deref(), Some("vnet-1"));
    assert_eq!(columns.guest_agent_socket_path.as_deref(), Some("/run/ga"));
    let select = &port.asked()[0]["args"]["select"];
    assert_eq!(select.as_object().unwrap().len(), 4);
    assert_eq!(
        select["configuration"]["select"].as_object().unwrap().len(),
        5
    );
}

#[tokio::test]
async fn start_reads_every_column() {
    let port = says(Value::Null);
    database(&port)
        .find_machine_with_config(&vm("vm-1"))
        .await
        .unwrap();
    let select = &port.asked()[0]["args"]["select"];
    assert_eq!(
        select["configuration"]["select"].as_object().unwrap().len(),
        28
    );
    let rules = |set: &Value| set["select"]["rules"]["select"].as_object().unwrap().len();
    assert_eq!(rules(&select["firewallRuleSet"]), 17);
    assert_eq!(
        rules(&select["department"]["select"]["firewallRuleSet"]),
        17
    );
    for column in [
        "id",
        "status",
        "name",
        "internalName",
        "os",
        "cpuCores",
        "ramGB",
        "diskSizeGB",
    ] {
        assert_eq!(select[column], true, "{column}");
    }
    assert_eq!(
        (&select["gpuPciAddress"], &select["version"]),
        (&json!(true), &json!(true))
    );
}

#[tokio::test]
async fn numbers_may_be_null_or_text() {
    let read = record(|row| {
        row["cpuCores"] = json!("4");
        row["ramGB"] = json!("0.5");
        row["diskSizeGB"] = Value::Null;
        row["version"] = Value::Null;
    })
    .await
    .unwrap();
    assert_eq!((read.cpu_cores, read.version), (4, 1));
    assert!((read.ram_gb - 0.5).abs() < f64::EPSILON && read.disk_size_gb.abs() < f64::EPSILON);
    for (column, wrong) in [
        ("cpuCores", json!("4.5")),
        ("cpuCores", json!(1.5)),
        ("ramGB", json!("NaN")),
        ("ramGB", json!(true)),
        ("version", json!("")),
        ("status", Value::Null),
        ("internalName", Value::Null),
        ("id", json!(7)),
    ] {
        let failed = record(|row| row[column] = wrong.clone()).await;
        assert_eq!(
            failed.unwrap_err(),
            ErrorCode::QueryFailed,
            "{column}: {wrong}"
        );
    }
}

#[tokio::test]
async fn i41_disk_paths_that_are_none_are_an_error_and_pinning_that_is_none_is_no_pinning() {
    for (given, read) in [
        (Value::Null, Some(None)),
        (json!(["/a", "/b"]), Some(Some(2))),
        (json!([]), Some(Some(0))),
        (json!("/a"), None),
        (json!(["/a", 1]), None),
        (json!({ "0": "/a" }), None),
        (json!("[\"/a\"]"), None),
    ] {
        let found = record(|row| row["configuration"] = json!({ "diskPaths": given })).await;
        let disks = found.map(|it| it.configuration.unwrap().disk_paths.map(|it| it.len()));
        assert_eq!(disks, read.ok_or(ErrorCode::QueryFailed), "{given}");
    }
    for (given, read) in [
        (json!({ "cores": [1, 3] }), Some(vec![1, 3])),
        (json!({ "cores": [] }), None),
        (json!({ "cores": [-1] }), None),
        (json!("0-3"), None),
        (json!([1]), None),
        (Value::Null, None),
    ] {
        let found = record(|row| row["configuration"] = json!({ "cpuPinning": given })).await;
        let cores = found
            .unwrap()
            .configuration
            .unwrap()
            .cpu_pinning
            .map(|it| it.cores);
        assert_eq!(cores, read, "{given}");
    }
}

#[tokio::test]
async fn a_column_of_another_type_is_named_without_its_value() {
    let mut row = row("vm-1", "off", 1);
    row["configuration"] = json!({ "graphicPassword": ["hunter2"] });
    let error = database(&says(row))
        .find_machine_with_config(&vm("vm-1"))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::QueryFailed);
    assert_eq!(
        error.message,
        "machine vm-1: the column graphicPassword is not a string"
    );
}

fn rule(id: &str, priority: i64, state: &Value) -> Value {
    json!({
        "id": id, "name": id, "description": null, "action": "ACCEPT", "direction": "IN",
        "priority": priority, "protocol": "tcp", "srcPortStart": null, "srcPortEnd": null,
        "dstPortStart": 80, "dstPortEnd": null, "srcIpAddr": null, "srcIpMask": null,
        "dstIpAddr": null, "dstIpMask": null, "connectionState": state, "overridesDept": false,
    })
}

fn set(name: &str, is_active: bool, rules: &[Value]) -> Value {
    json!({ "id": name, "name": name, "internalName": name, "priority": 500, "isActive": is_active, "rules": rules })
}

#[tokio::test]
async fn rules_are_the_departments_and_the_machines_own_in_either_shape() {
    let (older, newer) = (
        json!({ "states": ["ESTABLISHED"] }),
        json!({ "established": true }),
    );
    let port = says(json!({
        "firewallRuleSet": set("own", true, &[rule("v1", 100, &Value::Null), rule("v2", 900, &newer)]),
        // What is not active applies all the same.
        "department": { "firewallRuleSet": set("dept", false, &[rule("d1", 100, &older), rule("d2", 500, &Value::Null)]) },
    }));
    let db = database(&port);
    let split = db.get_firewall_rules_split(&vm("vm-1")).await.unwrap();
    let ids = |rules: &[infinization_core::types::FirewallRuleInput]| -> Vec<String> {
        rules.iter().map(|rule| rule.id.clone()).collect()
    };
    assert_eq!(ids(&split.department_rules), ["d1", "d2"]);
    assert_eq!(ids(&split.vm_rules), ["v1", "v2"]);
    assert_eq!(split.department_rules[0].connection_state, Some(older));
    assert_eq!(split.vm_rules[1].connection_state, Some(newer));
    assert_eq!(split.vm_rules[0].connection_state, None);
    let merged = db.get_firewall_rules(&vm("vm-1")).await.unwrap();
    assert_eq!(ids(&merged), ["d1", "v1", "d2", "v2"]);
}

#[tokio::test]
async fn a_machine_without_sets_has_no_rules_and_one_that_is_not_there_is_told() {
    let bare = json!({ "firewallRuleSet": null, "department": null });
    let split = database(&says(bare))
        .get_firewall_rules_split(&vm("vm-1"))
        .await
        .unwrap();
    assert_eq!(split.merged(), []);
    let db = database(&says(Value::Null));
    for error in [
        db.get_firewall_rules(&vm("vm-1")).await.unwrap_err(),
        db.get_firewall_rules_split(&vm("vm-1")).await.unwrap_err(),
    ] {
        assert_eq!(error.code, ErrorCode::MachineNotFound);
    }
    // A set whose rules did not come must not read as one without rules.
    let torn = json!({ "firewallRuleSet": { "id": "s", "name": "s" }, "department": null });
    let error = database(&says(torn))
        .get_firewall_rules(&vm("vm-1"))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::QueryFailed);
}

#[tokio::test]
async fn single_columns() {
    let id = vm("vm-1");
    let named = database(&says(json!({ "internalName": "one" })));
    assert_eq!(
        named
            .get_machine_internal_name(&id)
            .await
            .unwrap()
            .as_deref(),
        Some("one")
    );
    assert_eq!(
        named.get_machine_disk_path(&id).await.unwrap().as_deref(),
        Some("/var/lib/infinization/disks/one.qcow2")
    );
    let policy = database(&says(
        json!({ "department": { "firewallPolicy": "ALLOW_ALL" } }),
    ));
    let policy = policy.get_department_firewall_policy(&id).await.unwrap();
    assert_eq!(policy.as_deref(), Some("ALLOW_ALL"));
    let set = database(&says(json!({ "firewallRuleSetId": "s-1" })));
    assert_eq!(
        set.get_firewall_rule_set_id(&id).await.unwrap().as_deref(),
        Some("s-1")
    );
}
