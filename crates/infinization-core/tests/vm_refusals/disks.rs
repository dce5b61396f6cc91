//! Disks that cannot be run on, and disks that somebody else has.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::*;

/// A server that has an image open.
async fn holding(host: &Host, image: &Path, options: &[&str]) -> NbdServer {
    let socket = format!("--socket={}", host.path().join("nbd").display());
    let held = ["--format=qcow2", &socket];
    NbdServer::start(host, image, &[&held, options].concat()).await
}

async fn lets_go(nbd: NbdServer, host: &Host) {
    nbd.end().await;
    fs::remove_file(host.path().join("nbd")).unwrap();
}

fn disk_of(host: &Host, vm_id: &str) -> PathBuf {
    host.state_dir().join(format!("disks/{vm_id}.qcow2"))
}

fn names_holder(failure: &Failure, nbd: &NbdServer) {
    assert_eq!(failure.code(), ErrorCode::DiskError, "{failure}");
    let cause = failure.inner().unwrap();
    assert_eq!(cause.code(), ErrorCode::ImageInUse);
    let holder = json!({ "pid": nbd.pid(), "name": "qemu-nbd" });
    assert_eq!(cause.context()["holder"], holder);
}

#[test]
fn f20_a_disk_that_somebody_else_has_is_not_started() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        stopped(&host, &manager, "held-1").await;
        let disk = disk_of(&host, "held-1");
        let nbd = holding(&host, &disk, &[]).await;
        let failure = not_started(&host, &manager, "held-1").await;
        names_holder(&failure, &nbd);
        assert_eq!(fields(&failure), [("disks[0]", "DISK_ERROR")]);
        lets_go(nbd, &host).await;
        // A reader forbids it too: it would see the disk change.
        let nbd = holding(&host, &disk, &["--read-only"]).await;
        names_holder(&not_started(&host, &manager, "held-1").await, &nbd);
        lets_go(nbd, &host).await;
        start(&manager, "held-1").await.unwrap();
        delete(&manager, "held-1").await;
        host.is_clean().await;
    });
}

#[test]
fn f20_a_backing_file_is_shared_by_readers_alone() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        stopped(&host, &manager, "base-1").await;
        // Of a machine's own disk no clone is made: it is written to.
        let base = host.path().join("golden.qcow2");
        fs::copy(disk_of(&host, "base-1"), &base).unwrap();
        let clone = |vm_id: &str, port: u16| {
            let mut machine = host.machine(vm_id);
            machine["disks"] = json!([{ "sizeGB": 1, "backingFile": base }]);
            machine["displayPort"] = json!(port);
            machine
        };
        let nbd = holding(&host, &base, &[]).await;
        let failure = refused(&host, &manager, clone("clone-1", 5901)).await;
        names_holder(&failure, &nbd);
        assert_eq!(fields(&failure), [("disks[0].backingFile", "DISK_ERROR")]);
        lets_go(nbd, &host).await;

        let nbd = holding(&host, &base, &["--read-only"]).await;
        for (vm_id, port) in [("clone-1", 5901), ("clone-2", 5902)] {
            let machine = clone(vm_id, port);
            manager.create_vm(machine, never()).await.unwrap();
        }
        lets_go(nbd, &host).await;
        manager
            .stop_vm("clone-1".into(), forced(), never())
            .await
            .unwrap();
        start(&manager, "clone-1").await.unwrap();
        // Two machines stand on it: it may not change below them.
        host.claim_disks("base-1", std::slice::from_ref(&base));
        let failure = not_started(&host, &manager, "base-1").await;
        assert!(failure.has(ErrorCode::ImageInUse), "{failure:?}");
        host.claim_disks("base-1", &[disk_of(&host, "base-1")]);

        delete(&manager, "clone-2").await;
        manager
            .stop_vm("clone-1".into(), forced(), never())
            .await
            .unwrap();
        let nbd = holding(&host, &base, &[]).await;
        let failure = not_started(&host, &manager, "clone-1").await;
        assert_eq!(failure.inner().unwrap().code(), ErrorCode::ImageInUse);
        lets_go(nbd, &host).await;
        for vm_id in ["clone-1", "base-1"] {
            delete(&manager, vm_id).await;
        }
        fs::remove_file(base).unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b9_a_disk_that_is_not_whole_is_not_started() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        stopped(&host, &manager, "torn-1").await;
        let disk = disk_of(&host, "torn-1");
        let whole = fs::read(&disk).unwrap();
        let damage: [(&str, u64, &[u8], ErrorCode); 6] = [
            ("another magic", 0, b"nope", ErrorCode::InvalidFormat),
            ("encrypted", 32, &[0, 0, 0, 1], ErrorCode::InvalidFormat),
            ("unknown feature", 72, &[0x80], ErrorCode::InvalidFormat),
            ("marked dirty", 79, &[1], ErrorCode::ImageCorrupt),
            ("marked corrupt", 79, &[2], ErrorCode::ImageCorrupt),
            (
                "a level 1 table elsewhere",
                40,
                &[0x70],
                ErrorCode::ImageCorrupt,
            ),
        ];
        for (what, offset, bytes, code) in damage {
            let file = OpenOptions::new().write(true).open(&disk).unwrap();
            file.write_all_at(bytes, offset).unwrap();
            let failure = not_started(&host, &manager, "torn-1").await;
            is_about_the_disk(&failure, code, what);
            fs::write(&disk, &whole).unwrap();
        }
        for length in [0, 60, 1000, 70_000] {
            let file = OpenOptions::new().write(true).open(&disk).unwrap();
            file.set_len(length).unwrap();
            let failure = not_started(&host, &manager, "torn-1").await;
            let code = failure.inner().unwrap().code();
            let codes = [ErrorCode::ImageCorrupt, ErrorCode::InvalidFormat];
            assert!(codes.contains(&code), "{length}: {failure:?}");
            is_about_the_disk(&failure, code, "truncated");
            fs::write(&disk, &whole).unwrap();
        }
        fs::remove_file(&disk).unwrap();
        let failure = not_started(&host, &manager, "torn-1").await;
        assert_eq!(fields(&failure), [("disks[0]", "DISK_ERROR")]);
        fs::write(&disk, &whole).unwrap();
        start(&manager, "torn-1").await.unwrap();
        delete(&manager, "torn-1").await;
        host.is_clean().await;
    });
}

fn is_about_the_disk(failure: &Failure, cause: ErrorCode, what: &str) {
    assert_eq!(failure.code(), ErrorCode::DiskError, "{what}: {failure}");
    assert_eq!(failure.inner().unwrap().code(), cause, "{what}");
    assert_eq!(fields(failure), [("disks[0]", "DISK_ERROR")], "{what}");
}
