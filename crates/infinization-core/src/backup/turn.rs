//! Whose turn it is: one change at a time to a machine's backups, and so many backups at a time in all.
//!
//! Waiting is fair, ends when the caller cancels, and costs nothing. Between processes a lock on the
//! machine's directory excludes; the kernel lets it go when its owner ends, so whatever is found
//! unfinished by whoever has the turn has no living maker.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::folder::{Library, make_directories};
use super::{BackupError, off_thread};
use crate::host::dir_lock::{DirLock, DirLockError};
use crate::types::VmId;

/// How many backups are made at a time, in this process. The others wait.
pub const MAX_CONCURRENT_BACKUPS: usize = 2;

type Turns = HashMap<PathBuf, Weak<AsyncMutex<()>>>;

static TURNS: LazyLock<Mutex<Turns>> = LazyLock::new(Mutex::default);
static SLOTS: Semaphore = Semaphore::const_new(MAX_CONCURRENT_BACKUPS);

/// The right to change a machine's backups, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    // Dropped in this order: the next of this process finds the directory's lock free.
    _between_processes: DirLock,
    _in_this_process: OwnedMutexGuard<()>,
}

impl Turn {
    /// Waits for the turn. Makes the machine's directory if need be.
    pub(super) async fn take(
        library: &Library,
        vm_id: &VmId,
        cancel: &CancellationToken,
    ) -> Result<Self, BackupError> {
        let directory = directory_of(library, vm_id).await?;
        let turn = turn_of(&directory);
        let in_this_process = unless_cancelled(cancel, turn.lock_owned()).await?;
        Self::between_processes(directory, in_this_process).await
    }

    /// Takes the turn if it is nobody's.
    pub(super) async fn try_take(
        library: &Library,
        vm_id: &VmId,
    ) -> Result<Option<Self>, BackupError> {
        let directory = directory_of(library, vm_id).await?;
        let Ok(in_this_process) = turn_of(&directory).try_lock_owned() else {
            return Ok(None);
        };
        match Self::between_processes(directory, in_this_process).await {
            Err(BackupError::Locked(DirLockError::Held { .. })) => Ok(None),
            taken => taken.map(Some),
        }
    }

    async fn between_processes(
        directory: PathBuf,
        in_this_process: OwnedMutexGuard<()>,
    ) -> Result<Self, BackupError> {
        let between_processes = off_thread(move || Ok(DirLock::acquire(&directory)?)).await?;
        Ok(Self {
            _between_processes: between_processes,
            _in_this_process: in_this_process,
        })
    }
}

async fn directory_of(library: &Library, vm_id: &VmId) -> Result<PathBuf, BackupError> {
    let directory = library.machine(vm_id)?;
    off_thread(move || {
        make_directories(&directory)?;
        std::fs::canonicalize(directory.as_path())
            .map_err(|error| BackupError::io(&directory, error))
    })
    .await
}

/// Waits until fewer than [`MAX_CONCURRENT_BACKUPS`] are being made.
pub(super) async fn slot(
    cancel: &CancellationToken,
) -> Result<SemaphorePermit<'static>, BackupError> {
    let permit = unless_cancelled(cancel, SLOTS.acquire()).await?;
    permit.map_err(|_closed| BackupError::Cancelled)
}

/// Waits for `work`, unless the caller cancels first.
pub(super) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, BackupError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(BackupError::Cancelled),
        done = work => Ok(done),
    }
}

fn turn_of(directory: &std::path::Path) -> Arc<AsyncMutex<()>> {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(turn) = turns.get(directory).and_then(Weak::upgrade) {
        return turn;
    }
    turns.retain(|_, turn| turn.strong_count() > 0);
    let turn = Arc::default();
    turns.insert(directory.to_owned(), Arc::downgrade(&turn));
    turn
}
