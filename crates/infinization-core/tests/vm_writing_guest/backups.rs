use serde_json::Value;

use super::guest::WritingGuest;
use super::kit;
use super::kit::machine::Host;

fn id(backup: &Value) -> Option<&str> {
    backup["id"].as_str()
}

#[test]
fn k1_k2_a_quiesced_backup_of_a_writing_guest_needs_no_journal() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let guest = WritingGuest::boot(&host, "writing-backups").await;
        let mut chain: Vec<(u32, Value)> = Vec::new();
        for _ in 0..3 {
            let certain = guest.written().await;
            let parent = chain.last().and_then(|(_, backup)| id(backup));
            let backup = guest.back_up(parent, true).await;
            assert!(!guest.note().exists());
            assert_eq!(backup["crashConsistent"], false, "{backup}");
            guest.writes_on().await;
            chain.push((certain, backup));
        }
        let mut last = 0;
        for (certain, backup) in &chain {
            let disk = guest.restored(backup).await;
            disk.was_frozen();
            let written = disk.written();
            written.holds_all_until(*certain);
            written.is_exact();
            assert!(written.counter > last, "each link is of its own moment");
            last = written.counter;
        }

        // The proof that all of this is owed to the freeze.
        let certain = guest.written().await;
        let torn = guest.back_up(None, false).await;
        assert_eq!(torn["crashConsistent"], true, "{torn}");
        guest.writes_on().await;
        let disk = guest.restored(&torn).await;
        disk.recovers();
        disk.written().holds_all_until(certain);
        guest.remove_backups();
        guest.end().await;
    });
}
