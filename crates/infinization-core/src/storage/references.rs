//! Who would miss a volume: machines that have it, and images that lie on it.

use super::PoolError;
use crate::host::blocking::blocking;
use crate::host::qemu_img::files_below;
use crate::types::{HostPath, VmId};

/// A machine's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The machine.
    pub vm_id: VmId,
    /// A disk of it, or a layer of its snapshots.
    pub path: HostPath,
}

/// All that is known of who has which image, at one moment. Paths are real ones, as volumes' are.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    machines: Vec<Use>,
    /// Image and everything it lies on, nearest first.
    links: Vec<(HostPath, Vec<HostPath>)>,
    /// What could not be looked at, and why: it may lie on anything.
    unknown: Vec<Unknown>,
}

/// A file or directory that could not be looked at.
#[derive(Debug, Clone)]
pub struct Unknown {
    /// The file, or a pool's directory.
    pub path: HostPath,
    /// Why not.
    pub why: String,
}

impl Uses {
    /// Looks at what the machines' files and the pools' `volumes` lie on. What is no image lies on nothing.
    /// Of pools that could not be looked at, `unknown` tells.
    pub async fn look(
        machines: Vec<Use>,
        volumes: Vec<HostPath>,
        mut unknown: Vec<Unknown>,
    ) -> Self {
        let mut links = Vec::new();
        let named: Vec<_> = machines.iter().map(|used| used.path.clone()).collect();
        let machines = real(machines).await;
        let known = machines.iter().map(|used| used.path.clone());
        let volumes = volumes.iter().map(|path| (path.clone(), path.clone()));
        let mut files: Vec<_> = named.into_iter().zip(known).chain(volumes).collect();
        files.sort();
        files.dedup();
        for (named, path) in files {
            match files_below(&named).await {
                Ok(below) => links.push((path, below)),
                Err(error) => {
                    let why = error.to_string();
                    unknown.push(Unknown { path, why });
                }
            }
        }
        Self {
            machines,
            links,
            unknown,
        }
    }

    /// The machines that have the file.
    pub fn users(&self, path: &HostPath) -> Vec<VmId> {
        let uses = self.machines.iter().filter(|used| used.path == *path);
        let mut users: Vec<VmId> = uses.map(|used| used.vm_id.clone()).collect();
        users.dedup();
        users
    }

    /// The images that lie on the file, at whatever depth.
    pub fn overlays(&self, path: &HostPath) -> Vec<HostPath> {
        let on = self.links.iter().filter(|(_, below)| below.contains(path));
        let mut overlays: Vec<_> = on.map(|(image, _)| image.clone()).collect();
        overlays.sort();
        overlays.dedup();
        overlays
    }

    /// `IMAGE_IN_USE` if anybody would miss it, or may.
    pub(super) fn refuse_needed(&self, path: &HostPath) -> Result<(), PoolError> {
        self.refuse_unknown(path)?;
        refuse(path, self.users(path), self.overlays(path))
    }

    /// `IMAGE_IN_USE` if an image lies on it, or may.
    pub(super) fn refuse_overlaid(&self, path: &HostPath) -> Result<(), PoolError> {
        self.refuse_unknown(path)?;
        refuse(path, Vec::new(), self.overlays(path))
    }

    /// `IMAGE_IN_USE` if a machine has it, and so may write to it.
    pub(super) fn refuse_used(&self, path: &HostPath) -> Result<(), PoolError> {
        refuse(path, self.users(path), Vec::new())
    }

    /// What it lies on itself does not matter.
    fn refuse_unknown(&self, path: &HostPath) -> Result<(), PoolError> {
        let Some(unknown) = self.unknown.iter().find(|unknown| unknown.path != *path) else {
            return Ok(());
        };
        Err(PoolError::Unknown {
            path: path.clone(),
            other: unknown.path.clone(),
            why: unknown.why.clone(),
        })
    }
}

/// The same files by their real names. One that cannot be found keeps its own: looking at it tells why.
async fn real(machines: Vec<Use>) -> Vec<Use> {
    let given = machines.clone();
    let found = blocking(move || {
        let mut machines = machines;
        for used in &mut machines {
            let real = used.path.as_path().canonicalize().ok();
            let real = real.and_then(|real| HostPath::parse(real.to_str()?).ok());
            used.path = real.unwrap_or_else(|| used.path.clone());
        }
        machines
    });
    found.await.unwrap_or(given)
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
