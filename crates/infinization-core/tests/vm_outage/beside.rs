//! An engine beside others, over an object of the user's, that comes up without its database.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use infinization_core::db::port::{Port, PortError};
use infinization_core::db::sqlite::SqliteDatabase;
use infinization_core::db::{Database, DbError, wire};
use infinization_core::manager::DatabaseChoice;

use super::*;

/// An object with the 16 methods, or those that are asked here, over the store that another engine has left.
#[derive(Debug)]
struct Adapter {
    store: Arc<SqliteDatabase>,
    answers: AtomicBool,
}

impl Adapter {
    async fn away_over(host: &Host) -> Arc<Self> {
        let path = host.state_dir().join("infinization.db");
        Arc::new(Self {
            store: SqliteDatabase::open_with_key(&path, None).await.unwrap(),
            answers: AtomicBool::new(false),
        })
    }

    async fn status(&self, vm_id: &str) -> String {
        let row = self.store.find_machine(&VmId::parse(vm_id).unwrap()).await;
        row.unwrap().unwrap().status
    }

    async fn becomes(&self, vm_id: &str, status: &str) {
        let says = async {
            while self.status(vm_id).await != status {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let says = timeout(PATIENCE, says).await;
        assert!(says.is_ok(), "the row of {vm_id} never said {status}");
    }

    async fn answer(&self, method: &str, args: &Value) -> Result<Value, DbError> {
        let store = &self.store;
        let words = |value: &Value| -> Vec<String> {
            let words = value.as_array().into_iter().flatten();
            words.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if method == "findMachinesByStatuses" {
            let statuses = words(&args[0]);
            let statuses: Vec<&str> = statuses.iter().map(String::as_str).collect();
            let rows = store.find_machines_by_statuses(&statuses).await?;
            return Ok(rows.iter().map(wire::running_vm).collect());
        }
        if method == "findRunningVMs" {
            let rows = store.find_running_vms().await?;
            return Ok(rows.iter().map(wire::running_vm).collect());
        }
        let vm_id = VmId::parse(args[0].as_str().unwrap()).unwrap();
        match method {
            "findMachine" => {
                let row = store.find_machine(&vm_id).await?;
                Ok(row.map_or(
                    Value::Null,
                    |row| json!({ "id": row.id, "status": row.status }),
                ))
            }
            "findMachineWithConfig" => {
                let row = store.find_machine_with_config(&vm_id).await?;
                Ok(row.as_ref().map_or(Value::Null, wire::vm_record))
            }
            "updateMachineStatus" => {
                let guard = words(&args[2]["onlyIfNotIn"]);
                let guard: Vec<&str> = guard.iter().map(String::as_str).collect();
                let status = args[1].as_str().unwrap();
                store.update_machine_status(&vm_id, status, &guard).await?;
                Ok(Value::Null)
            }
            "updateMachineConfiguration" => {
                let update = wire::configuration_update(args[1].as_object().unwrap())?;
                store.update_machine_configuration(&vm_id, update).await?;
                Ok(Value::Null)
            }
            "clearVolatileMachineConfiguration" => {
                store.clear_volatile_machine_configuration(&vm_id).await?;
                Ok(Value::Null)
            }
            "getMachineInternalName" => Ok(store.get_machine_internal_name(&vm_id).await?.into()),
            "getFirewallRulesSplit" => {
                let rules = store.get_firewall_rules_split(&vm_id).await?;
                Ok(wire::rule_split(&rules))
            }
            "getDepartmentFirewallPolicy" => {
                Ok(store.get_department_firewall_policy(&vm_id).await?.into())
            }
            "getFirewallRuleSetId" => Ok(store.get_firewall_rule_set_id(&vm_id).await?.into()),
            other => panic!("{other} is not asked here"),
        }
    }
}

#[async_trait]
impl Port for Adapter {
    async fn call(&self, request: Value) -> Result<Value, PortError> {
        let Some(method) = request["method"].as_str() else {
            // Which methods it lacks, the object itself tells.
            return Ok(json!([]));
        };
        let answer = if self.answers.load(Ordering::SeqCst) {
            self.answer(method, &request["args"]).await
        } else {
            Err(kit::switch::away())
        };
        answer.map_err(|error| PortError {
            name: "PrismaAdapterError".to_owned(),
            code: Some(error.code.as_str().to_owned()),
            message: error.message,
            details: Value::Null,
        })
    }
}

#[test]
fn f31_an_engine_beside_others_settles_its_own_rows_when_the_database_is_back() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let first = host.manager().await;
        let runs = create(&host, &first, "ours-1").await;
        let ends = create(&host, &first, "ours-2").await;
        for vm_id in ["ours-3", "ours-4", "ours-5", "theirs-1", "theirs-2"] {
            stopped(&host, &first, vm_id).await;
        }
        first.shutdown().await.unwrap();
        drop(first);
        // Nobody has seen the second one end, nor what became of the third and the fourth; others have a start under way,
        // and a machine that runs. The fifth is a consumer's: an object cannot say whether he is still at it.
        send_signal(ends, Signal::SIGKILL);
        for (vm_id, status) in [
            ("ours-1", "suspended"),
            ("ours-3", "starting"),
            ("ours-4", "running"),
            ("ours-5", "rebuilding"),
            ("theirs-1", "starting"),
            ("theirs-2", "running"),
        ] {
            host.claim(vm_id, status);
        }
        host.claim_run("ours-4", 1);
        host.claim_run("theirs-2", 1);
        let folders = |from: &std::path::Path, to: &std::path::Path| {
            for vm_id in ["theirs-1", "theirs-2"] {
                std::fs::rename(from.join(vm_id), to.join(vm_id)).unwrap();
            }
        };
        let elsewhere = host.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        folders(&host.state_dir().join("vms"), &elsewhere);

        let adapter = Adapter::away_over(&host).await;
        let port: Arc<dyn Port> = Arc::<Adapter>::clone(&adapter);
        let mut settings = host.settings();
        // It looks at every row, so who is beside others does without.
        settings["autoStartHealthMonitor"] = json!(false);
        let beside = Manager::with_database(settings, DatabaseChoice::Beside(port));
        let mut events = beside.subscribe();
        beside.initialize().await.unwrap();
        next_event(&mut events, "database-outage").await;
        assert_eq!(beside.get_active_vms(), ["ours-1"]);
        assert!(qemus(host.path()).contains(&runs));
        assert_eq!(adapter.status("ours-2").await, "running");

        adapter.answers.store(true, Ordering::SeqCst);
        next_event(&mut events, "database-restored").await;
        for (vm_id, status) in [
            ("ours-1", "running"),
            ("ours-2", "off"),
            ("ours-3", "off"),
            // The last thing that is looked at after an outage.
            ("ours-4", "off"),
        ] {
            adapter.becomes(vm_id, status).await;
        }
        beside.shutdown().await.unwrap();
        for (vm_id, status) in [
            ("ours-5", "rebuilding"),
            ("theirs-1", "starting"),
            ("theirs-2", "running"),
        ] {
            assert_eq!(adapter.status(vm_id).await, status, "{vm_id}");
        }

        folders(&elsewhere, &host.state_dir().join("vms"));
        std::fs::remove_dir(&elsewhere).unwrap();
        for vm_id in ["ours-5", "theirs-1", "theirs-2"] {
            host.claim(vm_id, "off");
        }
        let last = host.manager().await;
        for vm_id in [
            "ours-1", "ours-2", "ours-3", "ours-4", "ours-5", "theirs-1", "theirs-2",
        ] {
            delete(&last, vm_id).await;
        }
        last.shutdown().await.unwrap();
        host.is_clean().await;
    });
}
