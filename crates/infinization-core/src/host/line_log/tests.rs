//! Logs that are torn, turned over and read while they are written.

use super::*;

fn is_word(line: &[u8]) -> bool {
    line.first() == Some(&b'w')
}

fn text(lines: Vec<Vec<u8>>) -> Vec<String> {
    let lines = lines.into_iter();
    lines.map(|line| String::from_utf8(line).unwrap()).collect()
}

fn all(reader: &mut LineReader) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let next = reader.next_lines().unwrap();
        if next.is_empty() {
            return text(lines);
        }
        lines.extend(next);
    }
}

#[test]
fn f18_a_torn_end_is_cut_off() {
    for (content, left, last) in [
        ("w1\nw2\n", "w1\nw2\n", Some("w2")),
        ("w1\nw2", "w1\n", Some("w1")),
        ("w1\nw2\n\0\0\0", "w1\nw2\n", Some("w2")),
        ("w1\n\0\0\n", "w1\n", Some("w1")),
        ("w", "", None),
        ("", "", None),
        ("\n\n", "", None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let log = LineLog::of(directory.path(), "vm");
        fs::write(&log.newer, content).unwrap();
        let found = log.open(is_word).unwrap();
        assert_eq!(found.as_deref(), last.map(str::as_bytes), "{content:?}");
        assert_eq!(fs::read_to_string(&log.newer).unwrap(), left, "{content:?}");
        log.append(b"w3\n", 100).unwrap();
        assert!(fs::read_to_string(&log.newer).unwrap().ends_with("w3\n"));
    }
}

#[test]
fn a_log_of_which_only_the_older_file_is_left_knows_its_last_line() {
    let directory = tempfile::tempdir().unwrap();
    let log = LineLog::of(&directory.path().join("absent"), "vm");
    assert_eq!(log.open(is_word).unwrap(), None);
    log.append(b"w1\n", 100).unwrap();
    fs::rename(&log.newer, &log.older).unwrap();
    assert_eq!(log.open(is_word).unwrap(), Some(b"w1".to_vec()));
    log.remove().unwrap();
    assert_eq!(log.open(is_word).unwrap(), None);
}

#[test]
fn two_files_are_the_most_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let log = LineLog::of(directory.path(), "a.jsonl");
    for number in 0..100 {
        log.append(format!("w{number:02}\n").as_bytes(), 40)
            .unwrap();
    }
    let lines = all(&mut log.read());
    assert!((10..=20).contains(&lines.len()), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "w99");
    let listed = LineLog::list(directory.path()).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].0, "a.jsonl");
}

#[test]
fn a_reader_goes_on_where_it_was_when_the_log_turns_over() {
    let directory = tempfile::tempdir().unwrap();
    let log = LineLog::of(directory.path(), "vm");
    let mut reader = log.read();
    assert_eq!(all(&mut reader), Vec::<String>::new());
    let mut read = Vec::new();
    for number in 0..100 {
        log.append(format!("w{number:02}\n").as_bytes(), 40)
            .unwrap();
        if number % 7 == 0 {
            read.extend(all(&mut reader));
        }
    }
    read.extend(all(&mut reader));
    let expected: Vec<String> = (0..100).map(|number| format!("w{number:02}")).collect();
    assert_eq!(read, expected);
}

#[test]
fn a_reader_that_gave_its_file_back_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let log = LineLog::of(directory.path(), "vm");
    let mut reader = log.read();
    reader.read_at_once(4);
    let mut read = Vec::new();
    for number in 0..100 {
        log.append(format!("w{number:02}\n").as_bytes(), 40)
            .unwrap();
        if number % 3 == 0 {
            // In the middle of a line, too.
            read.extend(text(reader.next_lines().unwrap()));
            reader.close();
            read.extend(all(&mut reader));
            reader.close();
        }
    }
    let expected: Vec<String> = (0..100).map(|number| format!("w{number:02}")).collect();
    assert_eq!(read, expected);
    // Both files are others by now: it goes on with the oldest line there is.
    for number in 100..200 {
        log.append(format!("w{number}\n").as_bytes(), 40).unwrap();
    }
    let late = all(&mut reader);
    assert!(
        late.len() < 100 && late.last().unwrap() == "w199",
        "{late:?}"
    );
}

#[test]
fn a_reader_waits_for_a_line_to_be_whole() {
    let directory = tempfile::tempdir().unwrap();
    let log = LineLog::of(directory.path(), "vm");
    let mut reader = log.read();
    fs::write(&log.newer, "w1\nw").unwrap();
    assert_eq!(all(&mut reader), ["w1"]);
    log.append(b"2\n", 100).unwrap();
    assert_eq!(all(&mut reader), ["w2"]);
    fs::write(&log.newer, "w1\nw2\nw3").unwrap();
    assert_eq!(all(&mut reader), Vec::<String>::new());
    log.open(is_word).unwrap();
    assert_eq!(all(&mut reader), Vec::<String>::new());
    log.append(b"w4\n", 100).unwrap();
    assert_eq!(all(&mut reader), ["w4"]);
}
