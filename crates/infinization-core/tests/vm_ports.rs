//! Display ports that somebody else has, or takes at the last moment.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use infinization_core::Failure;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use kit::faults::{start, stopped};
use kit::machine::{Host, delete, never, qemus};
use tokio_util::sync::CancellationToken;

#[test]
fn f37_a_taken_display_port_is_passed_over_and_the_real_one_is_told() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let _taken = TcpListener::bind(("0.0.0.0", 5900)).unwrap();
        let created = manager
            .create_vm(host.machine("f37-1"), never())
            .await
            .unwrap();
        assert_eq!(created["displayPort"], 5901);
        let row = manager.get_vm("f37-1".into()).await.unwrap();
        assert_eq!(row["displayPort"], 5901);
        let other = manager
            .create_vm(host.machine("f37-2"), never())
            .await
            .unwrap();
        assert_eq!(other["displayPort"], 5902);
        for vm_id in ["f37-1", "f37-2"] {
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

/// Takes the display port when QEMU is about to be started, after it was found free.
#[derive(Debug)]
struct PortThief {
    host: Arc<dyn Effects>,
    taken: Arc<Mutex<Option<TcpListener>>>,
}

#[async_trait]
impl Effects for PortThief {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        if matches!(action, Action::SpawnQemu(_)) {
            let mut taken = self.taken.lock().unwrap();
            taken.get_or_insert_with(|| TcpListener::bind(("0.0.0.0", 5900)).unwrap());
        }
        self.host.perform(action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.host.release(release, bench).await
    }
}

#[test]
fn f37_a_display_port_taken_after_the_probe_is_passed_over_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let taken: Arc<Mutex<Option<TcpListener>>> = Arc::default();
        let wrapper: EffectsWrapper = {
            let taken = Arc::clone(&taken);
            Arc::new(move |host| {
                let taken = Arc::clone(&taken);
                Arc::new(PortThief { host, taken })
            })
        };
        let manager = host.manager_with(Some(wrapper)).await;
        let created = manager
            .create_vm(host.machine("f37-3"), never())
            .await
            .unwrap();
        assert_eq!(created["displayPort"], 5901);
        assert_eq!(qemus(host.path()).len(), 1);
        let row = manager.get_vm("f37-3".into()).await.unwrap();
        assert_eq!(row["displayPort"], 5901);
        delete(&manager, "f37-3").await;
        host.is_clean().await;
    });
}

#[test]
fn f37_a_start_finds_the_next_display_port_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let taken: Arc<Mutex<Option<TcpListener>>> = Arc::default();
        let wrapper: EffectsWrapper = {
            let taken = Arc::clone(&taken);
            Arc::new(move |host| {
                let taken = Arc::clone(&taken);
                Arc::new(PortThief { host, taken })
            })
        };
        let manager = host.manager_with(Some(wrapper)).await;
        // Not before the start: the create is left alone.
        let elsewhere = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        *taken.lock().unwrap() = Some(elsewhere);
        stopped(&host, &manager, "f37-4").await;
        *taken.lock().unwrap() = None;
        start(&manager, "f37-4").await.unwrap();
        let row = manager.get_vm("f37-4".into()).await.unwrap();
        assert_eq!(row["displayPort"], 5901);
        assert_eq!(row["status"], "running");
        assert_eq!(qemus(host.path()).len(), 1);
        delete(&manager, "f37-4").await;
        host.is_clean().await;
    });
}
