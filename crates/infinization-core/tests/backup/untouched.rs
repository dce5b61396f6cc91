//! Incremental backups of stopped machines whose disks may not have been written to since the parent.

use std::fs::{File, FileTimes};

use super::*;

impl Place {
    fn image(&self, backup: &str) -> PathBuf {
        let folder = self.root().join("vm-1").join(backup);
        folder.join("disk-0.qcow2")
    }

    /// Has the backup differ from the disk: whoever compares them finds that, nobody else does.
    fn spoil(&self, backup: &str) {
        let (image, length) = (self.image(backup), || {
            fs::metadata(self.image(backup)).unwrap().len()
        });
        let before = length();
        let write = ["-f", "qcow2", "-c", "write -P 99 0 65536"];
        disk::run("qemu-io", &[&write[..], &[disk::text(&image)]].concat());
        assert_eq!(length(), before, "its length would be noticed");
    }

    fn holds_nothing(&self, backup: &str) -> bool {
        let image = self.image(backup);
        let told = disk::run(
            "qemu-img",
            &["map", "--output=json", "-f", "qcow2", disk::text(&image)],
        );
        let extents: Vec<Value> = serde_json::from_str(&told).unwrap();
        assert!(!extents.is_empty());
        let mut own = extents.iter().filter(|extent| extent["depth"] == json!(0));
        own.all(|extent| extent["present"] != json!(true))
    }

    fn manifest(&self, backup: &str) -> PathBuf {
        let folder = self.root().join("vm-1").join(backup);
        folder.join("backup.json")
    }

    fn source_state(&self, backup: &str) -> Value {
        let manifest = fs::read(self.manifest(backup)).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["disks"][0]["sourceState"].clone()
    }
}

/// An overlay on a template, both with content.
fn disk_on_base(place: &Place) -> (Disk, Disk) {
    let mut base = place.disk("base.qcow2", 2);
    base.write(0, 1 << 20, 1);
    let mut disk = base.overlay(&place.path("a.qcow2"));
    disk.write(0, 1 << 16, 2);
    (base, disk)
}

#[tokio::test]
async fn an_untouched_disk_is_not_read_again() {
    for compression in ["NONE", "QCOW2", "ZSTD"] {
        let place = Place::on_disk();
        let (_base, disk) = disk_on_base(&place);
        let full = place.full(&[&disk]).await;
        place.spoil(&full);
        let mut parent = full;
        for _ in 0..2 {
            let mut request = place.request("INCREMENTAL", &[&disk]);
            request["compression"] = json!(compression);
            request["parentBackupId"] = json!(parent);
            let next = id(&place.create(request).await.unwrap());
            assert!(place.holds_nothing(&next), "{compression}");
            parent = next;
        }
        let facts = place.metadata(&parent).await.unwrap();
        assert_eq!(facts["disks"][0].get("sourceState"), None, "not public");
    }
}

#[tokio::test]
async fn an_untouched_disk_comes_back_from_its_empty_increment() {
    let place = Place::on_disk();
    let (_base, mut disk) = disk_on_base(&place);
    let full = place.full(&[&disk]).await;
    let next = place.incremental(&[&disk], &full).await;
    assert!(place.holds_nothing(&next));
    assert!(place.is_valid(&next).await);
    place.comes_back(&next, &disk.holds).await;
    let held = disk.holds.clone();
    disk.write(1 << 19, 100, 7);
    let last = place.incremental(&[&disk], &next).await;
    assert!(!place.holds_nothing(&last));
    place.comes_back(&last, &disk.holds).await;
    place.comes_back(&next, &held).await;
}

#[tokio::test]
async fn k1_whoever_wrote_and_however_is_noticed() {
    type Write = fn(&Place, &mut Disk, &mut Disk);
    let ways: [(&str, Write); 5] = [
        ("to the disk", |_, _, disk| disk.write(0, 10, 3)),
        ("and set the time back", |_, _, disk| {
            let modified = fs::metadata(&disk.path).unwrap().modified().unwrap();
            disk.write(0, 10, 3);
            let file = File::options().write(true).open(&disk.path).unwrap();
            let times = FileTimes::new().set_modified(modified);
            file.set_times(times).unwrap();
        }),
        ("to what the disk lies on", |_, base, disk| {
            base.write(1 << 18, 10, 3);
            disk.model(1 << 18, 10, 3);
        }),
        ("another file in its place", |place, _, disk| {
            let other = place.path("other.qcow2");
            fs::copy(&disk.path, &other).unwrap();
            fs::rename(&other, &disk.path).unwrap();
            disk.write(0, 10, 3);
        }),
        ("its size alone", |_, _, disk| disk.resize(3)),
    ];
    for (way, write) in ways {
        let place = Place::on_disk();
        let (mut base, mut disk) = disk_on_base(&place);
        let full = place.full(&[&disk]).await;
        assert_ne!(place.source_state(&full), Value::Null);
        write(&place, &mut base, &mut disk);
        let next = place.incremental(&[&disk], &full).await;
        place.comes_back(&next, &disk.holds).await;
        assert_eq!(place.holds_nothing(&next), way == "its size alone", "{way}");
    }
}

/// What a disk holds is another matter when it is read as another format.
#[tokio::test]
async fn a_parent_of_another_format_is_compared() {
    let place = Place::on_disk();
    let (_base, disk) = disk_on_base(&place);
    let mut mistaken = place.request("FULL", &[&disk]);
    mistaken["diskFormats"] = json!(["raw"]);
    let full = id(&place.create(mistaken).await.unwrap());
    assert_ne!(place.source_state(&full), Value::Null);
    let next = place.incremental(&[&disk], &full).await;
    place.comes_back(&next, &disk.holds).await;
}

/// A raw disk's content is its guest's, who may write there what looks like a header.
#[tokio::test]
async fn a_raw_disk_lies_on_nothing() {
    let place = Place::on_disk();
    let (_base, overlay) = disk_on_base(&place);
    let mut disk = Disk::raw(&place.path("a.raw"), 1);
    let header = fs::read(&overlay.path).unwrap();
    disk.holds[..header.len()].copy_from_slice(&header);
    fs::write(&disk.path, &disk.holds).unwrap();
    let full = place.full(&[&disk]).await;
    let files = &place.source_state(&full)["files"];
    assert_eq!(files.as_array().unwrap().len(), 1, "{files}");
}

#[tokio::test]
async fn a_disk_is_compared_where_its_time_tells_nothing() {
    type Forget = fn(&mut Value);
    let table: [(&str, Forget); 3] = [
        ("another boot", |state| state["bootId"] = json!("another")),
        ("an older release", |state| *state = Value::Null),
        ("another file system", |state| {
            state["files"][1]["device"] = json!(7);
        }),
    ];
    for (why, forget) in table {
        let place = Place::on_disk();
        let (_base, disk) = disk_on_base(&place);
        let full = place.full(&[&disk]).await;
        let bytes = fs::read(place.manifest(&full)).unwrap();
        let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
        forget(&mut manifest["disks"][0]["sourceState"]);
        fs::write(place.manifest(&full), manifest.to_string()).unwrap();
        place.spoil(&full);
        let next = place.incremental(&[&disk], &full).await;
        assert!(!place.holds_nothing(&next), "{why}");
        assert_ne!(place.source_state(&next), Value::Null, "{why}");
    }
}
