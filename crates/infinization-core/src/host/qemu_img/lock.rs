//! One lock per image within this process, whatever name the image is reached by. Between
//! processes QEMU's own locks on the file count ([`super::in_use`]).
//!
//! A verb holds it from its first look at the image to its last change, so that no two verbs of
//! ours see each other half done. It is not re-entrant, and no verb calls another that takes it.
//! The first look is told here: where nobody is waited for, one turn of a thread that may block does for
//! finding the lock, taking it and looking.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, TryLockError};

use super::ImageError;
use super::job::blocking;
use crate::types::HostPath;

/// Nobody here changes the image.
pub(super) type Settled = OwnedRwLockReadGuard<()>;
/// Nobody else here has the image.
pub(super) type Alone = OwnedRwLockWriteGuard<()>;
type Lock = Arc<RwLock<()>>;

static LOCKS: LazyLock<Mutex<HashMap<PathBuf, Weak<RwLock<()>>>>> = LazyLock::new(Mutex::default);

/// Waits until nobody here changes the image, and looks at it, which may block. It is begun at once.
pub(super) fn shared<Seen, Look>(
    path: &HostPath,
    look: Look,
) -> impl Future<Output = Result<(Settled, Seen), ImageError>> + use<Seen, Look>
where
    Seen: Send + 'static,
    Look: FnOnce() -> Result<Seen, ImageError> + Send + 'static,
{
    taken(path, look, RwLock::try_read_owned, RwLock::read_owned)
}

/// Waits until nobody here reads or changes the image, and looks at it, which may block. It is begun at once.
pub(super) fn exclusive<Seen, Look>(
    path: &HostPath,
    look: Look,
) -> impl Future<Output = Result<(Alone, Seen), ImageError>> + use<Seen, Look>
where
    Seen: Send + 'static,
    Look: FnOnce() -> Result<Seen, ImageError> + Send + 'static,
{
    taken(path, look, RwLock::try_write_owned, RwLock::write_owned)
}

/// The one name under which an image has its lock.
pub(super) async fn canonical(path: &HostPath) -> Result<PathBuf, ImageError> {
    let name = path.clone();
    blocking(path, move || canonical_now(&name)).await
}

enum Turn<Guard, Seen, Look> {
    Taken(Guard, Seen),
    Awaited(Lock, Look),
}

fn taken<Guard, Seen, Look, Waiting>(
    path: &HostPath,
    look: Look,
    try_to: fn(Lock) -> Result<Guard, TryLockError>,
    wait: fn(Lock) -> Waiting,
) -> impl Future<Output = Result<(Guard, Seen), ImageError>> + use<Guard, Seen, Look, Waiting>
where
    Guard: Send + 'static,
    Seen: Send + 'static,
    Look: FnOnce() -> Result<Seen, ImageError> + Send + 'static,
    Waiting: Future<Output = Guard>,
{
    let (path, image) = (path.clone(), path.clone());
    let turn = blocking(&path, move || {
        let lock = lock_of(canonical_now(&image)?);
        Ok(match try_to(Arc::clone(&lock)) {
            Ok(guard) => Turn::Taken(guard, look()?),
            Err(_others_have_it) => Turn::Awaited(lock, look),
        })
    });
    async move {
        match turn.await? {
            Turn::Taken(guard, seen) => Ok((guard, seen)),
            Turn::Awaited(lock, look) => {
                let guard = wait(lock).await;
                Ok((guard, blocking(&path, look).await?))
            }
        }
    }
}

fn canonical_now(path: &HostPath) -> Result<PathBuf, ImageError> {
    std::fs::canonicalize(path.as_path()).map_err(|source| ImageError::io(path, source))
}

fn lock_of(canonical: PathBuf) -> Lock {
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lock) = locks.get(&canonical).and_then(Weak::upgrade) {
        return lock;
    }
    locks.retain(|_, lock| lock.strong_count() > 0);
    let lock = Arc::new(RwLock::new(()));
    locks.insert(canonical, Arc::downgrade(&lock));
    lock
}
