//! The guest's file system as somebody sees it who has only the image. It is never mounted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{run, text};

/// The files of so many last numbers are on the disk; `scripts/guest/data-disk.sh` removes older ones.
const KEPT: u32 = 100;
const LINES: usize = 1024;

/// Makes a disk that the guest finds and writes to.
pub(crate) fn make_data_disk(image: &Path) {
    let raw = image.with_extension("raw");
    // Whole from the start: nothing is initialised behind the guest's back.
    let eager = "lazy_itable_init=0,lazy_journal_init=0";
    let args = ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", eager];
    let args = [&args[..], &["-L", "infz-data", text(&raw), "48M"]].concat();
    run("mkfs.ext4", &args);
    convert(&[], &raw, image, ("raw", "qcow2"));
    std::fs::remove_file(raw).unwrap();
}

/// A copy of a disk that has the guest's file system.
pub(crate) struct Ext4 {
    /// Holds the copy, and what is read out of it.
    dir: TempDir,
}

impl Ext4 {
    /// Of an image as it is, with what lies below it. Whoever has it open must not write to it meanwhile.
    pub(crate) fn of(image: &Path) -> Self {
        Self::copied(&[], image)
    }

    /// Of an internal snapshot, also while QEMU goes on writing to the image.
    pub(crate) fn of_snapshot(image: &Path, name: &str) -> Self {
        Self::copied(&["-l", &format!("snapshot.name={name}")], image)
    }

    fn copied(more: &[&str], image: &Path) -> Self {
        let copy = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        convert(more, image, &copy.raw(), ("qcow2", "raw"));
        copy
    }

    fn raw(&self) -> PathBuf {
        self.dir.path().join("raw")
    }

    /// Whether the journal has something that the file system has not: so it is as soon as it is mounted, and
    /// until it is unmounted or frozen.
    pub(crate) fn needs_recovery(&self) -> bool {
        run("dumpe2fs", &["-h", text(&self.raw())]).contains("needs_recovery")
    }

    /// Frozen when it was copied: whole without its journal, down to the last counter.
    #[track_caller]
    pub(crate) fn was_frozen(&self) {
        assert!(!self.needs_recovery(), "it was not frozen");
        run("e2fsck", &["-f", "-n", text(&self.raw())]);
    }

    /// Copied as after a power cut: whole once the journal is replayed.
    #[track_caller]
    pub(crate) fn recovers(&self) {
        assert!(self.needs_recovery());
        let raw = self.raw();
        // 1: the journal was replayed, and nothing else was wrong.
        let replayed = Command::new("e2fsck").args(["-p", text(&raw)]).output();
        let replayed = replayed.unwrap();
        assert!(
            matches!(replayed.status.code(), Some(0 | 1)),
            "{replayed:?}"
        );
        run("e2fsck", &["-f", "-n", text(&raw)]);
    }

    /// Every byte of the disk, in short.
    pub(crate) fn fingerprint(&self) -> String {
        let told = run("sha256sum", &["-b", text(&self.raw())]);
        told.split(' ').next().unwrap().to_owned()
    }

    pub(crate) fn written(&self) -> Written {
        let (raw, into) = (self.raw(), self.dir.path().join("read"));
        std::fs::create_dir_all(&into).unwrap();
        for request in ["rdump /files", "rdump /counter"] {
            let request = format!("{request} {}", text(&into));
            run("debugfs", &["-R", &request, text(&raw)]);
        }
        Written::read(&into)
    }
}

/// What the guest had written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) counter: u32,
    /// The line that fills a number's file; nothing where it is not whole.
    lines: BTreeMap<u32, Option<String>>,
}

impl Written {
    fn read(dir: &Path) -> Self {
        let counter = std::fs::read_to_string(dir.join("counter")).unwrap();
        let files = std::fs::read_dir(dir.join("files")).unwrap();
        let lines = files.map(|file| {
            let file = file.unwrap();
            let number: u32 = file.file_name().to_str().unwrap().parse().unwrap();
            let content = std::fs::read_to_string(file.path()).unwrap();
            (number, whole(number, &content))
        });
        Self {
            counter: counter.trim().parse().unwrap(),
            lines: lines.collect(),
        }
    }

    /// Whether all numbers until `last` are there, but for those that were removed for later ones.
    #[track_caller]
    pub(crate) fn holds_all_until(&self, last: u32) {
        assert!(self.counter >= last, "{} of {last}", self.counter);
        for number in self.oldest()..=last {
            let line = self.line(number);
            assert!(line.is_some(), "{number} of {last} is missing or torn");
        }
    }

    /// As [`Written::holds_all_until`] the counter, when nothing was lost that the guest had written.
    #[track_caller]
    pub(crate) fn is_exact(&self) {
        self.holds_all_until(self.counter);
        let newest = *self.lines.keys().last().unwrap();
        assert!(newest <= self.counter + 1, "{newest}, {}", self.counter);
    }

    /// The first number that was not removed yet.
    pub(crate) fn oldest(&self) -> u32 {
        oldest(self.lines.keys().last().copied().unwrap_or_default())
    }

    /// What fills the file of a number; nothing where it is missing or not whole.
    pub(crate) fn line(&self, number: u32) -> Option<&str> {
        self.lines.get(&number)?.as_deref()
    }
}

/// The first number whose file is still there when this one's has been made.
pub(crate) fn oldest(newest: u32) -> u32 {
    (newest + 1).saturating_sub(KEPT).max(1)
}

/// What a number's file holds: a line, over and over.
pub(crate) fn content(line: &str) -> String {
    format!("{line}\n").repeat(LINES)
}

fn whole(number: u32, found: &str) -> Option<String> {
    let line = found.lines().next()?;
    let named = line.split(' ').next() == Some(&number.to_string());
    (named && found == content(line)).then(|| line.to_owned())
}

fn convert(more: &[&str], from: &Path, to: &Path, (format, into): (&str, &str)) {
    let args = [&["convert", "-U", "-f", format, "-O", into], more].concat();
    run("qemu-img", &[&args[..], &[text(from), text(to)]].concat());
}
