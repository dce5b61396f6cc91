use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use infinization_core::host::qemu_img::{
    SnapshotName, create_snapshot, ensure_unused_now, revert_snapshot,
};
use infinization_core::host::state_file::{self, Durability};
use infinization_core::types::HostPath;
use kit::faults::start;
use kit::small_disk::SmallDisk;

use super::*;

/// A machine with two disks that is off; both start with this pattern, and with another in the
/// snapshot `first`.
async fn prepared(host: &Host, manager: &Manager, vm_id: &str) -> Vec<String> {
    let disks = with_two_disks(host, manager, vm_id).await;
    write(manager, vm_id, 2, 0x11).await;
    take(manager, vm_id, json!({ "name": "first" }))
        .await
        .unwrap();
    write(manager, vm_id, 2, 0x22).await;
    stop(manager, vm_id).await;
    disks
}

/// Puts a disk on a file system without any space left.
fn onto(disk: &SmallDisk, path: &str) {
    let moved = disk.path().join("disk.qcow2");
    std::fs::copy(path, &moved).unwrap();
    std::fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink(&moved, path).unwrap();
    disk.fill();
}

#[test]
fn f15_when_one_disk_fails_the_others_are_as_they_were() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = prepared(&host, &manager, "snap-7").await;
        let small = SmallDisk::new(2048);
        onto(&small, &disks[1]);

        let failure = take(&manager, "snap-7", json!({ "name": "second" }))
            .await
            .unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InsufficientSpace, "{failure:?}");
        assert_eq!(names(&manager, "snap-7").await, ["first"]);
        let failure = revert(&manager, "snap-7", "first", Value::Null)
            .await
            .unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InsufficientSpace, "{failure:?}");
        assert_eq!(names(&manager, "snap-7").await, ["first"]);
        assert!(disks.iter().all(|disk| holds(disk, 0x22)));

        small.relieve();
        revert(&manager, "snap-7", "first", Value::Null)
            .await
            .unwrap();
        assert!(disks.iter().all(|disk| holds(disk, 0x11)));
        delete(&manager, "snap-7").await;
        host.is_clean().await;
    });
}

/// Whether each of the disks is somebody's, again and again while `work` is done.
async fn watched<T>(disks: &[HostPath], work: impl Future<Output = T>) -> (T, Vec<Vec<bool>>) {
    let (disks, over) = (disks.to_vec(), Arc::new(AtomicBool::new(false)));
    let until = Arc::clone(&over);
    let watch = std::thread::spawn(move || {
        let mut seen = Vec::new();
        while !until.load(Ordering::Acquire) {
            let disks = disks.iter();
            seen.push(disks.map(|disk| ensure_unused_now(disk).is_err()).collect());
            std::thread::yield_now();
        }
        seen
    });
    let done = work.await;
    over.store(true, Ordering::Release);
    (done, watch.join().unwrap())
}

#[test]
fn all_disks_are_held_from_the_first_that_is_changed_to_the_last() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "snap-14";
        let disks = prepared(&host, &manager, vm).await;
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| HostPath::parse(disk.as_str()).unwrap())
            .collect();
        for change in ["take", "revert", "delete"] {
            let work = async {
                match change {
                    "take" => take(&manager, vm, json!({ "name": "second" })).await,
                    "revert" => revert(&manager, vm, "first", Value::Null).await,
                    _ => {
                        let name = "second".to_owned();
                        let deleted =
                            manager.delete_snapshot(vm.into(), name, Value::Null, never());
                        deleted.await
                    }
                }
            };
            let (done, seen) = watched(&disks, work).await;
            done.unwrap();
            let all = |seen: &Vec<bool>| seen.iter().all(|one| *one);
            let first = seen.iter().position(all).expect("both are held at once");
            let last = seen.iter().rposition(all).unwrap();
            assert!(
                seen[first..=last].iter().all(all),
                "{change} let one go in between"
            );
        }
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// What a process that was killed in the middle of a change leaves.
fn cut_short(host: &Host, vm_id: &str, unfinished: &Value) {
    let directory = host.state_dir().join("vms").join(vm_id);
    let note = directory.join("snapshot-unfinished.json");
    let body = serde_json::to_vec(unfinished).unwrap();
    state_file::write(&note, &body, Durability::ProcessCrash).unwrap();
}

fn is_settled(host: &Host, vm_id: &str) -> bool {
    let directory = host.state_dir().join("vms").join(vm_id);
    !Path::new(&directory.join("snapshot-unfinished.json")).exists()
}

#[test]
fn f9_a_snapshot_cut_short_is_undone_before_the_next_start_and_by_a_new_process() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = prepared(&host, &manager, "snap-8").await;
        let second = SnapshotName::parse("second").unwrap();
        let disk0 = HostPath::parse(disks[0].as_str()).unwrap();
        create_snapshot(&disk0, &second).await.unwrap();
        let unfinished = json!({ "delete": "second", "disks": disks });
        cut_short(&host, "snap-8", &unfinished);
        let listed = manager.list_snapshots("snap-8".into()).await.unwrap();
        assert_eq!(listed[1]["complete"], false);

        // Where it is missing it may come back: it was not removed as far as anybody knows.
        std::fs::rename(&disks[1], format!("{}.away", disks[1])).unwrap();
        start(&manager, "snap-8").await.unwrap_err();
        assert!(!is_settled(&host, "snap-8"));
        std::fs::rename(format!("{}.away", disks[1]), &disks[1]).unwrap();

        start(&manager, "snap-8").await.unwrap();
        assert!(is_settled(&host, "snap-8"));
        assert_eq!(names(&manager, "snap-8").await, ["first"]);
        stop(&manager, "snap-8").await;

        create_snapshot(&disk0, &second).await.unwrap();
        cut_short(&host, "snap-8", &unfinished);
        manager.shutdown().await.unwrap();
        drop(manager);
        let manager = host.manager().await;
        assert!(
            is_settled(&host, "snap-8"),
            "a new process looks after it at once"
        );
        assert_eq!(names(&manager, "snap-8").await, ["first"]);
        delete(&manager, "snap-8").await;
        host.is_clean().await;
    });
}

#[test]
fn f9_a_revert_cut_short_at_any_disk_is_undone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = prepared(&host, &manager, "snap-9").await;
        let (first, before) = ("first", "before-revert-x");
        let [first, before] = [first, before].map(|name| SnapshotName::parse(name).unwrap());
        let paths: Vec<_> = disks
            .iter()
            .map(|disk| HostPath::parse(disk.as_str()).unwrap())
            .collect();
        // Killed when so many disks had their way back, and so many of those were back.
        for (kept, reverted) in [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)] {
            for path in &paths[..kept] {
                create_snapshot(path, &before).await.unwrap();
            }
            for path in &paths[..reverted] {
                revert_snapshot(path, &first).await.unwrap();
            }
            let undo = json!({
                "revert": before.as_str(), "delete": before.as_str(), "disks": disks,
            });
            cut_short(&host, "snap-9", &undo);
            // Any verb settles it first; this one has nothing to do.
            let deleted = manager
                .delete_snapshot("snap-9".into(), "none".into(), Value::Null, never())
                .await;
            assert_eq!(deleted.unwrap()["success"], true);
            assert!(is_settled(&host, "snap-9"));
            assert_eq!(names(&manager, "snap-9").await, ["first"]);
            assert!(
                disks.iter().all(|disk| holds(disk, 0x22)),
                "{kept} {reverted}"
            );
        }
        delete(&manager, "snap-9").await;
        host.is_clean().await;
    });
}

#[test]
fn f20_the_disk_of_a_machine_that_is_off_may_still_be_in_use() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disks = prepared(&host, &manager, "snap-10").await;
        let mut holder = Command::new("qemu-io")
            .args(["-f", "qcow2", &disks[1]])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let path = HostPath::parse(disks[1].as_str()).unwrap();
        while infinization_core::host::qemu_img::ensure_unused(&path)
            .await
            .is_ok()
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        for refused in [
            take(&manager, "snap-10", json!({ "name": "second" })).await,
            revert(&manager, "snap-10", "first", Value::Null).await,
            manager.list_snapshots("snap-10".into()).await,
        ] {
            let refusal = refused.unwrap_err();
            assert_eq!(refusal.code(), ErrorCode::ImageInUse);
            assert_eq!(refusal.context()["holder"]["pid"], holder.id());
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(names(&manager, "snap-10").await, ["first"]);
        delete(&manager, "snap-10").await;
        host.is_clean().await;
    });
}
