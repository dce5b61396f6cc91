//! A guest that writes all the time, while its disks are backed up and overlays come and go. Every link is
//! restored, and compared with what the disks held at its moment.

use kit::machine::{consistent_status, qemus, send_signal};
use nix::sys::signal::Signal;

use super::drill::{Drill, Meanwhile};
use super::*;

#[test]
fn k1_k2_f22_a_guest_that_writes_is_backed_up_while_overlays_come_and_go() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let vm = "drill-1";
        let drill = Drill::begin(&host, vm).await;
        let manager = &drill.manager;
        let overlay = Meanwhile::Overlay;
        let mut links = vec![drill.back_up(None, true, overlay).await.unwrap()];
        drill.writes_on().await;
        let next = drill.back_up(links.last(), false, Meanwhile::Nothing).await;
        links.push(next.unwrap());

        let late = drill.back_up(links.last(), false, Meanwhile::Late).await;
        assert_eq!(late.err().unwrap().code(), ErrorCode::BackupFailed);
        remove(manager, vm, "late", rebase()).await.unwrap();

        // A bitmap is on the disk that becomes a layer.
        take(manager, vm, "a").await.unwrap();
        drill.writes_on().await;
        let merge = Meanwhile::Merge("a");
        links.push(drill.back_up(links.last(), true, merge).await.unwrap());
        drill.writes_on().await;
        let next = drill.back_up(links.last(), false, Meanwhile::Nothing).await;
        links.push(next.unwrap());
        // A fast copy may have been over before anybody came.
        for _ in 0..5 {
            if drill.disturbed() < 2 {
                links.push(drill.back_up(None, false, merge).await.unwrap());
            }
        }
        assert!(drill.disturbed() >= 2);
        assert_eq!(node(&tree(manager, vm).await, "a")["complete"], true);

        // While the layers are merged, a backup is right or is none; one that begins just before has them not merged.
        let merging = remove(manager, vm, "a", rebase());
        let backing_up = drill.back_up(links.last(), false, Meanwhile::Nothing);
        let (merged, made) = tokio::join!(merging, backing_up);
        if let Err(failure) = merged {
            assert_eq!(failure.code(), ErrorCode::InvalidState, "{failure:?}");
        }
        match made {
            Ok(link) => links.push(link),
            Err(failure) => assert_eq!(failure.code(), ErrorCode::BackupFailed, "{failure:?}"),
        }
        drill.writes_on().await;
        links.push(
            drill
                .back_up(links.last(), true, Meanwhile::Nothing)
                .await
                .unwrap(),
        );
        assert_eq!(consistent_status(manager, vm).await["status"], "running");

        // After a power cut no bitmap is believed.
        for pid in qemus(host.path()) {
            send_signal(pid, Signal::SIGKILL);
        }
        monitor::goes_on(&host, manager, vm).await;
        links.push(
            drill
                .back_up(links.last(), true, Meanwhile::Nothing)
                .await
                .unwrap(),
        );
        stop(manager, vm).await;
        drill.all_come_back(&links).await;
        sound(&no_orphans(&host, &[tree(manager, vm).await]));
        delete(manager, vm).await;
        std::fs::remove_dir_all(host.path().join("backups")).unwrap();
        host.is_clean().await;
    });
}
