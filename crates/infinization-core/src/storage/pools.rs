//! Which pools there are.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Pool, PoolError};
use crate::config::{PoolName, PoolOptions};
use crate::host::blocking::blocking;
use crate::host::state_file::{self, Durability, StateFileError};
use crate::types::{ByteSize, HostPath};

const FILE: &str = "pools.json";

/// The pools of one state directory.
#[derive(Debug, Clone)]
pub struct Pools {
    file: PathBuf,
    /// Where their directories must be, if they are confined.
    allowed: Vec<HostPath>,
    /// One change at a time, of pools as of volumes: what nobody needs now is not taken into use meanwhile.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    pools: BTreeMap<PoolName, HostPath>,
}

impl Pools {
    /// The pools noted in `state_dir`.
    pub fn new(state_dir: &HostPath, allowed: Vec<HostPath>) -> Self {
        Self {
            file: state_dir.as_path().join(FILE),
            allowed,
            turn: Arc::default(),
        }
    }

    /// Between finding out who needs a volume and acting on it, nobody else may act.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    pub(super) fn allowed(&self) -> &[HostPath] {
        &self.allowed
    }

    /// Makes a directory a pool. What is in it stays.
    pub async fn define(&self, name: &PoolName, options: &PoolOptions) -> Result<Pool, PoolError> {
        let _turn = self.turn.lock().await;
        let (pools, name, options) = (self.clone(), name.clone(), options.clone());
        run(&options.path.clone(), move || {
            pools.define_now(name, options)
        })
        .await
    }

    fn define_now(&self, name: PoolName, options: PoolOptions) -> Result<Pool, PoolError> {
        let mut listed = self.read()?;
        let path = options.path;
        if listed.pools.contains_key(&name) {
            let name = name.as_str().to_owned();
            return Err(PoolError::Exists { name });
        }
        if let Some((other, _)) = listed.pools.iter().find(|(_, taken)| **taken == path) {
            let name = other.as_str().to_owned();
            return Err(PoolError::Shared { path, name });
        }
        let made = options.create && make_directory(&path)?;
        let vetted = self.vet(&path).and_then(|()| {
            listed.pools.insert(name.clone(), path.clone());
            self.write(&listed)?;
            show(name, path.clone())
        });
        if vetted.is_err() && made {
            // Only what this attempt made, and only while it is empty.
            let _left = fs::remove_dir(path.as_path());
        }
        vetted
    }

    /// All pools, by name, as far as their directories can be looked at.
    pub async fn list(&self) -> Result<Vec<Pool>, PoolError> {
        let pools = self.clone();
        let file = self.place()?;
        run(&file, move || {
            let listed = pools.read()?.pools.into_iter();
            let shown = listed.filter_map(|(name, path)| {
                let shown = show(name, path);
                shown
                    .inspect_err(|error| tracing::warn!(%error, "a storage pool is not there"))
                    .ok()
            });
            Ok(shown.collect())
        })
        .await
    }

    /// One pool, as it is now.
    pub async fn get(&self, name: &PoolName) -> Result<Pool, PoolError> {
        let path = self.directory(name).await?;
        let name = name.clone();
        run(&path.clone(), move || show(name, path)).await
    }

    /// Forgets a pool. Its directory and volumes stay.
    pub async fn undefine(&self, name: &PoolName) -> Result<(), PoolError> {
        let _turn = self.turn.lock().await;
        let (pools, name, file) = (self.clone(), name.clone(), self.place()?);
        run(&file, move || {
            let mut listed = pools.read()?;
            if listed.pools.remove(&name).is_none() {
                return Err(unknown(&name));
            }
            pools.write(&listed)
        })
        .await
    }

    /// Every pool's directory, whatever has become of it.
    pub(super) async fn directories(&self) -> Result<Vec<HostPath>, PoolError> {
        let (pools, file) = (self.clone(), self.place()?);
        run(&file, move || {
            Ok(pools.read()?.pools.into_values().collect())
        })
        .await
    }

    /// A pool's directory, which is still one that may be used.
    pub(super) async fn directory(&self, name: &PoolName) -> Result<HostPath, PoolError> {
        let (pools, name, file) = (self.clone(), name.clone(), self.place()?);
        run(&file, move || {
            let path = pools.read()?.pools.remove(&name);
            let path = path.ok_or_else(|| unknown(&name))?;
            pools.vet(&path)?;
            Ok(path)
        })
        .await
    }

    /// A directory, reached through no symbolic link, and where pools may be.
    fn vet(&self, path: &HostPath) -> Result<(), PoolError> {
        let refuse = |why| {
            let path = path.clone();
            Err(PoolError::Directory { path, why })
        };
        let real = path.as_path().canonicalize();
        let real = real.map_err(|source| failed(path, source))?;
        if real != path.as_path() {
            return refuse("is reached through a symbolic link or is not written plainly");
        }
        if !real.is_dir() {
            return refuse("is no directory");
        }
        let within = |root: &HostPath| real.starts_with(root.as_path());
        if !self.allowed.is_empty() && !self.allowed.iter().any(within) {
            return refuse("is not inside one of the allowed directories");
        }
        Ok(())
    }

    fn place(&self) -> Result<HostPath, PoolError> {
        HostPath::parse(self.file.display().to_string()).map_err(|_invalid| {
            PoolError::State(StateFileError::Read {
                path: self.file.display().to_string(),
                source: io::ErrorKind::InvalidInput.into(),
            })
        })
    }

    fn read(&self) -> Result<Listed, StateFileError> {
        let Some(body) = state_file::read(&self.file)? else {
            return Ok(Listed::default());
        };
        serde_json::from_slice(&body).map_err(|_words| StateFileError::Torn {
            path: self.file.display().to_string(),
        })
    }

    fn write(&self, listed: &Listed) -> Result<(), PoolError> {
        let body = serde_json::to_vec(listed).map_err(|error| StateFileError::Write {
            path: self.file.display().to_string(),
            source: error.into(),
        })?;
        Ok(state_file::write(&self.file, &body, Durability::HostCrash)?)
    }
}

fn unknown(name: &PoolName) -> PoolError {
    let name = name.as_str().to_owned();
    PoolError::NotFound { name }
}

/// Whether it was made now.
fn make_directory(path: &HostPath) -> Result<bool, PoolError> {
    match fs::DirBuilder::new().mode(0o755).create(path.as_path()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(failed(path, source)),
    }
}

fn show(name: PoolName, path: HostPath) -> Result<Pool, PoolError> {
    let told = rustix::fs::statvfs(path.as_path());
    let told = told.map_err(|errno| failed(&path, errno.into()))?;
    let bytes = |blocks: u64| ByteSize::bytes(blocks.saturating_mul(told.f_frsize));
    Ok(Pool {
        name,
        path,
        capacity: bytes(told.f_blocks),
        allocation: bytes(told.f_blocks.saturating_sub(told.f_bfree)),
        available: bytes(told.f_bavail),
    })
}

pub(super) fn failed(path: &HostPath, source: io::Error) -> PoolError {
    let path = path.clone();
    PoolError::Io { path, source }
}

/// Does `work` where it may block.
pub(super) async fn run<T: Send + 'static>(
    path: &HostPath,
    work: impl FnOnce() -> Result<T, PoolError> + Send + 'static,
) -> Result<T, PoolError> {
    match blocking(work).await {
        Ok(done) => done,
        Err(not_done) => Err(failed(path, not_done.into())),
    }
}
