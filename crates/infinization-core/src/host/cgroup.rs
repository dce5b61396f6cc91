//! One cgroup v2 scope per VM, `<base>/infinization.slice/qemu-<vmId>.scope`, and one per virtual network.
//!
//! It keeps QEMU out of our own service's cgroup (so a restart of the service does not end it),
//! counts what it uses and lets [`super::oom`] say whether the OOM killer took it. All of it is
//! optional: where there is no writable v2 tree, a VM runs without. A scope is named after its VM,
//! not after a pid, so it is found again. cgroup v1 is not used.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::config::NetworkName;
use crate::error::{Coded, ErrorCode};
use crate::host::blocking::{blocking, file_call};
use crate::network::scope_name;
use crate::types::VmId;

const SLICE: &str = "infinization.slice";
/// What scopes should be able to count and limit, where the kernel offers it.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// What is written into a scope.
const STAND_INS: [&str; 3] = ["cgroup.procs", "cpuset.cpus", "cpuset.mems"];

/// A scope that could not be removed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CgroupError {
    #[error("cgroup {path} still has processes")]
    Busy { path: String },
    #[error("cgroup {path} could not be removed")]
    Remove { path: String, source: io::Error },
}

impl Coded for CgroupError {
    fn code(&self) -> ErrorCode {
        ErrorCode::HostFile
    }

    fn context(&self) -> serde_json::Map<String, serde_json::Value> {
        let (Self::Busy { path } | Self::Remove { path, .. }) = self;
        serde_json::Map::from_iter([("path".to_owned(), path.as_str().into())])
    }
}

/// Where a process ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// In this scope.
    Placed(PathBuf),
    /// Where it was, for this reason. Nothing was left behind.
    Unavailable(String),
}

/// A cgroup v2 tree, or a directory of it.
#[derive(Debug, Clone)]
pub struct Cgroups {
    base: PathBuf,
    slice: PathBuf,
}

impl Cgroups {
    /// The host's tree, `/sys/fs/cgroup`.
    pub fn host() -> Self {
        Self::at("/sys/fs/cgroup")
    }

    /// A delegated part of it, or a stand-in.
    pub fn at(base: impl Into<PathBuf>) -> Self {
        let base = base.into();
        let slice = base.join(SLICE);
        Self { base, slice }
    }

    /// With its scopes in `slice`, instead of `<base>/infinization.slice`.
    #[must_use]
    pub fn in_slice(self, slice: PathBuf) -> Self {
        Self { slice, ..self }
    }

    /// Whether this is a v2 tree. A v1 or hybrid host has none here.
    pub fn is_v2(&self) -> bool {
        self.base.join("cgroup.controllers").is_file()
    }

    /// Where `vm`'s scope is, or would be.
    pub fn scope_of(&self, vm: &VmId) -> PathBuf {
        self.slice.join(format!("qemu-{vm}.scope"))
    }

    /// Where the scope of a virtual network's dnsmasq is, or would be; another state directory's has another.
    pub fn scope_of_network(&self, state_dir: &Path, name: &NetworkName) -> PathBuf {
        self.slice.join(scope_name(state_dir, name))
    }

    /// Moves a process with all its threads into `vm`'s scope, which is created.
    pub async fn place(&self, pid: i32, vm: &VmId) -> Placement {
        self.place_at(pid, self.scope_of(vm)).await
    }

    /// Moves a process with all its threads into this scope of ours, which is created.
    pub async fn place_at(&self, pid: i32, scope: PathBuf) -> Placement {
        let tree = self.clone();
        let placed = blocking(move || tree.place_in(pid, &scope).map(|()| scope));
        match placed
            .await
            .unwrap_or_else(|not_done| Err(not_done.to_string()))
        {
            Ok(scope) => Placement::Placed(scope),
            Err(why) => Placement::Unavailable(why),
        }
    }

    /// Removes the scopes of VMs and dnsmasqs that have ended, also those an earlier run of ours left. Returns
    /// how many there were; populated ones stay.
    pub async fn remove_empty_scopes(&self) -> usize {
        let slice = self.slice.clone();
        let swept = blocking(move || {
            let scopes = fs::read_dir(slice).into_iter().flatten().flatten();
            let scopes = scopes.filter(|entry| is_scope(&entry.file_name()));
            scopes
                .filter(|entry| remove_empty(&entry.path()).is_ok())
                .count()
        });
        swept.await.unwrap_or(0)
    }

    /// Makes `scope` in the slice. Whether it was not there.
    pub(super) fn make(&self, scope: &Path) -> Result<bool, String> {
        if !self.is_v2() {
            return Err(format!("no cgroup v2 tree at {}", self.base.display()));
        }
        make_dir(&self.slice)?;
        make_dir(scope)
    }

    /// The directories whose children get a controller by it being enabled there, the upper one first.
    pub(super) fn parents(&self) -> [&Path; 2] {
        [&self.base, &self.slice]
    }

    fn place_in(&self, pid: i32, scope: &Path) -> Result<(), String> {
        self.make(scope)?;
        self.parents().into_iter().for_each(enable_controllers);
        let procs = scope.join("cgroup.procs");
        write(&procs, &pid.to_string()).map_err(|error| {
            // Only an empty one goes: a scope that already holds the VM stays.
            let _populated = fs::remove_dir(scope);
            format!("{}: {error}", procs.display())
        })
    }
}

/// Removes a scope whose processes have ended; an absent one is no error.
pub async fn remove(scope: &Path) -> Result<(), CgroupError> {
    let path = scope.display().to_string();
    let scope = scope.to_owned();
    match file_call(move || fs::remove_dir(scope)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            Err(CgroupError::Busy { path })
        }
        Err(source) => Err(CgroupError::Remove { path, source }),
        Ok(()) => Ok(()),
    }
}

/// The counter `name` of a file such as `memory.events`: `name value`, one per line.
pub(super) fn counter(text: &str, name: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

fn is_scope(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let of_ours = name.starts_with(b"qemu-") || name.starts_with(b"dnsmasq-");
    of_ours && name.ends_with(b".scope")
}

/// Whether it was not there.
fn make_dir(path: &Path) -> Result<bool, String> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Removes a scope that has no process. In a stand-in for the kernel's tree the files in it are ordinary ones, which
/// go first.
pub(super) fn remove_empty(scope: &Path) -> io::Result<()> {
    let removed = fs::remove_dir(scope);
    if !matches!(&removed, Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty) {
        return removed;
    }
    if !fs::read(scope.join("cgroup.procs"))
        .unwrap_or_default()
        .is_empty()
    {
        return removed;
    }
    for file in STAND_INS {
        let _absent = fs::remove_file(scope.join(file));
    }
    fs::remove_dir(scope)
}

/// One write per controller: a single one that is refused (it belongs to a v1 hierarchy, or the
/// directory has processes of its own) would take the others with it. Without, the scope just counts
/// less.
fn enable_controllers(dir: &Path) {
    let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let control = dir.join("cgroup.subtree_control");
    for name in offered.split_ascii_whitespace() {
        if CONTROLLERS.contains(&name)
            && let Err(error) = write(&control, &format!("+{name}"))
        {
            tracing::debug!(%error, controller = name, dir = %dir.display(), "not delegated");
        }
    }
}

/// Writes to a file that exists: the kernel's tree makes its own.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the files the kernel would make.
    fn fake_tree(vm: &VmId) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        let tree = Cgroups::at(dir.path());
        let scope = tree.scope_of(vm);
        fs::create_dir_all(&scope).unwrap();
        for dir in [dir.path(), tree.slice.as_path()] {
            fs::write(dir.join("cgroup.controllers"), "cpuset rdma memory\n").unwrap();
            fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
        }
        fs::write(scope.join("cgroup.procs"), "").unwrap();
        (dir, tree)
    }

    #[tokio::test]
    async fn the_process_goes_into_the_scope_of_its_vm() {
        let vm = VmId::parse("vm-1").unwrap();
        let (dir, tree) = fake_tree(&vm);
        let scope = dir.path().join("infinization.slice/qemu-vm-1.scope");
        assert_eq!(
            tree.place(4711, &vm).await,
            Placement::Placed(scope.clone())
        );
        assert_eq!(
            fs::read_to_string(scope.join("cgroup.procs")).unwrap(),
            "4711"
        );
        let control = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(
            control, "+memory",
            "only what is offered and useful, each in a write of its own"
        );
    }

    #[tokio::test]
    async fn a_v1_host_has_no_scopes_and_nothing_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Cgroups::at(dir.path());
        let placed = tree.place(1, &VmId::parse("vm-1").unwrap()).await;
        assert!(matches!(placed, Placement::Unavailable(why) if why.contains("no cgroup v2")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_refused_move_takes_its_scope_away() {
        let vm = VmId::parse("vm-1").unwrap();
        let (_dir, tree) = fake_tree(&vm);
        let scope = tree.scope_of(&vm);
        fs::remove_file(scope.join("cgroup.procs")).unwrap();
        let placed = tree.place(4711, &vm).await;
        assert!(matches!(placed, Placement::Unavailable(why) if why.contains("cgroup.procs")));
        assert!(!scope.exists());
        assert!(
            remove(&scope).await.is_ok(),
            "an absent scope is removed already"
        );
    }

    #[test]
    fn a_counter_is_read_by_its_whole_name() {
        let events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(counter(events, "oom_kill"), Some(3));
        assert_eq!(counter(events, "oom"), Some(1));
        assert_eq!(counter(events, "oom_"), None);
    }

    #[tokio::test]
    async fn only_empty_scopes_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let slice = dir.path().join(SLICE);
        for name in [
            "qemu-a.scope",
            "dnsmasq-lab.scope",
            "qemu-b.scope/child",
            "other.scope",
        ] {
            fs::create_dir_all(slice.join(name)).unwrap();
        }
        for (name, processes) in [("qemu-c.scope", ""), ("qemu-d.scope", "17\n")] {
            fs::create_dir_all(slice.join(name)).unwrap();
            fs::write(slice.join(name).join("cgroup.procs"), processes).unwrap();
        }
        assert_eq!(Cgroups::at(dir.path()).remove_empty_scopes().await, 3);
        assert!(slice.join("qemu-d.scope").exists());
        assert!(slice.join("qemu-b.scope").exists() && slice.join("other.scope").exists());
    }
}
