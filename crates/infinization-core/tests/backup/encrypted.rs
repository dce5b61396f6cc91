//! Backups of encrypted disks: encrypted from the first byte to the last, and back with the key alone.

use infinization_core::host::qemu_img::{ChangeKey, change_key};

use super::luks::{Luks, QUICK, Spy, key, plain_text_below};
use super::*;
use crate::kit::qmp::Qemu;

const KEY: &str = "a-key-nobody-guesses";

impl Place {
    async fn luks(&self, name: &str, mib: usize) -> Luks {
        Luks::new(&self.path(name), mib, KEY).await
    }

    fn of_luks(&self, kind: &str, disks: &[&Luks]) -> Value {
        let paths: Vec<_> = disks.iter().map(|disk| disk.path.clone()).collect();
        let keys = disks
            .iter()
            .map(|disk| (disk::text(&disk.path).to_owned(), json!(disk.key)));
        json!({
            "vmId": "vm-1", "type": kind, "diskPaths": paths, "destinationDir": self.root().join("vm-1"),
            "diskKeys": Value::Object(keys.collect()),
        })
    }

    async fn back_up(&self, request: Value, machine: Arc<dyn Machine>) -> Result<String, Failure> {
        let mut request = CreateBackup::read(request).unwrap();
        request.keys.iter_time = QUICK;
        let never = CancellationToken::new();
        Ok(id(&self.service.create(request, machine, never).await?))
    }

    async fn on_top(
        &self,
        disks: &[&Luks],
        parent: &str,
        machine: Arc<dyn Machine>,
    ) -> Result<String, Failure> {
        let mut request = self.of_luks("INCREMENTAL", disks);
        request["parentBackupId"] = json!(parent);
        self.back_up(request, machine).await
    }

    async fn bring_back(
        &self,
        backup: &str,
        target: &Path,
        key: Option<&str>,
    ) -> Result<(), Failure> {
        let keys = key.map(|key| json!({ disk::text(target): key }));
        let mut request = RestoreBackup::read(json!({
            "vmId": "vm-1", "backupId": backup, "diskPaths": [target], "diskKeys": keys,
        }))
        .unwrap();
        request.keys.iter_time = QUICK;
        let never = CancellationToken::new();
        let restored = self.service.restore(request, Arc::new(Stopped), never);
        restored.await.map(drop)
    }

    /// Restores to a new file, which must be encrypted and hold what the disk held.
    async fn comes_back_encrypted(&self, backup: &str, disk: &Luks) {
        let target = self.path("restored.qcow2");
        self.bring_back(backup, &target, Some(&disk.key))
            .await
            .unwrap();
        disk.like(&target).is_intact();
        assert_eq!(plain_text_below(self.dir.path()), None);
        fs::remove_file(target).unwrap();
    }
}

/// A QEMU that has the disk open; the test writes in its guest's place.
struct Guest {
    qemu: Qemu,
}

impl Guest {
    fn start(disk: &Luks) -> Self {
        let file = disk::text(&disk.path);
        let options = format!(
            "driver=qcow2,node-name=d0,encrypt.format=luks,encrypt.key-secret=k,discard=unmap,\
             file.driver=file,file.filename={file}"
        );
        let object = disk.object();
        let device = "virtio-blk-pci,id=v0,drive=d0";
        let args = ["-object", &object, "-blockdev", &options, "-device", device];
        let qemu = Qemu::start(&args);
        Self { qemu }
    }

    async fn monitor(&self) -> QmpClient {
        self.qemu.connect().await.0
    }
}

async fn write(monitor: &QmpClient, disk: &mut Luks, at: usize, length: usize, shift: usize) {
    io(monitor, &disk.line(at, length, shift)).await;
    disk.model(at, length, shift);
}

async fn io(monitor: &QmpClient, line: &str) {
    let line = format!("qemu-io -d /machine/peripheral/v0/virtio-backend \"{line}\"");
    let arguments = json!({ "command-line": line });
    let told = monitor.execute("human-monitor-command", arguments).await;
    assert_eq!(told.unwrap().get(), "\"\"", "{line}");
}

/// What is left in QEMU of what it was given for backups.
async fn given_objects(monitor: &QmpClient) -> Vec<String> {
    let mut objects = monitor.objects().await.unwrap();
    objects.retain(|object| object.starts_with("infz-"));
    objects
}

#[tokio::test]
async fn b38_k3_a_stopped_machine_s_encrypted_disk_comes_back_link_by_link() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 4).await;
    disk.write(0, 2 << 20, 0);
    let spy = Spy::on(place.dir.path());
    let mut request = place.of_luks("FULL", &[&disk]);
    request["compression"] = json!("ZSTD");
    let full = place.back_up(request, Arc::new(Stopped)).await.unwrap();
    let mut links = vec![(full, disk.like(&disk.path))];
    for round in 1..5 {
        match round {
            2 => disk.grow(6).await,
            3 => disk.go_on_in(&place.path("over.qcow2")).await,
            _ => {}
        }
        disk.write(round << 19, 1 << 19, round);
        let parent = links[links.len() - 1].0.clone();
        let made = place.on_top(&[&disk], &parent, Arc::new(Stopped)).await;
        links.push((made.unwrap(), disk.like(&disk.path)));
    }
    spy.has_seen_nothing();
    disk.is_intact();
    for (backup, held) in &links {
        assert!(place.is_valid(backup).await, "verifying needs no key");
        place.comes_back_encrypted(backup, held).await;
        let told = &place.metadata(backup).await.unwrap()["disks"][0];
        assert_eq!(told["encrypted"], json!(true), "{told}");
    }
    // What has not changed is not stored: each has its LUKS header and half a megabyte of data.
    let told = place.metadata(&links[1].0).await.unwrap();
    assert!(told["totalSize"].as_u64().unwrap() < 4 << 20, "{told}");
}

#[tokio::test]
async fn b38_a_wrong_key_and_none_are_refused_before_anything_is_made() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 2).await;
    disk.write(0, 1 << 20, 0);
    let full = place
        .back_up(place.of_luks("FULL", &[&disk]), Arc::new(Stopped))
        .await
        .unwrap();
    let before = names_in(&place.root().join("vm-1"));
    let without = |kind, keys: Value| {
        let mut request = place.of_luks(kind, &[&disk]);
        request["diskKeys"] = keys;
        request
    };
    let wrong = || json!({ disk::text(&disk.path): "wrong" });
    for (kind, keys, code) in [
        ("FULL", Value::Null, ErrorCode::BackupKeyRequired),
        ("FULL", wrong(), ErrorCode::BackupAuthFailed),
        ("SNAPSHOT", Value::Null, ErrorCode::BackupKeyRequired),
    ] {
        let refusal = refused(
            place.back_up(without(kind, keys), Arc::new(Stopped)).await,
            code,
        );
        assert!(!refusal.to_string().contains("wrong"), "{refusal}");
    }
    let plain = place.disk("b.qcow2", 1);
    let mut request = place.request("FULL", &[&plain]);
    request["diskKeys"] = json!({ disk::text(&plain.path): KEY });
    refused(place.create(request).await, ErrorCode::BackupInvalidConfig);
    assert_eq!(names_in(&place.root().join("vm-1")), before);

    let target = place.path("restored.qcow2");
    for (key, code) in [
        (None, ErrorCode::BackupKeyRequired),
        (Some("wrong"), ErrorCode::BackupAuthFailed),
    ] {
        refused(place.bring_back(&full, &target, key).await, code);
        assert!(!target.exists());
    }
    assert_eq!(names_in(&place.root().join("vm-1")), before);
    assert_eq!(
        names_in(place.dir.path()),
        ["a.qcow2", "b.qcow2", "backups"]
    );
}

/// A machine whose owner has the keys.
struct Keeper(String);

#[async_trait]
impl Machine for Keeper {
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

    async fn disk_keys(&self) -> Result<infinization_core::config::DiskKeys, String> {
        Ok([(path(Path::new(&self.0)), key(KEY))].into())
    }
}

#[tokio::test]
async fn b38_the_machine_s_owner_is_asked_for_keys_and_gzip_leaves_encrypted_disks_alone() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 2).await;
    disk.write(0, 1 << 20, 0);
    let mut plain = place.disk("b.qcow2", 2);
    plain.write(0, 1 << 20, 7);
    let mut request = place.request("FULL", &[&plain]);
    request["diskPaths"] = json!([disk.path, plain.path]);
    request["diskFormats"] = json!(["qcow2", "qcow2"]);
    request["compression"] = json!("GZIP");
    let owner = || Arc::new(Keeper(disk::text(&disk.path).to_owned()));
    let made = place.back_up(request, owner()).await.unwrap();
    let expected = ["backup.json", "disk-0.qcow2", "disk-1.qcow2.gz"];
    assert_eq!(place.files(&made), expected);
    let targets = [place.path("x.qcow2"), place.path("y.qcow2")];
    let request = json!({ "vmId": "vm-1", "backupId": made, "diskPaths": targets });
    place.restore_with(request, owner()).await.unwrap();
    disk.like(&targets[0]).is_intact();
    disk::assert_holds(&targets[1], "qcow2", &plain.holds);
    assert_eq!(plain_text_below(place.dir.path()), None);
}

#[tokio::test]
async fn after_a_change_of_the_key_a_chain_begins_anew_and_the_old_key_opens_what_was() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 2).await;
    disk.write(0, 1 << 20, 0);
    let full = place
        .back_up(place.of_luks("FULL", &[&disk]), Arc::new(Stopped))
        .await
        .unwrap();
    let change = ChangeKey {
        old: key(KEY),
        new: key("another"),
        iter_time: QUICK,
    };
    change_key(&path(&disk.path), &change).await.unwrap();
    let mut now = Luks::at(&disk.path, 2, "another");
    now.holds = disk.holds.clone();
    now.write(1 << 20, 1 << 19, 1);
    let refusal = place.on_top(&[&now], &full, Arc::new(Stopped)).await;
    let refusal = refused(refusal, ErrorCode::BackupInvalidConfig);
    assert_eq!(refusal.context()["needsFull"], json!(true));
    let anew = place
        .back_up(place.of_luks("FULL", &[&now]), Arc::new(Stopped))
        .await
        .unwrap();
    place.comes_back_encrypted(&anew, &now).await;
    place.comes_back_encrypted(&full, &disk).await;
}

#[tokio::test]
async fn b38_k3_a_running_machine_s_encrypted_disk_is_copied_encrypted() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 4).await;
    disk.write(0, 2 << 20, 0);
    let guest = Guest::start(&disk);
    let monitor = guest.monitor().await;
    let machine = || -> Arc<dyn Machine> { Running::new(&monitor, Ok(None)) };
    let spy = Spy::on(place.dir.path());
    let mut request = place.of_luks("FULL", &[&disk]);
    request["compression"] = json!("QCOW2");
    let mut links = vec![(
        place.back_up(request, machine()).await.unwrap(),
        disk.like(&disk.path),
    )];
    for round in 1..5 {
        write(&monitor, &mut disk, round << 19, 1 << 19, round).await;
        let parent = links[links.len() - 1].0.clone();
        if round == 3 {
            // Without its bitmap everything is copied and compared.
            let bitmap = json!({ "node": "d0", "name": bitmap_of(&monitor).await });
            monitor
                .execute("block-dirty-bitmap-remove", bitmap)
                .await
                .unwrap();
        }
        let made = place.on_top(&[&disk], &parent, machine()).await.unwrap();
        links.push((made, disk.like(&disk.path)));
    }
    assert_eq!(given_objects(&monitor).await, Vec::<String>::new());
    let mut request = place.of_luks("FULL", &[&disk]);
    request["diskKeys"] = json!({ disk::text(&disk.path): "wrong" });
    refused(
        place.back_up(request, machine()).await,
        ErrorCode::BackupAuthFailed,
    );
    // Where it is said to be raw, nobody reads its header, but its QEMU knows.
    let mut request = place.of_luks("FULL", &[&disk]);
    request["diskKeys"] = Value::Null;
    request["diskFormats"] = json!(["raw"]);
    refused(
        place.back_up(request, machine()).await,
        ErrorCode::BackupPlainTextRefused,
    );
    spy.has_seen_nothing();
    // It is killed, and what it has not flushed is lost.
    io(&monitor, "flush").await;
    drop(guest);
    disk.is_intact();
    for (backup, held) in &links {
        assert!(place.is_valid(backup).await);
        place.comes_back_encrypted(backup, held).await;
    }
}

/// The one bitmap of ours.
async fn bitmap_of(monitor: &QmpClient) -> String {
    let layers = monitor.query_layers().await.unwrap();
    let mut bitmaps = layers.into_iter().flat_map(|layer| layer.bitmaps);
    bitmaps.find(|name| name.starts_with("infz-")).unwrap()
}

#[tokio::test]
async fn f22_a_killed_process_leaves_no_plain_text_and_the_previous_link() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 16).await;
    disk.write(0, 12 << 20, 0);
    let full = place
        .back_up(place.of_luks("FULL", &[&disk]), Arc::new(Stopped))
        .await
        .unwrap();
    let held = disk.like(&disk.path);
    disk.write(0, 8 << 20, 1);
    let spy = Spy::on(place.dir.path());
    let mut request = place.of_luks("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(full);
    for seen in ["backup.json", "disk-0.qcow2"] {
        let known = crashes::folders(&place);
        crashes::begin_and_kill(&place, &request, || crashes::has_new(&place, &known, seen));
        for one in place.list().await {
            let status = one["status"].as_str().unwrap();
            assert!(["COMPLETED", "FAILED"].contains(&status), "{one}");
        }
    }
    let target = place.path("b.qcow2");
    let request = json!({
        "vmId": "vm-1", "backupId": full, "diskPaths": [target],
        "diskKeys": { disk::text(&target): KEY },
    });
    let journal = place.root().join("vm-1/restore.json");
    let killed = crashes::begin_and_kill(&place, &request, || journal.exists());
    spy.has_seen_nothing();
    if killed && !target.exists() {
        place.comes_back_encrypted(&full, &held).await;
    }
    let next = place
        .on_top(&[&disk], &full, Arc::new(Stopped))
        .await
        .unwrap();
    place.comes_back_encrypted(&next, &disk).await;
    place.comes_back_encrypted(&full, &held).await;
    disk.is_intact();
}

#[tokio::test]
async fn f22_under_a_running_machine_the_next_backup_takes_back_what_a_killed_process_left() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 16).await;
    disk.write(0, 12 << 20, 0);
    let guest = Guest::start(&disk);
    let spy = Spy::on(place.dir.path());
    fs::create_dir_all(place.root().join("vm-1")).unwrap();
    let mut request = place.of_luks("FULL", &[&disk]);
    request["monitor"] = json!(guest.qemu.path("qmp"));
    for seen in ["backup.json", "disk-0.qcow2"] {
        let known = crashes::folders(&place);
        crashes::begin_and_kill(&place, &request, || crashes::has_new(&place, &known, seen));
    }
    let monitor = guest.monitor().await;
    let machine: Arc<dyn Machine> = Running::new(&monitor, Ok(None));
    let made = place
        .back_up(place.of_luks("FULL", &[&disk]), machine)
        .await
        .unwrap();
    assert_eq!(given_objects(&monitor).await, Vec::<String>::new());
    spy.has_seen_nothing();
    drop(guest);
    place.comes_back_encrypted(&made, &disk).await;
    disk.is_intact();
}

#[tokio::test]
async fn f19_a_qemu_that_dies_while_it_copies_leaves_disk_and_backups_encrypted_and_whole() {
    let place = Place::new();
    let mut disk = place.luks("a.qcow2", 32).await;
    disk.write(0, 28 << 20, 0);
    let guest = Guest::start(&disk);
    let monitor = guest.monitor().await;
    let machine: Arc<dyn Machine> = Running::new(&monitor, Ok(None));
    let spy = Spy::on(place.dir.path());
    let dies = async {
        // There is no event for the first bytes of a file that QEMU writes.
        while !crashes::has_new(&place, &[], "disk-0.qcow2") {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        guest.qemu.signal(nix::sys::signal::Signal::SIGKILL);
    };
    fs::create_dir_all(place.root().join("vm-1")).unwrap();
    let backing_up = place.back_up(place.of_luks("FULL", &[&disk]), machine);
    let (made, ()) = tokio::join!(backing_up, dies);
    made.unwrap_err();
    spy.has_seen_nothing();
    drop(guest);
    disk.is_intact();
    let made = place
        .back_up(place.of_luks("FULL", &[&disk]), Arc::new(Stopped))
        .await
        .unwrap();
    place.comes_back_encrypted(&made, &disk).await;
}
