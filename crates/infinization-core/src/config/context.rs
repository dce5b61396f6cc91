//! What the pure parser is told of the host and the manager's settings, so that it need not look.

use std::path::Path;

use super::{AcceleratorChoice, RunAsUser};
use crate::types::{ByteSize, HostPath};

/// What `sun_path` of a unix socket address holds (unix(7)), less its NUL.
pub const LONGEST_SOCKET_PATH: usize = 107;

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

/// Which paths a user may name. Text only: before a path is used, `vm::facts` resolves its links and
/// those of the directories, and asks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRules {
    /// The only directories for disks, backing files and ISOs; `None` is anywhere.
    pub allowed: Option<Vec<HostPath>>,
    /// The only place for ROM files.
    pub rom_dir: HostPath,
}

impl PathRules {
    /// Whether a disk, backing file or ISO may be at `path`.
    pub fn allows(&self, path: impl AsRef<Path>) -> bool {
        let path = path.as_ref();
        let inside = |dirs: &Vec<HostPath>| dirs.iter().any(|dir| is_inside(path, dir.as_path()));
        self.allowed.as_ref().is_none_or(inside)
    }

    /// Whether a ROM may be at `path`.
    pub fn allows_rom(&self, path: impl AsRef<Path>) -> bool {
        is_inside(path.as_ref(), self.rom_dir.as_path())
    }
}

fn is_inside(path: &Path, dir: &Path) -> bool {
    path != dir && path.starts_with(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b4_inside_means_whole_names() {
        let path = |text: &str| HostPath::parse(text).unwrap();
        let rules = PathRules {
            allowed: Some(vec![path("/srv/vms/")]),
            rom_dir: path("/srv/roms"),
        };
        assert!(rules.allows(path("/srv/vms/a/b.iso")));
        assert!(rules.allows(path("/srv//./vms/b.iso")));
        for outside in ["/srv/vms", "/srv/vms2/b.iso", "/srv", "/etc/shadow"] {
            assert!(!rules.allows(path(outside)), "{outside} was allowed");
        }
        assert!(rules.allows_rom(path("/srv/roms/x.rom")));
        assert!(!rules.allows_rom(path("/srv/roms")));
    }
}
