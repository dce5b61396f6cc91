//! Who would miss a volume: machines that have it, and images that lie on it.

use super::PoolError;
use crate::host::qemu_img::layer;
use crate::types::{HostPath, VmId};

/// A machine's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The machine.
    pub vm_id: VmId,
    /// A disk of it, or a layer of its snapshots.
    pub path: HostPath,
}

/// All that is known of who has which image, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    machines: Vec<Use>,
    /// Image and what it lies on.
    links: Vec<(HostPath, HostPath)>,
}

impl Uses {
    /// Looks at what the machines' files and the pools' `volumes` lie on. What is no image lies on nothing.
    pub async fn look(machines: Vec<Use>, volumes: Vec<HostPath>) -> Self {
        let mut links = Vec::new();
        let files = machines.iter().map(|used| &used.path).chain(&volumes);
        let mut files: Vec<HostPath> = files.cloned().collect();
        files.sort();
        files.dedup();
        for path in files {
            if let Ok(found) = layer(&path).await
                && let Some(backing) = found.backing
            {
                links.push((path, backing));
            }
        }
        Self { machines, links }
    }

    /// The machines that have the file.
    pub fn users(&self, path: &HostPath) -> Vec<VmId> {
        let uses = self.machines.iter().filter(|used| used.path == *path);
        let mut users: Vec<VmId> = uses.map(|used| used.vm_id.clone()).collect();
        users.dedup();
        users
    }

    /// The images that lie on the file.
    pub fn overlays(&self, path: &HostPath) -> Vec<HostPath> {
        let on = self.links.iter().filter(|(_, backing)| backing == path);
        on.map(|(image, _)| image.clone()).collect()
    }

    /// `IMAGE_IN_USE` if anybody would miss it.
    pub(super) fn refuse_needed(&self, path: &HostPath) -> Result<(), PoolError> {
        refuse(path, self.users(path), self.overlays(path))
    }

    /// `IMAGE_IN_USE` if an image lies on it.
    pub(super) fn refuse_overlaid(&self, path: &HostPath) -> Result<(), PoolError> {
        refuse(path, Vec::new(), self.overlays(path))
    }

    /// `IMAGE_IN_USE` if a machine has it, and so may write to it.
    pub(super) fn refuse_used(&self, path: &HostPath) -> Result<(), PoolError> {
        refuse(path, self.users(path), Vec::new())
    }
}

fn refuse(path: &HostPath, users: Vec<VmId>, overlays: Vec<HostPath>) -> Result<(), PoolError> {
    if users.is_empty() && overlays.is_empty() {
        return Ok(());
    }
    Err(PoolError::Needed {
        path: path.clone(),
        users,
        overlays,
    })
}
