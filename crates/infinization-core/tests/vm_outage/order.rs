//! Fifty operations on five machines, and every write of theirs in its order.

use tokio::task::JoinSet;

use super::*;

/// Ten operations on one machine: three before the outage, four in it, three after.
struct Life {
    manager: Manager,
    events: Events,
    vm_id: String,
}

impl Life {
    fn of(manager: &Manager, vm_id: &str) -> Self {
        Self {
            manager: manager.clone(),
            events: manager.subscribe(),
            vm_id: vm_id.to_owned(),
        }
    }

    async fn before(mut self) -> Self {
        let manager = &self.manager;
        manager.suspend_vm(self.vm_id.clone()).await.unwrap();
        manager.resume_vm(self.vm_id.clone()).await.unwrap();
        manager.suspend_vm(self.vm_id.clone()).await.unwrap();
        becomes(&mut self.events, &self.vm_id, "suspended").await;
        becomes(&mut self.events, &self.vm_id, "running").await;
        becomes(&mut self.events, &self.vm_id, "suspended").await;
        self
    }

    /// What the guest and its monitor do by themselves, and an end that asks for no row.
    async fn meanwhile(mut self) -> Self {
        for (command, status) in [
            ("cont", "running"),
            ("stop", "suspended"),
            ("cont", "running"),
        ] {
            let asked = self.manager.qmp_execute(&self.vm_id, command, Value::Null);
            asked.await.unwrap();
            becomes(&mut self.events, &self.vm_id, status).await;
        }
        stop(&self.manager, &self.vm_id).await.unwrap();
        self
    }

    async fn after(self) -> Self {
        start(&self.manager, &self.vm_id).await.unwrap();
        let manager = &self.manager;
        manager.suspend_vm(self.vm_id.clone()).await.unwrap();
        stop(manager, &self.vm_id).await.unwrap();
        self
    }

    const WRITES: [&str; 14] = [
        "suspended",
        "running",
        "suspended",
        "running",
        "suspended",
        "running",
        "clear volatile",
        "off",
        "off->starting",
        "configuration",
        "running",
        "suspended",
        "clear volatile",
        "off",
    ];
}

/// The same part of all lives at once.
async fn all<F>(lives: Vec<Life>, part: fn(Life) -> F) -> Vec<Life>
where
    F: Future<Output = Life> + Send + 'static,
{
    let mut at_once = JoinSet::new();
    for life in lives {
        at_once.spawn(part(life));
    }
    at_once.join_all().await
}

#[test]
fn f31_an_outage_during_fifty_operations_loses_nothing_and_keeps_the_order() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let switch = Switch::new();
        let manager = host.manager_over(&switch).await;
        let mut events = manager.subscribe();
        let vms = ["fifty-1", "fifty-2", "fifty-3", "fifty-4", "fifty-5"];
        for vm_id in vms {
            create(&host, &manager, vm_id).await;
        }
        switch.forget();
        let lives = vms.map(|vm_id| Life::of(&manager, vm_id)).into();
        let lives = all(lives, Life::before).await;
        switch.turn(Mode::Down);
        let lives = all(lives, Life::meanwhile).await;
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        for vm_id in vms {
            assert_eq!(switch.made(vm_id), Life::WRITES[..3], "{vm_id}");
        }
        switch.turn(Mode::Up);
        let restored = next_event(&mut events, "database-restored").await;
        assert_eq!(restored.data["delivered"], 25);
        assert_eq!(restored.data["lost"], 0);
        all(lives, Life::after).await;
        for vm_id in vms {
            assert_eq!(switch.made(vm_id), Life::WRITES, "{vm_id}");
            assert_eq!(consistent_status(&manager, vm_id).await["status"], "off");
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}
