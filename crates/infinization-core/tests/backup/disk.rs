//! A disk and what it must hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An image, and a model of its content.
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) format: &'static str,
    pub(super) holds: Vec<u8>,
}

impl Disk {
    pub(super) fn qcow2(path: &Path, mib: usize) -> Self {
        let size = format!("{mib}M");
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(path), &size],
        );
        Self {
            path: path.to_owned(),
            format: "qcow2",
            holds: vec![0; mib << 20],
        }
    }

    pub(super) fn raw(path: &Path, mib: usize) -> Self {
        fs::write(path, vec![0; mib << 20]).unwrap();
        Self {
            path: path.to_owned(),
            format: "raw",
            holds: vec![0; mib << 20],
        }
    }

    /// An overlay on this disk, with a life of its own.
    pub(super) fn overlay(&self, path: &Path) -> Self {
        let (base, over) = (text(&self.path), text(path));
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                self.format,
                "-b",
                base,
                over,
            ],
        );
        Self {
            path: path.to_owned(),
            format: "qcow2",
            holds: self.holds.clone(),
        }
    }

    /// Writes `length` times `byte` at `at`.
    pub(super) fn write(&mut self, at: usize, length: usize, byte: u8) {
        self.io(&format!("write -P {byte} {at} {length}"));
        self.model(at, length, byte);
    }

    /// Writes zeros as a guest that trims does.
    pub(super) fn zero(&mut self, at: usize, length: usize) {
        self.io(&format!("write -z -u {at} {length}"));
        self.model(at, length, 0);
    }

    /// Says what somebody else wrote.
    pub(super) fn model(&mut self, at: usize, length: usize, byte: u8) {
        self.holds[at..at + length].fill(byte);
    }

    pub(super) fn resize(&mut self, mib: usize) {
        let size = format!("{mib}M");
        run(
            "qemu-img",
            &[
                "resize",
                "-q",
                "--shrink",
                "-f",
                self.format,
                text(&self.path),
                &size,
            ],
        );
        self.holds.resize(mib << 20, 0);
    }

    pub(super) fn is_intact(&self) {
        assert_holds(&self.path, self.format, &self.holds);
    }

    fn io(&self, command: &str) {
        run(
            "qemu-io",
            &["-f", self.format, "-c", command, text(&self.path)],
        );
    }
}

/// Fails unless the image is clean, has these bytes, and is as long as they are.
#[track_caller]
pub(super) fn assert_holds(image: &Path, format: &str, expected: &[u8]) {
    if format == "qcow2" {
        run("qemu-img", &["check", "-q", "-f", "qcow2", text(image)]);
    }
    let raw = image.with_extension("raw-copy");
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            format,
            "-O",
            "raw",
            text(image),
            text(&raw),
        ],
    );
    let found = fs::read(&raw).unwrap();
    fs::remove_file(&raw).unwrap();
    assert_eq!(
        found.len(),
        expected.len(),
        "the length of {}",
        image.display()
    );
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{} differs at this byte", image.display());
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
pub(super) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {told}{failed}"
    );
    assert!(
        !told.contains("verification failed"),
        "{program} {args:?}: {told}"
    );
    told
}

/// Has the level 1 table of a qcow2's first snapshot begin inside a cluster, where none can.
pub(super) fn damage_snapshot(image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    // docs/interop/qcow2.txt: the table's offset is at 64 of the header; an entry begins with the
    // offset of its level 1 table.
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap());
    let at = usize::try_from(table).unwrap();
    bytes[at..at + 8].copy_from_slice(&0x10200_u64.to_be_bytes());
    fs::write(image, bytes).unwrap();
}
