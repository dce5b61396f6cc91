//! Looks at a file that a user named, before anything is done with it: is it there, is it of the kind
//! it should be, may QEMU's user open it, and where is it really.
//!
//! Nothing is opened, so a FIFO makes nobody wait and a device does nothing. The kernel itself is
//! asked what the user may do: mode bits alone would pass over ACLs and what a network file system
//! thinks of it. Everything here may block for as long as the file system does.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::process::RunAs;

/// What a file is named for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A regular file, to be read.
    File,
    /// A unix socket, to be connected to.
    Socket,
}

/// Why a file is not what it was named for. The words follow the file's name in a sentence.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Unfit {
    #[error("does not exist")]
    Missing,
    #[error("is {found}, not {wanted}")]
    Kind {
        found: &'static str,
        wanted: &'static str,
    },
    #[error("may not be opened by {user}")]
    Forbidden { user: String },
    #[error("cannot be looked at: {0}")]
    Unknown(io::Error),
}

/// Looks at each file as `user` would see it (`None` is ourselves), and says where it really is.
///
/// Without the privilege to become that user the files are seen with our own eyes: then QEMU cannot
/// be started as him either, and that says so.
pub fn look(
    files: &[(&Path, Wanted)],
    user: Option<&RunAs>,
) -> io::Result<Vec<Result<PathBuf, Unfit>>> {
    let look_at_all = || {
        let found = files
            .iter()
            .map(|(path, wanted)| look_at(path, *wanted, user));
        found.collect()
    };
    match user {
        Some(user) if !files.is_empty() => seen_by(user, look_at_all),
        _ => Ok(look_at_all()),
    }
}

fn look_at(path: &Path, wanted: Wanted, user: Option<&RunAs>) -> Result<PathBuf, Unfit> {
    let unfit = |error: io::Error| Unfit::of(error, user);
    let kind = fs::metadata(path).map_err(unfit)?.file_type();
    if !wanted.is(kind) {
        return Err(Unfit::Kind {
            found: name_of(kind),
            wanted: wanted.name(),
        });
    }
    accessat(CWD, path, wanted.access(), AtFlags::EACCESS).map_err(|errno| unfit(errno.into()))?;
    path.canonicalize().map_err(unfit)
}

impl Wanted {
    fn is(self, kind: FileType) -> bool {
        match self {
            Self::File => kind.is_file(),
            Self::Socket => kind.is_socket(),
        }
    }

    fn access(self) -> Access {
        match self {
            Self::File => Access::READ_OK,
            // unix(7): connecting needs write permission.
            Self::Socket => Access::WRITE_OK,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Socket => "a socket",
        }
    }
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

impl Unfit {
    fn of(error: io::Error, user: Option<&RunAs>) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Forbidden {
                user: user.map_or_else(|| "us".to_owned(), |user| format!("uid {}", user.uid)),
            },
            _ => Self::Unknown(error),
        }
    }
}

/// Does `work` on a thread that has the user's credentials towards files, and ends with it.
///
/// These are the credentials a file server takes on for its clients (credentials(7)): they belong to
/// the thread, and unlike the real and effective ids they give that user no power over the thread.
fn seen_by<T: Send>(user: &RunAs, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let eyes = std::thread::Builder::new().name("as-qemu-user".to_owned());
        let seen = eyes.spawn_scoped(scope, || {
            become_towards_files(user);
            work()
        })?;
        Ok(seen
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn become_towards_files(user: &RunAs) {
    let groups: Vec<_> = user
        .groups
        .iter()
        .map(|&gid| rustix::fs::Gid::from_raw(gid))
        .collect();
    if rustix::thread::set_thread_groups(&groups).is_ok() {
        setfsgid(Gid::from_raw(user.gid));
        // Last: with the uid goes the privilege to set the others.
        setfsuid(Uid::from_raw(user.uid));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    const NOBODY: u32 = 65534;

    fn user(groups: &[u32]) -> RunAs {
        RunAs {
            uid: NOBODY,
            gid: NOBODY,
            groups: groups.to_vec(),
        }
    }

    fn seen(path: &Path, wanted: Wanted, user: Option<&RunAs>) -> Result<PathBuf, String> {
        let mut looks = look(&[(path, wanted)], user).unwrap();
        looks.remove(0).map_err(|unfit| unfit.to_string())
    }

    fn file(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn b5_each_kind_is_told_from_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        fs::create_dir(place("dir")).unwrap();
        nix::unistd::mkfifo(&place("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(place("socket")).unwrap();
        file(dir.path(), "file", 0o644);
        symlink("/dev/null", place("device")).unwrap();
        symlink(place("file"), place("link")).unwrap();
        symlink(place("loop"), place("loop")).unwrap();
        for (name, as_file, as_socket) in [
            (
                "dir",
                "is a directory, not a file",
                "is a directory, not a socket",
            ),
            ("fifo", "is a FIFO, not a file", "is a FIFO, not a socket"),
            ("socket", "is a socket, not a file", ""),
            (
                "device",
                "is a device, not a file",
                "is a device, not a socket",
            ),
            ("file", "", "is a file, not a socket"),
            ("link", "", "is a file, not a socket"),
            ("none", "does not exist", "does not exist"),
            ("file/x", "does not exist", "does not exist"),
        ] {
            for (wanted, said) in [(Wanted::File, as_file), (Wanted::Socket, as_socket)] {
                let told = seen(&place(name), wanted, None).err().unwrap_or_default();
                assert_eq!(told, said, "{name} as {wanted:?}");
            }
        }
        let real = dir.path().canonicalize().unwrap().join("file");
        assert_eq!(seen(&place("link"), Wanted::File, None), Ok(real));
        let told = seen(&place("loop"), Wanted::File, None).unwrap_err();
        assert!(told.starts_with("cannot be looked at"), "{told}");
    }

    #[test]
    fn b5_the_user_s_own_permissions_count_and_ours_come_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let shut = dir.path().join("shut");
        fs::create_dir(&shut).unwrap();
        let inside = file(&shut, "inside", 0o644);
        fs::set_permissions(&shut, Permissions::from_mode(0o700)).unwrap();
        let (secret, group) = (
            file(dir.path(), "secret", 0o600),
            file(dir.path(), "group", 0o640),
        );
        nix::unistd::chown(&group, None, Some(Gid::from_raw(4242))).unwrap();
        let open = file(dir.path(), "open", 0o644);
        for (path, groups, may) in [
            (&open, [4243], true),
            (&secret, [4242], false),
            (&group, [4242], true),
            (&group, [4243], false),
            (&inside, [4242], false),
        ] {
            let told = seen(path, Wanted::File, Some(&user(&groups)));
            assert_eq!(told.is_ok(), may, "{}: {told:?}", path.display());
            assert!(seen(path, Wanted::File, None).is_ok(), "we are root");
        }
        let told = seen(&secret, Wanted::File, Some(&user(&[]))).unwrap_err();
        assert_eq!(told, "may not be opened by uid 65534");
    }
}
