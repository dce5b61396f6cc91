//! Keeping a process as a whole on some CPUs of the host, by the cpuset of a cgroup v2 scope of its own: what
//! `CgroupsManager` does for a QEMU of the user's.
//!
//! Either the process ends up on exactly these CPUs, or it is where it was, with the reason told and nothing left
//! behind. Neighbours: [`super::cgroup`] has the scopes of our own machines, [`super::affinity`] binds each of their
//! vCPUs, which needs no cgroup.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::accelerator::parse_cpu_list;
use super::blocking::blocking;
use super::cgroup::{Cgroups, remove_empty};
use crate::config::CpusetPaths;
use crate::error::{Coded, ErrorCode};

/// The files of a scope that say where its processes may be.
const SETTINGS: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// A process that is not on the CPUs it should be on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CpusetError {
    #[error("no CPU is named")]
    NoCpus,
    #[error("{pid} is no process")]
    NoProcess { pid: i64 },
    #[error("these CPUs are not online: {}", list(cpus))]
    Offline { cpus: Vec<i64> },
    #[error("{what}")]
    NoScope { what: String },
    #[error("{} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} makes no sense", path.display())]
    Parse { path: PathBuf },
    #[error("{} was not taken", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the kernel keeps {} from the scope", list(cpus))]
    Kept { cpus: Vec<u32> },
    #[error("the host could not be asked")]
    NotAsked { source: io::Error },
}

impl Coded for CpusetError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoCpus | Self::NoProcess { .. } => ErrorCode::InvalidConfig,
            _ => ErrorCode::ResourceUnavailable,
        }
    }
}

/// The cpusets of a host, or of a stand-in for one.
#[derive(Debug, Clone)]
pub struct Cpusets {
    paths: CpusetPaths,
}

impl Cpusets {
    /// Touches nothing.
    pub fn new(paths: CpusetPaths) -> Self {
        Self { paths }
    }

    /// Moves a process with all its threads into `<slice>/qemu-<pid>.scope`, which is made, and which has these CPUs
    /// and the memory of their nodes.
    pub async fn pin(&self, pid: i64, cpus: Vec<i64>) -> Result<(), CpusetError> {
        let cpusets = self.clone();
        asked(move || cpusets.pin_now(pid, &cpus)).await
    }

    /// The CPUs that are online.
    pub async fn online(&self) -> Result<BTreeSet<u32>, CpusetError> {
        let path = self.paths.online_cpus.clone();
        asked(move || read_list(&path)).await
    }

    /// Refuses CPUs that are not online; none at all are fine.
    pub async fn validate(&self, cpus: &[i64]) -> Result<(), CpusetError> {
        usable(cpus, &self.online().await?).map(drop)
    }

    /// Removes the scopes in the slice that have no process; how many there were.
    pub async fn remove_empty_scopes(&self) -> usize {
        self.cgroups().remove_empty_scopes().await
    }

    fn cgroups(&self) -> Cgroups {
        let paths = &self.paths;
        Cgroups::at(&paths.cgroups).in_slice(paths.slice())
    }

    fn pin_now(&self, pid: i64, cpus: &[i64]) -> Result<(), CpusetError> {
        if pid <= 0 {
            return Err(CpusetError::NoProcess { pid });
        }
        let cpus = usable(cpus, &read_list(&self.paths.online_cpus)?)?;
        if cpus.is_empty() {
            return Err(CpusetError::NoCpus);
        }
        let scope = self.paths.slice().join(format!("qemu-{pid}.scope"));
        let cgroups = self.cgroups();
        let made = cgroups.make(&scope);
        let is_new = made.map_err(|what| CpusetError::NoScope { what })?;
        for parent in cgroups.parents() {
            // Where it is not to be had, the scope has no file for the CPUs.
            if let Err(error) = put(parent, "cgroup.subtree_control", "+cpuset") {
                tracing::debug!(%error, "not delegated");
            }
        }
        // It may have the process already, which another setting would move.
        let before = (!is_new).then(|| settings_of(&scope));
        let filled = self.fill(&scope, pid, &cpus);
        if filled.is_err() {
            undo(&scope, before);
        }
        filled
    }

    /// The process comes last: it is never in a scope that is not what was asked for.
    fn fill(&self, scope: &Path, pid: i64, cpus: &BTreeSet<u32>) -> Result<(), CpusetError> {
        put(scope, "cpuset.cpus", &list(cpus))?;
        put(scope, "cpuset.mems", &list(self.nodes_of(cpus)))?;
        let kept = kept_from(scope, cpus)?;
        if !kept.is_empty() {
            return Err(CpusetError::Kept { cpus: kept });
        }
        put(scope, "cgroup.procs", &pid.to_string())
    }

    /// The nodes that have these CPUs; node 0 where the host does not tell.
    fn nodes_of(&self, cpus: &BTreeSet<u32>) -> BTreeSet<u32> {
        let entries = fs::read_dir(&self.paths.nodes)
            .into_iter()
            .flatten()
            .flatten();
        let has_some = |directory: &Path| {
            let of_node = read_list(&directory.join("cpulist"));
            of_node.is_ok_and(|of_node| !of_node.is_disjoint(cpus))
        };
        let number = |entry: &fs::DirEntry| -> Option<u32> {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("node")?
                .parse()
                .ok()
        };
        let nodes = entries.filter(|entry| has_some(&entry.path()));
        let nodes: BTreeSet<u32> = nodes.filter_map(|entry| number(&entry)).collect();
        if nodes.is_empty() {
            BTreeSet::from([0])
        } else {
            nodes
        }
    }
}

async fn asked<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CpusetError> + Send + 'static,
) -> Result<T, CpusetError> {
    let not_asked = |not_done: io::Error| CpusetError::NotAsked { source: not_done };
    blocking(work)
        .await
        .map_err(|not_done| not_asked(not_done.into()))?
}

fn usable(cpus: &[i64], online: &BTreeSet<u32>) -> Result<BTreeSet<u32>, CpusetError> {
    let is_online = |cpu: i64| u32::try_from(cpu).ok().filter(|cpu| online.contains(cpu));
    let offline: Vec<i64> = cpus
        .iter()
        .copied()
        .filter(|cpu| is_online(*cpu).is_none())
        .collect();
    if !offline.is_empty() {
        return Err(CpusetError::Offline { cpus: offline });
    }
    Ok(cpus.iter().filter_map(|cpu| is_online(*cpu)).collect())
}

/// What the scope does not get of these CPUs: one above it has not got them either. Where the file is absent, the tree is
/// a stand-in.
fn kept_from(scope: &Path, cpus: &BTreeSet<u32>) -> Result<Vec<u32>, CpusetError> {
    match read_list(&scope.join("cpuset.cpus.effective")) {
        Err(CpusetError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        effective => Ok(cpus.difference(&effective?).copied().collect()),
    }
}

fn read_list(path: &Path) -> Result<BTreeSet<u32>, CpusetError> {
    let path = || path.to_owned();
    let text = fs::read_to_string(path()).map_err(|source| CpusetError::Read {
        path: path(),
        source,
    })?;
    parse_cpu_list(&text).ok_or_else(|| CpusetError::Parse { path: path() })
}

/// What a scope that is there says, of the files that can be read.
fn settings_of(scope: &Path) -> Vec<(&'static str, String)> {
    let read = |name| Some((name, fs::read_to_string(scope.join(name)).ok()?));
    SETTINGS.into_iter().filter_map(read).collect()
}

/// A scope that was made is removed, unless the process is in it after all; one that was there says again what it said.
fn undo(scope: &Path, before: Option<Vec<(&'static str, String)>>) {
    let Some(before) = before else {
        let _populated = remove_empty(scope);
        return;
    };
    for (name, text) in before {
        if let Err(error) = put(scope, name, &text) {
            tracing::warn!(%error, "a scope keeps what was refused");
        }
    }
}

/// The kernel's files are there and cannot be made; a stand-in's are made.
fn put(scope: &Path, name: &str, text: &str) -> Result<(), CpusetError> {
    let path = scope.join(name);
    fs::write(&path, text).map_err(|source| CpusetError::Write { path, source })
}

fn list<T: ToString>(numbers: impl IntoIterator<Item = T>) -> String {
    let numbers = numbers.into_iter().map(|number| number.to_string());
    numbers.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of CPUs 0-3 and 8, on two nodes, with a cpuset controller.
    fn host() -> (tempfile::TempDir, Cpusets) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (directory, file, text) in [
            ("cgroup", "cgroup.controllers", "cpuset cpu memory\n"),
            ("cgroup", "cgroup.subtree_control", ""),
            (
                "cgroup/infinization.slice",
                "cgroup.controllers",
                "cpuset\n",
            ),
            ("cgroup/infinization.slice", "cgroup.subtree_control", ""),
            ("cpu", "online", "0-3,8\n"),
            ("node/node0", "cpulist", "0-1\n"),
            ("node/node1", "cpulist", "2-3,8\n"),
        ] {
            fs::create_dir_all(at(directory)).unwrap();
            fs::write(at(directory).join(file), text).unwrap();
        }
        let paths = CpusetPaths {
            cgroups: at("cgroup"),
            slice: None,
            online_cpus: at("cpu/online"),
            nodes: at("node"),
        };
        (dir, Cpusets::new(paths))
    }

    #[tokio::test]
    async fn the_scope_has_the_cpus_their_nodes_and_the_process() {
        let (dir, cpusets) = host();
        cpusets.pin(4711, vec![8, 1, 1]).await.unwrap();
        let slice = dir.path().join("cgroup/infinization.slice");
        let read = |name: &str| fs::read_to_string(slice.join(name)).unwrap();
        assert_eq!(read("qemu-4711.scope/cpuset.cpus"), "1,8");
        assert_eq!(read("qemu-4711.scope/cpuset.mems"), "0,1");
        assert_eq!(read("qemu-4711.scope/cgroup.procs"), "4711");
        assert_eq!(read("cgroup.subtree_control"), "+cpuset");
        assert_eq!(read("../cgroup.subtree_control"), "+cpuset");

        fs::remove_dir_all(dir.path().join("node")).unwrap();
        cpusets.pin(4712, vec![2]).await.unwrap();
        assert_eq!(read("qemu-4712.scope/cpuset.mems"), "0");
    }

    #[tokio::test]
    async fn f46_what_is_refused_leaves_no_scope() {
        let (dir, cpusets) = host();
        let slice = dir.path().join("cgroup/infinization.slice");
        let scopes = || {
            let entries = fs::read_dir(&slice).unwrap().flatten();
            entries.filter(|entry| entry.path().is_dir()).count()
        };
        for (pid, cpus, why) in [
            (1, vec![], "no CPU is named"),
            (0, vec![1], "0 is no process"),
            (1, vec![0, 4, -1], "these CPUs are not online: 4,-1"),
        ] {
            let error = cpusets.pin(pid, cpus).await.unwrap_err();
            assert_eq!((error.to_string().as_str(), scopes()), (why, 0));
        }
        fs::remove_file(dir.path().join("cgroup/cgroup.controllers")).unwrap();
        let error = cpusets.pin(1, vec![0]).await.unwrap_err();
        assert!(
            error.to_string().starts_with("no cgroup v2 tree"),
            "{error}"
        );
        assert_eq!(scopes(), 0);
    }

    #[tokio::test]
    async fn g2_cpus_that_the_kernel_keeps_are_told_before_the_process_moves() {
        let (dir, cpusets) = host();
        let scope = dir.path().join("cgroup/infinization.slice/qemu-7.scope");
        fs::create_dir_all(&scope).unwrap();
        fs::write(scope.join("cpuset.cpus.effective"), "0-1\n").unwrap();
        fs::write(scope.join("cpuset.cpus"), "0-1\n").unwrap();
        fs::write(scope.join("cpuset.mems"), "0\n").unwrap();
        let error = cpusets.pin(7, vec![1, 2]).await.unwrap_err();
        assert_eq!(error.to_string(), "the kernel keeps 2 from the scope");
        assert!(!scope.join("cgroup.procs").exists());
        // It was there before, and a process in it stays where it is.
        let read = |name: &str| fs::read_to_string(scope.join(name)).unwrap();
        assert_eq!(read("cpuset.cpus"), "0-1\n");
        assert_eq!(read("cpuset.mems"), "0\n");
    }

    #[tokio::test]
    async fn g4_a_slice_of_ones_own_is_swept_of_what_has_no_process() {
        let (dir, mut cpusets) = host();
        let slice = dir.path().join("other");
        cpusets.paths.slice = Some(slice.clone());
        cpusets.pin(1, vec![0]).await.unwrap();
        cpusets.pin(2, vec![0]).await.unwrap();
        fs::write(slice.join("qemu-1.scope/cgroup.procs"), "").unwrap();
        assert_eq!(cpusets.remove_empty_scopes().await, 1);
        assert!(!slice.join("qemu-1.scope").exists() && slice.join("qemu-2.scope").exists());
    }

    #[tokio::test]
    async fn g1_only_what_is_online_is_valid() {
        let (_dir, cpusets) = host();
        assert_eq!(cpusets.online().await.unwrap().len(), 5);
        assert!(cpusets.validate(&[]).await.is_ok() && cpusets.validate(&[8, 0]).await.is_ok());
        for bad in [-1, 4, 1 << 40] {
            assert!(cpusets.validate(&[bad]).await.is_err(), "{bad}");
        }
    }
}
