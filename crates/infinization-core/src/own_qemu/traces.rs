//! What a QEMU leaves in the file system: its pidfile and its monitor's socket. SIGKILL leaves both.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use tokio::net::UnixStream;

use crate::config::QemuTraits;
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::file_call;
use crate::host::pid_file::{pid_in, removed};
use crate::host::process::{Identity, QemuMarks, identify, is_alive};
use crate::types::HostPath;

/// The number in the pidfile.
pub(super) async fn pid(traits: &QemuTraits) -> Option<i32> {
    let pid_file = traits.pid_file.as_ref()?;
    pid_in(pid_file.as_path().to_owned()).await
}

/// Refuses where another QEMU has the pidfile or the socket, which the new one would take from it. Of one that is gone
/// both are removed.
pub(super) async fn make_way(traits: &QemuTraits) -> Result<(), Failure> {
    if let (Some(pid_file), Some(pid)) = (&traits.pid_file, pid(traits).await) {
        if is_alive(pid) {
            refuse_its_own(pid, pid_file, traits).await?;
        } else {
            removed(pid_file.as_path()).await;
        }
    }
    let Some(socket) = &traits.qmp_socket else {
        return Ok(());
    };
    match look(socket).await? {
        Found::Nothing => Ok(()),
        Found::Left(left) => {
            remove_left(socket, left).await;
            Ok(())
        }
        Found::Listener => {
            let message = format!("another process listens at {socket}");
            Err(Failure::new(ErrorCode::AddressInUse, message).with("path", socket.as_str()))
        }
    }
}

/// A number that was given to somebody else meanwhile is no reason: QEMU itself locks its pidfile.
async fn refuse_its_own(pid: i32, pid_file: &HostPath, traits: &QemuTraits) -> Result<(), Failure> {
    let marks = QemuMarks {
        name: traits.token.clone(),
        pid_file: Some(pid_file.to_string()),
        qmp_socket: traits.qmp_socket.as_ref().map(ToString::to_string),
    };
    match identify(pid, marks).await {
        Identity::Gone | Identity::NotOurs => Ok(()),
        Identity::Ours(_) | Identity::Unknown(_) => {
            let message = format!("its QEMU runs already, as process {pid} of {pid_file}");
            Err(Failure::new(ErrorCode::InvalidState, message))
        }
    }
}

/// Removes what a QEMU that has ended has left, unless it is another's by now.
pub(super) async fn remove(ended: i32, traits: &QemuTraits) {
    if pid(traits).await == Some(ended)
        && let Some(pid_file) = &traits.pid_file
    {
        removed(pid_file.as_path()).await;
    }
    if let Some(socket) = &traits.qmp_socket
        && let Ok(Found::Left(left)) = look(socket).await
    {
        remove_left(socket, left).await;
    }
}

/// What is in a socket's place.
enum Found {
    Nothing,
    /// A socket that nobody listens at.
    Left(FileId),
    Listener,
}

/// One file, and no other that gets its name, or its number, later.
#[derive(PartialEq)]
struct FileId {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// A file in its place that is no socket is not touched.
async fn look(socket: &HostPath) -> Result<Found, Failure> {
    // Before the connection: who binds after it must not be taken for the one that refused.
    let file = socket_id(socket.as_path());
    match UnixStream::connect(socket.as_path()).await {
        Ok(_taken) => Ok(Found::Listener),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        // Its backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Found::Listener),
        Err(error) => match file {
            Some(left) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Found::Left(left)),
            _ => {
                let message = format!("{socket} cannot be used: {error}");
                Err(Failure::new(ErrorCode::HostFile, message).with("path", socket.as_str()))
            }
        },
    }
}

/// Unless another has come in its place.
async fn remove_left(socket: &HostPath, left: FileId) {
    let path = socket.as_path().to_owned();
    let _gone_or_anothers = file_call(move || match socket_id(&path) {
        Some(found) if found == left => fs::remove_file(&path),
        _ => Ok(()),
    })
    .await;
}

fn socket_id(path: &Path) -> Option<FileId> {
    let found = fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then(|| FileId {
        device: found.dev(),
        inode: found.ino(),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn only_the_socket_that_refused_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp.sock");
        let socket = HostPath::parse(path.to_str().unwrap()).unwrap();
        assert!(matches!(look(&socket).await, Ok(Found::Nothing)));
        drop(UnixListener::bind(&path).unwrap());
        let Ok(Found::Left(left)) = look(&socket).await else {
            panic!("nobody listens")
        };
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        remove_left(&socket, left).await;
        assert!(matches!(look(&socket).await, Ok(Found::Listener)));

        drop(listener);
        let Ok(Found::Left(left)) = look(&socket).await else {
            panic!("nobody listens")
        };
        remove_left(&socket, left).await;
        assert!(!path.exists());
    }
}
