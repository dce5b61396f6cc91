//! Scopes in a real cgroup v2 tree, mounted where only this test sees it.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::path::Path;

use infinization_core::host::cgroup::{CgroupError, Cgroups, Placement, remove};
use infinization_core::host::process::spawn;
use infinization_core::types::VmId;
use infinization_test_kit as kit;
use kit::process::{end, in_private_mounts, mount_at, quiet, unmount};

/// Runs `test` on a cgroup of its own, which is gone afterwards.
fn in_own_cgroup<F: Future<Output = ()>>(
    name: &'static str,
    test: impl FnOnce(Cgroups) -> F + Send + 'static,
) {
    in_private_mounts(move || {
        let dir = tempfile::tempdir().unwrap();
        mount_at(dir.path(), "cgroup2", None);
        let base = format!("infinization-{name}-{}", std::process::id());
        let base = dir.path().join(base);
        fs::create_dir(&base).unwrap();
        kit::runtime().block_on(test(Cgroups::at(&base)));
        fs::remove_dir(base.join("infinization.slice")).unwrap();
        fs::remove_dir(&base).unwrap();
        unmount(dir.path());
    });
}

fn cgroup_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v2 = text.lines().find_map(|line| line.strip_prefix("0::"));
    v2.unwrap().to_owned()
}

#[test]
fn g4_a_process_moves_into_its_scope_and_the_scope_goes_after_it() {
    in_own_cgroup("moves", |tree| async move {
        assert!(tree.is_v2());
        let vm = VmId::parse("vm-1").unwrap();
        let process = spawn(quiet("sleep").args(["1000"])).await.unwrap();
        let scope = tree.scope_of(&vm);
        assert_eq!(
            tree.place(process.pid(), &vm).await,
            Placement::Placed(scope.clone())
        );
        assert!(cgroup_of(process.pid()).ends_with("/infinization.slice/qemu-vm-1.scope"));

        assert!(matches!(
            remove(&scope).await,
            Err(CgroupError::Busy { .. })
        ));
        assert_eq!(
            tree.remove_empty_scopes().await,
            0,
            "a populated scope stays"
        );
        end(&process).await;
        remove(&scope).await.unwrap();
        assert!(!scope.exists());
        remove(&scope).await.unwrap();
    });
}

#[test]
fn a_process_that_is_gone_leaves_no_scope_behind() {
    in_own_cgroup("gone", |tree| async move {
        let vm = VmId::parse("vm-2").unwrap();
        let process = spawn(quiet("true")).await.unwrap();
        process.exited().await;
        let placed = tree.place(process.pid(), &vm).await;
        assert!(matches!(placed, Placement::Unavailable(_)), "{placed:?}");
        assert!(!tree.scope_of(&vm).exists());
    });
}

#[test]
fn scopes_of_ended_vms_are_swept() {
    in_own_cgroup("swept", |tree| async move {
        for name in ["a", "b"] {
            fs::create_dir_all(tree.scope_of(&VmId::parse(name).unwrap())).unwrap();
        }
        assert_eq!(tree.remove_empty_scopes().await, 2);
    });
}

#[tokio::test]
async fn a_host_with_v1_hierarchies_only_has_no_scopes() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    let vm = VmId::parse("vm-1").unwrap();
    let placed = Cgroups::host().place(1, &vm).await;
    assert!(matches!(placed, Placement::Unavailable(why) if why.contains("no cgroup v2")));
}
