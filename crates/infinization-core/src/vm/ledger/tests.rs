//! What a ledger keeps, and that the file always says it.

use tempfile::TempDir;

use super::super::action::Release;
use super::*;

fn undo(lifetime: Lifetime, status: &str) -> Undo {
    let release = Release::RestoreStatus {
        status: status.to_owned(),
    };
    Undo { lifetime, release }
}

fn lived(pid: i32) -> Lived {
    Lived {
        process: ProcessId {
            pid,
            start_time: 5,
            boot_id: "boot".to_owned(),
        },
        name_argument: "guest=vm-1".to_owned(),
        qmp_socket: HostPath::parse("/run/vm-1.sock").unwrap(),
        display_port: 5901,
        firewall_default_action: None,
        seat: None,
        guarded: Vec::new(),
    }
}

fn open(directory: &TempDir) -> Ledger {
    Ledger::open(directory.path()).unwrap()
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn an_absent_file_is_an_empty_ledger() {
    let directory = directory();
    assert_eq!(open(&directory).contents(), Contents::default());
    assert!(!directory.path().join(FILE).exists());
}

#[test]
fn every_change_survives_reopening() {
    type Change = (&'static str, fn(&Ledger));
    let changes: [Change; 9] = [
        ("begin", |ledger| {
            ledger.begin(Operation::Start, 1234).unwrap();
        }),
        ("intend", |ledger| {
            let undos = [
                undo(Lifetime::Attempt, "a"),
                undo(Lifetime::Run, "b"),
                undo(Lifetime::Data, "c"),
            ];
            assert_eq!(ledger.intend(&undos).unwrap(), [0, 1, 2]);
        }),
        ("hold", |ledger| ledger.hold(&[0, 2]).unwrap()),
        ("forget", |ledger| ledger.forget(&[1]).unwrap()),
        ("live", |ledger| {
            assert_eq!(ledger.live(lived(7)).unwrap(), 1);
        }),
        ("sits on", |ledger| {
            let (index, name) = (9, "br0".to_owned());
            ledger.sits_on(&Seat { index, name }).unwrap();
        }),
        ("guards", |ledger| {
            let address = "10.0.0.1".parse().unwrap();
            let network = Network {
                address,
                prefix: 24,
            };
            ledger.guards(vec![network]).unwrap();
            assert_eq!(ledger.guarded(), [network]);
        }),
        ("commit", |ledger| ledger.commit().unwrap()),
        ("died", |ledger| ledger.died().unwrap()),
    ];
    let directory = directory();
    for (name, change) in changes {
        let ledger = open(&directory);
        let before = ledger.contents();
        change(&ledger);
        assert_ne!(ledger.contents(), before, "{name} changed nothing");
        assert_eq!(open(&directory).contents(), ledger.contents(), "{name}");
    }
    let left = open(&directory).contents();
    let entry = Entry {
        number: 2,
        undo: undo(Lifetime::Data, "c"),
        held: true,
    };
    assert_eq!(left.entries, [entry]);
    assert_eq!((left.operation, left.lived), (None, None));
    assert_eq!((left.next, left.generation), (3, 1));
}

#[test]
fn an_entry_is_not_held_until_its_step_has_succeeded() {
    let directory = directory();
    let ledger = open(&directory);
    let undos = [undo(Lifetime::Run, "a"), undo(Lifetime::Run, "b")];
    let numbers = ledger.intend(&undos).unwrap();
    ledger.hold(&numbers[1..]).unwrap();
    let held: Vec<bool> = open(&directory)
        .contents()
        .entries
        .iter()
        .map(|entry| entry.held)
        .collect();
    assert_eq!(held, [false, true]);
}

#[test]
fn a_commit_forgets_what_was_for_the_attempt_alone() {
    let directory = directory();
    let ledger = open(&directory);
    ledger.begin(Operation::Create, 1).unwrap();
    let lifetimes = [
        Lifetime::Attempt,
        Lifetime::Run,
        Lifetime::Machine,
        Lifetime::Data,
    ];
    ledger
        .intend(&lifetimes.map(|lifetime| undo(lifetime, "x")))
        .unwrap();
    ledger.commit().unwrap();
    let left = ledger.contents();
    let kept: Vec<Lifetime> = left
        .entries
        .iter()
        .map(|entry| entry.undo.lifetime)
        .collect();
    assert_eq!(kept, lifetimes[1..]);
    assert_eq!(left.operation, None);
}

#[test]
fn numbers_are_never_used_twice() {
    let directory = directory();
    let mut seen = Vec::new();
    for _reopened in 0..3 {
        let ledger = open(&directory);
        for _attempt in 0..3 {
            let undos = [undo(Lifetime::Run, "a"), undo(Lifetime::Attempt, "b")];
            let numbers = ledger.intend(&undos).unwrap();
            ledger.forget(&numbers).unwrap();
            seen.extend(numbers);
        }
    }
    assert_eq!(seen, (0..18).collect::<Vec<u64>>());
}

#[test]
fn an_operation_marks_where_its_own_entries_begin() {
    let directory = directory();
    let ledger = open(&directory);
    for (operation, mark) in [
        (Operation::Create, 0),
        (Operation::Stop, 1),
        (Operation::Start, 2),
    ] {
        ledger.begin(operation, mark * 10).unwrap();
        ledger.intend(&[undo(Lifetime::Run, "a")]).unwrap();
        let contents = open(&directory).contents();
        assert_eq!(contents.operation, Some(operation));
        assert_eq!(contents.began_at_ms, mark * 10);
        assert_eq!(contents.attempt, mark);
        ledger.commit().unwrap();
    }
}

#[test]
fn each_process_is_a_generation() {
    let directory = directory();
    for generation in 1..=3 {
        let ledger = open(&directory);
        assert_eq!(ledger.live(lived(7)).unwrap(), generation);
        ledger.died().unwrap();
    }
}

#[test]
fn a_damaged_file_is_an_error_and_not_an_empty_ledger() {
    let torn: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        Vec::clear,
    ];
    for damage in torn {
        let directory = directory();
        open(&directory)
            .intend(&[undo(Lifetime::Run, "a")])
            .unwrap();
        let path = directory.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let error = Ledger::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateFileError::Torn { .. }), "{error:?}");
    }
}

#[test]
fn words_nobody_understands_are_damage_even_with_a_fitting_checksum() {
    let directory = directory();
    let path = directory.path().join(FILE);
    state_file::write(&path, b"{\"entries\":7}", Durability::ProcessCrash).unwrap();
    let error = Ledger::open(directory.path()).unwrap_err();
    assert!(matches!(error, StateFileError::Torn { .. }), "{error:?}");
}

#[test]
fn memory_never_claims_what_the_file_does_not_say() {
    let directory = directory();
    let ledger = open(&directory);
    ledger.intend(&[undo(Lifetime::Run, "a")]).unwrap();
    let before = ledger.contents();
    std::fs::remove_dir_all(directory.path()).unwrap();
    ledger.intend(&[undo(Lifetime::Run, "b")]).unwrap_err();
    assert_eq!(ledger.contents(), before);
}
