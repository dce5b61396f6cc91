//! The files and sockets of one VM. What is not async blocks.

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{blocking, missing};
use crate::error::{ErrorCode, Failure};
use crate::types::HostPath;
use crate::vm::bench::Bench;

/// A pidfile while it is being written.
pub(super) fn unfinished(path: &HostPath) -> PathBuf {
    path.as_path().with_extension("pid.new")
}

pub(super) async fn write_pid_file(path: &HostPath, bench: &Bench) -> Result<(), Failure> {
    let pid = bench.process().ok_or_else(|| missing("process"))?.pid();
    blocking(path.clone(), move |path| {
        // Whoever reads pidfiles finds a whole one or none.
        let whole = unfinished(&path);
        let written = std::fs::write(&whole, format!("{pid}\n"));
        written
            .and_then(|()| std::fs::rename(&whole, &path))
            .map_err(|error| {
                // On a full disk the file was made and stayed empty.
                let _absent = std::fs::remove_file(&whole);
                file_failure("written", path.as_path(), &error)
            })
    })
    .await
}

/// Copies a file to a name that is not taken.
pub(super) async fn copy_new(
    from: HostPath,
    to: HostPath,
    owner: Option<(u32, u32)>,
) -> Result<(), Failure> {
    blocking(to, move |to| {
        let failed = |error: io::Error| file_failure("copied", to.as_path(), &error);
        let mut source = std::fs::File::open(from.as_path()).map_err(failed)?;
        let new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&to);
        let mut target = new.map_err(failed)?;
        let copied = io::copy(&mut source, &mut target)
            .and_then(|_| target.sync_all())
            .and_then(|()| give_to(to.as_path(), owner));
        copied.map_err(|error| {
            let _removed = std::fs::remove_file(&to);
            failed(error)
        })
    })
    .await
}

/// Binds a socket of mode 0600 (0660 for another user's QEMU). A socket file nobody listens on any
/// more is replaced; one that is in use, or anything else of that name, is left alone.
pub(super) fn listen(path: &HostPath, owner: Option<(u32, u32)>) -> Result<OwnedFd, Failure> {
    let failed = |error: &io::Error| {
        let code = match error.kind() {
            io::ErrorKind::AddrInUse => ErrorCode::AddressInUse,
            _ => ErrorCode::HostFile,
        };
        Failure::new(code, format!("socket {path} could not be bound: {error}"))
            .with("path", path.as_str())
    };
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        bound => bound,
    };
    let listener = bound.map_err(|error| failed(&error))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .and_then(|()| give_to(path.as_path(), owner))
        .map_err(|error| {
            let _removed = std::fs::remove_file(path);
            failed(&error)
        })?;
    Ok(listener.into())
}

pub(super) fn is_stale(path: &HostPath) -> bool {
    matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

pub(super) fn prepare_log(path: &Path, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map(drop)
        .and_then(|()| give_to(path, owner))
        .map_err(|error| file_failure("opened", path, &error))
}

pub(super) fn give_to(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_failure("removed", path, &error))
        }
        _ => Ok(()),
    }
}

pub(super) fn file_failure(done: &str, path: impl AsRef<Path>, error: &io::Error) -> Failure {
    let path = path.as_ref().display().to_string();
    let code = match error.kind() {
        io::ErrorKind::StorageFull => ErrorCode::InsufficientSpace,
        _ => ErrorCode::HostFile,
    };
    Failure::new(code, format!("{path} could not be {done}: {error}")).with("path", path)
}
