//! When a running machine's next backup believes the bitmap of the one before, and when it compares.

use super::guest::Guest;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_running_links_mix_and_a_bitmap_survives_a_restart() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    disk.write(0, 1 << 20, 1);
    let offline = place.full(&[&disk]).await;
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 65_536, 2).await;
    // No bitmap knows that parent: everything is copied, and compared.
    let live = place
        .live("INCREMENTAL", &[&disk], Some(&offline), &guest)
        .await;
    let at_live = disk.holds.clone();
    guest.write(0, &mut disk, 65_536, 65_536, 3).await;
    guest.quit().await;
    disk.write(131_072, 65_536, 4);
    let guest = Guest::start(&[&disk]).await;
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{live}-0")]);
    guest.write(0, &mut disk, 262_144, 65_536, 5).await;
    let last = place
        .live("INCREMENTAL", &[&disk], Some(&live), &guest)
        .await;
    let at_last = disk.holds.clone();
    guest.quit().await;
    disk.write(0, 65_536, 9);
    let stopped = place.incremental(&[&disk], &last).await;
    for (backup, held) in [
        (&live, &at_live),
        (&last, &at_last),
        (&stopped, &disk.holds),
    ] {
        place.comes_back(backup, held).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bitmap_that_a_crash_spoiled_is_not_trusted() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 0, 1 << 20, 1).await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    guest.quit().await;
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 65_536, 65_536, 2).await;
    guest.io(0, "flush").await;
    guest.qemu.signal(nix::sys::signal::Signal::SIGKILL);
    drop(guest);
    let guest = Guest::start(&[&disk]).await;
    let next = place
        .live("INCREMENTAL", &[&disk], Some(&full), &guest)
        .await;
    assert_eq!(guest.bitmaps(0).await, [format!("infz-{next}-0")]);
    guest.quit().await;
    place.comes_back(&next, &disk.holds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k1_disks_that_change_places_are_compared_and_not_believed() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 4), place.disk("b.qcow2", 4));
    let guest = Guest::start(&[&a, &b]).await;
    guest.write(0, &mut a, 0, 2 << 20, 1).await;
    guest.write(1, &mut b, 0, 2 << 20, 2).await;
    let full = place.live("FULL", &[&a, &b], None, &guest).await;
    guest.write(0, &mut a, 65_536, 65_536, 3).await;
    // By the order they are named in.
    let turned = place
        .live("INCREMENTAL", &[&b, &a], Some(&full), &guest)
        .await;
    let targets = [place.path("x.qcow2"), place.path("y.qcow2")];
    place.restore(&turned, &targets).await.unwrap();
    disk::assert_holds(&targets[0], "qcow2", &b.holds);
    disk::assert_holds(&targets[1], "qcow2", &a.holds);
    guest.quit().await;

    // By the files' names: each takes along what its bitmap has marked.
    let aside = place.path("aside.qcow2");
    fs::rename(&a.path, &aside).unwrap();
    fs::rename(&b.path, &a.path).unwrap();
    fs::rename(&aside, &b.path).unwrap();
    std::mem::swap(&mut a.holds, &mut b.holds);
    let guest = Guest::start(&[&a, &b]).await;
    guest.write(0, &mut a, 131_072, 65_536, 4).await;
    let renamed = place
        .live("INCREMENTAL", &[&b, &a], Some(&turned), &guest)
        .await;
    guest.quit().await;
    place.restore(&renamed, &targets).await.unwrap();
    disk::assert_holds(&targets[0], "qcow2", &b.holds);
    disk::assert_holds(&targets[1], "qcow2", &a.holds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bitmap_does_not_outlive_a_cut() {
    use infinization_core::host::qemu_img::{ImageFormat, Resize, resize};
    use infinization_core::types::ByteSize;
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 4);
    let guest = Guest::start(&[&disk]).await;
    guest.write(0, &mut disk, 3 << 20, 1 << 20, 1).await;
    let full = place.live("FULL", &[&disk], None, &guest).await;
    guest.quit().await;
    for mib in [2, 4] {
        let (image, size) = (path(&disk.path), ByteSize::mib(mib));
        resize(&image, ImageFormat::Qcow2, size, Resize::GrowOrShrink)
            .await
            .unwrap();
        disk.holds.resize(usize::try_from(mib).unwrap() << 20, 0);
    }
    let guest = Guest::start(&[&disk]).await;
    assert!(guest.bitmaps(0).await.is_empty());
    let next = place
        .live("INCREMENTAL", &[&disk], Some(&full), &guest)
        .await;
    guest.quit().await;
    place.comes_back(&next, &disk.holds).await;
}
