//! Restores that a kill cut short between two disks: the machine's next start ends them first, or is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use infinization_core::ErrorCode;
use infinization_core::host::dir_lock::DirLock;
use infinization_core::host::qemu_img::claim_now;
use infinization_core::host::restore_note;
use infinization_core::host::state_file::{self, Durability};
use infinization_core::manager::Manager;
use infinization_core::types::HostPath;
use infinization_test_kit as kit;
use kit::machine::{Host, delete, forced, never, qemus};
use serde_json::{Value, json};

const OLD: u8 = 0x11;
const RESTORED: u8 = 0x22;

fn path(path: &Path) -> HostPath {
    HostPath::parse(path.to_str().unwrap()).unwrap()
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn write(disk: &Path, pattern: u8) {
    let line = format!("write -P {pattern} 0 64k");
    run(
        "qemu-io",
        &["-f", "qcow2", "-c", &line, disk.to_str().unwrap()],
    );
}

fn holds(disk: &Path, pattern: u8) -> bool {
    let line = format!("read -P {pattern} 0 64k");
    let args = ["-r", "-f", "qcow2", "-c", &line, disk.to_str().unwrap()];
    !run("qemu-io", &args).contains("verification failed")
}

fn version(file: &Path) -> Value {
    let file = fs::metadata(file).unwrap();
    json!({ "inode": file.ino(), "seconds": file.mtime(), "nanoseconds": file.mtime_nsec() })
}

/// A machine with two disks that is off, and the directory of its backups.
struct Drill<'h> {
    host: &'h Host,
    vm: &'static str,
    disks: Vec<PathBuf>,
    backups: PathBuf,
}

impl<'h> Drill<'h> {
    async fn new(host: &'h Host, manager: &Manager, vm: &'static str) -> Self {
        let mut machine = host.machine(vm);
        machine["disks"] = json!([{ "sizeGB": 1 }, { "sizeGB": 1 }]);
        let created = manager.create_vm(machine, never()).await.unwrap();
        manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
        let disks = created["diskPaths"].as_array().unwrap().iter();
        let disks = disks.map(|disk| PathBuf::from(disk.as_str().unwrap()));
        let backups = host.path().join("backups").join(vm);
        fs::create_dir_all(&backups).unwrap();
        let disks = disks.collect();
        Self {
            host,
            vm,
            disks,
            backups,
        }
    }

    fn journal(&self) -> PathBuf {
        self.backups.join("restore.json")
    }

    /// What a restore leaves that was killed between the first disk and the second.
    fn cut_short(&self) {
        let mut plan = Vec::new();
        for (n, disk) in self.disks.iter().enumerate() {
            write(disk, OLD);
            let aside = disk.with_file_name(format!(".{n}.restoring"));
            run(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", aside.to_str().unwrap(), "1G"],
            );
            write(&aside, RESTORED);
            plan.push(json!({
                "aside": aside, "target": disk, "new": version(&aside), "old": version(disk),
            }));
            restore_note::write(&path(disk), &path(&self.journal())).unwrap();
        }
        let plan = json!({ "committing": true, "disks": plan }).to_string();
        state_file::write(&self.journal(), plan.as_bytes(), Durability::ProcessCrash).unwrap();
        let (disk, aside) = (&self.disks[0], self.disks[0].with_file_name(".0.restoring"));
        let between = disk.with_file_name("between");
        fs::rename(disk, &between).unwrap();
        fs::rename(&aside, disk).unwrap();
        fs::rename(&between, &aside).unwrap();
    }

    /// What a restore of a SNAPSHOT inside the disks leaves that was killed between the first and the second.
    fn revert_cut_short(&self, to: &str) {
        let (undo, journal) = (format!("undo-{to}"), self.backups.join("revert.json"));
        let snapshot = |option: &str, name: &str, disk: &Path| {
            run(
                "qemu-img",
                &["snapshot", option, name, disk.to_str().unwrap()],
            );
        };
        for disk in &self.disks {
            write(disk, RESTORED);
            snapshot("-c", to, disk);
            write(disk, OLD);
            snapshot("-c", &undo, disk);
            restore_note::write(&path(disk), &path(&journal)).unwrap();
        }
        snapshot("-a", to, &self.disks[0]);
        let plan = json!({ "undo": true, "before": undo, "to": to, "disks": self.disks });
        let plan = plan.to_string();
        state_file::write(&journal, plan.as_bytes(), Durability::ProcessCrash).unwrap();
    }

    fn has_ways_back(&self) -> bool {
        let list = |disk: &PathBuf| run("qemu-img", &["snapshot", "-l", disk.to_str().unwrap()]);
        self.disks.iter().any(|disk| list(disk).contains("undo-"))
    }

    fn all_hold(&self, pattern: u8) -> bool {
        self.disks.iter().all(|disk| holds(disk, pattern))
    }

    /// Nothing of a restore is left beside the disks, and no journal.
    fn is_over(&self) -> bool {
        let beside = fs::read_dir(self.disks[0].parent().unwrap()).unwrap();
        let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        let left = beside.flatten().any(|entry| hidden(&entry.file_name()));
        !left && !self.journal().exists() && !self.backups.join("revert.json").exists()
    }

    async fn start(&self, manager: &Manager) -> Result<Value, infinization_core::Failure> {
        manager.start_vm(self.vm.into(), Value::Null, never()).await
    }

    async fn stop(&self, manager: &Manager) {
        let stopped = manager.stop_vm(self.vm.into(), forced(), never()).await;
        stopped.unwrap();
    }

    async fn ends(self, manager: &Manager) {
        delete(manager, self.vm).await;
        fs::remove_dir_all(self.host.path().join("backups")).unwrap();
        self.host.is_clean().await;
    }
}

#[test]
fn f22_a_restore_cut_short_is_finished_before_the_disks_are_used() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let drill = Drill::new(&host, &manager, "restored-1").await;
        drill.cut_short();
        drill.start(&manager).await.unwrap();
        drill.stop(&manager).await;
        assert!(drill.is_over() && drill.all_hold(RESTORED));

        // A snapshot is of what the restore makes of them, too.
        drill.cut_short();
        let options = json!({ "name": "first" });
        manager
            .create_snapshot(drill.vm.into(), options, never())
            .await
            .unwrap();
        assert!(drill.is_over() && drill.all_hold(RESTORED));
        drill.ends(&manager).await;
    });
}

#[test]
fn f22_a_snapshot_s_restore_cut_short_is_undone_before_the_disks_are_used() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let drill = Drill::new(&host, &manager, "restored-4").await;
        drill.revert_cut_short("backup-a");
        drill.start(&manager).await.unwrap();
        drill.stop(&manager).await;
        assert!(drill.is_over() && drill.all_hold(OLD) && !drill.has_ways_back());

        // While somebody else has one of them, none is used.
        drill.revert_cut_short("backup-b");
        let another = claim_now(&path(&drill.disks[1])).unwrap();
        drill.start(&manager).await.unwrap_err();
        drop(another);
        assert!(holds(&drill.disks[0], RESTORED) && drill.has_ways_back());
        let options = json!({ "name": "first" });
        manager
            .create_snapshot(drill.vm.into(), options, never())
            .await
            .unwrap();
        assert!(drill.is_over() && drill.all_hold(OLD) && !drill.has_ways_back());

        // What was written all the same is told once, and nothing of it is lost.
        drill.revert_cut_short("backup-c");
        write(&drill.disks[1], 0x33);
        let refused = drill.start(&manager).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidState, "{refused:?}");
        assert!(refused.to_string().contains("used since"), "{refused}");
        assert!(drill.is_over() && drill.has_ways_back());
        assert!(holds(&drill.disks[0], RESTORED) && holds(&drill.disks[1], 0x33));
        drill.start(&manager).await.unwrap();
        drill.stop(&manager).await;
        drill.ends(&manager).await;
    });
}

#[test]
fn f22_while_a_restore_cannot_be_ended_its_disks_are_not_used() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let drill = Drill::new(&host, &manager, "restored-2").await;
        drill.cut_short();
        let before = host.files();
        let another_process = DirLock::acquire(&drill.backups).unwrap();
        let refused = drill.start(&manager).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidState, "{refused:?}");
        assert!(refused.has(ErrorCode::BackupFailed), "{refused:?}");
        assert_eq!(refused.context()["journal"], json!(drill.journal()));
        assert_eq!(qemus(host.path()), Vec::<i32>::new());
        assert_eq!(host.files(), before);
        drop(another_process);

        // Where backups were taken away, nobody knows which disk is which.
        let away = drill.backups.with_extension("away");
        fs::rename(&drill.backups, &away).unwrap();
        let refused = drill.start(&manager).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidState, "{refused:?}");
        fs::rename(&away, &drill.backups).unwrap();

        drill.start(&manager).await.unwrap();
        drill.stop(&manager).await;
        assert!(drill.is_over() && drill.all_hold(RESTORED));
        drill.ends(&manager).await;
    });
}

#[test]
fn f22_a_restore_that_was_overtaken_between_its_disks_is_told_once() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let drill = Drill::new(&host, &manager, "restored-3").await;
        drill.cut_short();
        write(&drill.disks[1], 0x33);
        let refused = drill.start(&manager).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidState, "{refused:?}");
        assert!(refused.to_string().contains("used since"), "{refused}");
        assert!(holds(&drill.disks[0], RESTORED) && holds(&drill.disks[1], 0x33));
        // What was replaced is there, and it is for whoever was told to decide.
        let replaced = drill.disks[0].with_file_name(".0.restoring");
        assert!(holds(&replaced, OLD));
        drill.start(&manager).await.unwrap();
        drill.stop(&manager).await;
        for aside in [".0.restoring", ".1.restoring"] {
            fs::remove_file(replaced.with_file_name(aside)).unwrap();
        }
        assert!(drill.is_over());
        drill.ends(&manager).await;
    });
}
