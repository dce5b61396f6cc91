//! How far backups and restores say they are: in bytes, through every long part of them, and never back.

use infinization_core::backup::{Progress, Told};

use super::guest::Guest;
use super::*;

/// What was told, and the files that were there when it was.
type Said = Arc<Mutex<Vec<(f64, Vec<String>)>>>;

/// A service over the place's backups, and what it says while there are which files in `dir`.
fn listened(
    place: &Place,
    dir: impl Fn(&Progress) -> PathBuf + Send + Sync + 'static,
) -> (BackupService, Said) {
    let said = Said::default();
    let heard = Arc::clone(&said);
    let audience = Arc::new(move |told| {
        if let Told::Progress(progress) = told {
            let mut names = names_in(&dir(&progress));
            // What is staged has names of chance.
            for name in &mut names {
                let stem = name.find(".restoring").unwrap_or_default();
                name.drain(..stem);
            }
            names.sort();
            heard
                .lock()
                .unwrap()
                .push((progress.overall_progress, names));
        }
    });
    (BackupService::new(path(&place.root()), audience), said)
}

/// Fails unless it went up to the end, and moved while there were each of these files.
#[track_caller]
fn moved_through(said: &Said, parts: &[&[&str]]) {
    let said = said.lock().unwrap();
    let done = said.iter().map(|(done, _)| *done);
    assert!(done.is_sorted(), "{said:?}");
    let ends = [said.first(), said.last()].map(|told| told.map(|(done, _)| *done));
    assert_eq!(ends, [Some(0.0), Some(100.0)]);
    for part in parts {
        let mut meanwhile = said.iter().filter(|(_, names)| names == part);
        let first = meanwhile.next().map(|(done, _)| *done);
        let moved = meanwhile.any(|(done, _)| Some(*done) > first);
        assert!(moved, "{part:?} of {said:?}");
    }
}

/// A raw disk that no compression makes smaller.
fn noise(place: &Place, name: &str, seed: u64) -> Disk {
    let mut disk = Disk::raw(&place.path(name), 64);
    rewrite(&mut disk, seed);
    disk
}

fn rewrite(disk: &mut Disk, seed: u64) {
    let mut state = seed;
    for word in disk.holds.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    fs::write(&disk.path, &disk.holds).unwrap();
}

async fn made(place: &Place, request: Value, machine: Arc<dyn Machine>) -> (String, Said) {
    let root = place.root().join("vm-1");
    let (service, said) = listened(place, move |told| root.join(told.backup_id.as_str()));
    let request = CreateBackup::read(request).unwrap();
    let made = service.create(request, machine, CancellationToken::new());
    (id(&made.await.unwrap()), said)
}

#[tokio::test]
async fn copying_packing_and_summing_are_told_and_so_is_the_way_back() {
    let place = Place::new();
    let disk = noise(&place, "a.img", 1);
    let mut request = place.request("FULL", &[&disk]);
    request["compression"] = json!("GZIP");
    let (backup, said) = made(&place, request, Arc::new(Stopped)).await;
    moved_through(
        &said,
        &[
            &["backup.json", "disk-0.qcow2"],
            &["backup.json", "disk-0.qcow2", "disk-0.qcow2.gz"],
            &["backup.json", "disk-0.qcow2.gz"],
        ],
    );

    let target = place.path("there/a.img");
    fs::create_dir(place.path("there")).unwrap();
    let there = place.path("there");
    let (service, said) = listened(&place, move |_| there.clone());
    let request = json!({ "vmId": "vm-1", "backupId": backup, "diskPaths": [target] });
    let request = RestoreBackup::read(request).unwrap();
    let restored = service.restore(request, Arc::new(Stopped), CancellationToken::new());
    restored.await.unwrap();
    moved_through(
        &said,
        &[
            &[],
            &[".restoring.qcow2"],
            &[".restoring", ".restoring.qcow2"],
        ],
    );
    let last = said.lock().unwrap().pop();
    assert_eq!(
        last,
        Some((100.0, vec!["a.img".to_owned()])),
        "once it is in place"
    );
    disk::assert_holds(&target, "raw", &disk.holds);
}

#[tokio::test]
async fn what_is_compared_and_then_compressed_never_goes_back() {
    let place = Place::new();
    let mut disk = noise(&place, "a.img", 1);
    let full = place.full(&[&disk]).await;
    rewrite(&mut disk, 2);
    let mut request = place.request("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(full);
    request["compression"] = json!("QCOW2");
    let (backup, said) = made(&place, request, Arc::new(Stopped)).await;
    moved_through(
        &said,
        &[
            &["backup.json", "disk-0.delta.qcow2"],
            &["backup.json", "disk-0.delta.qcow2", "disk-0.qcow2"],
            &["backup.json", "disk-0.qcow2"],
        ],
    );
    let target = place.path("restored.img");
    place
        .restore(&backup, std::slice::from_ref(&target))
        .await
        .unwrap();
    disk::assert_holds(&target, "raw", &disk.holds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_machine_s_copy_is_told_of_while_it_is_compared() {
    let place = Place::new();
    let mut disk = noise(&place, "a.img", 1);
    let full = place.full(&[&disk]).await;
    rewrite(&mut disk, 2);
    // No bitmap knows that parent: everything is copied, and compared.
    let guest = Guest::start(&[&disk]).await;
    let mut request = place.request("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(full);
    let (_, said) = made(&place, request, guest.machine()).await;
    guest.quit().await;
    moved_through(
        &said,
        &[
            &["backup.json", "disk-0.full.qcow2", "disk-0.qcow2"],
            &["backup.json", "disk-0.qcow2"],
        ],
    );
}

/// How far it is said to be, and what the backup's manifest says then.
type Stated = Arc<Mutex<Vec<(f64, Value)>>>;

/// Makes a backup of this kind, and says what was told meanwhile.
async fn stated(place: &Place, kind: &str, disks: &[&Disk], machine: Arc<dyn Machine>) -> Stated {
    let stated = Stated::default();
    let (heard, root) = (Arc::clone(&stated), place.root().join("vm-1"));
    let audience = Arc::new(move |told| {
        if let Told::Progress(progress) = told {
            let manifest = root.join(progress.backup_id.as_str()).join("backup.json");
            let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
            let at = (progress.overall_progress, manifest["status"].clone());
            heard.lock().unwrap().push(at);
        }
    });
    let service = BackupService::new(path(&place.root()), audience);
    let request = CreateBackup::read(place.request(kind, disks)).unwrap();
    let made = service.create(request, machine, CancellationToken::new());
    made.await.unwrap();
    stated
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_done_only_once_the_manifest_says_so() {
    let place = Place::new();
    let (a, b) = (place.disk("a.qcow2", 4), place.disk("b.qcow2", 4));
    let (c, d) = (place.disk("c.qcow2", 4), place.disk("d.qcow2", 4));
    let guest = Guest::start(&[&c, &d]).await;
    for kind in ["FULL", "SNAPSHOT"] {
        let stopped = stated(&place, kind, &[&a, &b], Arc::new(Stopped)).await;
        let running = stated(&place, kind, &[&c, &d], guest.machine()).await;
        for said in [stopped, running] {
            let mut said = std::mem::take(&mut *said.lock().unwrap());
            assert_eq!(said.pop(), Some((100.0, json!("COMPLETED"))), "{kind}");
            assert_eq!(said.first(), Some(&(0.0, json!("IN_PROGRESS"))), "{kind}");
            let under_way =
                |(done, status): &(f64, Value)| *done < 100.0 && status == "IN_PROGRESS";
            assert!(said.iter().all(under_way), "{kind}: {said:?}");
        }
    }
    guest.quit().await;
}

#[tokio::test]
async fn disks_that_go_back_to_a_snapshot_in_them_are_told_of() {
    let place = Place::new();
    let (a, b) = (place.disk("a.qcow2", 4), place.disk("b.qcow2", 4));
    let request = place.request("SNAPSHOT", &[&a, &b]);
    let backup = id(&place.create(request).await.unwrap());
    let dir = place.root().join("vm-1");
    let (service, said) = listened(&place, move |_| dir.clone());
    let request = json!({
        "vmId": "vm-1", "backupId": backup, "diskPaths": [a.path, b.path],
        "overwriteExisting": true, "allowInPlaceSnapshotRevert": true,
    });
    let request = RestoreBackup::read(request).unwrap();
    let restored = service.restore(request, Arc::new(Stopped), CancellationToken::new());
    restored.await.unwrap();
    let said: Vec<_> = std::mem::take(&mut *said.lock().unwrap());
    let under_way = |names: &[String]| names.contains(&"revert.json".to_owned());
    let said: Vec<_> = said
        .iter()
        .map(|(done, names)| (*done, under_way(names)))
        .collect();
    assert_eq!(said, [(0.0, true), (50.0, true), (100.0, false)]);
}

#[tokio::test]
async fn looking_at_a_chain_is_told_of_to_whoever_asked() {
    let place = Place::new();
    let mut disk = noise(&place, "a.img", 1);
    let full = place.full(&[&disk]).await;
    rewrite(&mut disk, 2);
    let next = place.incremental(&[&disk], &full).await;
    place.told.lock().unwrap().clear();
    let look = async || {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let tell = move |told: Progress| heard.lock().unwrap().push(told.overall_progress);
        let (id, cancel) = (BackupId::parse(&next).unwrap(), CancellationToken::new());
        let seen = place.service.verify(vm(), id, cancel, tell).await.unwrap();
        let said: Vec<_> = std::mem::take(&mut *said.lock().unwrap());
        assert!(said.is_sorted(), "{said:?}");
        (seen["valid"] == json!(true), said)
    };
    let (valid, said) = look().await;
    assert!(valid && said.len() > 10, "{said:?}");
    assert_eq!([said.first(), said.last()], [Some(&0.0), Some(&100.0)]);
    assert!(place.told.lock().unwrap().is_empty(), "nobody else is told");

    let file = place.root().join("vm-1").join(&full).join("disk-0.qcow2");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let (valid, said) = look().await;
    assert!(!valid && said.last() < Some(&100.0), "{said:?}");
}
