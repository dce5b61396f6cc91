//! Bridges that go away and rules that are refused: nothing runs without its network's filter.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use firewall::{chain, run};
use infinization_core::firewall::ChainNames;
use infinization_core::host::link::Links;
use infinization_core::host::nft::{Listing, Nft};
use infinization_core::manager::Manager;
use infinization_core::types::{LinkName, VmId, VmNames};
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit::{self as kit, firewall};
use kit::faults::{snapshot, start, step_of, stopped};
use kit::machine::{Host, consistent_status, delete, never, qemus};
use kit::meddler::{Deed, Meddler};
use kit::process::{Toolbox, in_own_process_with};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[test]
fn f23_a_missing_bridge_is_refused_before_anything_is_touched() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let meddler = Meddler::new(Deed::Fail);
        let manager = host.manager_with(Some(meddler.wrapper())).await;
        let mut machine = host.machine("f23-1");
        machine["bridge"] = json!("nobridge0");
        meddler.arm(0);
        let failure = manager.create_vm(machine, never()).await.unwrap_err();
        assert!(failure.has(ErrorCode::BridgeNotFound), "{failure:?}");
        assert_eq!(meddler.was_hit(), None, "no step was begun");
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        meddler.disarm();
        host.is_clean().await;

        stopped(&host, &manager, "f23-2").await;
        host.links.delete(&host.bridge).await.unwrap();
        let before = snapshot(&host, &manager, "f23-2").await;
        let failure = start(&manager, "f23-2").await.unwrap_err();
        assert!(failure.has(ErrorCode::BridgeNotFound), "{failure:?}");
        assert_eq!(snapshot(&host, &manager, "f23-2").await, before);
        host.build_bridge().await;
        start(&manager, "f23-2").await.unwrap();
        delete(&manager, "f23-2").await;
        host.is_clean().await;
    });
}

/// Deletes the bridge when the TAP is about to join it: QEMU runs by then.
#[derive(Debug)]
struct BridgeThief {
    host: Arc<dyn Effects>,
    links: Links,
    bridge: LinkName,
    armed: Arc<AtomicBool>,
}

#[async_trait]
impl Effects for BridgeThief {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let joins = matches!(action, Action::AttachTap { .. });
        if joins && self.armed.swap(false, Ordering::SeqCst) {
            self.links.delete(&self.bridge).await.unwrap();
        }
        self.host.perform(action, bench, cancel).await
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.host.release(release, bench).await
    }
}

fn bridge_thief(host: &Host, armed: &Arc<AtomicBool>) -> EffectsWrapper {
    let (links, bridge, armed) = (host.links.clone(), host.bridge.clone(), Arc::clone(armed));
    Arc::new(move |host| {
        Arc::new(BridgeThief {
            host,
            links: links.clone(),
            bridge: bridge.clone(),
            armed: Arc::clone(&armed),
        })
    })
}

/// What the kernel holds of the machine's firewall.
async fn filtered(vm_id: &str) -> Listing {
    let vm_id = VmId::parse(vm_id).unwrap();
    Nft::new().read_vm(&ChainNames::of(&vm_id)).await.unwrap()
}

/// Asserts that the machine's TAP is kept, off the bridge and down.
async fn is_unplugged(host: &Host, vm_id: &str) {
    let tap = VmNames::of(&VmId::parse(vm_id).unwrap()).tap;
    let link = host.links.find(&tap).await.unwrap().unwrap();
    assert_eq!((link.master, link.up), (None, false), "{tap}");
}

#[test]
fn f23_a_bridge_that_goes_before_the_tap_joins_it_is_told_and_all_is_undone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let armed = Arc::new(AtomicBool::new(true));
        let manager = host.manager_with(Some(bridge_thief(&host, &armed))).await;
        let created = manager.create_vm(host.machine("f23-3"), never()).await;
        bridge_was_gone(&created.unwrap_err(), ErrorCode::CreateFailed);
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        host.is_clean().await;

        host.build_bridge().await;
        stopped(&host, &manager, "f23-3").await;
        let before = snapshot(&host, &manager, "f23-3").await;
        let rules = filtered("f23-3").await;
        armed.store(true, Ordering::SeqCst);
        let started = start(&manager, "f23-3").await;
        bridge_was_gone(&started.unwrap_err(), ErrorCode::StartFailed);
        assert_eq!(snapshot(&host, &manager, "f23-3").await, before);
        assert_eq!(filtered("f23-3").await, rules);
        is_unplugged(&host, "f23-3").await;
        let status = consistent_status(&manager, "f23-3").await;
        assert_eq!(status["status"], "off");

        host.build_bridge().await;
        start(&manager, "f23-3").await.unwrap();
        delete(&manager, "f23-3").await;
        host.is_clean().await;
    });
}

fn bridge_was_gone(failure: &Failure, code: ErrorCode) {
    assert_eq!(failure.code(), code, "{failure:?}");
    assert!(failure.has(ErrorCode::BridgeNotFound), "{failure:?}");
    assert_eq!(step_of(failure), Some("attach TAP to bridge"));
    assert_eq!(failure.vm_id().unwrap().as_str(), "f23-3");
}

/// Another process that owns our table: the kernel refuses everybody else's changes to it. The
/// table goes with its owner.
struct Owner(Child);

impl Owner {
    fn of_our_table() -> Self {
        let mut nft = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // In one commit, as a manager puts back what is missing between two.
        let commands = "add table bridge infinization ; delete table bridge infinization ; \
            add table bridge infinization { flags owner ; }\n\
            list tables\n";
        let stdin = nft.stdin.as_mut().unwrap();
        stdin.write_all(commands.as_bytes()).unwrap();
        let mut lines = BufReader::new(nft.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().trim() == "table bridge infinization"));
        Self(nft)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn f27_nothing_runs_when_the_kernel_refuses_its_rules() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let owner = Owner::of_our_table();
        let created = manager.create_vm(host.machine("f27-1"), never()).await;
        rules_were_refused(
            &created.unwrap_err(),
            ErrorCode::CreateFailed,
            ErrorCode::NftPermissionDenied,
        );
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        host.is_clean().await;
        drop(owner);

        stopped(&host, &manager, "f27-1").await;
        let owner = Owner::of_our_table();
        let before = snapshot(&host, &manager, "f27-1").await;
        let started = start(&manager, "f27-1").await;
        rules_were_refused(
            &started.unwrap_err(),
            ErrorCode::StartFailed,
            ErrorCode::NftPermissionDenied,
        );
        is_off_as_before(&host, &manager, "f27-1", &before).await;
        drop(owner);

        start(&manager, "f27-1").await.unwrap();
        assert_eq!(filtered("f27-1").await.elements.len(), 2);
        delete(&manager, "f27-1").await;
        host.is_clean().await;
    });
}

fn rules_were_refused(failure: &Failure, code: ErrorCode, cause: ErrorCode) {
    assert_eq!(failure.code(), code, "{failure:?}");
    assert!(failure.has(cause), "{failure:?}");
    assert_eq!(step_of(failure), Some("load firewall"));
}

async fn is_off_as_before(host: &Host, manager: &Manager, vm_id: &str, before: &Value) {
    assert_eq!(&snapshot(host, manager, vm_id).await, before);
    assert_eq!(qemus(host.path()), Vec::<i32>::new());
    is_unplugged(host, vm_id).await;
    let status = consistent_status(manager, vm_id).await;
    assert_eq!(status["status"], "off");
}

/// Puts a chain at the wrong hook into the place of ours: the kernel takes no transaction that has
/// the right one, and the machines' chains stay as they are. In one commit, as the manager repairs what
/// is missing between two.
fn misplace_the_hook() {
    let chain = "chain bridge infinization prerouting";
    run(&format!(
        "nft flush {chain} ; delete {chain} ; add {chain} {{ type filter hook output priority 0 ; }}"
    ));
}

fn remove_the_misplaced_hook() {
    run("nft delete chain bridge infinization prerouting");
}

#[test]
fn f27_a_refused_start_keeps_the_chain_of_the_last_run() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        stopped(&host, &manager, "f27-2").await;
        misplace_the_hook();
        let names = ChainNames::of(&VmId::parse("f27-2").unwrap());
        let (before, rules) = (snapshot(&host, &manager, "f27-2").await, chain(&names.vm));
        let started = start(&manager, "f27-2").await;
        rules_were_refused(
            &started.unwrap_err(),
            ErrorCode::StartFailed,
            ErrorCode::NftCommandFailed,
        );
        is_off_as_before(&host, &manager, "f27-2", &before).await;
        assert_eq!(chain(&names.vm), rules);

        remove_the_misplaced_hook();
        start(&manager, "f27-2").await.unwrap();
        assert_eq!(chain(&names.vm), rules);
        delete(&manager, "f27-2").await;
        host.is_clean().await;
    });
}

fn accepts(port: u16) -> Value {
    json!([{
        "id": "1", "name": format!("port {port}"), "action": "ACCEPT", "direction": "IN",
        "priority": 10, "protocol": "tcp", "dstPortStart": port,
    }])
}

#[test]
fn f27_refused_rules_of_a_running_machine_change_neither_the_kernel_nor_the_store() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("f27-3");
        machine["firewallRules"] = accepts(22);
        manager.create_vm(machine, never()).await.unwrap();
        let names = ChainNames::of(&VmId::parse("f27-3").unwrap());
        let loaded = chain(&names.vm);
        assert!(loaded.contains("tcp dport 22 accept"), "{loaded}");
        let row = manager.get_vm("f27-3".into()).await.unwrap();

        misplace_the_hook();
        let set = |port| manager.set_firewall_rules("f27-3".into(), accepts(port));
        let failure = set(80).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::FirewallError, "{failure:?}");
        assert!(failure.has(ErrorCode::NftCommandFailed), "{failure:?}");
        assert_eq!(failure.vm_id().unwrap().as_str(), "f27-3");
        assert_eq!(chain(&names.vm), loaded);
        assert_eq!(manager.get_vm("f27-3".into()).await.unwrap(), row);
        let status = consistent_status(&manager, "f27-3").await;
        assert_eq!(status["qmpStatus"], "running");

        remove_the_misplaced_hook();
        set(80).await.unwrap();
        assert!(chain(&names.vm).contains("tcp dport 80 accept"));
        let stored = manager.get_vm("f27-3".into()).await.unwrap();
        assert_eq!(stored["firewallRules"][0]["name"], "port 80");
        delete(&manager, "f27-3").await;
        host.is_clean().await;
    });
}

#[test]
fn f27_without_the_nft_program_a_machine_runs_filtered_or_not_at_all() {
    let test = "f27_without_the_nft_program_a_machine_runs_filtered_or_not_at_all";
    let tools = || Toolbox::of(&["nft", "qemu-img", "qemu-system-x86_64"]);
    in_own_process_with(test, tools, |toolbox| {
        kit::in_private_network(|| async move {
            let host = Host::new().await;
            let manager = host.manager().await;
            toolbox.take_away("nft");
            let created = manager.create_vm(host.machine("f27-4"), never()).await;
            toolbox.put_back("nft");
            created.unwrap();
            assert_eq!(filtered("f27-4").await.elements.len(), 2);
            delete(&manager, "f27-4").await;
            host.is_clean().await;

            stopped(&host, &manager, "f27-4").await;
            misplace_the_hook();
            let before = snapshot(&host, &manager, "f27-4").await;
            toolbox.take_away("nft");
            let started = start(&manager, "f27-4").await;
            toolbox.put_back("nft");
            // Nobody finds better words for it, so it is told as the kernel told it.
            rules_were_refused(
                &started.unwrap_err(),
                ErrorCode::StartFailed,
                ErrorCode::NftCommandFailed,
            );
            remove_the_misplaced_hook();
            is_off_as_before(&host, &manager, "f27-4", &before).await;
            start(&manager, "f27-4").await.unwrap();
            assert_eq!(filtered("f27-4").await.elements.len(), 2);
            delete(&manager, "f27-4").await;
            host.is_clean().await;
        });
    });
}
