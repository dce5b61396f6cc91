use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use async_trait::async_trait;

use super::super::pending;
use super::staged::{name_by_link, put_back_by_link, replace_by_link};
use super::*;
use crate::error::{Coded as _, ErrorCode};
use crate::qmp::QmpClient;

/// A machine that does not run, and its frozen layers.
struct Off(Vec<HostPath>);

#[async_trait]
impl Machine for Off {
    async fn is_running(&self) -> Option<bool> {
        Some(false)
    }

    fn monitor(&self) -> Option<QmpClient> {
        None
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }

    async fn thaw(&self) -> Result<(), String> {
        Ok(())
    }

    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        Ok(self.0.clone())
    }
}

struct Place {
    dir: tempfile::TempDir,
    library: Library,
    vm_id: VmId,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vm_id = VmId::parse("vm-1").unwrap();
        let root = HostPath::parse(dir.path().join("backups").to_str().unwrap()).unwrap();
        fs::create_dir_all(root.as_path().join("vm-1")).unwrap();
        let library = Library::new(root);
        Self {
            dir,
            library,
            vm_id,
        }
    }

    fn disk(&self, name: &str) -> HostPath {
        HostPath::parse(self.dir.path().join(name).to_str().unwrap()).unwrap()
    }

    /// Two old disks and a new one, all staged.
    async fn staged(&self) -> (Stage, Vec<HostPath>) {
        let targets = ["a", "b", "c"].map(|name| self.disk(name)).to_vec();
        for old in &targets[..2] {
            fs::write(old.as_path(), "old").unwrap();
        }
        let begun = Stage::begin(&self.library, &self.vm_id, &targets, true).await;
        let stage = begun.unwrap();
        for n in 0..3 {
            fs::write(stage.file(n).as_path(), "new").unwrap();
        }
        (stage, targets)
    }

    /// Without the notes.
    fn contents(&self) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file() && path.extension().is_none_or(|it| it != "restore"))
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read_to_string(&path).unwrap())
            })
            .collect();
        found.sort();
        found
    }

    fn journal_is_gone(&self) -> bool {
        !journal(&self.library, &self.vm_id)
            .unwrap()
            .as_path()
            .exists()
    }
}

fn all(words: [&str; 3]) -> Vec<(String, String)> {
    let names = ["a", "b", "c"].iter().zip(words);
    names
        .filter(|(_, word)| !word.is_empty())
        .map(|(name, word)| ((*name).to_owned(), word.to_owned()))
        .collect()
}

#[tokio::test]
async fn all_are_replaced_or_made() {
    let place = Place::new();
    let (stage, targets) = place.staged().await;
    fs::set_permissions(targets[0].as_path(), fs::Permissions::from_mode(0o640)).unwrap();
    stage.commit().await.unwrap();
    assert_eq!(place.contents(), all(["new", "new", "new"]));
    let mode = fs::metadata(targets[0].as_path()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(place.journal_is_gone());
}

#[tokio::test]
async fn k3_a_rename_that_fails_puts_back_those_before_it() {
    let place = Place::new();
    let (mut stage, targets) = place.staged().await;
    stage.settle().unwrap();
    // It was not there when the restore began: it is not replaced.
    fs::write(targets[2].as_path(), "theirs").unwrap();
    let refused = stage.rename_all().unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TargetExists);
    stage.give_up().unwrap();
    assert_eq!(place.contents(), all(["old", "old", "theirs"]));
    assert!(place.journal_is_gone());
}

#[tokio::test]
async fn a_file_that_appeared_meanwhile_is_not_replaced() {
    for crash in [false, true] {
        let place = Place::new();
        let (mut stage, targets) = place.staged().await;
        if crash {
            stage.settle().unwrap();
        }
        fs::write(targets[2].as_path(), "theirs").unwrap();
        if crash {
            drop(stage);
            let off = Off(Vec::new());
            recover(&place.library, &place.vm_id, &off).await.unwrap();
        } else {
            let refused = stage.commit().await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::TargetExists);
        }
        assert_eq!(place.contents(), all(["old", "old", "theirs"]), "{crash}");
        assert!(place.journal_is_gone());
    }
}

#[tokio::test]
async fn nothing_is_replaced_that_was_not_agreed_to() {
    let place = Place::new();
    let target = place.disk("a");
    fs::write(target.as_path(), "old").unwrap();
    let targets = std::slice::from_ref(&target);
    let begun = Stage::begin(&place.library, &place.vm_id, targets, false).await;
    let stage = begun.unwrap();
    fs::write(stage.file(0).as_path(), "new").unwrap();
    let refused = stage.commit().await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TargetExists);
    assert_eq!(place.contents(), all(["old", "", ""]));
}

#[test]
fn without_such_a_rename_nothing_is_replaced_either() {
    let place = Place::new();
    let (staged, target) = (place.disk("x"), place.disk("a"));
    fs::write(staged.as_path(), "new").unwrap();
    name_by_link(staged.as_path(), target.as_path()).unwrap();
    assert_eq!(place.contents(), all(["new", "", ""]));
    fs::write(staged.as_path(), "newer").unwrap();
    assert!(name_by_link(staged.as_path(), target.as_path()).is_err());
    assert_eq!(fs::read_to_string(target.as_path()).unwrap(), "new");
}

#[tokio::test]
async fn k3_renames_that_cannot_be_kept_are_all_undone() {
    let place = Place::new();
    let (mut stage, _) = place.staged().await;
    stage.settle().unwrap();
    stage.rename_all().unwrap();
    stage.undo(3);
    stage.give_up().unwrap();
    assert_eq!(place.contents(), all(["old", "old", ""]));
    assert!(place.journal_is_gone());
}

#[tokio::test]
async fn k3_an_old_disk_that_could_not_be_put_back_is_kept_for_the_next() {
    let place = Place::new();
    let (mut stage, targets) = place.staged().await;
    stage.settle().unwrap();
    let first = stage.plan.disks[0].clone();
    exchange(&first).unwrap();
    stage.give_up().unwrap();
    assert_eq!(fs::read_to_string(first.aside.as_path()).unwrap(), "old");
    assert_eq!(fs::read_to_string(targets[1].as_path()).unwrap(), "old");
    let off = Off(Vec::new());
    recover(&place.library, &place.vm_id, &off).await.unwrap();
    assert_eq!(place.contents(), all(["new", "new", "new"]));
}

#[tokio::test]
async fn k3_a_disk_that_a_machine_has_by_now_keeps_all_of_them() {
    let place = Place::new();
    let (stage, targets) = place.staged().await;
    let machine = claim_now(&targets[1]).unwrap();
    let refused = stage.commit().await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::BackupVmRunning);
    assert_eq!(place.contents(), all(["old", "old", ""]));
    drop(machine);
    let (stage, _) = place.staged().await;
    stage.commit().await.unwrap();
}

#[tokio::test]
async fn f22_a_crash_before_the_renames_leaves_the_old_disks() {
    let place = Place::new();
    let (stage, _) = place.staged().await;
    drop(stage);
    recover(&place.library, &place.vm_id, &Off(Vec::new()))
        .await
        .unwrap();
    assert_eq!(place.contents(), all(["old", "old", ""]));
    assert!(place.journal_is_gone());
}

#[tokio::test]
async fn f22_a_crash_between_the_renames_is_carried_on() {
    for done in 0..=3 {
        let place = Place::new();
        let (mut stage, _) = place.staged().await;
        stage.settle().unwrap();
        for disk in &stage.plan.disks[..done] {
            exchange(disk).unwrap();
        }
        drop(stage);
        recover(&place.library, &place.vm_id, &Off(Vec::new()))
            .await
            .unwrap();
        assert_eq!(place.contents(), all(["new", "new", "new"]), "after {done}");
        assert!(place.journal_is_gone());
    }
}

/// An empty mount point: neither is what was staged dropped, nor is a disk taken for one that was removed.
#[tokio::test]
async fn f22_what_is_on_a_file_system_that_is_away_is_waited_for() {
    for done in [None, Some(0), Some(1)] {
        let place = Place::new();
        let (mut stage, targets) = place.staged().await;
        if let Some(done) = done {
            stage.settle().unwrap();
            for disk in &stage.plan.disks[..done] {
                exchange(disk).unwrap();
            }
        }
        let mounted = stage.plan.file_systems.clone();
        let elsewhere = serde_json::json!({ "at": "/away", "what": "", "id": 0 });
        let noted: serde_json::Map<_, _> = targets
            .iter()
            .chain(stage.plan.disks.iter().map(|disk| &disk.aside))
            .map(|file| (file.to_string(), elsewhere.clone()))
            .collect();
        stage.plan.file_systems = serde_json::from_value(noted.into()).unwrap();
        stage.write().unwrap();
        let hidden = [&targets[1], &stage.plan.disks[1].aside];
        for file in hidden {
            fs::rename(file.as_path(), file.as_path().with_extension("away")).unwrap();
        }
        let off = Off(Vec::new());
        let before = place.contents();
        let left = recover(&place.library, &place.vm_id, &off).await;
        let left = Vec::from_iter(left.unwrap());
        let refused = pending::refuse(left, &targets[..1]).await;
        assert_eq!(refused.unwrap_err().code(), ErrorCode::BackupFailed);
        assert_eq!(place.contents(), before, "{done:?}");
        for file in hidden {
            fs::rename(file.as_path().with_extension("away"), file.as_path()).unwrap();
        }
        stage.plan.file_systems = mounted;
        stage.write().unwrap();
        recover(&place.library, &place.vm_id, &off).await.unwrap();
        let expected = match done {
            None => ["old", "old", ""],
            Some(_) => ["new", "new", "new"],
        };
        assert_eq!(place.contents(), all(expected), "{done:?}");
        assert!(place.journal_is_gone());
    }
}

#[tokio::test]
async fn a_journal_takes_no_other_s_place() {
    let place = Place::new();
    let (stage, targets) = place.staged().await;
    let another = Stage::begin(&place.library, &place.vm_id, &targets, true).await;
    assert_eq!(another.unwrap_err().code(), ErrorCode::BackupFailed);
    stage.commit().await.unwrap();
    assert_eq!(place.contents(), all(["new", "new", "new"]));
}

#[tokio::test]
async fn a_crashed_restore_leaves_a_disk_that_was_snapshotted_since() {
    let place = Place::new();
    let (mut stage, targets) = place.staged().await;
    stage.settle().unwrap();
    drop(stage);
    let snapshotted = Off(vec![targets[1].clone()]);
    let left = recover(&place.library, &place.vm_id, &snapshotted).await;
    let left = Vec::from_iter(left.unwrap());
    let refused = pending::refuse(left, &targets[2..]).await.unwrap_err();
    assert!(
        std::error::Error::source(&refused).is_some_and(|why| why.to_string().contains("frozen"))
    );
    for target in &targets[..2] {
        assert_eq!(fs::read_to_string(target.as_path()).unwrap(), "old");
    }
    let off = Off(Vec::new());
    recover(&place.library, &place.vm_id, &off).await.unwrap();
    assert_eq!(place.contents(), all(["new", "new", "new"]));
}

/// A machine that knows nothing of the journal was started, and wrote.
#[tokio::test]
async fn k3_disks_that_were_used_since_a_crash_are_not_replaced() {
    for (done, used) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)] {
        let place = Place::new();
        let (mut stage, targets) = place.staged().await;
        stage.settle().unwrap();
        for disk in &stage.plan.disks[..done] {
            exchange(disk).unwrap();
        }
        let (old, journal) = (stage.file(0).clone(), stage.journal.clone());
        drop(stage);
        write_later(&targets[used]);
        let before = place.contents();
        let off = Off(Vec::new());
        recover(&place.library, &place.vm_id, &off).await.unwrap();
        assert!(!journal.as_path().exists());
        let case = format!("{done} renamed, {used} used");
        if done > 0 {
            assert_eq!(place.contents(), before, "{case}");
            assert_eq!(fs::read_to_string(old.as_path()).unwrap(), "old", "{case}");
        } else {
            let words = if used == 0 {
                ["used", "old", ""]
            } else {
                ["old", "used", ""]
            };
            assert_eq!(place.contents(), all(words), "{case}");
        }
    }
}

/// Writes, at a time that no coarse clock confuses with that of a test's beginning.
fn write_later(disk: &HostPath) {
    fs::write(disk.as_path(), "used").unwrap();
    let file = File::options().append(true).open(disk.as_path()).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    file.set_modified(later).unwrap();
}

#[tokio::test]
async fn k3_a_finished_restore_is_cleared_though_its_disks_were_used_since() {
    let place = Place::new();
    let (mut stage, targets) = place.staged().await;
    stage.settle().unwrap();
    stage.rename_all().unwrap();
    drop(stage);
    write_later(&targets[0]);
    let off = Off(Vec::new());
    recover(&place.library, &place.vm_id, &off).await.unwrap();
    assert_eq!(place.contents(), all(["used", "new", "new"]));
    assert!(place.journal_is_gone());
}

#[test]
fn without_exchanging_renames_it_comes_to_the_same() {
    let place = Place::new();
    let (staged, target) = (place.disk("x"), place.disk("a"));
    fs::write(target.as_path(), "old").unwrap();
    fs::write(staged.as_path(), "new").unwrap();
    replace_by_link(staged.as_path(), target.as_path()).unwrap();
    assert_eq!(read_to(&target), "new");
    put_back_by_link(staged.as_path(), target.as_path()).unwrap();
    assert_eq!(
        (read_to(&target), read_to(&staged)),
        ("old".into(), "new".into())
    );
    // A process died between the two steps.
    fs::hard_link(target.as_path(), place.disk("x.old").as_path()).unwrap();
    replace_by_link(staged.as_path(), target.as_path()).unwrap();
    assert_eq!(read_to(&target), "new");
    assert_eq!(read_to(&place.disk("x.old")), "old");
}

fn read_to(path: &HostPath) -> String {
    fs::read_to_string(path.as_path()).unwrap()
}

/// After the link, and after the rename, of the first disk or of the second.
#[tokio::test]
async fn f22_a_crash_between_links_and_renames_is_carried_on() {
    for steps in 0..=4 {
        let place = Place::new();
        let (mut stage, _) = place.staged().await;
        stage.settle().unwrap();
        for step in 0..steps {
            let disk = &stage.plan.disks[step / 2];
            let (staged, target) = (disk.aside.as_path(), disk.target.as_path());
            let old = old_name(&disk.aside).unwrap();
            match step % 2 {
                0 => fs::hard_link(target, old.as_path()).unwrap(),
                _ => fs::rename(staged, target).unwrap(),
            }
        }
        drop(stage);
        let off = Off(Vec::new());
        recover(&place.library, &place.vm_id, &off).await.unwrap();
        assert_eq!(
            place.contents(),
            all(["new", "new", "new"]),
            "{steps} steps"
        );
        assert!(place.journal_is_gone());
    }
}

/// Without an exchange what is replaced has a name that nothing but the undoing may take from it.
#[tokio::test]
async fn k3_what_links_keep_of_a_failed_restore_is_put_back_or_left() {
    for put_back_too in [true, false] {
        let place = Place::new();
        let (mut stage, targets) = place.staged().await;
        stage.settle().unwrap();
        let first = stage.plan.disks[0].clone();
        replace_by_link(first.aside.as_path(), first.target.as_path()).unwrap();
        if put_back_too {
            stage.undo(1);
            stage.give_up().unwrap();
            assert_eq!(place.contents(), all(["old", "old", ""]));
        } else {
            stage.give_up().unwrap();
            assert_eq!(read_to(&targets[0]), "new");
            assert_eq!(read_to(&old_name(&first.aside).unwrap()), "old");
        }
    }
}

#[tokio::test]
async fn f22_disks_have_a_note_from_before_the_first_rename_until_all_is_over() {
    for crash in [false, true] {
        let place = Place::new();
        let (mut stage, targets) = place.staged().await;
        let notes = |expected: Option<&HostPath>| {
            for target in &targets {
                assert_eq!(restore_note::find(target).unwrap().as_ref(), expected);
            }
        };
        notes(None);
        stage.settle().unwrap();
        let journal = stage.journal.clone();
        notes(Some(&journal));
        exchange(&stage.plan.disks[0]).unwrap();
        notes(Some(&journal));
        if crash {
            drop(stage);
            let off = Off(Vec::new());
            recover(&place.library, &place.vm_id, &off).await.unwrap();
            assert_eq!(place.contents(), all(["new", "new", "new"]));
        } else {
            stage.undo(1);
            stage.give_up().unwrap();
            assert_eq!(place.contents(), all(["old", "old", ""]));
        }
        notes(None);
        assert!(place.journal_is_gone());
    }
}
