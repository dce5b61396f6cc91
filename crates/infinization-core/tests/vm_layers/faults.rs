use infinization_core::host::state_file::{self, Durability};
use kit::machine::{consistent_status, qemus, send_signal};
use kit::small_disk::SmallDisk;
use nix::sys::signal::Signal;

use super::*;

async fn active(manager: &Manager, vm: &str) -> PathBuf {
    paths(&tree(manager, vm).await["active"]).remove(0)
}

fn images_in(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().ends_with("qcow2"))
        .count()
}

#[test]
fn f15_on_a_full_disk_nothing_is_lost_and_it_is_finished_when_there_is_space() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let vm = "layers-20";
        let small = SmallDisk::new(6 << 10);
        let mut settings = host.settings();
        settings["diskDir"] = json!(small.path());
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        stopped(&host, &manager, vm, 1).await;
        write_offline(&active(&manager, vm).await, &[(0, 1), (1, 1), (2, 1)]);
        take(&manager, vm, "a").await.unwrap();
        write_offline(&active(&manager, vm).await, &[(2, 2), (3, 2)]);
        take(&manager, vm, "b").await.unwrap();
        write_offline(&active(&manager, vm).await, &[(4, 3)]);
        let before = tree(&manager, vm).await;
        small.fill();

        let full = ErrorCode::InsufficientSpace;
        let images = images_in(small.path());
        assert_eq!(take(&manager, vm, "c").await.unwrap_err().code(), full);
        let discard = json!({ "discard": true });
        assert_eq!(
            revert(&manager, vm, "a", discard).await.unwrap_err().code(),
            full
        );
        assert_eq!(tree(&manager, vm).await, before);
        let failure = commit(&manager, vm, "b").await.unwrap_err();
        assert_eq!(failure.code(), full, "{failure:?}");
        assert_eq!(images_in(small.path()), images, "orphans on the full disk");

        // All reads as before but the one that was written into.
        let content = vec![1, 1, 2, 2, 3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(patterns(&active(&manager, vm).await), content);
        let now = tree(&manager, vm).await;
        let b = [1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(patterns(&paths(&node(&now, "b")["layers"])[0]), b);
        assert_eq!(node(&now, "a")["complete"], false);
        let spoiled = revert(&manager, vm, "a", json!({ "discard": true })).await;
        assert_eq!(spoiled.unwrap_err().code(), ErrorCode::InvalidState);

        small.relieve();
        commit(&manager, vm, "b").await.unwrap();
        let now = tree(&manager, vm).await;
        assert_eq!(shape(&now), (vec!["a<".into()], Some("a".into())));
        assert_eq!(node(&now, "a")["complete"], true);
        assert_eq!(patterns(&paths(&node(&now, "a")["layers"])[0]), b);
        assert_eq!(patterns(&active(&manager, vm).await), content);
        sound(&[active(&manager, vm).await]);
        assert_eq!(images_in(small.path()), 2);
        delete(&manager, vm).await;
        assert_eq!(images_in(small.path()), 0);
        host.is_clean().await;
    });
}

#[test]
fn f16_a_qemu_that_dies_while_it_commits_leaves_all_data_readable() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-21";
        running(&host, &manager, vm, 2).await;
        let fill = async |pattern: u8| {
            for disk in 0..2 {
                let all: Vec<_> = (0..chain::CLUSTERS).map(|at| (at, pattern)).collect();
                write_live(&manager, vm, disk, &all).await;
            }
        };
        for (round, delay) in [0_u64, 2, 5, 10, 20, 40].into_iter().enumerate() {
            let pattern = u8::try_from(round + 1).unwrap();
            fill(pattern).await;
            take(&manager, vm, "a").await.unwrap();
            for disk in 0..2 {
                write_live(&manager, vm, disk, &[(0, 0x80 | pattern)]).await;
            }
            // What was told to be on disk stays there.
            for disk in 0..2 {
                let line =
                    format!("qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"flush\"");
                let arguments = json!({ "command-line": line });
                let flushed = manager.qmp_execute(vm, "human-monitor-command", arguments);
                flushed.await.unwrap();
            }
            let dies = async {
                tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
                for pid in qemus(host.path()) {
                    send_signal(pid, Signal::SIGKILL);
                }
            };
            let (_done_or_not, ()) = tokio::join!(remove(&manager, vm, "a", rebase()), dies);
            start(&manager, vm).await;
            stop(&manager, vm).await;
            let now = tree(&manager, vm).await;
            for path in paths(&now["active"]) {
                let mut content = vec![pattern; chain::CLUSTERS];
                content[0] = 0x80 | pattern;
                assert_eq!(patterns(&path), content, "round {round}: {now}");
                qemu_reads(&path, &content);
            }
            sound(&no_orphans(&host, std::slice::from_ref(&now)));
            start(&manager, vm).await;
            if !now["snapshots"].as_array().unwrap().is_empty() {
                remove(&manager, vm, "a", rebase()).await.unwrap();
            }
            assert_eq!(consistent_status(&manager, vm).await["status"], "running");
        }
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

#[test]
fn f20_a_layer_that_somebody_else_has_is_not_written_nor_removed() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-22";
        stopped(&host, &manager, vm, 1).await;
        write_offline(
            &active(&manager, vm).await,
            &[(0, 1), (1, 1), (2, 1), (3, 1)],
        );
        take(&manager, vm, "a").await.unwrap();
        revert(&manager, vm, "a", json!({ "keep": "leaf" }))
            .await
            .unwrap();
        let now = tree(&manager, vm).await;
        let leaf = paths(&node(&now, "leaf")["layers"]).remove(0);
        let mut holder = Command::new("qemu-io")
            .args(["-r", "-f", "qcow2"])
            .arg(&leaf)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let path = infinization_core::types::HostPath::parse(leaf.to_str().unwrap()).unwrap();
        while infinization_core::host::qemu_img::ensure_unused(&path)
            .await
            .is_ok()
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let refusal = remove(&manager, vm, "leaf", Value::Null).await.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::ImageInUse);
        assert_eq!(refusal.context()["holder"]["pid"], holder.id());
        assert_eq!(tree(&manager, vm).await, now);
        holder.kill().unwrap();
        holder.wait().unwrap();
        remove(&manager, vm, "leaf", Value::Null).await.unwrap();
        no_orphans(&host, &[tree(&manager, vm).await]);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// As if a process had been killed while QEMU moved from the active layers into those of `a`.
fn cut_short(host: &Host, vm: &str, pivoted: [bool; 2], pivoting: &Value) {
    let record = host.state_dir().join("vms").join(vm);
    let record = record.join("snapshot-tree.json");
    let body = state_file::read(&record).unwrap().unwrap();
    let mut told: Value = serde_json::from_slice(&body).unwrap();
    let merge = json!({ "lower": "a", "uppers": ["active"], "keepName": false });
    told["pending"] = json!({ "merge": {
        "merge": merge, "method": "commit", "pivoted": pivoted, "paused": true, "pivoting": pivoting,
    } });
    let body = told.to_string();
    state_file::write(&record, body.as_bytes(), Durability::HostCrash).unwrap();
}

#[test]
fn f9_no_layer_is_written_over_one_that_may_be_newer() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-23";
        stopped(&host, &manager, vm, 2).await;
        take(&manager, vm, "a").await.unwrap();
        let now = tree(&manager, vm).await;
        let (uppers, lowers) = (paths(&now["active"]), paths(&node(&now, "a")["layers"]));
        for (upper, lower) in uppers.iter().zip(&lowers) {
            write_offline(upper, &[(0, 1)]);
            write_offline(lower, &[(1, 2)]);
        }

        // Its guest may have run: nobody knows.
        cut_short(&host, vm, [false, false], &"mayRun".into());
        let start = manager.start_vm(vm.into(), Value::Null, never()).await;
        let refusal = start.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::InvalidState, "{refusal:?}");
        assert_eq!(refusal.context()["files"], json!([uppers[0], lowers[0]]));

        // An aborted start leaves it for later.
        cut_short(&host, vm, [true, false], &Value::Null);
        let aborted = never();
        aborted.cancel();
        let start = manager.start_vm(vm.into(), Value::Null, aborted).await;
        assert_eq!(start.unwrap_err().code(), ErrorCode::Aborted);
        assert_eq!(shape(&tree(&manager, vm).await).0, ["a<"]);

        // Without its record nobody would know even which two files there are.
        cut_short(&host, vm, [false, false], &"mayRun".into());
        let destroyed = manager.destroy_vm(vm.into()).await;
        assert_eq!(destroyed.unwrap_err().code(), ErrorCode::InvalidState);
        assert_eq!(shape(&tree(&manager, vm).await).0, ["a<"]);

        // The first disk is in the lower one already, the second is not; that is so before the tree goes.
        cut_short(&host, vm, [true, false], &Value::Null);
        manager.destroy_vm(vm.into()).await.unwrap();
        assert_eq!(patterns(&lowers[0])[..2], [0, 2]);
        assert_eq!(patterns(&lowers[1])[..2], [1, 2]);
        for file in uppers {
            assert!(!file.exists(), "{}", file.display());
        }
        for file in lowers {
            std::fs::remove_file(file).unwrap();
        }
        host.is_clean().await;
    });
}
