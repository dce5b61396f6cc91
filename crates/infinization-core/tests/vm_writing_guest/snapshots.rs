use serde_json::json;

use super::ext4::Ext4;
use super::guest::WritingGuest;
use super::kit;
use super::kit::machine::Host;

#[test]
fn a_quiesced_layer_needs_no_journal_and_merging_under_a_writing_guest_loses_nothing() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let guest = WritingGuest::boot(&host, "writing-layers").await;
        let (certain, layer) = (guest.written().await, guest.disk().await);
        let quiet = json!({ "name": "quiet", "kind": "external", "quiesce": true });
        guest.take(quiet).await.unwrap();
        assert!(!guest.note().exists());
        guest.writes_on().await;
        let disk = Ext4::of(&layer);
        disk.was_frozen();
        disk.written().holds_all_until(certain);
        disk.written().is_exact();

        let (certain, layer) = (guest.written().await, guest.disk().await);
        let torn = json!({ "name": "torn", "kind": "external" });
        guest.take(torn).await.unwrap();
        guest.writes_on().await;
        let disk = Ext4::of(&layer);
        disk.recovers();
        disk.written().holds_all_until(certain);

        for name in ["quiet", "torn"] {
            guest.remove(name).await;
            guest.writes_on().await;
        }
        let certain = guest.written().await;
        guest.stop().await;
        let disk = Ext4::of(&guest.disk().await);
        disk.recovers();
        disk.written().holds_all_until(certain);
        guest.end().await;
    });
}

#[test]
fn a_writing_guest_goes_back_to_its_saved_memory_with_its_disk() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let guest = WritingGuest::boot(&host, "writing-memory").await;
        let (certain, disk) = (guest.written().await, guest.disk().await);
        let quiet = json!({ "name": "quiet", "quiesce": true });
        guest.take(quiet).await.unwrap();
        guest.writes_on().await;
        let frozen = Ext4::of_snapshot(&disk, "quiet");
        frozen.was_frozen();
        frozen.written().holds_all_until(certain);

        let (certain, before) = (guest.written().await, guest.checksums().await);
        let memory = json!({ "name": "memory", "memory": true });
        guest.take(memory).await.unwrap();
        let after = "touch /run/after /data/after && sync";
        guest.says(after).await.unwrap();
        guest.writes_on().await;
        guest.revert("memory", json!({})).await;
        guest.writes_on().await;
        // What is read again comes from the disk.
        let sums = guest.checksums().await;
        assert_eq!(guest.says("ls /run/after /data/after").await.unwrap(), "");
        let same = before.iter().filter(|(number, _)| **number <= certain);
        let same: Vec<_> = same
            .filter_map(|(number, sum)| Some((sums.get(number)?, sum)))
            .collect();
        assert!(!same.is_empty());
        assert!(same.iter().all(|(now, then)| now == then), "{same:?}");

        let certain = guest.written().await;
        guest.stop().await;
        let disk = Ext4::of(&disk);
        disk.recovers();
        disk.written().holds_all_until(certain);
        guest.end().await;
    });
}
