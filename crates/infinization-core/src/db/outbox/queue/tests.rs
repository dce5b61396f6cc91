use super::*;
use crate::types::Secret;

const GUARD: [&str; 2] = ["error", "backing_up"];

fn status(word: &str) -> Write {
    Write::status(word, &GUARD)
}

fn pid(pid: Option<i64>) -> Write {
    Write::Configuration(Box::new(ConfigurationUpdate {
        qemu_pid: Some(pid),
        ..ConfigurationUpdate::default()
    }))
}

fn port(port: i64) -> Write {
    Write::Configuration(Box::new(ConfigurationUpdate {
        graphic_port: Some(Some(port)),
        ..ConfigurationUpdate::default()
    }))
}

fn queue(writes: impl IntoIterator<Item = Write>) -> Queue<()> {
    let mut queue = Queue::new();
    for write in writes {
        queue.put(write);
    }
    queue
}

fn writes(queue: &Queue<()>) -> Vec<Write> {
    queue
        .writes
        .iter()
        .map(|(write, ())| write.clone())
        .collect()
}

/// A row as the writes see it: the guard, and the columns.
fn row_after(writes: &[Write], status: &str) -> (String, ConfigurationUpdate) {
    let mut row = (status.to_owned(), ConfigurationUpdate::default());
    for write in writes {
        match write {
            Write::Status { status, guard } => {
                if !guard.stops(&row.0) {
                    row.0.clone_from(status);
                }
            }
            other => row.1 = merge(row.1, other.columns().unwrap()),
        }
    }
    row
}

#[test]
fn equal_neighbours_are_one() {
    let kept = queue([
        status("off"),
        status("off"),
        Write::ClearVolatile,
        Write::ClearVolatile,
        status("off"),
    ]);
    assert_eq!(
        writes(&kept),
        [status("off"), Write::ClearVolatile, status("off")]
    );
}

#[test]
fn another_guard_is_another_write() {
    let strict = Write::status("off", &["error"]);
    let kept = queue([status("off"), strict.clone()]);
    assert_eq!(writes(&kept), [status("off"), strict]);
}

#[test]
fn what_is_under_way_is_not_added_to() {
    let mut kept = queue([status("off")]);
    assert_eq!(kept.begin(), Some(status("off")));
    assert_eq!(kept.put(status("off")), Put::Last);
    assert_eq!(kept.put(status("off")), Put::Same);
    kept.done();
    assert_eq!(writes(&kept), [status("off")]);
    kept.begin();
    kept.back();
    assert_eq!(kept.begin(), Some(status("off")), "it stays the first");
}

#[test]
fn compacting_changes_no_row() {
    let error = || Write::status("error", &[]);
    let over = |word| Write::status_over(word, &["off", "running", "suspended"]);
    let table = [
        vec![status("running"), status("suspended"), status("running")],
        // `off` is not written over `error`: the two are not one.
        vec![status("running"), error(), status("off")],
        vec![error(), status("off"), status("running")],
        vec![Write::status("off", &["running"]), status("running")],
        vec![status("running"), Write::status("off", &["running"])],
        vec![over("running"), over("suspended"), over("off")],
        vec![over("running"), error(), over("off")],
        vec![over("running"), status("off")],
        vec![status("running"), over("off")],
        vec![error(), Write::status_over("off", &["error"])],
        vec![pid(Some(7)), status("running"), port(5901)],
        vec![pid(Some(7)), Write::ClearVolatile, status("off")],
        vec![Write::Clear, pid(Some(7)), Write::ClearVolatile],
        vec![Write::ClearVolatile, status("off"), Write::Clear],
        vec![Write::Clear, Write::ClearVolatile],
        vec![port(1), port(2), Write::Clear, port(3), pid(None)],
    ];
    for kept in table {
        let mut compact = queue(kept.clone());
        compact.compact();
        assert!(compact.len() <= kept.len());
        for before in [
            "off",
            "running",
            "error",
            "backing_up",
            "starting",
            "theirs",
        ] {
            assert_eq!(
                row_after(&writes(&compact), before),
                row_after(&kept, before),
                "{kept:?} over {before}"
            );
        }
    }
}

#[test]
fn a_full_queue_keeps_the_newest_truth() {
    let life = ["running", "suspended"];
    let mut kept = queue((0..=MOST_KEPT).map(|at| status(life[at % 2])));
    let covered = Dropped::Covered(MOST_KEPT);
    assert_eq!(kept.make_room(), Some(covered));
    assert_eq!(writes(&kept), [status("running")]);
    assert_eq!(kept.make_room(), None);
}

#[test]
fn a_full_queue_that_hides_nothing_loses_its_oldest_write_and_says_so() {
    // Each of them is written over the one before only.
    let word = |at: usize| format!("s{at}");
    let only_over_the_last = |at: usize| {
        let others: Vec<String> = (0..MOST_KEPT + 2)
            .filter(|it| it + 1 != at)
            .map(word)
            .collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        Write::status(&word(at), &others)
    };
    let mut kept = queue((0..=MOST_KEPT).map(only_over_the_last));
    kept.begin();
    let dropped = kept.make_room();
    assert_eq!(dropped, Some(Dropped::Truth(only_over_the_last(1))));
    assert_eq!(kept.len(), MOST_KEPT);
    assert_eq!(writes(&kept)[0], only_over_the_last(0), "it is under way");
}

#[test]
fn a_kept_password_is_not_shown() {
    let update = ConfigurationUpdate {
        graphic_password: Some(Some(Secret::new("geheim".to_owned()))),
        ..ConfigurationUpdate::default()
    };
    let kept = queue([Write::Configuration(Box::new(update))]);
    assert!(!format!("{kept:?}").contains("geheim"));
}
