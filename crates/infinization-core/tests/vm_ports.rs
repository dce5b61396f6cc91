//! Display ports that somebody else has, or takes at the last moment.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use infinization_core::manager::Manager;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::faults::{snapshot, start};
use kit::machine::{Host, create, delete, forced, never, qemus};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[test]
fn f37_a_taken_display_port_is_passed_over_and_the_real_one_is_told() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let _taken = TcpListener::bind(("0.0.0.0", 5900)).unwrap();
        let created = create(&host, &manager, "f37-1").await;
        assert_eq!(created["displayPort"], 5901);
        let row = manager.get_vm("f37-1".into()).await.unwrap();
        assert_eq!(row["displayPort"], 5901);
        let other = create(&host, &manager, "f37-2").await;
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
    loot: Arc<Loot>,
}

/// What the thief has, and how much more it takes.
#[derive(Debug, Default)]
struct Loot {
    wanted: AtomicUsize,
    ports: Mutex<Vec<TcpListener>>,
}

impl Loot {
    /// Takes the next `count` ports.
    fn want(&self, count: usize) {
        self.wanted.store(count, Ordering::SeqCst);
    }

    fn take(&self, port: u16) {
        let left = |wanted: usize| wanted.checked_sub(1);
        let wants = self
            .wanted
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        if wants.is_ok() {
            let taken = TcpListener::bind(("0.0.0.0", port)).unwrap();
            self.ports.lock().unwrap().push(taken);
        }
    }

    fn ports(&self) -> Vec<u16> {
        let ports = self.ports.lock().unwrap();
        let port = |taken: &TcpListener| taken.local_addr().unwrap().port();
        ports.iter().map(port).collect()
    }

    fn give_back(&self) {
        self.ports.lock().unwrap().clear();
    }

    async fn manager(self: &Arc<Self>, host: &Host) -> Manager {
        let loot = Arc::clone(self);
        let wrapper: EffectsWrapper = Arc::new(move |host| {
            let loot = Arc::clone(&loot);
            Arc::new(PortThief { host, loot })
        });
        host.manager_with(Some(wrapper)).await
    }
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
            self.loot.take(bench.display_port());
        }
        self.host.perform(action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.host.release(release, bench).await
    }
}

const PROTOCOLS: [&str; 2] = ["vnc", "spice"];

fn shown_by(host: &Host, vm_id: &str, protocol: &str) -> Value {
    let mut machine = host.machine(vm_id);
    machine["displayType"] = json!(protocol);
    machine
}

#[test]
fn f37_a_display_port_taken_after_the_probe_is_passed_over_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let loot = Arc::new(Loot::default());
        let manager = loot.manager(&host).await;
        for protocol in PROTOCOLS {
            loot.want(1);
            let machine = shown_by(&host, "f37-3", protocol);
            let created = manager.create_vm(machine, never()).await.unwrap();
            assert_eq!(loot.ports(), [5900], "{protocol}");
            assert_eq!(created["displayPort"], 5901, "{protocol}");
            assert_eq!(qemus(host.path()).len(), 1);
            let row = manager.get_vm("f37-3".into()).await.unwrap();
            assert_eq!(row["displayPort"], 5901);
            assert_eq!(row["displayType"], protocol);
            delete(&manager, "f37-3").await;
            host.is_clean().await;
            loot.give_back();
        }
    });
}

#[test]
fn f37_a_start_finds_the_next_display_port_too() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let loot = Arc::new(Loot::default());
        let manager = loot.manager(&host).await;
        for protocol in PROTOCOLS {
            let machine = shown_by(&host, "f37-4", protocol);
            manager.create_vm(machine, never()).await.unwrap();
            manager
                .stop_vm("f37-4".into(), forced(), never())
                .await
                .unwrap();
            loot.want(2);
            start(&manager, "f37-4").await.unwrap();
            assert_eq!(loot.ports(), [5900, 5901], "{protocol}");
            let row = manager.get_vm("f37-4".into()).await.unwrap();
            assert_eq!(row["displayPort"], 5902);
            assert_eq!(row["status"], "running");
            assert_eq!(qemus(host.path()).len(), 1);
            delete(&manager, "f37-4").await;
            host.is_clean().await;
            loot.give_back();
        }
    });
}

/// Somebody who is always faster is given up on after this many attempts.
const ATTEMPTS: usize = 5;

#[test]
fn f37_a_create_that_loses_every_port_is_given_up() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let loot = Arc::new(Loot::default());
        let manager = loot.manager(&host).await;
        for protocol in PROTOCOLS {
            loot.want(usize::MAX);
            let machine = shown_by(&host, "f37-5", protocol);
            let created = manager.create_vm(machine.clone(), never()).await;
            lost_every_port(&created.unwrap_err(), ErrorCode::CreateFailed, &loot);
            assert_eq!(manager.list_vms().await.unwrap(), json!([]));
            host.is_clean().await;

            loot.want(0);
            loot.give_back();
            let created = manager.create_vm(machine, never()).await.unwrap();
            assert_eq!(created["displayPort"], 5900, "no attempt keeps its port");
            delete(&manager, "f37-5").await;
            host.is_clean().await;
        }
    });
}

#[test]
fn f37_a_start_that_loses_every_port_leaves_the_machine_as_it_was() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let loot = Arc::new(Loot::default());
        let manager = loot.manager(&host).await;
        for protocol in PROTOCOLS {
            let machine = shown_by(&host, "f37-6", protocol);
            manager.create_vm(machine, never()).await.unwrap();
            manager
                .stop_vm("f37-6".into(), forced(), never())
                .await
                .unwrap();
            let before = snapshot(&host, &manager, "f37-6").await;
            loot.want(usize::MAX);
            let started = start(&manager, "f37-6").await;
            lost_every_port(&started.unwrap_err(), ErrorCode::StartFailed, &loot);
            assert_eq!(snapshot(&host, &manager, "f37-6").await, before);

            loot.want(0);
            loot.give_back();
            start(&manager, "f37-6").await.unwrap();
            let row = manager.get_vm("f37-6".into()).await.unwrap();
            assert_eq!(row["displayPort"], 5900);
            delete(&manager, "f37-6").await;
            host.is_clean().await;
        }
    });
}

fn lost_every_port(failure: &Failure, code: ErrorCode, loot: &Loot) {
    assert_eq!(failure.code(), code, "{failure:?}");
    assert!(failure.has(ErrorCode::AddressInUse), "{failure:?}");
    let ports: Vec<u16> = (5900..).take(ATTEMPTS).collect();
    assert_eq!(loot.ports(), ports);
}
