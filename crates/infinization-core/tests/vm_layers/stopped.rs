use super::*;

#[test]
fn a_machine_that_is_off_branches_and_comes_together() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-1";
        stopped(&host, &manager, vm, 2).await;
        let fill = async |pattern: u8| {
            for path in paths(&tree(&manager, vm).await["active"]) {
                write_offline(&path, &[(0, pattern)]);
            }
        };
        let reads = async |pattern: u8| {
            let active = paths(&tree(&manager, vm).await["active"]);
            active.iter().all(|path| patterns(path)[0] == pattern)
        };
        fill(0x11).await;
        take(&manager, vm, "a").await.unwrap();
        fill(0x22).await;
        take(&manager, vm, "b").await.unwrap();
        fill(0x33).await;

        let refusal = revert(&manager, vm, "a", Value::Null).await.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::DataLossRefused);
        revert(&manager, vm, "a", json!({ "keep": "c" }))
            .await
            .unwrap();
        assert!(reads(0x11).await);
        let now = tree(&manager, vm).await;
        let shape_now = (
            vec!["a<".into(), "b<a".into(), "c<b".into()],
            Some("a".into()),
        );
        assert_eq!(shape(&now), shape_now);
        assert_eq!(node(&now, "a")["children"], json!(["b"]));
        no_orphans(&host, &[now]);

        let row = manager.get_vm(vm.into()).await.unwrap();
        let active = paths(&tree(&manager, vm).await["active"]);
        assert_eq!(json!(active), row["diskPaths"], "{row}");
        start(&manager, vm).await;
        stop(&manager, vm).await;

        revert(&manager, vm, "c", json!({ "discard": true }))
            .await
            .unwrap();
        assert!(reads(0x33).await);
        let refusal = remove(&manager, vm, "b", Value::Null).await.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::SnapshotHasChildren);
        assert_eq!(refusal.context()["children"], json!(["c"]));
        commit(&manager, vm, "c").await.unwrap();
        remove(&manager, vm, "a", rebase()).await.unwrap();
        assert!(reads(0x33).await);
        let now = tree(&manager, vm).await;
        assert_eq!(shape(&now), (vec!["b<".into()], Some("b".into())));
        remove(&manager, vm, "b", rebase()).await.unwrap();
        assert!(reads(0x33).await);
        let images = no_orphans(&host, &[tree(&manager, vm).await]);
        assert_eq!(images.len(), 2);
        sound(&images);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn b17_names_are_of_one_snapshot_inside_or_outside_the_images() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-2";
        stopped(&host, &manager, vm, 1).await;
        let inside = |name: &str| {
            let options = json!({ "name": name });
            manager.create_snapshot(vm.into(), options, never())
        };
        inside("in").await.unwrap();
        let taken = ErrorCode::SnapshotAlreadyExists;
        assert_eq!(take(&manager, vm, "in").await.unwrap_err().code(), taken);
        take(&manager, vm, "out").await.unwrap();
        assert_eq!(inside("out").await.unwrap_err().code(), taken);
        assert_eq!(take(&manager, vm, "out").await.unwrap_err().code(), taken);
        let unknown = revert(&manager, vm, "none", Value::Null).await.unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::SnapshotNotFound);
        let unknown = commit(&manager, vm, "none").await.unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::SnapshotNotFound);

        // An internal snapshot of the overlay would be lost with it.
        inside("inner").await.unwrap();
        let lost = remove(&manager, vm, "out", rebase()).await.unwrap_err();
        assert_eq!(lost.code(), ErrorCode::InvalidState, "{lost:?}");
        remove(&manager, vm, "inner", Value::Null).await.unwrap();
        remove(&manager, vm, "out", rebase()).await.unwrap();
        no_orphans(&host, &[tree(&manager, vm).await]);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn b8_a_disk_that_claims_a_hostile_backing_file_gets_no_overlay() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-3";
        stopped(&host, &manager, vm, 1).await;
        let before = paths(&tree(&manager, vm).await["active"]);
        let forge = |arguments: &[&str]| {
            let mut rebase = Command::new("qemu-img");
            rebase.args(["rebase", "-u", "-f", "qcow2"]).args(arguments);
            assert!(rebase.arg(&before[0]).status().unwrap().success());
        };
        for hostile in [
            ["-F", "raw", "-b", "/etc/passwd"],
            ["-F", "qcow2", "-b", "json:{}"],
            ["-F", "qcow2", "-b", "nbd:localhost:1"],
        ] {
            forge(&hostile);
            let refusal = take(&manager, vm, "a").await.unwrap_err();
            assert_eq!(refusal.code(), ErrorCode::UnsafeBackingFile, "{refusal:?}");
        }
        forge(&["-b", ""]);
        no_orphans(&host, &[tree(&manager, vm).await]);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_runs_without_a_disk_of_its_tree_but_on_no_frozen_layer() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-other-disks";
        stopped(&host, &manager, vm, 2).await;
        let below = paths(&tree(&manager, vm).await["active"]);
        take(&manager, vm, "a").await.unwrap();
        let active = paths(&tree(&manager, vm).await["active"]);

        host.claim_disks(vm, &active[..1]);
        start(&manager, vm).await;
        stop(&manager, vm).await;
        let row = manager.get_vm(vm.into()).await.unwrap();
        assert_eq!(
            row["diskPaths"],
            json!(active[..1]),
            "it is the user's choice"
        );
        let other = take(&manager, vm, "b").await.unwrap_err();
        assert_eq!(other.code(), ErrorCode::InvalidState);
        assert_eq!(paths(&tree(&manager, vm).await["active"]), active);

        host.claim_disks(vm, &below[..1]);
        let frozen = manager.start_vm(vm.into(), Value::Null, never()).await;
        let frozen = frozen.unwrap_err();
        assert_eq!(frozen.code(), ErrorCode::InvalidState);
        assert_eq!(frozen.context()["path"], json!(below[0]));

        host.claim_disks(vm, &active);
        start(&manager, vm).await;
        take(&manager, vm, "b").await.unwrap();
        delete(&manager, vm).await;
    });
}

#[test]
fn a_layer_that_another_machine_lies_on_stays() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let (vm, other) = ("layers-below", "layers-above");
        stopped(&host, &manager, vm, 1).await;
        take(&manager, vm, "a").await.unwrap();
        take(&manager, vm, "b").await.unwrap();
        let frozen = paths(&node(&tree(&manager, vm).await, "b")["layers"]);
        let mut machine = host.machine(other);
        machine["disks"] = json!([{ "sizeGB": 1, "backingFile": frozen[0] }]);
        manager.create_vm(machine, never()).await.unwrap();
        stop(&manager, other).await;

        let kept = [
            commit(&manager, vm, "b").await,
            remove(&manager, vm, "a", rebase()).await,
            remove(&manager, vm, "b", rebase()).await,
        ];
        for refused in kept {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::ImageInUse, "{refused}");
            assert_eq!(refused.context()["users"], json!([other]));
        }
        assert!(frozen[0].exists());
        delete(&manager, other).await;
        remove(&manager, vm, "b", rebase()).await.unwrap();
        delete(&manager, vm).await;
    });
}
