//! One lock per image within this process, whatever name the image is reached by. Between
//! processes QEMU's own locks on the file count ([`super::in_use`]).
//!
//! A verb holds it from its first look at the image to its last change, so that no two verbs of
//! ours see each other half done. It is not re-entrant, and no verb calls another that takes it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::ImageError;
use crate::host::blocking::file_call;
use crate::types::HostPath;

static LOCKS: LazyLock<Mutex<HashMap<PathBuf, Weak<RwLock<()>>>>> = LazyLock::new(Mutex::default);

/// Waits until nobody here changes the image.
pub(super) async fn shared(path: &HostPath) -> Result<OwnedRwLockReadGuard<()>, ImageError> {
    Ok(lock_of(path).await?.read_owned().await)
}

/// Waits until nobody here reads or changes the image.
pub(super) async fn exclusive(path: &HostPath) -> Result<OwnedRwLockWriteGuard<()>, ImageError> {
    Ok(lock_of(path).await?.write_owned().await)
}

/// The one name under which an image has its lock.
pub(super) async fn canonical(path: &HostPath) -> Result<PathBuf, ImageError> {
    let name = path.clone();
    file_call(move || std::fs::canonicalize(name.as_path()))
        .await
        .map_err(|source| ImageError::io(path, source))
}

async fn lock_of(path: &HostPath) -> Result<Arc<RwLock<()>>, ImageError> {
    let canonical = canonical(path).await?;
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lock) = locks.get(&canonical).and_then(Weak::upgrade) {
        return Ok(lock);
    }
    locks.retain(|_, lock| lock.strong_count() > 0);
    let lock = Arc::new(RwLock::new(()));
    locks.insert(canonical, Arc::downgrade(&lock));
    Ok(lock)
}
