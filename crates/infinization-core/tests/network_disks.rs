//! Disks on the network: real NBD servers under a real QEMU, and a cluster that is not there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use infinization_core::host::block_driver;
use infinization_core::manager::Manager;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit::{self as kit, nbd};
use kit::machine::{Host, delete, forced, never};
use nbd::NbdServer;
use serde_json::{Value, json};

const SIZE: u64 = 64 << 20;

/// Serves an image as the export `disk`.
async fn serving(host: &Host, image: &Path, options: &[&str]) -> NbdServer {
    let export = ["--export-name=disk", "--shared=2"];
    NbdServer::start(host, image, &[&export, options].concat()).await
}

/// A raw image, with a size.
fn raw_image(host: &Host) -> PathBuf {
    let path = host.path().join("disk.raw");
    let file = fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    path
}

/// An overlay on the tiny guest's image.
fn tiny_image(host: &Host) -> PathBuf {
    let tiny = kit::guest_dir().join("tiny.qcow2").canonicalize().unwrap();
    let path = host.path().join("tiny.qcow2");
    let mut program = std::process::Command::new("qemu-img");
    let made = program.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
    assert!(made.arg(tiny).arg(&path).status().unwrap().success());
    path
}

fn on_disks(host: &Host, vm: &str, disks: Value) -> Value {
    let mut machine = host.machine(vm);
    machine["disks"] = disks;
    machine
}

fn issue(failure: &Failure) -> (&str, &str) {
    let issues = failure.chain().find_map(|it| it.context().get("issues"));
    let issue = &issues.unwrap_or_else(|| panic!("no field is named: {failure:?}"))[0];
    (
        issue["path"].as_str().unwrap(),
        issue["code"].as_str().unwrap(),
    )
}

/// Asserts that neither a plan nor a create is made of it, and that nothing is left.
async fn refused(host: &Host, manager: &Manager, location: &Value) -> Failure {
    let before = host.files();
    let machine = on_disks(host, "refused-1", json!([{ "location": location }]));
    manager.plan_vm(machine.clone()).await.unwrap_err();
    let refused = manager.create_vm(machine, never()).await.unwrap_err();
    assert_eq!(host.files(), before, "{refused}");
    assert_eq!(host.links().await, Vec::<String>::new(), "{refused}");
    assert!(manager.get_vm("refused-1".into()).await.unwrap().is_null());
    refused
}

#[test]
fn a_guest_boots_from_an_nbd_export() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "nbd-boot-1";
        let disk = tiny_image(&host);
        let socket = host.path().canonicalize().unwrap().join("nbd.sock");
        let at = format!("--socket={}", socket.display());
        let server = serving(&host, &disk, &["--format=qcow2", &at]).await;
        let mut machine = host.tiny_guest(vm);
        let location = json!({ "type": "nbd", "path": socket, "export": "disk" });
        machine["disks"] = json!([{ "location": location }, { "sizeGB": 1 }]);
        let plan = manager.plan_vm(machine.clone()).await.unwrap().to_string();
        assert!(plan.contains(r#"\"driver\":\"nbd\""#), "{plan}");
        let made = plan.matches("\"createDisk\"").count();
        assert_eq!(made, 1, "only the file is made: {plan}");
        let created = manager.create_vm(machine, never()).await.unwrap();
        let text = format!("nbd+unix:///disk?socket={}", socket.display());
        assert_eq!(created["diskPaths"][0], json!(text));
        host.console_says(vm, "INFZ-READY", 1).await;

        no_snapshots(&manager, vm).await;
        manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
        // A start finds the location by the row's text and the spec.
        let again = manager.start_vm(vm.into(), Value::Null, never()).await;
        again.unwrap();
        host.console_says(vm, "INFZ-READY", 2).await;
        delete(&manager, vm).await;
        assert!(disk.exists() && socket.exists(), "what is elsewhere stays");
        server.end().await;
    });
}

async fn no_snapshots(manager: &Manager, vm: &str) {
    for kind in ["internal", "external"] {
        let options = json!({ "name": "a", "kind": kind });
        let made = manager.create_snapshot(vm.into(), options, never()).await;
        let refused = made.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NetworkDisk, "{refused}");
    }
    assert_eq!(manager.list_snapshots(vm.into()).await.unwrap(), json!([]));
}

#[test]
fn an_export_over_tcp_is_asked_for_before_anything_is_made() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disk = raw_image(&host);
        let at = json!({ "type": "nbd", "host": "127.0.0.1", "export": "disk" });
        let with = |key: &str, value: Value| {
            let mut location = at.clone();
            location[key] = value;
            location
        };
        let nobody = refused(&host, &manager, &at).await;
        assert_eq!(issue(&nobody), ("disks[0].location", "DISK_ERROR"));
        assert!(nobody.to_string().contains("cannot be reached"), "{nobody}");
        let unknown = refused(
            &host,
            &manager,
            &with("host", json!("no-such-host.invalid")),
        )
        .await;
        assert_eq!(issue(&unknown), ("disks[0].location", "DISK_ERROR"));
        let missing = json!({ "type": "nbd", "path": "/run/no/such.sock" });
        let missing = refused(&host, &manager, &missing).await;
        assert_eq!(
            issue(&missing),
            ("disks[0].location.path", "RESOURCE_UNAVAILABLE")
        );

        let options = ["--format=raw", "--bind=127.0.0.1", "--port=10809"];
        let server = serving(&host, &disk, &options).await;
        let other = refused(&host, &manager, &with("export", json!("other"))).await;
        assert!(other.to_string().contains("no export"), "{other}");
        let vm = "nbd-tcp-1";
        let machine = on_disks(&host, vm, json!([{ "location": at, "bus": "scsi" }]));
        manager.create_vm(machine, never()).await.unwrap();
        let blocks = manager.qmp_execute(vm, "query-block", Value::Null).await;
        let size = format!("\"virtual-size\": {SIZE}");
        assert!(blocks.unwrap().get().contains(&size));
        is_another_s(&host, &manager, &at).await;
        manager.stop_vm(vm.into(), forced(), never()).await.unwrap();
        is_another_s(&host, &manager, &at).await;
        server.end().await;

        let read_only = [&options[..], &["--read-only"]].concat();
        let server = serving(&host, &disk, &read_only).await;
        let start = manager.start_vm(vm.into(), Value::Null, never()).await;
        let refused = start.unwrap_err();
        assert_eq!(issue(&refused), ("disks[0].location", "DISK_ERROR"));
        assert!(refused.to_string().contains("nobody write"), "{refused}");
        server.end().await;
        delete(&manager, vm).await;
        let server = serving(&host, &disk, &options).await;
        let machine = on_disks(&host, "nbd-tcp-2", json!([{ "location": at }]));
        manager.plan_vm(machine).await.unwrap();
        server.end().await;
        assert!(disk.exists());
        fs::remove_file(disk).unwrap();
        host.is_clean().await;
    });
}

/// The server would let both write.
async fn is_another_s(host: &Host, manager: &Manager, location: &Value) {
    let before = host.files();
    let machine = on_disks(
        host,
        "nbd-tcp-2",
        json!([{ "sizeGB": 1 }, { "location": location }]),
    );
    let planned = manager.plan_vm(machine.clone()).await.unwrap_err();
    let created = manager.create_vm(machine, never()).await.unwrap_err();
    for refused in [planned, created] {
        assert!(refused.has(ErrorCode::ImageInUse), "{refused:?}");
        assert_eq!(issue(&refused), ("disks[1].location", "DISK_ERROR"));
    }
    assert_eq!(host.files(), before);
}

/// What only QEMU finds out ends its start, and is cleaned up after.
#[test]
fn an_export_by_tls_is_trusted_only_by_its_certificate() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let disk = raw_image(&host);
        let (ours, others) = (Pki::new(&host, "ours"), Pki::new(&host, "others"));
        let object = format!(
            "--object=tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir={}",
            ours.0.display()
        );
        let options = [
            "--format=raw",
            "--bind=127.0.0.1",
            &object,
            "--tls-creds=tls",
        ];
        let server = serving(&host, &disk, &options).await;
        let mut at = json!({ "type": "nbd", "host": "127.0.0.1", "export": "disk" });
        let plain = refused(&host, &manager, &at).await;
        assert!(plain.to_string().contains("demands TLS"), "{plain}");
        at["tls"] =
            json!({ "credentials": host.path().join("none"), "hostname": "storage.example" });
        let none = refused(&host, &manager, &at).await;
        let field = "disks[0].location.tls.credentials";
        assert_eq!(issue(&none), (field, "RESOURCE_UNAVAILABLE"));
        at["tls"]["credentials"] = json!(others.0);
        let machine = |vm: &str, at: &Value| on_disks(&host, vm, json!([{ "location": at }]));
        let untrusted = manager.create_vm(machine("nbd-tls-1", &at), never()).await;
        let untrusted = untrusted.unwrap_err();
        assert_eq!(untrusted.code(), ErrorCode::CreateFailed, "{untrusted:?}");
        at["tls"] = json!({ "credentials": ours.0, "hostname": "other.example" });
        let other_name = manager.create_vm(machine("nbd-tls-1", &at), never()).await;
        assert!(other_name.is_err());
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        at["tls"]["hostname"] = json!("storage.example");
        manager
            .create_vm(machine("nbd-tls-1", &at), never())
            .await
            .unwrap();
        delete(&manager, "nbd-tls-1").await;
        server.end().await;
    });
}

/// A directory as `tls-creds-x509` wants it, of an authority of its own.
struct Pki(PathBuf);

impl Pki {
    fn new(host: &Host, name: &str) -> Self {
        let dir = host.path().join(name);
        fs::create_dir(&dir).unwrap();
        let openssl = |args: &[&str]| {
            let mut program = std::process::Command::new("openssl");
            let output = program.args(args).current_dir(&dir).output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca-key.pem",
            "-out",
            "ca-cert.pem",
            "-subj",
            "/CN=authority",
            "-days",
            "2",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ]);
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "server-key.pem",
            "-out",
            "request.pem",
            "-subj",
            "/CN=storage.example",
        ]);
        let extensions = "subjectAltName=DNS:storage.example\nkeyUsage=digitalSignature\n\
                          extendedKeyUsage=serverAuth\nbasicConstraints=CA:false\n";
        fs::write(dir.join("extensions"), extensions).unwrap();
        openssl(&[
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca-cert.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-out",
            "server-cert.pem",
            "-days",
            "2",
            "-extfile",
            "extensions",
        ]);
        Self(dir)
    }
}

/// Where the driver is installed QEMU itself says why there is no cluster; where it is not, we do.
#[test]
fn a_cluster_that_cannot_be_had_is_told() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let conf = host.path().join("ceph.conf");
        fs::write(&conf, "[global]\nclient mount timeout = 1\n").unwrap();
        let at = json!({ "type": "rbd", "pool": "p", "image": "i", "conf": conf });
        if block_driver::has_rbd().await.unwrap() {
            let machine = on_disks(&host, "rbd-1", json!([{ "location": at }]));
            let failed = manager.create_vm(machine, never()).await.unwrap_err();
            assert_eq!(failed.code(), ErrorCode::CreateFailed, "{failed:?}");
            assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        }
        let missing = json!({ "type": "rbd", "pool": "p", "image": "i", "conf": "/no/ceph.conf" });
        let missing = refused(&host, &manager, &missing).await;
        assert_eq!(
            issue(&missing),
            ("disks[0].location.conf", "RESOURCE_UNAVAILABLE")
        );
    });
}
