//! A file that gives errors (`EIO`) at one place, until it is well again with all that was written to it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use super::machine::PATIENCE;
use super::small_disk::unmount;

/// A `qemu-storage-daemon` that stands between a file and whoever opens it from now on, in the mount namespace of a
/// test (`super::in_private_network`). Dropping it makes the file well.
#[derive(Debug)]
pub struct FailingFile {
    path: PathBuf,
    daemon: Child,
}

impl FailingFile {
    /// Every request of this kind (`read` or `write`) fails that has the byte at `at` in it.
    pub fn over(path: &Path, kind: &str, at: u64) -> Self {
        let none: Option<&str> = None;
        // Without this the mount would be seen by the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let (file, sector) = (path.display(), at / 512);
        let node = format!(
            "driver=blkdebug,node-name=file,image.driver=file,image.filename={file},image.locking=off,\
             inject-error.0.event=none,inject-error.0.iotype={kind},inject-error.0.errno=5,\
             inject-error.0.sector={sector}"
        );
        let export =
            format!("type=fuse,id=over,node-name=file,mountpoint={file},writable=on,growable=on");
        let well = device(path);
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node, "--export", &export]);
        let daemon = command.stdin(Stdio::null()).spawn().unwrap();
        let failing = Self {
            path: path.to_owned(),
            daemon,
        };
        let late = Instant::now() + PATIENCE;
        while device(path) == well {
            assert!(Instant::now() < late, "{file} is not exported");
            sleep(Duration::from_millis(10));
        }
        failing
    }
}

impl Drop for FailingFile {
    fn drop(&mut self) {
        unmount(&self.path);
        let _ended = self.daemon.kill();
        let _reaped = self.daemon.wait();
    }
}

fn device(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().dev()
}
