//! Disk images with the real `qemu-img`, and with a real QEMU holding them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod below;
mod changing;
mod creating;
mod encrypted;
mod faults;
mod in_use;
mod inspecting;
mod resizing;
mod snapshots;
mod unmeasured;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use infinization_core::host::qemu_img::{
    ConvertImage, CreateImage, ImageError, ImageFormat, Job, Preallocation, Resize, Sharing,
    SnapshotInfo, SnapshotName, Teller, check, claim_now, convert, create, create_snapshot,
    delete_snapshot, ensure_unused, info, inspect, list_snapshots, outwait_orphan, resize,
    revert_snapshot, snapshot_exists, sweep_partials,
};
use infinization_core::types::{ByteSize, HostPath};
use infinization_core::{Coded, ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::ailing_disk::AilingDisk;
use kit::small_disk::SmallDisk;
use kit::victim;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;

use ImageFormat::{Qcow2, Raw, Vdi, Vhdx, Vmdk};

const MIB: ByteSize = ByteSize::mib(1);

/// A directory of images.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> HostPath {
        path_in(self.0.path(), name)
    }

    /// A qcow2 of 8 MiB made behind the library's back.
    fn qcow2(&self, name: &str) -> HostPath {
        let path = self.path(name);
        qemu_img(&["create", "-q", "-f", "qcow2", path.as_str(), "8M"]);
        path
    }

    /// The same with random content in its first `mib`.
    fn random(&self, name: &str, mib: u64) -> HostPath {
        let (raw, path) = (self.path("random.raw"), self.path(name));
        let mut random = File::open("/dev/urandom").unwrap();
        let mut file = File::create(raw.as_path()).unwrap();
        std::io::copy(&mut std::io::Read::take(&mut random, mib << 20), &mut file).unwrap();
        let (from, to) = (raw.as_str(), path.as_str());
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", from, to]);
        fs::remove_file(raw.as_path()).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        names_in(self.0.path())
    }
}

fn path_in(dir: &Path, name: &str) -> HostPath {
    HostPath::parse(dir.join(name).to_str().unwrap()).unwrap()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn qemu_img(args: &[&str]) {
    let status = Command::new("qemu-img").args(args).status().unwrap();
    assert!(status.success(), "qemu-img {args:?}");
}

/// Writes `byte` to the guest's disk at `offset`.
fn write_guest(path: &HostPath, byte: u8, offset: &str, length: &str) {
    let (ok, said) = qemu_io(path, &format!("write -q -P {byte} {offset} {length}"));
    assert!(ok, "{said}");
}

/// Whether the guest's disk holds `byte` there.
fn guest_has(path: &HostPath, byte: u8, offset: &str, length: &str) -> bool {
    let (ok, said) = qemu_io(path, &format!("read -q -P {byte} {offset} {length}"));
    let differs = said.contains("Pattern verification failed");
    assert!(ok || differs, "{said}");
    !differs
}

fn qemu_io(path: &HostPath, command: &str) -> (bool, String) {
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", command, path.as_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said)
}

/// Changes bytes of the file itself.
fn forge(path: &HostPath, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path.as_path()).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ImageError>) -> ErrorCode {
    outcome.unwrap_err().code()
}

fn snap(name: &str) -> SnapshotName {
    SnapshotName::parse(name).unwrap()
}

async fn make(path: &HostPath, size: ByteSize) -> Result<(), ImageError> {
    create(&CreateImage::new(path.clone(), size), &Job::default()).await
}

async fn copy(
    from: (&HostPath, ImageFormat),
    to: (&HostPath, ImageFormat),
) -> Result<(), ImageError> {
    let plain = ConvertImage::new((from.0.clone(), from.1), (to.0.clone(), to.1));
    convert(&plain, &Job::default()).await
}

/// A QEMU that holds an image, without a guest running in it.
struct Qemu(Child);

impl Qemu {
    fn holding(image: &HostPath) -> Self {
        let drive = format!("file={image},format=qcow2,if=none,id=d0");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-S",
                "-nodefaults",
                "-display",
                "none",
                "-qmp",
                "stdio",
            ])
            .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=d0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hello = b"{\"execute\":\"qmp_capabilities\"}\n";
        qemu.stdin.as_mut().unwrap().write_all(hello).unwrap();
        let mut lines = BufReader::new(qemu.stdout.as_mut().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("\"return\"")),
            "QEMU did not start"
        );
        Self(qemu)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
