//! Without free descriptors every answer has a code, and what could not be undone then is undone
//! once there are some again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::faults::{start, stopped};
use kit::machine::{Host, consistent_status, delete, forced, never, qemus};
use kit::process::in_own_process;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

/// No launch needs as many descriptors at once.
const PLENTY: u64 = 200;

/// While it is there, this process can open only so many more descriptors. The programs it starts
/// can open no more than it could.
struct Scarcity(Rlimit);

impl Scarcity {
    fn with(spare: u64) -> Self {
        let before = getrlimit(Resource::Nofile);
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let current = Some(open + spare);
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).unwrap();
        Self(before)
    }
}

impl Drop for Scarcity {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

/// Counts the panics of this process, caught ones too.
fn panics() -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        counted.fetch_add(1, Ordering::SeqCst);
        tell(panic);
    }));
    count
}

fn is_coded(failure: &Failure, vm_id: &str, spare: u64) {
    assert!(!failure.has(ErrorCode::Internal), "{spare}: {failure:?}");
    assert_eq!(failure.vm_id().unwrap().as_str(), vm_id);
    let words = "Too many open files";
    let mut chain = failure.chain();
    let told = chain.any(|cause| cause.to_string().contains(words));
    assert!(told, "{spare} does not say why: {failure:?}");
}

#[test]
fn f47_a_create_without_free_descriptors_is_an_error_and_leaves_nothing() {
    let test = "f47_a_create_without_free_descriptors_is_an_error_and_leaves_nothing";
    in_own_process(test, || {
        let panicked = panics();
        kit::in_private_network(|| async {
            let host = Host::new().await;
            let mut manager = host.manager().await;
            let mut refused = 0;
            for spare in 0..PLENTY {
                let scarcity = Scarcity::with(spare);
                let created = manager.create_vm(host.machine("f47-1"), never()).await;
                drop(scarcity);
                let Err(failure) = created else { break };
                is_coded(&failure, "f47-1", spare);
                refused += 1;
                assert_eq!(manager.list_vms().await.unwrap(), json!([]), "{spare}");
                manager.shutdown().await.unwrap();
                manager = host.manager().await;
                host.is_clean().await;
            }
            assert!(refused > 5, "only {refused} creates were refused");
            let status = consistent_status(&manager, "f47-1").await;
            assert_eq!(status["status"], "running");
            delete(&manager, "f47-1").await;
            host.is_clean().await;
        });
        assert_eq!(panicked.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn f47_a_start_without_free_descriptors_is_an_error_and_can_be_tried_again() {
    let test = "f47_a_start_without_free_descriptors_is_an_error_and_can_be_tried_again";
    in_own_process(test, || {
        let panicked = panics();
        kit::in_private_network(|| async {
            let host = Host::new().await;
            let manager = host.manager().await;
            stopped(&host, &manager, "f47-2").await;
            let mut refused = 0;
            for spare in 0..PLENTY {
                let scarcity = Scarcity::with(spare);
                let started = start(&manager, "f47-2").await;
                drop(scarcity);
                let Err(failure) = started else { break };
                is_coded(&failure, "f47-2", spare);
                refused += 1;
                let status = consistent_status(&manager, "f47-2").await;
                assert_eq!(status["status"], "off", "{spare}");
                assert_eq!(qemus(host.path()), Vec::<i32>::new(), "{spare}");

                start(&manager, "f47-2").await.unwrap();
                manager
                    .stop_vm("f47-2".into(), forced(), never())
                    .await
                    .unwrap();
            }
            assert!(refused > 5, "only {refused} starts were refused");
            let status = consistent_status(&manager, "f47-2").await;
            assert_eq!(status["status"], "running");
            delete(&manager, "f47-2").await;
            host.is_clean().await;
        });
        assert_eq!(panicked.load(Ordering::SeqCst), 0);
    });
}
