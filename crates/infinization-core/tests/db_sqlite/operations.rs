//! The operations on machines, and what they refuse.

use super::*;

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
async fn a_word_that_nobody_knows_is_not_written_over() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    for (before, after) in [
        ("quarantined", "quarantined"),
        ("error", "error"),
        ("running", "off"),
    ] {
        db.update_machine_status(&id, before, &[]).await.unwrap();
        db.write_status_over(&id, "off", &["running", "starting"])
            .await
            .unwrap();
        assert_eq!(status(&store).await, after);
    }
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
    let disks = db.find_machine_disks().await.unwrap();
    assert_eq!(disks[0].id, "vm-1");
    assert_eq!(Some(&disks[0].disk_paths), full.disk_paths.as_ref());
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
        let failed = db.find_machine_disks().await.unwrap_err();
        assert_eq!(failed.code, ErrorCode::QueryFailed, "{corrupt} was taken");
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
async fn a_machine_and_its_rules_are_written_together_or_not_at_all() {
    let store = Store::with_machine().await;
    let db = &store.db;
    let id = vm("two");
    let twice = NewMachine {
        firewall_rules: vec![rule("same", 1.0), rule("same", 2.0)],
        ..machine("two")
    };
    let refused = code(db.insert_machine(twice.clone()).await);
    assert_eq!(refused, ErrorCode::ConstraintViolation);
    assert_eq!(db.find_machine(&id).await.unwrap(), None);

    let once = NewMachine {
        firewall_rules: vec![rule("one", 1.0)],
        status: "starting",
        ..machine("two")
    };
    db.insert_machine(once.clone()).await.unwrap();
    assert_eq!(db.get_firewall_rules(&id).await.unwrap().len(), 1);
    // Only a machine that is off can become another.
    assert!(!db.replace_machine(once).await.unwrap());
    db.update_machine_status(&id, "off", &[]).await.unwrap();
    assert_eq!(
        code(db.replace_machine(twice).await),
        ErrorCode::ConstraintViolation
    );
    assert_eq!(db.get_firewall_rules(&id).await.unwrap().len(), 1);
    let bigger = NewMachine {
        cpu_cores: 8,
        ..machine("two")
    };
    assert!(db.replace_machine(bigger).await.unwrap());
    let found = db.find_machine_with_config(&id).await.unwrap().unwrap();
    assert_eq!((found.cpu_cores, found.status.as_str()), (8, "off"));
    assert_eq!(db.get_firewall_rules(&id).await.unwrap(), []);
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
    for (since, count) in [(946_684_800_000, 0), (946_684_800_001, 1)] {
        let older = store.db.find_machines_unchanged_since(&["off"], since);
        assert_eq!(older.await.unwrap().len(), count, "{since}");
    }
    store
        .db
        .update_machine_status(&id, "starting", &[])
        .await
        .unwrap();
    let changed = store.db.get_machine(&id).await.unwrap().unwrap();
    assert_eq!(changed.created_at, made.created_at);
    assert!(changed.updated_at >= made.updated_at);
}

#[tokio::test]
async fn secrets_are_stored_but_never_printed() {
    let store = Store::with_machine().await;
    let (db, id) = (&store.db, vm("vm-1"));
    let update = full_update();
    assert!(!format!("{update:?}").contains("hunter2"));
    db.update_machine_configuration(&id, update).await.unwrap();
    let stored = db.find_machine_with_config(&id).await.unwrap().unwrap();
    assert!(!format!("{stored:?}").contains("hunter2"));

    store.sql("DROP TABLE machine_configuration");
    let error = db
        .update_machine_configuration(&id, full_update())
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::UpdateFailed);
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}
