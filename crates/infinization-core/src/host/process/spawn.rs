//! Starts a program in a session of its own that outlives us. The clone itself is in [`super::vfork`].

use std::ffi::{CString, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Access;
use tokio::time::timeout;

use super::descriptors::DescriptorPlan;
use super::pidfd::Status;
use super::vfork::{Image, SpawnStep, vfork_exec};
use super::{ProcessError, ProcessHandle, ProcessId, Signal, pidfd};
use crate::host::blocking::blocking;
use crate::host::program::count_program;

/// `execve` returns in a millisecond; only a dead network file system keeps it longer.
const SPAWN_DEADLINE: Duration = Duration::from_secs(30);
/// What the program's environment holds: nothing of ours leaks into it.
const ENVIRONMENT: [&str; 2] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL=C",
];

/// Whom the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// The real, effective and saved user id.
    pub uid: u32,
    /// The real, effective and saved group id.
    pub gid: u32,
    /// The supplementary groups; ours are dropped.
    pub groups: Vec<u32>,
}

impl RunAs {
    /// The kernel reads -1 as "leave it as it is": the program would keep our privileges.
    fn keeps_ours(&self) -> bool {
        self.uid == u32::MAX || self.gid == u32::MAX
    }
}

/// A process to start: in a session of its own, working in `/`, reading and writing `/dev/null`.
#[derive(Debug)]
pub struct SpawnSpec {
    /// A path, or a name that is looked up in `PATH`.
    pub program: String,
    /// The arguments after the program's name.
    pub args: Vec<OsString>,
    /// Variables (`NAME=value`) beside the fixed `PATH` and `LC_ALL=C`.
    pub env: Vec<OsString>,
    /// Descriptors and the numbers (3 and up) they get in the program. Ours are closed when the
    /// program runs: one left open here would keep an image's lock after QEMU's end.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Standard error, opened for appending (see [`super::StderrLog`]).
    pub stderr: OwnedFd,
    /// Whom to run as; `None` keeps our user.
    pub user: Option<RunAs>,
}

impl SpawnSpec {
    /// A program without arguments, run as our own user.
    pub fn new(program: impl Into<String>, stderr: impl Into<OwnedFd>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            fds: Vec::new(),
            stderr: stderr.into(),
            user: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Hands `fd` over as number `target`.
    #[must_use]
    pub fn fd(mut self, fd: impl Into<OwnedFd>, target: RawFd) -> Self {
        self.fds.push((fd.into(), target));
        self
    }

    /// Drops to another user before the program's first instruction.
    #[must_use]
    pub fn user(mut self, user: Option<RunAs>) -> Self {
        self.user = user;
        self
    }
}

/// Starts a process that outlives us, and resolves once the program has been executed.
///
/// It costs the same whatever the size of this process, and never runs on the calling thread.
/// A future dropped before it resolves leaves no process behind. The kernel lets us go on before it
/// has laid out the program's memory: for a moment `/proc/<pid>/cmdline` may still be empty.
///
/// # Why not `std::process::Command` or `posix_spawn`
///
/// `Command` forks as soon as it is told to change the user or to run `pre_exec`, and a fork copies
/// the page tables of the whole Node process: 14 ms at 560 MiB resident, 105 ms at 6 GiB, with the
/// event loop stalled meanwhile. `posix_spawn` shares the memory instead, but knows no `setgroups`
/// and no exact set of inherited descriptors. So this is what `posix_spawn` does inside, with our
/// steps (`vfork` has them): `clone(CLONE_VM | CLONE_VFORK)` onto a stack of its own. A launcher
/// program would do as well, at the price of a second executable to ship and of its child being
/// nobody's.
pub async fn spawn(spec: SpawnSpec) -> Result<ProcessHandle, ProcessError> {
    let program = spec.program.clone();
    match timeout(SPAWN_DEADLINE, blocking(move || start(&spec))).await {
        Err(_) => Err(ProcessError::SpawnTimeout { program }),
        Ok(Ok(started)) => {
            let (id, unclaimed) = started?;
            unclaimed.claim(id)
        }
        Ok(Err(not_done)) => Err(ProcessError::Spawn {
            program,
            step: SpawnStep::Clone,
            source: not_done.into(),
        }),
    }
}

fn start(spec: &SpawnSpec) -> Result<(ProcessId, Unclaimed), ProcessError> {
    let program = spec.program.clone();
    let failed = |(step, source)| ProcessError::Spawn {
        program: program.clone(),
        step,
        source,
    };
    let null = open_null().map_err(|source| failed((SpawnStep::OpenNull, source)))?;
    let child = vfork_exec(&mut image(spec, &null)?).map_err(failed)?;
    count_program();
    let unclaimed = Unclaimed {
        pidfd: Arc::new(child.pidfd),
        claimed: false,
    };
    let pid = child.pid;
    let id = ProcessId::read(pid).map_err(|source| ProcessError::Watch { pid, source })?;
    Ok((id, unclaimed))
}

/// Everything the child needs, in the form the kernel takes it.
fn image(spec: &SpawnSpec, null: &OwnedFd) -> Result<Image, ProcessError> {
    let refused = |what: &str| ProcessError::Refused {
        program: spec.program.clone(),
        what: what.to_owned(),
    };
    if spec.user.as_ref().is_some_and(RunAs::keeps_ours) {
        return Err(refused("a user or group id of -1, which means ours"));
    }
    let path = resolve(&spec.program)?.into_os_string();
    let text = |text: OsString| {
        CString::new(text.into_vec()).map_err(|_| refused("a NUL byte in its arguments"))
    };
    let argv = std::iter::once(path).chain(spec.args.iter().cloned());
    let envp = ENVIRONMENT.map(OsString::from);
    let envp = envp.into_iter().chain(spec.env.iter().cloned());
    Ok(Image {
        argv: argv.map(text).collect::<Result<_, _>>()?,
        envp: envp.map(text).collect::<Result<_, _>>()?,
        descriptors: descriptors(spec, null)
            .map_err(|target| refused(&format!("two descriptors as number {target}, or none")))?,
        user: spec.user.clone(),
    })
}

fn descriptors(spec: &SpawnSpec, null: &OwnedFd) -> Result<DescriptorPlan, RawFd> {
    let null = null.as_raw_fd();
    let standard = [(null, 0), (null, 1), (spec.stderr.as_raw_fd(), 2)];
    let passed = spec
        .fds
        .iter()
        .map(|(fd, target)| (fd.as_raw_fd(), *target));
    DescriptorPlan::new(standard.into_iter().chain(passed).collect())
}

fn open_null() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    Ok(file.into())
}

/// Finds the program before the clone: the child could only try and fail.
fn resolve(program: &str) -> Result<PathBuf, ProcessError> {
    if program.contains('/') {
        return Ok(PathBuf::from(program));
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(&ENVIRONMENT[0][5..]));
    std::env::split_paths(&search)
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
        .ok_or_else(|| ProcessError::NotFound {
            program: program.to_owned(),
        })
}

fn is_executable(path: &Path) -> bool {
    path.is_absolute() && path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

/// A started process that nobody holds yet: dropped in this state, it ends.
#[derive(Debug)]
struct Unclaimed {
    pidfd: Arc<OwnedFd>,
    claimed: bool,
}

impl Unclaimed {
    fn claim(mut self, id: ProcessId) -> Result<ProcessHandle, ProcessError> {
        let pid = id.pid;
        let handle = ProcessHandle::watch(id, Arc::clone(&self.pidfd), Status::Reap)
            .map_err(|source| ProcessError::Watch { pid, source })?;
        self.claimed = true;
        Ok(handle)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if !self.claimed && pidfd::send(self.pidfd.as_fd(), Signal::KILL).is_ok() {
            pidfd::reap(self.pidfd.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_name_in_path_and_leaves_a_path_alone() {
        assert!(resolve("sh").unwrap().is_absolute());
        assert_eq!(
            resolve("/nowhere/qemu").unwrap(),
            Path::new("/nowhere/qemu")
        );
        let missing = resolve("no-such-program-here").unwrap_err();
        assert!(matches!(missing, ProcessError::NotFound { .. }));
        assert!(resolve("").is_err());
    }

    #[test]
    fn an_argument_with_nul_is_refused_before_anything_runs() {
        let null = open_null().unwrap();
        let spec = SpawnSpec::new("sh", open_null().unwrap()).args(["a\0b"]);
        let refused = image(&spec, &null).unwrap_err();
        assert!(matches!(refused, ProcessError::Refused { .. }), "{refused}");
    }

    #[test]
    fn an_id_that_means_no_change_is_refused() {
        let null = open_null().unwrap();
        for (uid, gid) in [(u32::MAX, 1), (1, u32::MAX)] {
            let groups = Vec::new();
            let user = Some(RunAs { uid, gid, groups });
            let spec = SpawnSpec::new("sh", open_null().unwrap()).user(user);
            assert!(image(&spec, &null).is_err(), "{uid} {gid}");
        }
    }

    #[test]
    fn a_number_is_given_once_and_not_to_a_standard_stream() {
        let null = open_null().unwrap();
        for targets in [[3, 3], [4, 2], [0, 5], [-1, 3]] {
            let spec = targets.into_iter().fold(
                SpawnSpec::new("sh", open_null().unwrap()),
                |spec, target| spec.fd(open_null().unwrap(), target),
            );
            assert!(image(&spec, &null).is_err(), "{targets:?}");
        }
    }
}
