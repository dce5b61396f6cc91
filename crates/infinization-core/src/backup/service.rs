//! The verbs. Each runs as a task of its own, so that whoever stops waiting leaves nothing half done:
//! the work is then cancelled and cleans up after itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::create::{self, Creation};
use super::folder::{Kept, Library};
use super::kinds::BackupStatus;
use super::machine::Machine;
use super::manifest::Manifest;
use super::names::BackupId;
use super::progress::Progress;
use super::request::{CreateBackup, RestoreBackup};
use super::restore::{self, Restoration};
use super::{BackupError, off_thread, remove, sweep};
use crate::error::{Coded as _, Failure};
use crate::types::{HostPath, VmId};

/// What listeners are told.
#[derive(Debug, Clone)]
pub enum Told {
    /// How far it is.
    Progress(Progress),
    /// A backup's metadata, once it is complete or has failed.
    Completed(Value),
    /// What a restore came to.
    Restored(Value),
}

/// Who is told.
pub type Audience = Arc<dyn Fn(Told) + Send + Sync>;

/// The terms of a long operation.
#[derive(Clone)]
pub(super) struct Terms {
    pub(super) cancel: CancellationToken,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) audience: Audience,
}

/// Backups below one directory.
#[derive(Clone)]
pub struct BackupService {
    library: Library,
    audience: Audience,
}

impl fmt::Debug for BackupService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupService")
            .field("library", &self.library)
            .finish_non_exhaustive()
    }
}

impl BackupService {
    /// Touches nothing.
    pub fn new(root: HostPath, audience: Audience) -> Self {
        Self {
            library: Library::new(root),
            audience,
        }
    }

    /// Makes a backup: a `BackupResult`.
    pub async fn create(
        &self,
        request: CreateBackup,
        machine: Arc<dyn Machine>,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let vm_id = request.vm_id.clone();
        let library = self.library.clone();
        let audience = Arc::clone(&self.audience);
        supervised(&vm_id, cancel, move |cancel| async move {
            let id = BackupId::random();
            let terms = Terms {
                cancel,
                machine,
                audience,
            };
            let creation = Creation::new(library, id.clone(), request, terms);
            create::create(creation).await.map_err(|error| (error, id))
        })
        .await
    }

    /// Restores a backup: a `BackupRestoreResult`.
    pub async fn restore(
        &self,
        request: RestoreBackup,
        machine: Arc<dyn Machine>,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let (vm_id, id) = (request.vm_id.clone(), request.id.clone());
        let library = self.library.clone();
        let audience = Arc::clone(&self.audience);
        supervised(&vm_id, cancel, move |cancel| async move {
            let terms = Terms {
                cancel,
                machine,
                audience,
            };
            let restoration = Restoration::new(library, request, terms);
            restore::restore(restoration)
                .await
                .map_err(|error| (error, id))
        })
        .await
    }

    /// Deletes a backup that no other builds on.
    pub async fn delete(
        &self,
        vm_id: VmId,
        id: BackupId,
        machine: Arc<dyn Machine>,
    ) -> Result<(), Failure> {
        let library = self.library.clone();
        let whose = vm_id.clone();
        supervised(&vm_id, CancellationToken::new(), move |cancel| async move {
            let removed = remove::remove(&library, &whose, &id, &*machine, &cancel).await;
            removed.map_err(|error| (error, id))
        })
        .await
    }

    /// The machine's backups, newest first: `BackupMetadata[]`. What a dead process left unfinished is
    /// cleared first, unless somebody is at work.
    pub async fn list(&self, vm_id: VmId) -> Result<Vec<Value>, Failure> {
        let (library, whose) = (self.library.clone(), vm_id.clone());
        let all = async {
            sweep::if_idle(&library, &whose).await?;
            off_thread(move || library.all(&whose)).await
        };
        let all = all.await.map_err(|error| told(error, &vm_id, None))?;
        let shown = all.iter().map(|kept| kept.manifest.shown(&kept.folder));
        Ok(shown.collect())
    }

    /// The machine's manifests, newest first, for whoever decides about them.
    pub async fn manifests(&self, vm_id: VmId) -> Result<Vec<Manifest>, Failure> {
        let (library, whose) = (self.library.clone(), vm_id.clone());
        let all = off_thread(move || library.all(&whose)).await;
        let all = all.map_err(|error| told(error, &vm_id, None))?;
        Ok(all.into_iter().map(|kept| kept.manifest).collect())
    }

    /// One backup's `BackupMetadata`; without a machine's id every machine's are looked through. What a dead
    /// process left unfinished is cleared first, as for [`BackupService::list`].
    pub async fn metadata(&self, id: BackupId, vm_id: Option<VmId>) -> Result<Value, Failure> {
        let found = async {
            let kept = self.find(&id, vm_id).await?;
            if kept.manifest.status != BackupStatus::InProgress {
                return Ok(kept);
            }
            let whose = kept.manifest.vm_id;
            sweep::if_idle(&self.library, &whose).await?;
            self.find(&id, Some(whose)).await
        };
        let kept = found
            .await
            .map_err(|error: BackupError| Failure::from(error).with("backupId", id.as_str()))?;
        Ok(kept.manifest.shown(&kept.folder))
    }

    async fn find(&self, id: &BackupId, vm_id: Option<VmId>) -> Result<Kept, BackupError> {
        let (library, id) = (self.library.clone(), id.clone());
        off_thread(move || match vm_id {
            Some(vm_id) => library.find(&vm_id, &id),
            None => library.search(&id),
        })
        .await
    }

    /// Reads every file the backup needs and compares checksums. Damage is a result, not an error. How far it is, `tell`
    /// alone hears, of the bytes of these files; the last that it hears is 100, unless there is damage.
    pub async fn verify(
        &self,
        vm_id: VmId,
        id: BackupId,
        cancel: CancellationToken,
        tell: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Value, Failure> {
        let library = self.library.clone();
        let whose = vm_id.clone();
        let audience = Arc::new(move |told| {
            if let Told::Progress(progress) = told {
                tell(progress);
            }
        });
        supervised(&vm_id, cancel, move |cancel| async move {
            let verified = restore::verify(&library, &whose, &id, &cancel, audience).await;
            let links = verified.as_ref().map_or(0, Vec::len);
            match verified {
                Ok(_) => Ok(json!({ "valid": true, "links": links, "problems": [] })),
                Err(
                    damage @ (BackupError::Corrupt { .. }
                    | BackupError::Parent { .. }
                    | BackupError::Unfit { .. }),
                ) => {
                    Ok(json!({ "valid": false, "links": links, "problems": [damage.to_string()] }))
                }
                Err(error) => Err((error, id)),
            }
        })
        .await
    }
}

/// Runs `work` as a task; it is cancelled when the caller stops waiting, and cleans up by itself.
async fn supervised<T, F>(
    vm_id: &VmId,
    cancel: CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) -> Result<T, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, (BackupError, BackupId)>> + Send + 'static,
{
    let inner = cancel.child_token();
    let _caller_left = inner.clone().drop_guard();
    match tokio::spawn(work(inner)).await {
        Ok(outcome) => outcome.map_err(|(error, id)| told(error, vm_id, Some(&id))),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_runtime_ends) => Err(told(BackupError::Cancelled, vm_id, None)),
        },
    }
}

fn told(error: BackupError, vm_id: &VmId, id: Option<&BackupId>) -> Failure {
    tracing::debug!(%vm_id, code = error.code().as_str(), %error, "a backup verb failed");
    let failure = Failure::from(error).of_vm(vm_id);
    match id {
        Some(id) => failure.with("backupId", id.as_str()),
        None => failure,
    }
}

/// The milliseconds since `began`.
pub(super) fn millis(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
