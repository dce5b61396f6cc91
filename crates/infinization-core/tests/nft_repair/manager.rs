//! A manager repairs by itself, tells what was missing, and loads what the database says.

use infinization_core::db::sqlite::SqliteDatabase;
use infinization_core::firewall::{Masquerade, Subnet};
use infinization_core::types::VmId;
use serde_json::Value;

use super::*;

/// What the event says is missing, as `part vmId name`.
fn told(event: &Value) -> Vec<String> {
    let missing = event["missing"].as_array().unwrap();
    let words = |it: &Value| {
        let [part, vm_id] = ["part", "vmId"].map(|key| it[key].as_str().unwrap_or("-").to_owned());
        format!("{part} {vm_id}")
    };
    let mut told: Vec<String> = missing.iter().map(words).collect();
    told.dedup();
    told
}

/// What so many parts were that were told to be there again, whatever the number of events.
async fn all_told(events: &mut Events, parts: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < parts {
        let event = next_event(events, "firewall-repaired").await;
        assert_eq!(event.data["failed"], json!([]));
        all.extend(told(&event.data));
    }
    all.sort();
    all
}

/// What the manager's next process finds in the store.
async fn stored_meanwhile(host: &Host, change: impl AsyncFnOnce(Arc<SqliteDatabase>)) {
    let path = host.state_dir().join("infinization.db");
    change(SqliteDatabase::open(&path).await.unwrap()).await;
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, waits)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[test]
fn a_restart_loads_what_was_stored_meanwhile_and_keeps_what_the_run_was_started_with() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        create(&host, &manager, "p4-1").await;
        manager
            .stop_vm("p4-1".into(), forced(), never())
            .await
            .unwrap();
        let options = json!({ "firewallDefaultAction": "accept" });
        manager
            .start_vm("p4-1".into(), options, never())
            .await
            .unwrap();
        let vm_id = VmId::parse("p4-1").unwrap();
        let names = ChainNames::of(&vm_id);
        let open = || chain(&names.vm).contains("default-accept");
        assert!(open());
        manager
            .set_firewall_rules("p4-1".into(), json!([]))
            .await
            .unwrap();
        assert!(open(), "rules do not end what the run was started with");

        manager.shutdown().await.unwrap();
        drop(manager);
        stored_meanwhile(&host, async |store| {
            store
                .set_firewall_rules(&vm_id, rules(&["ACCEPT IN tcp 2222"]))
                .await
                .unwrap();
        })
        .await;
        let manager = host.manager().await;
        until("the new rule", || chain(&names.vm).contains("2222")).await;
        assert!(open());
        let shown = manager.explain_firewall("p4-1".into()).await.unwrap();
        assert_eq!(shown["defaultAction"], "accept");

        manager
            .stop_vm("p4-1".into(), forced(), never())
            .await
            .unwrap();
        let shown = manager.explain_firewall("p4-1".into()).await.unwrap();
        assert_eq!(shown["defaultAction"], "drop");
        delete(&manager, "p4-1").await;
        host.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

/// More than load rules at once.
const MANY: usize = 10;

#[test]
fn a_restart_loads_what_was_stored_meanwhile_for_however_many_machines() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let ids: Vec<String> = (0..MANY)
            .map(|number| format!("p4-many-{number}"))
            .collect();
        for id in &ids {
            create(&host, &manager, id).await;
        }
        manager.shutdown().await.unwrap();
        drop(manager);
        let machines: Vec<VmId> = ids.iter().map(|id| VmId::parse(id).unwrap()).collect();
        stored_meanwhile(&host, async |store| {
            for vm_id in &machines {
                let rules = rules(&["ACCEPT IN tcp 2222"]);
                store.set_firewall_rules(vm_id, rules).await.unwrap();
            }
        })
        .await;
        let manager = host.manager().await;
        for vm_id in &machines {
            let names = ChainNames::of(vm_id);
            until("the new rule", || chain(&names.vm).contains("2222")).await;
        }
        for id in &ids {
            delete(&manager, id).await;
        }
        host.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn f28_a_machine_whose_rules_cannot_be_loaded_is_closed_and_told_once() {
    in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        create(&host, &manager, "f28-2").await;
        manager.shutdown().await.unwrap();
        drop(manager);
        let good = contents();

        switch.turn(Mode::Down);
        let manager = host.manager_over(&switch).await;
        let names = ChainNames::of(&VmId::parse("f28-2").unwrap());
        let mut events = manager.subscribe();
        run("nft flush ruleset");
        while next_event(&mut events, "firewall-repaired").await.data["failed"] == json!([]) {}
        tokio::time::sleep(Duration::from_secs(2)).await;
        while let Ok(event) = events.try_recv() {
            assert_ne!(event.kind, "firewall-repaired", "{}", event.data);
        }
        assert!(ruleset().contains("infinization-closed"));
        assert!(!ruleset().contains(&names.vm));

        switch.turn(Mode::Up);
        assert_eq!(
            all_told(&mut events, 2).await,
            ["chain f28-2", "dispatch f28-2"]
        );
        assert_eq!(contents(), good);
        delete(&manager, "f28-2").await;
        host.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn f28_a_manager_puts_back_what_a_running_machine_needs() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("f28-1");
        machine["firewallRules"] = json!([{
            "id": "1", "name": "ssh", "action": "ACCEPT", "direction": "IN", "priority": 500,
            "protocol": "tcp", "dstPortStart": 22,
        }]);
        manager.create_vm(machine, never()).await.unwrap();
        let nft = Nft::new();
        let bridge = LinkName::parse("testbr0").unwrap();
        let subnet = Subnet::parse("10.177.0.0/16").unwrap();
        nft.masquerade(Masquerade { subnet, bridge }).await.unwrap();
        let good = contents();
        let mut events = manager.subscribe();

        for command in ["nft flush ruleset", "nft delete table bridge infinization"] {
            run(command);
            let mut wanted = vec!["chain f28-1", "dispatch f28-1", "table -"];
            if command.contains("flush") {
                wanted.insert(2, "masquerade -");
            }
            assert_eq!(
                all_told(&mut events, wanted.len()).await,
                wanted,
                "{command}"
            );
            assert_eq!(contents(), good, "{command}");
        }

        // While nobody watches; the next one finds its rules in the database.
        manager.shutdown().await.unwrap();
        drop((manager, nft));
        run("nft delete table bridge infinization");
        let manager = Manager::new(host.settings());
        let mut events = manager.subscribe();
        manager.initialize().await.unwrap();
        let wanted = ["chain f28-1", "dispatch f28-1"];
        assert_eq!(all_told(&mut events, wanted.len()).await, wanted);
        assert_eq!(contents(), good);

        delete(&manager, "f28-1").await;
        host.is_clean().await;
        let vm_id = VmId::parse("f28-1").unwrap();
        assert!(!ruleset().contains(&ChainNames::of(&vm_id).vm));
        manager.shutdown().await.unwrap();
    });
}

/// It looks the same by its comments, and nobody was there to hear of it.
#[test]
fn f28_a_rule_that_was_replaced_while_no_process_was_there_is_put_back_by_the_next() {
    in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let machine = host.machine("f28-5");
        manager.create_vm(machine, never()).await.unwrap();
        manager.shutdown().await.unwrap();
        drop(manager);
        let vm = ChainNames::of(&VmId::parse("f28-5").unwrap()).vm;
        let good = chain(&vm);
        let handles = run(&format!("nft -a list chain bridge infinization {vm}"));
        let last = handles.lines().find(|line| line.contains("default-drop"));
        let handle = last.unwrap().rsplit(' ').next().unwrap();
        run(&format!(
            "nft replace rule bridge infinization {vm} handle {handle} accept comment \"infinization-default-drop\""
        ));
        assert_ne!(chain(&vm), good);
        let manager = host.manager().await;
        until("the rule is back", || chain(&vm) == good).await;
        manager
            .stop_vm("f28-5".into(), forced(), never())
            .await
            .unwrap();
        delete(&manager, "f28-5").await;
        host.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}
