//! Storage that gives errors, or is full, while layers are made one: what they hold stays readable, and it is finished
//! when the storage is well again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use infinization_core::vm::{Action, Bench, Effects, EffectsWrapper, Release};
use kit::failing_file::FailingFile;
use kit::machine::{PATIENCE, consistent_status};
use kit::small_disk::SmallDisk;
use tokio_util::sync::CancellationToken;

use super::drill::{Drill, are_of_one_moment};
use super::*;

/// Of two layers that become one.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// How many clusters the lower one has, the first ones.
    lower: usize,
    /// What the upper one has.
    upper: &'static [(usize, u8)],
    /// What fails, at the lower one's cluster [`BAD`].
    fails: &'static str,
}

const BAD: usize = 3;
/// The upper layer is the smaller one, and is committed into the lower one.
const COMMIT: Case = Case {
    lower: chain::CLUSTERS,
    upper: &[(0, 2), (BAD, 2)],
    fails: "write",
};
/// The lower layer is the smaller one, and the upper one takes what it needs of it.
const PULL: Case = Case {
    lower: 4,
    upper: &[
        (0, 2),
        (4, 2),
        (5, 2),
        (6, 2),
        (7, 2),
        (8, 2),
        (9, 2),
        (10, 2),
    ],
    fails: "read",
};

impl Case {
    fn below(self) -> Vec<(usize, u8)> {
        (0..self.lower).map(|at| (at, 1)).collect()
    }

    /// What the machine reads.
    fn content(self) -> Vec<u8> {
        let mut content = vec![0; chain::CLUSTERS];
        content[..self.lower].fill(1);
        for (at, byte) in self.upper {
            content[*at] = *byte;
        }
        content
    }
}

fn is_an_error_of_the_storage(failure: &Failure) {
    let mut words = failure.chain().map(|cause| {
        let facts = serde_json::to_string(cause.context()).unwrap();
        format!("{cause} {facts}")
    });
    // qemu-img's words where it takes one layer off another have no more.
    let known = ["Input/output error", "error while reading"];
    let told = words.any(|words| known.iter().any(|one| words.contains(one)));
    assert!(told, "{failure:?}");
}

#[test]
fn f16_storage_that_fails_while_a_stopped_machine_s_layers_become_one_loses_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for (vm, case) in [("layers-40", COMMIT), ("layers-41", PULL)] {
            stopped(&host, &manager, vm, 1).await;
            let lower = paths(&tree(&manager, vm).await["active"]).remove(0);
            write_offline(&lower, &case.below());
            take(&manager, vm, "a").await.unwrap();
            let upper = paths(&tree(&manager, vm).await["active"]).remove(0);
            write_offline(&upper, case.upper);

            let failing = FailingFile::over(&lower, case.fails, chain::place(&lower, BAD));
            let failure = remove(&manager, vm, "a", rebase()).await.unwrap_err();
            is_an_error_of_the_storage(&failure);
            drop(failing);
            let now = tree(&manager, vm).await;
            assert_eq!(shape(&now), (vec!["a<".into()], Some("a".into())));
            assert_eq!(paths(&now["active"]), std::slice::from_ref(&upper));
            // What may have been written into is not gone back to.
            assert_eq!(node(&now, "a")["complete"], case.fails == "read");
            assert_eq!(patterns(&upper), case.content(), "{case:?}");
            qemu_reads(&upper, &case.content());
            sound(&no_orphans(&host, std::slice::from_ref(&now)));

            remove(&manager, vm, "a", rebase()).await.unwrap();
            let now = tree(&manager, vm).await;
            let left = paths(&now["active"]).remove(0);
            assert_eq!(shape(&now), (vec![], None));
            assert_eq!(patterns(&left), case.content(), "{case:?}");
            sound(&no_orphans(&host, &[now]));
            delete(&manager, vm).await;
        }
        host.is_clean().await;
    });
}

/// Puts QEMU's own fault injection below the second disk, from when the place is known: one request fails.
#[derive(Debug)]
struct Failing {
    host: Arc<dyn Effects>,
    fails: &'static str,
    /// In its file; 0 before it is known.
    place: Arc<AtomicU64>,
}

impl Failing {
    fn inject(&self, disk: &mut String) {
        let mut node: Value = serde_json::from_str(disk).unwrap();
        let sector = self.place.load(Ordering::Acquire) / 512;
        node["file"] = json!({
            "driver": "blkdebug",
            "image": node["file"],
            "inject-error": [{
                "event": "none", "iotype": self.fails, "errno": libc::EIO, "sector": sector, "once": true,
            }],
        });
        *disk = node.to_string();
    }
}

#[async_trait]
impl Effects for Failing {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        match action {
            Action::SpawnQemu(spawn) if self.place.load(Ordering::Acquire) > 0 => {
                let mut spawn = spawn.clone();
                let second = |arg: &&mut String| arg.contains(r#""node-name":"disk1""#);
                self.inject(spawn.args.iter_mut().find(second).unwrap());
                let action = Action::SpawnQemu(spawn);
                self.host.perform(&action, bench, cancel).await
            }
            action => self.host.perform(action, bench, cancel).await,
        }
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        self.host.release(release, bench).await
    }
}

/// A manager whose machines' second disk fails once, from when the place is known.
async fn failing(host: &Host, case: Case) -> (Manager, Arc<AtomicU64>) {
    let place = Arc::new(AtomicU64::new(0));
    let where_it_is = Arc::clone(&place);
    let wrapper: EffectsWrapper = Arc::new(move |host| {
        Arc::new(Failing {
            host,
            fails: case.fails,
            place: Arc::clone(&where_it_is),
        })
    });
    (host.manager_with(Some(wrapper)).await, place)
}

#[test]
fn f16_storage_that_fails_while_a_running_machine_s_layers_become_one_loses_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        for (vm, case) in [("layers-42", COMMIT), ("layers-43", PULL)] {
            let (manager, place) = failing(&host, case).await;
            stopped(&host, &manager, vm, 2).await;
            let lowers = paths(&tree(&manager, vm).await["active"]);
            for lower in &lowers {
                write_offline(lower, &case.below());
            }
            place.store(chain::place(&lowers[1], BAD), Ordering::Release);
            start(&manager, vm).await;
            take(&manager, vm, "a").await.unwrap();
            for disk in 0..2 {
                write_live(&manager, vm, disk, case.upper).await;
            }

            let failure = remove(&manager, vm, "a", rebase()).await.unwrap_err();
            is_an_error_of_the_storage(&failure);
            // The guest goes on where it was, as if nothing had been tried.
            let status = consistent_status(&manager, vm).await;
            assert_eq!(status["qmpStatus"], "running", "{status}");
            let newest = (11, 3);
            for disk in 0..2 {
                write_live(&manager, vm, disk, &[newest]).await;
            }
            stop(&manager, vm).await;
            let mut content = case.content();
            content[newest.0] = newest.1;
            let now = tree(&manager, vm).await;
            assert_eq!(shape(&now).0, ["a<"]);
            for path in paths(&now["active"]) {
                assert_eq!(patterns(&path), content, "{case:?}");
                qemu_reads(&path, &content);
            }
            sound(&no_orphans(&host, &[now]));

            // It failed once.
            place.store(0, Ordering::Release);
            start(&manager, vm).await;
            remove(&manager, vm, "a", rebase()).await.unwrap();
            stop(&manager, vm).await;
            let now = tree(&manager, vm).await;
            assert_eq!(shape(&now), (vec![], None));
            for path in paths(&now["active"]) {
                assert_eq!(patterns(&path), content, "{case:?}");
            }
            sound(&no_orphans(&host, &[now]));
            delete(&manager, vm).await;
            manager.shutdown().await.unwrap();
        }
        host.is_clean().await;
    });
}

#[test]
fn f15_on_a_full_disk_a_running_machine_s_layers_stay_as_they_are_and_its_guest_waits() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let small = SmallDisk::new(96 << 10);
        let vm = "layers-44";
        let mut settings = host.settings();
        settings["diskDir"] = json!(small.path());
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();
        let drill = Drill::begin_with(&host, manager, vm, "8M").await;
        let manager = &drill.manager;
        take(manager, vm, "a").await.unwrap();
        // The lower layer has no room of its own for this.
        drill.io(1, "write -P 7 512M 2M").await;
        drill.writes_everywhere().await;
        small.fill();

        let failure = remove(manager, vm, "a", rebase()).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::InsufficientSpace, "{failure:?}");
        // What it writes over it has room for.
        drill.writes_on().await;
        let now = tree(manager, vm).await;
        assert_eq!(shape(&now).0, ["a<"]);
        assert_eq!(node(&now, "a")["complete"], false);

        let writing = drill.writes_more();
        stands_still(manager, vm).await;
        small.relieve();
        manager.resume_vm(vm.into()).await.unwrap();
        let wrote = writing.await.unwrap().unwrap();
        assert_eq!(wrote["exitCode"], 0, "the guest saw an error: {wrote}");
        drill.writes_on().await;
        remove(manager, vm, "a", rebase()).await.unwrap();
        drill.writes_on().await;
        assert_eq!(consistent_status(manager, vm).await["status"], "running");

        let disks = drill.disks().await;
        stop(manager, vm).await;
        are_of_one_moment(&disks);
        let mut read = Command::new("qemu-io");
        read.args(["-r", "-f", "qcow2", "-c", "read -q -P 7 512M 2M"]);
        let output = read.arg(&disks[0]).output().unwrap();
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        sound(&disks);
        delete(manager, vm).await;
        host.is_clean().await;
    });
}

/// Waits until the guest does, for want of space.
async fn stands_still(manager: &Manager, vm: &str) {
    let stopped = async {
        loop {
            let status = manager.get_vm_status(vm.into()).await.unwrap();
            if status["qmpStatus"] == "io-error" {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let status = tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    assert_eq!(status["processAlive"], true, "{status}");
}
