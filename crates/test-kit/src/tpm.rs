//! A TPM emulator, which is started before its machine and ends with its QEMU.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::machine::PATIENCE;

/// One emulator in a directory of its own, which others may pass through: QEMU need not be root's.
pub struct Swtpm {
    child: Child,
    directory: TempDir,
}

impl Swtpm {
    pub async fn new() -> Self {
        Self::run_in(tempfile::tempdir().unwrap()).await
    }

    /// It ends with its QEMU: whoever starts the machine again starts it again first.
    pub async fn ended(mut self) -> TempDir {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it ends with its QEMU").unwrap();
        self.directory
    }

    /// One that waits for its QEMU, whatever became of the one before.
    pub async fn again(mut self) -> Self {
        self.child.kill().await.unwrap();
        Self::run_in(self.directory).await
    }

    pub async fn run_in(directory: TempDir) -> Self {
        fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
        let socket = directory.path().join("tpm.sock");
        let _of_the_one_before = fs::remove_file(&socket);
        let child = Command::new("swtpm")
            // Without the first, it outlives a QEMU that was killed.
            .args(["socket", "--terminate", "--tpm2", "--tpmstate"])
            .arg(format!("dir={}", directory.path().display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={},mode=0666", socket.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let open =
            || fs::metadata(&socket).is_ok_and(|it| it.permissions().mode() & 0o066 == 0o066);
        let listens = async {
            while !open() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listens).await.unwrap();
        Self { child, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("tpm.sock")
    }
}
