use super::{AcceleratorChoice, RunAsUser};
use crate::types::{ByteSize, HostPath};

/// What the pure parser needs to know of the world, as plain values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Where disks and UEFI variables go.
    pub disk_dir: HostPath,
    /// Where sockets go.
    pub socket_dir: HostPath,
    /// Where pidfiles go.
    pub pid_dir: HostPath,
    /// Which paths may be named.
    pub path_rules: PathRules,
    /// The accelerator of VMs that do not name one.
    pub accelerator: AcceleratorChoice,
    /// The user of VMs that do not name one.
    pub run_as_user: Option<RunAsUser>,
    /// One more than the highest CPU number of this host.
    pub host_cpus: u32,
    /// This host's memory.
    pub host_memory: ByteSize,
    /// The size of this host's default huge page.
    pub hugepage_size: ByteSize,
}

/// Which paths a user may name. Text only: whoever opens a path resolves its links and asks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRules {
    /// The only places for disks, backing files and ISOs; `None` is anywhere.
    pub allowed: Option<Vec<HostPath>>,
    /// The only place for ROM files.
    pub rom_dir: HostPath,
}
