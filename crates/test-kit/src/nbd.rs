//! NBD servers for tests: `qemu-nbd`, which ends with its test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::machine::{Host, PATIENCE};

/// A `qemu-nbd` that has an image open.
#[derive(Debug)]
pub struct NbdServer {
    child: Child,
    pid_file: PathBuf,
}

impl NbdServer {
    /// Returns when it has opened the image and listens.
    pub async fn start(host: &Host, image: &Path, options: &[&str]) -> Self {
        let pid_file = host.path().join("nbd.pid");
        let mut command = Command::new("qemu-nbd");
        command
            .arg("--persistent")
            .arg(format!("--pid-file={}", pid_file.display()))
            .args(options)
            .arg(image)
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().unwrap();
        // It is written when the server listens.
        let listens = async {
            while fs::read(&pid_file).unwrap_or_default().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listens).await.unwrap();
        Self { child, pid_file }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub async fn end(mut self) {
        self.child.kill().await.unwrap();
        fs::remove_file(&self.pid_file).unwrap();
    }
}
