//! What a QEMU leaves in the file system: its pidfile and its monitor's socket. SIGKILL leaves both.

use std::io;

use tokio::net::UnixStream;

use crate::config::QemuTraits;
use crate::error::{ErrorCode, Failure};
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
    if is_listened_on(socket).await? {
        let message = format!("another process listens at {socket}");
        return Err(Failure::new(ErrorCode::AddressInUse, message).with("path", socket.as_str()));
    }
    removed(socket.as_path()).await;
    Ok(())
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
        && matches!(is_listened_on(socket).await, Ok(false))
    {
        removed(socket.as_path()).await;
    }
}

/// Whether whoever connects is taken. A file in its place that is no socket is not touched.
async fn is_listened_on(socket: &HostPath) -> Result<bool, Failure> {
    match UnixStream::connect(socket.as_path()).await {
        Ok(_taken) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(socket) => {
            Ok(false)
        }
        // Its backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => {
            let message = format!("{socket} cannot be used: {error}");
            Err(Failure::new(ErrorCode::HostFile, message).with("path", socket.as_str()))
        }
    }
}

fn is_socket(path: &HostPath) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    let found = std::fs::symlink_metadata(path.as_path());
    found.is_ok_and(|found| found.file_type().is_socket())
}
