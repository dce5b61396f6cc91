//! Volumes that come and go as bytes, copies with progress, and who has a volume by his row alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use infinization_core::ErrorCode::{
    ChecksumMismatch, ImageCorrupt, InvalidFormat, InvalidSize, UnsafeBackingFile,
};
use infinization_core::manager::{Manager, VolumeUpload};
use infinization_core::storage::Progress;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::machine::{Host, create, delete, forced, never};
use kit::small_disk::SmallDisk;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const MIB: u64 = 1 << 20;
/// What a row of a test may have been left as, and nothing of ours.
const NOBODY: &str = "00000000000000000000000000000000";

async fn pool_at(manager: &Manager, path: &Path) {
    let options = json!({ "path": path, "create": true });
    manager.define_pool("p".into(), options).await.unwrap();
}

async fn pool(host: &Host, manager: &Manager) -> PathBuf {
    let path = host.path().canonicalize().unwrap().join("p");
    pool_at(manager, &path).await;
    path
}

async fn begin(manager: &Manager, name: &str, options: Value) -> Result<VolumeUpload, Failure> {
    let (pool, name) = ("p".to_owned(), name.to_owned());
    manager.upload_volume(pool, name, options, never()).await
}

/// Everything at once, in pieces of a length that fits nothing.
async fn upload(
    manager: &Manager,
    name: &str,
    bytes: &[u8],
    options: Value,
) -> Result<Value, Failure> {
    let upload = begin(manager, name, options).await?;
    for piece in bytes.chunks(100_001) {
        upload.write(piece.to_vec()).await?;
    }
    upload.finish().await
}

async fn download(manager: &Manager, name: &str) -> Result<Vec<u8>, Failure> {
    let (pool, name) = ("p".to_owned(), name.to_owned());
    let download = manager.download_volume(pool, name, json!({}), never());
    let download = download.await?;
    let size = download.facts()["size"].as_u64().unwrap();
    let mut bytes = Vec::new();
    loop {
        let piece = download.read().await?;
        if piece.is_empty() {
            assert_eq!(bytes.len() as u64, size, "the size was said beforehand");
            return Ok(bytes);
        }
        assert!(piece.len() as u64 <= MIB);
        bytes.extend(piece);
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {words}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A qcow2 with data in it.
fn image(at: &Path) -> Vec<u8> {
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(at), "8M"]);
    run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 7 1M 300k", text(at)],
    );
    fs::read(at).unwrap()
}

fn sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02X}"))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_uploaded_is_what_is_downloaded() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager).await;
        let qcow2 = image(&host.path().join("given.qcow2"));
        let said = json!({ "format": "qcow2", "size": qcow2.len(), "sha256": sum(&qcow2) });
        let made = upload(&manager, "a.qcow2", &qcow2, said).await.unwrap();
        assert_eq!(
            (&made["capacity"], &made["format"]),
            (&json!(8 * MIB), &json!("qcow2"))
        );
        assert_eq!(download(&manager, "a.qcow2").await.unwrap(), qcow2);

        // Zeros take no room, at the end neither.
        let mut raw = vec![0; 4 << 20];
        raw[70_000..70_512].fill(9);
        let made = upload(&manager, "a.raw", &raw, json!({})).await.unwrap();
        assert_eq!(made["capacity"], json!(4 * MIB));
        assert!(made["allocation"].as_u64().unwrap() < MIB, "{made}");
        assert_eq!(download(&manager, "a.raw").await.unwrap(), raw);
        assert_eq!(names(&path), ["a.qcow2", "a.raw"]);
        let mode = fs::metadata(path.join("a.raw")).unwrap().permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o600
        );
    });
}

/// What is wrong with it, name, bytes, options, and the refusal.
type Given = (&'static str, &'static str, Vec<u8>, Value, ErrorCode);

/// Bytes that are not what they are said to be, or that would have QEMU open files of this host.
fn hostile(dir: &Path) -> Vec<Given> {
    let good = image(&dir.join("good.qcow2"));
    let made = |name: &str, args: &[&str]| {
        let at = dir.join(name);
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        all.extend(args);
        all.extend([text(&at), "8M"]);
        run("qemu-img", &all);
        fs::read(at).unwrap()
    };
    let backed = made("backed", &["-u", "-b", "/etc/passwd", "-F", "raw"]);
    let data_file = format!("data_file={},data_file_raw=on", text(&dir.join("data")));
    let elsewhere = made("elsewhere", &["-o", &data_file]);
    let mut encrypted = good.clone();
    encrypted[32..36].copy_from_slice(&2_u32.to_be_bytes());
    let mut forged = good.clone();
    forged[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut unknown = good.clone();
    unknown[72] = 0x80;
    let mut torn = good.clone();
    torn[64 << 10..(64 << 10) + 8].fill(0);
    let cut = good[..good.len() / 2].to_vec();
    let none = || json!({});
    let qcow2 = |what, bytes, code| (what, "x.qcow2", bytes, none(), code);
    let raw = |what, bytes, code| (what, "x.raw", bytes, none(), code);
    let said = |what, options, code| (what, "x.qcow2", good.clone(), options, code);
    let length = good.len();
    vec![
        qcow2("B7 a backing file", backed, UnsafeBackingFile),
        qcow2("B7 a data file", elsewhere, UnsafeBackingFile),
        raw("B8 qcow2 as raw", good.clone(), InvalidFormat),
        qcow2("B9 encrypted", encrypted, InvalidFormat),
        qcow2("B9 tables of 32 GiB", forged, ImageCorrupt),
        qcow2("B9 an unknown feature", unknown, InvalidFormat),
        qcow2("B9 no refcounts", torn, ImageCorrupt),
        qcow2("B9 truncated", cut, ImageCorrupt),
        qcow2("B9 no qcow2", vec![1; 4096], InvalidFormat),
        raw("B10 nothing", Vec::new(), InvalidSize),
        raw("B10 no whole sectors", vec![1; 513], InvalidSize),
        said("more", json!({ "size": length - 1 }), InvalidSize),
        said("fewer", json!({ "size": length + 1 }), InvalidSize),
        said(
            "other bytes",
            json!({ "sha256": sum(b"other") }),
            ChecksumMismatch,
        ),
    ]
}

#[test]
fn b7_b8_b9_b10_what_it_is_not_is_refused_and_leaves_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager).await;
        for (what, name, bytes, options, code) in hostile(host.path()) {
            let refused = upload(&manager, name, &bytes, options).await;
            let refused = refused.expect_err(what);
            assert_eq!(refused.code(), code, "{what}: {refused}");
            assert!(!refused.to_string().contains("partial"), "{refused}");
            assert_eq!(names(&path), Vec::<String>::new(), "{what}");
        }
        for (name, options) in [
            ("../x.raw", json!({})),
            ("x.raw", json!({ "format": "qcow2" })),
            ("x.raw", json!({ "size": -1 })),
            ("x.raw", json!({ "sha256": "1" })),
        ] {
            let refused = begin(&manager, name, options).await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::InvalidConfig);
        }
    });
}

#[test]
fn s4_an_upload_that_ends_early_leaves_nothing_and_replaces_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager).await;
        let cancel = CancellationToken::new();
        let (p, name) = ("p".to_owned(), "x.raw".to_owned());
        let upload_it = manager.upload_volume(p, name, json!({}), cancel.clone());
        let aborted = upload_it.await.unwrap();
        aborted.write(vec![1; 512]).await.unwrap();
        assert_eq!(names(&path).len(), 1);
        cancel.cancel();
        let refused = aborted.finish().await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::StorageAborted);
        empty(&path).await;

        let dropped = begin(&manager, "x.raw", json!({})).await.unwrap();
        drop(dropped);
        empty(&path).await;

        // Whoever comes second, even in between, finds the name taken.
        let (one, two) = (
            begin(&manager, "x.raw", json!({})).await.unwrap(),
            begin(&manager, "x.raw", json!({})).await.unwrap(),
        );
        one.write(vec![1; 512]).await.unwrap();
        two.write(vec![2; 512]).await.unwrap();
        one.finish().await.unwrap();
        let taken = two.finish().await.unwrap_err();
        assert_eq!(taken.code(), ErrorCode::ImageAlreadyExists);
        let taken = begin(&manager, "x.raw", json!({})).await.unwrap_err();
        assert_eq!(taken.code(), ErrorCode::ImageAlreadyExists);
        assert_eq!(fs::read(path.join("x.raw")).unwrap(), vec![1; 512]);
        assert_eq!(names(&path), ["x.raw"]);
        fs::remove_file(path.join("x.raw")).unwrap();

        let closed = begin(&manager, "x.raw", json!({})).await.unwrap();
        closed.write(vec![1; 512]).await.unwrap();
        manager.shutdown().await.unwrap();
        assert_eq!(names(&path), Vec::<String>::new());
        let over = closed.write(vec![1; 512]).await.unwrap_err();
        assert_eq!(over.code(), ErrorCode::Closed);
    });
}

/// A shutdown that comes when the volume has its name waits until that is told.
#[test]
fn an_upload_that_is_finishing_is_told_of_before_the_instance_closes() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let mut manager = host.manager().await;
        let path = pool(&host, &manager).await;
        for round in 0..5 {
            let name = format!("{round}.raw");
            let said = json!({ "format": "raw" });
            let upload = begin(&manager, &name, said).await.unwrap();
            upload.write(vec![1; 4096]).await.unwrap();
            let shut = async {
                while !path.join(&name).exists() {
                    tokio::task::yield_now().await;
                }
                manager.shutdown().await.unwrap();
            };
            let (finished, ()) = tokio::join!(upload.finish(), shut);
            assert_eq!(finished.unwrap()["capacity"], json!(4096));
            drop(upload);
            manager = host.manager().await;
        }
    });
}

/// What is let go is let go behind the call.
async fn empty(directory: &Path) {
    let emptied = async {
        while !names(directory).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(kit::machine::PATIENCE, emptied).await;
    assert!(waited.is_ok(), "left: {:?}", names(directory));
}

#[test]
fn f19_a_full_disk_takes_no_volume_and_keeps_none() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disk = SmallDisk::new(1024);
        pool_at(&manager, disk.path()).await;
        let full = upload(&manager, "x.raw", &vec![1; 4 << 20], json!({})).await;
        assert_eq!(full.unwrap_err().code(), ErrorCode::InsufficientSpace);
        assert_eq!(names(disk.path()), Vec::<String>::new());
        // Zeros take no room.
        upload(&manager, "x.raw", &vec![0; 4 << 20], json!({}))
            .await
            .unwrap();
        upload(&manager, "y.raw", &vec![1; 64 << 10], json!({}))
            .await
            .unwrap();
        manager.undefine_pool("p".into()).await.unwrap();
    });
}

#[test]
fn a_download_keeps_the_volume_as_it_is() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "downloaded-1";
        create(&host, &manager, vm).await;
        let disks = host.state_dir().canonicalize().unwrap().join("disks");
        pool_at(&manager, &disks).await;
        let name = format!("{vm}.qcow2");
        let running = download(&manager, &name).await.unwrap_err();
        assert_eq!(running.code(), ErrorCode::ImageInUse);
        manager.stop_vm(vm.into(), forced(), never()).await.unwrap();

        let (p, n) = ("p".to_owned(), name.clone());
        let reading = manager.download_volume(p, n, json!({}), never());
        let reading = reading.await.unwrap();
        assert!(!reading.read().await.unwrap().is_empty());
        let start = async || manager.start_vm(vm.into(), Value::Null, never()).await;
        let refused = start().await.unwrap_err();
        assert!(refused.has(ErrorCode::ImageInUse), "{refused}");
        let resized = json!({ "capacity": 2048 * MIB });
        let resized = manager
            .resize_volume("p".into(), name.clone(), resized)
            .await;
        assert_eq!(resized.unwrap_err().code(), ErrorCode::ImageInUse);
        // Readers do not mind each other.
        assert_eq!(
            download(&manager, &name).await.unwrap(),
            fs::read(disks.join(&name)).unwrap()
        );
        reading.close().await;
        start().await.unwrap();
        delete(&manager, vm).await;

        let base = disks.join("base.qcow2");
        fs::write(&base, image(&host.path().join("b"))).unwrap();
        let linked = json!({ "source": "base.qcow2", "name": "thin.qcow2", "linked": true });
        let cloned = manager.clone_volume("p".into(), linked, never(), None);
        cloned.await.unwrap();
        let thin = download(&manager, "thin.qcow2").await.unwrap_err();
        assert_eq!(thin.code(), ErrorCode::InvalidFormat);
    });
}

#[test]
fn copies_tell_how_far_they_are_and_end_when_they_are_told_to() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager).await;
        let data: Vec<u8> = (0..32_u64 << 20)
            .map(|at| (at >> 9).to_le_bytes()[0] | 1)
            .collect();
        upload(&manager, "a.raw", &data, json!({})).await.unwrap();
        let (teller, heard) = watch::channel(Progress::default());
        let options = json!({ "source": "a.raw", "name": "b.qcow2", "compress": true });
        let made = manager.convert_volume("p".into(), options, never(), Some(teller.clone()));
        let made = made.await.unwrap();
        assert!(made["allocation"].as_u64().unwrap() < 8 * MIB, "{made}");
        let told = *heard.borrow();
        assert_eq!(
            (told.bytes.as_bytes(), told.total.as_bytes()),
            (32 * MIB, 32 * MIB)
        );
        let back = json!({ "source": "b.qcow2", "name": "c.img" });
        let back = manager.clone_volume("p".into(), back, never(), Some(teller.clone()));
        back.await.unwrap();
        assert!(fs::read(path.join("c.img")).unwrap() == data);

        let raw = json!({ "source": "a.raw", "name": "x.raw", "compress": true });
        let raw = manager.convert_volume("p".into(), raw, never(), None).await;
        assert_eq!(raw.unwrap_err().code(), ErrorCode::InvalidFormat);
        let before = names(&path);
        let cancel = CancellationToken::new();
        let options = json!({ "source": "a.raw", "name": "x.qcow2", "compress": true });
        let copy = manager.convert_volume("p".into(), options, cancel.clone(), Some(teller));
        let mut heard = heard.clone();
        heard.mark_unchanged();
        let stop = async {
            let _first = heard.changed().await;
            cancel.cancel();
        };
        let (copied, ()) = tokio::join!(copy, stop);
        assert_eq!(copied.unwrap_err().code(), ErrorCode::StorageAborted);
        assert_eq!(names(&path), before);
    });
}

#[test]
fn who_has_a_volume_by_his_row_alone_keeps_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "row-alone-1";
        let path = pool(&host, &manager).await;
        for name in ["mine.qcow2", "golden.qcow2"] {
            let options = json!({ "name": name, "capacity": 8 * MIB });
            let made = manager.create_volume("p".into(), options, never());
            made.await.unwrap();
        }
        create(&host, &manager, vm).await;
        manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
        let own = host.state_dir().join(format!("disks/{vm}.qcow2"));
        host.claim_disks(vm, &[own.clone(), path.join("mine.qcow2")]);

        let listed = manager.list_volumes("p".into()).await.unwrap();
        let users: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["usedBy"])
            .collect();
        assert_eq!(users, [&json!([]), &json!([vm])]);
        let kept = manager.delete_volume("p".into(), "mine.qcow2".into()).await;
        let kept = kept.unwrap_err();
        assert_eq!(
            (kept.code(), &kept.context()["users"]),
            (ErrorCode::ImageInUse, &json!([vm]))
        );
        let linked = json!({ "source": "mine.qcow2", "name": "l.qcow2", "linked": true });
        let linked = manager
            .clone_volume("p".into(), linked, never(), None)
            .await;
        assert_eq!(linked.unwrap_err().context()["users"], json!([vm]));

        // Nor does another machine's disk lie on what a machine writes to, at any depth.
        let over = path.join("over.qcow2");
        let mine = path.join("mine.qcow2");
        let create = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            text(&mine),
            text(&over),
        ];
        run("qemu-img", &create);
        for backing in [&mine, &over, &own] {
            let mut machine = host.machine("row-alone-2");
            machine["disks"] = json!([{ "sizeGB": 1, "backingFile": backing }]);
            let planned = manager.plan_vm(machine.clone()).await.unwrap_err();
            let refused = manager.create_vm(machine, never()).await.unwrap_err();
            for refused in [planned, refused] {
                assert!(refused.has(ErrorCode::ImageInUse), "{refused:?}");
                assert!(refused.has(ErrorCode::DiskError), "{refused:?}");
            }
        }
        let mut machine = host.machine("row-alone-2");
        let golden = path.join("golden.qcow2");
        machine["disks"] = json!([{ "sizeGB": 1, "backingFile": golden }]);
        manager.create_vm(machine, never()).await.unwrap();
        delete(&manager, "row-alone-2").await;

        fs::remove_file(&over).unwrap();
        host.claim_disks(vm, &[own]);
        let deleted = manager.delete_volume("p".into(), "mine.qcow2".into());
        deleted.await.unwrap();
        delete(&manager, vm).await;
    });
}

#[test]
fn f9_what_a_killed_process_left_in_a_pool_is_swept_and_what_is_being_made_is_not() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let path = pool(&host, &manager).await;
        manager.shutdown().await.unwrap();
        let left = path.join(format!(".a.qcow2.{NOBODY}.partial"));
        fs::write(&left, "half").unwrap();
        fs::write(path.join(".mine.partial"), "theirs").unwrap();
        // Another state directory has the same pool, and is at work in it.
        let mut settings = host.settings();
        settings["stateDir"] = json!(host.path().join("other"));
        let others = Manager::new(settings);
        others.initialize().await.unwrap();
        pool_at(&others, &path).await;
        let upload = begin(&others, "x.raw", json!({})).await.unwrap();
        upload.write(vec![1; 512]).await.unwrap();
        fs::write(&left, "half").unwrap();

        let manager = host.manager().await;
        assert!(!left.exists());
        upload.finish().await.unwrap();
        assert_eq!(names(&path), [".mine.partial", "x.raw"]);
        manager.shutdown().await.unwrap();
    });
}
