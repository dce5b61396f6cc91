//! Journals on real files, with the writer's own thread.

use std::fs;

use serde_json::json;

use super::*;
use crate::config::{JournalBound, JournalOptions};

fn vm(id: &str) -> VmId {
    VmId::parse(id).unwrap()
}

fn read(journals: &Journals, options: JournalOptions) -> Vec<JournalEntry> {
    let mut reader = JournalReader::new(journals.directory().to_owned(), options);
    let mut entries = Vec::new();
    loop {
        let page = reader.page(7).unwrap();
        if page.is_empty() {
            return entries;
        }
        entries.extend(page);
    }
}

fn of(id: &str) -> JournalOptions {
    JournalOptions {
        vm_id: Some(vm(id)),
        ..JournalOptions::default()
    }
}

fn event(name: String) -> Note {
    Note::of(Kind::Event).step(name)
}

#[tokio::test]
async fn what_a_newer_version_wrote_is_neither_cut_off_nor_numbered_anew() {
    let directory = tempfile::tempdir().unwrap();
    let newer =
        br#"{"vmId":"vm-1","seq":7,"timestamp":1,"actor":"oracle","operation":"run","kind":"omen"}
"#;
    fs::create_dir(directory.path().join("journals")).unwrap();
    let file = directory.path().join("journals/vm-1.jsonl");
    fs::write(&file, newer).unwrap();
    let journals = Journals::start(directory.path()).unwrap();
    let journal = journals.of(&vm("vm-1"));
    journal.note(event("after".to_owned()));
    journal.written().await;
    assert!(fs::read(&file).unwrap().starts_with(newer));
    let numbers: Vec<u64> = read(&journals, of("vm-1"))
        .iter()
        .map(|entry| entry.seq)
        .collect();
    assert_eq!(numbers, [8]);
}

#[tokio::test]
async fn entries_are_numbered_without_gaps_over_restarts() {
    let directory = tempfile::tempdir().unwrap();
    for run in 0..3 {
        let journals = Journals::start(directory.path()).unwrap();
        let journal = journals.of(&vm("vm-1"));
        journal.enter(Actor::Api, "stop");
        for number in 0..100 {
            journal.note(event(format!("{run}-{number}")));
        }
        journal.written().await;
        if run == 1 {
            // As a process that was killed while it wrote leaves it.
            let file = directory.path().join("journals/vm-1.jsonl");
            let mut text = fs::read(&file).unwrap();
            text.extend_from_slice(br#"{"vmId":"vm-1","seq":200,"ti"#);
            fs::write(&file, text).unwrap();
        }
    }
    let journals = Journals::start(directory.path()).unwrap();
    let entries = read(&journals, of("vm-1"));
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    assert_eq!(entries[250].step.as_deref(), Some("2-50"));
    assert_eq!(
        (entries[0].actor, &*entries[0].operation),
        (Actor::Api, "stop")
    );
}

#[tokio::test]
async fn the_size_is_bounded_and_the_newest_stay() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::with_limit(directory.path(), 16 * 1024).unwrap();
    let journal = journals.of(&vm("vm-1"));
    for number in 0..2000 {
        journal.note(event(format!("event {number}")));
        if number % 50 == 0 {
            journal.written().await;
        }
    }
    journal.written().await;
    let files = fs::read_dir(journals.directory()).unwrap().flatten();
    let size: u64 = files.map(|file| file.metadata().unwrap().len()).sum();
    assert!(size <= 2 * 16 * 1024 + 64 * 1024, "{size}");
    let entries = read(&journals, of("vm-1"));
    let first = entries[0].seq;
    assert!(first > 0);
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (first..2000).collect::<Vec<_>>());
}

#[tokio::test]
async fn f17_what_could_not_be_written_is_told_and_leaves_no_gap() {
    let directory = tempfile::tempdir().unwrap();
    let in_the_way = directory.path().join("journals");
    fs::write(&in_the_way, "").unwrap();
    let journals = Journals::start(directory.path()).unwrap();
    let journal = journals.of(&vm("vm-1"));
    for number in 0..3 {
        journal.note(event(number.to_string()));
        journal.written().await;
    }
    fs::remove_file(in_the_way).unwrap();
    journal.note(event("at last".to_owned()));
    journal.written().await;
    let entries = read(&journals, of("vm-1"));
    assert_eq!(entries.len(), 2);
    assert_eq!((entries[0].seq, entries[0].kind), (0, Kind::Lost));
    assert_eq!(entries[0].detail, Some(json!({ "count": 3 })));
    assert_eq!(
        (entries[1].seq, entries[1].step.as_deref()),
        (1, Some("at last"))
    );
}

#[tokio::test]
async fn f8_a_flood_is_bounded_and_counted() {
    const FLOOD: u64 = 200_000;
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::with_limit(directory.path(), 64 * LIMIT).unwrap();
    let journal = journals.of(&vm("vm-1"));
    for number in 0..FLOOD {
        journal.note(event(number.to_string()));
    }
    journal.written().await;
    journal.note(event("after".to_owned()));
    journal.written().await;
    let entries = read(&journals, of("vm-1"));
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (0..entries.len() as u64).collect::<Vec<_>>());
    let lost = entries.iter().filter(|entry| entry.kind == Kind::Lost);
    let lost: Vec<u64> = lost
        .map(|entry| entry.detail.as_ref().unwrap()["count"].as_u64().unwrap())
        .collect();
    let told: u64 = lost.iter().sum();
    assert_eq!(entries.len() as u64 - lost.len() as u64 + told, FLOOD + 1);
}

#[tokio::test]
async fn what_is_asked_for_is_what_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::start(directory.path()).unwrap();
    let (one, two) = (journals.of(&vm("vm-1")), journals.of(&vm("vm-2")));
    one.enter(Actor::Api, "start");
    one.operation(Phase::Begun, json!({ "waitForBoot": true }));
    one.status("starting");
    one.status("starting");
    one.note(Note::of(Kind::Step).step("spawn QEMU").phase(Phase::Done));
    one.status("running");
    two.note(event("STOP".to_owned()).by(Actor::Monitor));
    journals.written().await;

    let all = read(&journals, JournalOptions::default());
    assert_eq!(all.len(), 5);
    assert!(all.is_sorted_by_key(|entry| entry.timestamp));
    let numbers = |options| {
        let entries = read(&journals, options);
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!(numbers(of("vm-1")), [0, 1, 2, 3]);
    let statuses = JournalOptions {
        kinds: vec![Kind::Status],
        ..of("vm-1")
    };
    assert_eq!(numbers(statuses), [1, 3]);
    let spawned = JournalOptions {
        steps: vec!["spawn QEMU".into()],
        ..of("vm-1")
    };
    assert_eq!(numbers(spawned), [2]);
    let part = JournalOptions {
        since: Some(JournalBound::Seq(1)),
        until: Some(JournalBound::Seq(2)),
        ..of("vm-1")
    };
    assert_eq!(numbers(part), [1, 2]);
    let first = JournalOptions {
        limit: Some(2),
        ..of("vm-1")
    };
    assert_eq!(numbers(first), [0, 1]);
    let later = JournalOptions {
        since: Some(JournalBound::Time(now_ms() + 1000)),
        ..of("vm-1")
    };
    assert_eq!(numbers(later), [] as [u64; 0]);
    let change = &read(&journals, of("vm-1"))[3];
    assert_eq!(
        (change.from.as_deref(), change.to.as_deref()),
        (Some("starting"), Some("running"))
    );
}

#[tokio::test]
async fn a_reader_that_follows_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::with_limit(directory.path(), 2048).unwrap();
    let mut changes = journals.changes();
    let mut reader = JournalReader::new(journals.directory().to_owned(), of("vm-1"));
    let journal = journals.of(&vm("vm-1"));
    let mut read = Vec::new();
    for number in 0..200 {
        assert_eq!(reader.page(10).unwrap(), []);
        journal.note(event(number.to_string()));
        changes.changed().await.unwrap();
        read.extend(reader.page(10).unwrap());
    }
    let numbers: Vec<u64> = read.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
}

/// A pipe without a reader hangs whoever opens it, as a disk does that does not answer.
#[tokio::test]
async fn a_disk_that_hangs_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::start(directory.path()).unwrap();
    let journal = journals.of(&vm("vm-1"));
    journal.note(event("before".to_owned()));
    journal.written().await;
    let file = directory.path().join("journals/vm-1.jsonl");
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut changes = journals.changes();
    changes.mark_unchanged();
    journal.note(event("meanwhile".to_owned()));
    journal.written().await;
    let again = Instant::now();
    for _ in 0..10 {
        journal.written().await;
    }
    assert!(again.elapsed() < Duration::from_secs(2), "once is enough");

    // It goes on, and is waited for as before.
    let drain = fs::File::open(&file).unwrap();
    changes.changed().await.unwrap();
    drop(drain);
    fs::remove_file(&file).unwrap();
    journal.note(event("after".to_owned()));
    while read(&journals, of("vm-1")).is_empty() {
        journal.written().await;
        tokio::task::yield_now().await;
    }
}

/// How many of the files under `directory` this process has open.
fn open_under(directory: &Path) -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|path| path.starts_with(directory)).count()
}

#[tokio::test]
async fn of_many_machines_entries_come_in_order_and_few_files_are_open() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::start(directory.path()).unwrap();
    let folder = journals.directory().to_owned();
    fs::create_dir(&folder).unwrap();
    let (machines, each) = (300, 40);
    for machine in 0..machines {
        let entries = (0..each).map(|seq| {
            // The machines take turns, with the same moment now and then.
            let timestamp = (seq * machines + machine) >> 1;
            let entry = json!({
                "vmId": format!("vm-{machine}"), "seq": seq, "timestamp": timestamp,
                "actor": "api", "operation": "run", "kind": "event", "step": "x".repeat(200),
            });
            format!("{entry}\n")
        });
        fs::write(
            folder.join(format!("vm-{machine}.jsonl")),
            entries.collect::<String>(),
        )
        .unwrap();
    }
    let mut reader = JournalReader::new(folder.clone(), JournalOptions::default());
    let mut read = Vec::new();
    loop {
        let page = reader.page(256).unwrap();
        assert!(open_under(&folder) <= 64);
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    assert_eq!(read.len(), machines * each);
    assert!(read.is_sorted_by_key(|entry| (entry.timestamp, entry.vm_id.clone(), entry.seq)));
    // One that comes later is found, too.
    journals.of(&vm("vm-7")).note(event("late".to_owned()));
    journals.written().await;
    let more = reader.page(256).unwrap();
    assert_eq!((more.len(), more[0].seq), (1, 40));
}

#[tokio::test]
async fn of_machines_that_are_gone_the_newest_journals_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("vms/alive")).unwrap();
    let journals = Journals::start(directory.path()).unwrap();
    let old = |number: usize| format!("old-{number:03}");
    journals.of(&vm("alive")).note(event("x".to_owned()));
    journals.written().await;
    for number in 0..KEPT + 5 {
        journals.of(&vm(&old(number))).note(event("x".to_owned()));
        journals.written().await;
        let file = journals.directory().join(format!("{}.jsonl", old(number)));
        let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 + number as u64);
        fs::File::open(file).unwrap().set_modified(moment).unwrap();
    }
    journals.prune();
    journals.written().await;
    let files = fs::read_dir(journals.directory()).unwrap().count();
    assert_eq!(files, KEPT + 1);
    assert_eq!(read(&journals, of(&old(4))), []);
    assert_eq!(read(&journals, of(&old(5))).len(), 1);
    assert_eq!(read(&journals, of("alive")).len(), 1);
    // The id is used again.
    journals.of(&vm(&old(5))).note(event("y".to_owned()));
    journals.of(&vm(&old(4))).note(event("y".to_owned()));
    journals.written().await;
    assert_eq!(read(&journals, of(&old(5))).last().unwrap().seq, 1);
    assert_eq!(read(&journals, of(&old(4))).last().unwrap().seq, 0);
}

#[test]
fn f8_events_beyond_a_window_s_share_are_counted() {
    let (mut events, began) = (Events::default(), Instant::now());
    let admitted = (0..1000).filter(|_| events.admits(began).0).count();
    assert_eq!(admitted, MOST_EVENTS as usize);
    let later = began + EVENT_WINDOW;
    assert_eq!(events.admits(later), (true, 1000 - u64::from(MOST_EVENTS)));
    assert_eq!(events.admits(later), (true, 0));
}
