//! The firewall in a file: written as the kernel holds it, loaded when the host boots.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | [`NftFiles`]: writing, loading, what there is |
//! | `replace` | the lock, and the replacement of the file as a whole |
//! | `keeper` | writing it after every change, behind everybody's back |
//! | `service` | installing the systemd unit |
//!
//! Invariants: at every moment the file is absent or whole; the table is read while the lock is held, so
//! that the last writer has read what is last, whoever else writes; a kernel without the table overwrites
//! nothing. Neighbours: [`crate::firewall`] has the text, [`super::nft`] the kernel.

mod keeper;
mod replace;
mod service;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};

pub use keeper::{Keeper, OnFailure};
pub use service::{Installed, install};

use crate::error::{Coded, ErrorCode};
use crate::firewall::{DEFAULT_DENY_FILE, SAVED_FILE, default_deny, loadable, saved};
use crate::host::blocking::file_call;
use crate::host::nft::{Nft, NftError};
use crate::types::{HostPath, InvalidValue};
use replace::Lock;

/// Where the contract has it.
pub const PERSISTENCE_DIR: &str = "/etc/infinization/nftables";
const BACKUP_FILE: &str = "infinization.nft.bak";

/// The firewall could not be written or loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NftFileError {
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error("there is no table to write")]
    NoTable,
    #[error("the kernel's table is not whole")]
    NotWhole,
    #[error("{path} is locked by another writer")]
    Locked { path: String },
    #[error("{path} does not exist")]
    Absent { path: String },
    #[error("{path} {why}")]
    Unreadable { path: String, why: InvalidValue },
    #[error("{path} could not be used: {source}")]
    File { path: String, source: io::Error },
}

impl NftFileError {
    fn of(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.display().to_string();
        move |source| Self::File { path, source }
    }
}

impl Coded for NftFileError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Nft(error) => error.code(),
            Self::NoTable | Self::NotWhole => ErrorCode::TableNotFound,
            _ => ErrorCode::HostFile,
        }
    }

    fn context(&self) -> Map<String, Value> {
        match self {
            Self::Nft(error) => error.context(),
            Self::NoTable | Self::NotWhole => Map::new(),
            Self::Locked { path }
            | Self::Absent { path }
            | Self::Unreadable { path, .. }
            | Self::File { path, .. } => {
                Map::from_iter([("path".to_owned(), Value::from(path.as_str()))])
            }
        }
    }
}

/// How it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftFileOptions {
    /// Made when it is first written to.
    pub dir: HostPath,
    /// Whether the file before the last is kept.
    pub backup: bool,
    /// Whether other writers are excluded.
    pub locking: bool,
}

impl NftFileOptions {
    /// In this directory, with a backup and a lock.
    pub fn new(dir: HostPath) -> Self {
        Self {
            dir,
            backup: true,
            locking: true,
        }
    }
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftFileStatus {
    /// When the file was written; none if there is none.
    pub written: Option<SystemTime>,
    /// Whether there is a backup.
    pub backup: bool,
    /// Whether the kernel has the table.
    pub table: bool,
}

/// The files in one directory.
#[derive(Debug, Clone)]
pub struct NftFiles {
    options: NftFileOptions,
    nft: Nft,
}

impl NftFiles {
    /// Touches nothing.
    pub fn new(options: NftFileOptions, nft: Nft) -> Self {
        Self { options, nft }
    }

    /// The directory.
    pub fn dir(&self) -> &HostPath {
        &self.options.dir
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.options.dir.as_path().join(SAVED_FILE)
    }

    fn backup(&self) -> PathBuf {
        self.options.dir.as_path().join(BACKUP_FILE)
    }

    /// Writes what the kernel holds, unless the file says so already, and beside it what closes every managed
    /// port where it cannot be loaded.
    pub async fn write(&self) -> Result<(), NftFileError> {
        self.write_and_keep(self.options.backup.then(|| self.backup()))
            .await
    }

    async fn write_and_keep(&self, backup: Option<PathBuf>) -> Result<(), NftFileError> {
        let lock = self.lock().await?;
        let listing = self.nft.text().await?.ok_or(NftFileError::NoTable)?;
        let text = saved(&listing).ok_or(NftFileError::NotWhole)?;
        let path = self.path();
        let failed = NftFileError::of(&path);
        let deny = self.options.dir.as_path().join(DEFAULT_DENY_FILE);
        let write = move || {
            // Held until it is written, whoever waits.
            let _lock = lock;
            // The boot unit, which may have been installed by hand, cannot close the ports without it.
            let closed = replace::replace(&deny, None, default_deny().as_bytes());
            if let Err(error) = closed {
                return Ok(Err(NftFileError::of(&deny)(error)));
            }
            replace::replace(&path, backup.as_deref(), text.as_bytes()).map(Ok)
        };
        file_call(write).await.map_err(failed)?
    }

    /// Loads the file; answers how many rules there are now. Where that fails and there is no table, every
    /// managed port is closed.
    pub async fn load(&self) -> Result<usize, NftFileError> {
        self.load_from(self.path()).await
    }

    /// Loads the backup, and makes it the file.
    pub async fn roll_back(&self) -> Result<usize, NftFileError> {
        let rules = self.load_from(self.backup()).await?;
        // What was the file is not worth keeping.
        self.write_and_keep(None).await?;
        Ok(rules)
    }

    async fn load_from(&self, path: PathBuf) -> Result<usize, NftFileError> {
        let loaded = match read(&path).await {
            Ok(text) => self.nft.load_text(text).await.map_err(NftFileError::Nft),
            Err(error) => Err(error),
        };
        if loaded.is_err()
            && let Err(error) = self.nft.prepare().await
        {
            tracing::error!(%error, "managed ports could not be closed");
        }
        loaded
    }

    /// Removes the file; false if there was none. The backup stays.
    pub async fn remove(&self) -> Result<bool, NftFileError> {
        let path = self.path();
        if !exists(&path).await? {
            return Ok(false);
        }
        let _lock = self.lock().await?;
        let failed = NftFileError::of(&path);
        let removed = file_call(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            outcome => outcome.map(|()| true),
        });
        removed.await.map_err(failed)
    }

    /// What there is.
    pub async fn status(&self) -> Result<NftFileStatus, NftFileError> {
        let path = self.path();
        let failed = NftFileError::of(&path);
        let written = file_call(move || match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => metadata?.modified().map(Some),
        });
        Ok(NftFileStatus {
            written: written.await.map_err(failed)?,
            backup: exists(&self.backup()).await?,
            table: self.nft.text().await?.is_some(),
        })
    }

    async fn lock(&self) -> Result<Option<Lock>, NftFileError> {
        let (dir, locking) = (self.options.dir.as_path().to_owned(), self.options.locking);
        let failed = NftFileError::of(&dir);
        let held = || NftFileError::Locked {
            path: self.options.dir.to_string(),
        };
        let locked = file_call(move || {
            replace::make_dir(&dir)?;
            locking.then(|| Lock::acquire(&dir)).transpose()
        });
        match locked.await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(held()),
            outcome => outcome.map_err(failed),
        }
    }
}

async fn exists(path: &Path) -> Result<bool, NftFileError> {
    let failed = NftFileError::of(path);
    let path = path.to_owned();
    file_call(move || path.try_exists()).await.map_err(failed)
}

async fn read(path: &Path) -> Result<String, NftFileError> {
    let (failed, shown) = (NftFileError::of(path), path.display().to_string());
    let path = path.to_owned();
    let bytes = match file_call(move || std::fs::read(path)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NftFileError::Absent { path: shown });
        }
        outcome => outcome.map_err(failed)?,
    };
    loadable(&String::from_utf8_lossy(&bytes))
        .map_err(|why| NftFileError::Unreadable { path: shown, why })
}
