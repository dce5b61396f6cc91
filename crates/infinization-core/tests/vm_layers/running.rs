use kit::machine::consistent_status;

use super::*;

/// What QEMU reads in the first cluster of each disk, once the machine is off.
async fn holds(manager: &Manager, vm: &str, pattern: u8) {
    for path in paths(&tree(manager, vm).await["active"]) {
        assert_eq!(patterns(&path)[0], pattern, "{}", path.display());
    }
}

async fn fill(manager: &Manager, vm: &str, cluster: usize, pattern: u8) {
    for disk in 0..2 {
        write_live(manager, vm, disk, &[(cluster, pattern)]).await;
    }
}

#[test]
fn a_running_machine_goes_on_in_overlays_and_back_to_one_file() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-10";
        running(&host, &manager, vm, 2).await;
        fill(&manager, vm, 0, 0x11).await;
        take(&manager, vm, "a").await.unwrap();
        fill(&manager, vm, 0, 0x22).await;
        take(&manager, vm, "b").await.unwrap();
        fill(&manager, vm, 1, 0x44).await;
        take(&manager, vm, "c").await.unwrap();
        fill(&manager, vm, 0, 0x33).await;
        let now = tree(&manager, vm).await;
        for path in paths(&node(&now, "a")["layers"]) {
            assert_eq!(patterns(&path)[0], 0x11);
        }
        consistent_status(&manager, vm).await;
        let row = manager.get_vm(vm.into()).await.unwrap();
        assert_eq!(json!(paths(&now["active"])), row["diskPaths"]);

        // In the middle of the chain, either way.
        commit(&manager, vm, "c").await.unwrap();
        fill(&manager, vm, 2, 0x55).await;
        remove(&manager, vm, "a", rebase()).await.unwrap();
        fill(&manager, vm, 0, 0x66).await;
        let now = tree(&manager, vm).await;
        assert_eq!(shape(&now), (vec!["b<".into()], Some("b".into())));
        for path in paths(&node(&now, "b")["layers"]) {
            assert_eq!(patterns(&path)[..3], [0x22, 0x44, 0]);
        }
        // The active layer is smaller than what it lies on: it is committed, and QEMU switches back.
        remove(&manager, vm, "b", rebase()).await.unwrap();
        fill(&manager, vm, 3, 0x77).await;
        assert_eq!(consistent_status(&manager, vm).await["status"], "running");
        let now = tree(&manager, vm).await;
        assert_eq!(shape(&now), (vec![], None));
        stop(&manager, vm).await;
        let images = no_orphans(&host, &[now]);
        assert_eq!(images.len(), 2);
        sound(&images);
        for image in &images {
            assert_eq!(patterns(image)[..4], [0x66, 0x44, 0x55, 0x77]);
        }
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn a_running_machine_branches_by_a_restart() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-11";
        running(&host, &manager, vm, 2).await;
        fill(&manager, vm, 0, 0x11).await;
        take(&manager, vm, "a").await.unwrap();
        fill(&manager, vm, 0, 0x22).await;
        let refusal = revert(&manager, vm, "a", json!({ "discard": true })).await;
        assert_eq!(refusal.unwrap_err().code(), ErrorCode::InvalidState);
        let undecided = revert(&manager, vm, "a", json!({ "restart": true })).await;
        assert_eq!(undecided.unwrap_err().code(), ErrorCode::DataLossRefused);
        let options = json!({ "restart": true, "keep": "tip" });
        revert(&manager, vm, "a", options).await.unwrap();
        assert_eq!(consistent_status(&manager, vm).await["status"], "running");

        // Of two that build on `a`, one is under the running QEMU and one is not.
        fill(&manager, vm, 1, 0x33).await;
        let shared = commit(&manager, vm, "tip").await.unwrap_err();
        assert_eq!(shared.context()["children"], json!(["(active)"]));
        remove(&manager, vm, "a", rebase()).await.unwrap();
        let now = tree(&manager, vm).await;
        assert_eq!(shape(&now), (vec!["tip<".into()], None));
        assert_eq!(
            patterns(&paths(&node(&now, "tip")["layers"])[0])[..2],
            [0x22, 0]
        );
        stop(&manager, vm).await;
        holds(&manager, vm, 0x11).await;
        let images = no_orphans(&host, &[tree(&manager, vm).await]);
        sound(&images);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn k4_an_overlay_or_a_loaded_snapshot_takes_the_bitmaps_of_backups_with_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-12";
        running(&host, &manager, vm, 1).await;
        let bitmap = async |name: &str| {
            let arguments = json!({ "node": "disk0", "name": name, "persistent": true });
            let added = manager.qmp_execute(vm, "block-dirty-bitmap-add", arguments);
            added.await.unwrap();
        };
        let bitmaps = async || {
            let blocks = manager.qmp_execute(vm, "query-block", Value::Null).await;
            let blocks = blocks.unwrap().get().to_owned();
            blocks.contains("\"infz-").then_some(blocks)
        };
        let options = json!({ "name": "mem", "memory": true });
        let taken = manager.create_snapshot(vm.into(), options, never());
        taken.await.unwrap();
        bitmap("infz-1").await;
        revert(&manager, vm, "mem", Value::Null).await.unwrap();
        assert_eq!(bitmaps().await, None);
        bitmap("theirs").await;
        let refusal = revert(&manager, vm, "mem", Value::Null).await.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::InvalidState);
        assert_eq!(consistent_status(&manager, vm).await["status"], "running");

        bitmap("infz-2").await;
        take(&manager, vm, "a").await.unwrap();
        assert_eq!(bitmaps().await, None);
        stop(&manager, vm).await;
        let now = tree(&manager, vm).await;
        let mut info = Command::new("qemu-img");
        let base = &paths(&node(&now, "a")["layers"])[0];
        let told = info
            .args(["info", "-f", "qcow2"])
            .arg(base)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(
            told.contains("name: theirs") && !told.contains("name: infz-2"),
            "{told}"
        );
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}
