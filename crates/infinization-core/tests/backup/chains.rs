//! Incremental backups of stopped machines.

use super::*;

#[tokio::test]
async fn k1_ten_links_each_come_back_bit_by_bit() {
    let place = Place::new();
    let mut base = place.disk("base.qcow2", 8);
    base.write(0, 2 << 20, 200);
    let mut disk = base.overlay(&place.path("a.qcow2"));
    let mut chain = vec![(place.full(&[&disk]).await, disk.holds.clone())];
    for link in 1..10_u8 {
        let at = usize::from(link) * 300_001;
        disk.write(at, 70_000, link);
        match link {
            // What the template holds reads as zeros from here on.
            2 => disk.zero(0, 1 << 20),
            4 => disk.resize(12),
            5 => disk.write(11 << 20, 65_536, 55),
            7 => disk.resize(6),
            8 => disk.resize(9),
            _ => {}
        }
        let mut request = place.request("INCREMENTAL", &[&disk]);
        request["parentBackupId"] = json!(chain.last().unwrap().0);
        request["compression"] = json!(["NONE", "QCOW2", "ZSTD"][usize::from(link % 3)]);
        let made = id(&place.create(request).await.unwrap());
        chain.push((made, disk.holds.clone()));
    }
    for (link, (backup, held)) in chain.iter().enumerate() {
        assert!(place.is_valid(backup).await, "link {link}");
        place.comes_back(backup, held).await;
    }
    disk.is_intact();
    // QEMU's own tools can read the tip, too.
    let tip = place
        .root()
        .join("vm-1")
        .join(&chain[9].0)
        .join("disk-0.qcow2");
    disk::assert_holds(&tip, "qcow2", &disk.holds);
    let facts = place.metadata(&chain[9].0).await.unwrap();
    let parent = place
        .root()
        .join("vm-1")
        .join(&chain[8].0)
        .join("disk-0.qcow2");
    assert_eq!(facts["disks"][0]["backingFile"], json!(parent));
    assert_eq!(facts["parentBackupId"], json!(chain[8].0));
}

#[tokio::test]
async fn an_incremental_backup_holds_only_what_changed() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 16);
    disk.write(0, 8 << 20, 1);
    let full = place.full(&[&disk]).await;
    disk.write(1 << 20, 65_536, 2);
    let next = place.incremental(&[&disk], &full).await;
    let size = place.metadata(&next).await.unwrap()["totalSize"]
        .as_u64()
        .unwrap();
    assert!(size < 1 << 20, "{size} bytes for one cluster");
    place.comes_back(&next, &disk.holds).await;
}

#[tokio::test]
async fn two_branches_of_one_parent_and_two_disks() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 2), place.disk("b.qcow2", 2));
    a.write(0, 65_536, 1);
    let full = place.full(&[&a, &b]).await;
    b.write(65_536, 65_536, 2);
    let one = place.incremental(&[&a, &b], &full).await;
    let at_one = b.holds.clone();
    b.write(65_536, 65_536, 3);
    let two = place.incremental(&[&a, &b], &full).await;
    for (backup, held) in [(&one, &at_one), (&two, &b.holds)] {
        let targets = [place.path("x.qcow2"), place.path("y.qcow2")];
        place.restore(backup, &targets).await.unwrap();
        disk::assert_holds(&targets[0], "qcow2", &a.holds);
        disk::assert_holds(&targets[1], "qcow2", held);
    }
    refused(place.delete(&full).await, ErrorCode::BackupDependency);
    place.delete(&one).await.unwrap();
    refused(place.delete(&full).await, ErrorCode::BackupDependency);
    place.delete(&two).await.unwrap();
    place.delete(&full).await.unwrap();
    assert!(place.list().await.is_empty());
    refused(place.delete(&full).await, ErrorCode::BackupNotFound);
}

#[tokio::test]
async fn a_parent_that_cannot_be_one_is_refused() {
    let place = Place::new();
    let (a, b) = (place.disk("a.qcow2", 1), place.disk("b.qcow2", 1));
    let of_one = place.full(&[&a]).await;
    let mut request = place.request("FULL", &[&a]);
    request["compression"] = json!("GZIP");
    let gzipped = id(&place.create(request).await.unwrap());
    let snapshot = id(&place
        .create(place.request("SNAPSHOT", &[&a]))
        .await
        .unwrap());
    let nobody = BackupId::random().to_string();
    for (disks, parent, code) in [
        (vec![&a], &nobody, ErrorCode::ParentNotFound),
        (vec![&a], &gzipped, ErrorCode::BackupInvalidConfig),
        (vec![&a], &snapshot, ErrorCode::BackupInvalidConfig),
        (vec![&a, &b], &of_one, ErrorCode::BackupInvalidConfig),
    ] {
        let mut request = place.request("INCREMENTAL", &disks);
        request["parentBackupId"] = json!(parent);
        refused(place.create(request).await, code);
    }
    assert_eq!(place.list().await.len(), 3, "a refusal leaves nothing");
}

#[tokio::test]
async fn a_header_that_names_another_parent_is_not_built_on() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 1);
    disk.write(0, 65_536, 1);
    let full = place.full(&[&disk]).await;
    disk.write(0, 65_536, 2);
    let next = place.incremental(&[&disk], &full).await;
    let folder = place.root().join("vm-1").join(&next);
    let (file, secret) = (folder.join("disk-0.qcow2"), place.path("secret.qcow2"));
    let mut other = Disk::qcow2(&secret, 1);
    other.write(0, 65_536, 99);
    // The same length, another name: the checksum tells it, and so does the chain.
    let length = fs::metadata(&file).unwrap().len();
    let names = disk::text(&secret).to_owned();
    disk::run(
        "qemu-img",
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            &names,
            disk::text(&file),
        ],
    );
    assert_eq!(fs::metadata(&file).unwrap().len(), length);
    let mut request = place.request("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(next);
    refused(place.create(request).await, ErrorCode::CorruptBackup);
    let target = place.path("x.qcow2");
    let restored = place.restore(&next, std::slice::from_ref(&target)).await;
    refused(restored, ErrorCode::CorruptBackup);
    assert!(!target.exists());
}

/// One bit of any link is enough: nobody restores what builds on it, and what does not is untouched.
#[tokio::test]
async fn k6_a_flipped_bit_in_a_middle_link_is_found_by_all_that_build_on_it() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    disk.write(0, 1 << 20, 1);
    let mut chain = vec![(place.full(&[&disk]).await, disk.holds.clone())];
    for link in 1..5_u8 {
        disk.write(usize::from(link) * 300_001, 70_000, link + 1);
        let made = place.incremental(&[&disk], &chain.last().unwrap().0).await;
        chain.push((made, disk.holds.clone()));
    }
    let target = place.path("target.qcow2");
    fs::write(&target, "an old disk").unwrap();
    for middle in 0..5 {
        let file = place.root().join("vm-1").join(&chain[middle].0);
        let file = file.join("disk-0.qcow2");
        let whole = fs::read(&file).unwrap();
        // In the header, in the tables, in the data.
        for at in [
            70,
            whole.len() / 3 + middle,
            whole.len() - 1 - 4096 * middle,
        ] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&file, flipped).unwrap();
            for (link, (backup, held)) in chain.iter().enumerate() {
                if link < middle {
                    assert!(
                        place.is_valid(backup).await,
                        "{link} of {middle}, byte {at}"
                    );
                    place.comes_back(backup, held).await;
                    continue;
                }
                assert!(
                    !place.is_valid(backup).await,
                    "{link} of {middle}, byte {at}"
                );
                let restored = place.restore(backup, std::slice::from_ref(&target)).await;
                let failure = refused(restored, ErrorCode::CorruptBackup);
                assert!(failure.to_string().contains(&chain[middle].0), "{failure}");
                assert_eq!(fs::read(&target).unwrap(), b"an old disk");
            }
        }
        fs::write(&file, whole).unwrap();
    }
    for (backup, held) in &chain {
        place.comes_back(backup, held).await;
    }
}
