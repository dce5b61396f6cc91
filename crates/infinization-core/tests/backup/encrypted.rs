//! A backup is not encrypted, so there is none of an encrypted disk, least of all by the QEMU that has its key.

use std::time::Duration;

use infinization_core::host::qemu_img::{CreateImage, Encryption, Job, create};
use infinization_core::types::{ByteSize, DiskKey, HostPath};

use super::*;
use crate::qmp_kit::Qemu;

#[tokio::test]
async fn b38_what_an_encrypted_disk_holds_is_not_backed_up_in_plain_text() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    disk.path = place.path("encrypted.qcow2");
    let path = HostPath::parse(disk::text(&disk.path)).unwrap();
    let encryption = Encryption {
        key: DiskKey::try_from("hunter2".to_owned()).unwrap(),
        iter_time: Some(Duration::from_millis(10)),
    };
    let image = CreateImage {
        encryption: Some(encryption),
        ..CreateImage::new(path, ByteSize::mib(1))
    };
    create(&image, &Job::default()).await.unwrap();
    for (kind, code) in REFUSED {
        refused(place.create(place.request(kind, &[&disk])).await, code);
    }

    let key = place.path("key");
    fs::write(&key, "hunter2").unwrap();
    let qemu = Qemu::start(&[
        "-object",
        &format!("secret,id=k,file={}", disk::text(&key)),
        "-blockdev",
        &format!(
            "driver=qcow2,node-name=d0,encrypt.format=luks,encrypt.key-secret=k,file.driver=file,file.filename={}",
            disk::text(&disk.path)
        ),
        "-device",
        "virtio-blk-pci,drive=d0",
    ]);
    let (monitor, _events) = qemu.connect().await;
    for (kind, code) in REFUSED {
        let machine = Running::new(&monitor, Ok(None));
        let made = place.create_with(place.request(kind, &[&disk]), machine);
        refused(made.await, code);
    }
    // Nor where it is said to be raw, and so nobody reads its header.
    disk.format = "raw";
    let machine = Running::new(&monitor, Ok(None));
    let made = place.create_with(place.request("FULL", &[&disk]), machine);
    refused(made.await, ErrorCode::BackupPlainTextRefused);
    assert!(place.list().await.is_empty());
}

/// A snapshot would be encrypted, but could not be deleted without the key.
const REFUSED: [(&str, ErrorCode); 2] = [
    ("FULL", ErrorCode::BackupPlainTextRefused),
    ("SNAPSHOT", ErrorCode::BackupInvalidConfig),
];
