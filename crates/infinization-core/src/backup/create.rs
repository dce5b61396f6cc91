//! Making a backup: the order of the steps.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::draft::{Circumstances, Draft};
use super::folder::{Kept, Library};
use super::kinds::{BackupType, Compression};
use super::live::Live;
use super::machine::{Access, access, refuse_frozen};
use super::manifest::DiskRecord;
use super::names::BackupId;
use super::prepare::{Prepared, prepare};
use super::progress::{Course, Reporter, Step, Work};
use super::remove::delete_snapshots;
use super::request::CreateBackup;
use super::service::{Terms, Told, millis};
use super::turn::{Turn, slot};
use super::{BackupError, offline, pending, sweep};
use crate::host::qemu_img::{Clusters, Job};

/// One backup to make.
pub(super) struct Creation {
    pub(super) library: Library,
    pub(super) id: BackupId,
    pub(super) request: CreateBackup,
    pub(super) terms: Terms,
}

impl Creation {
    pub(super) fn new(library: Library, id: BackupId, request: CreateBackup, terms: Terms) -> Self {
        Self {
            library,
            id,
            request,
            terms,
        }
    }

    pub(super) fn clusters(&self) -> Clusters {
        match self.request.compression {
            Compression::None | Compression::Gzip => Clusters::Plain,
            Compression::Qcow2 => Clusters::Deflate,
            Compression::Zstd => Clusters::Zstd,
        }
    }

    /// How the file of a disk is compressed, whatever its clusters are.
    pub(super) fn compression(&self, encrypted: bool) -> Compression {
        if encrypted {
            Compression::None
        } else {
            self.request.compression
        }
    }

    /// What is done to a disk of `size` bytes that is copied so, from the first to the seal.
    pub(super) fn course(&self, size: u64, copied: &[Work], encrypted: bool) -> Course {
        let mut works = copied.to_vec();
        if self.compression(encrypted) == Compression::Gzip {
            works.push(Work::Pack);
        }
        works.extend([Work::Sum, Work::Settle]);
        Course { size, works }
    }

    /// Tells of a SNAPSHOT of disks of these sizes.
    pub(super) fn snapshot_reporter(&self, sizes: impl Iterator<Item = u64>) -> Reporter {
        let courses = sizes.map(|size| Course {
            size,
            works: vec![Work::Settle],
        });
        let reporter = self.reporter(courses.collect());
        reporter.begin(Work::Settle);
        reporter
    }

    pub(super) fn reporter(&self, courses: Vec<Course>) -> Reporter {
        let (id, vm_id) = (self.id.clone(), self.request.vm_id.clone());
        Reporter::new(Arc::clone(&self.terms.audience), id, vm_id, courses)
    }

    /// The terms of what qemu-img does as this step, which begins.
    pub(super) fn job(&self, step: &Step) -> Job {
        Job {
            cancel: self.terms.cancel.clone(),
            deadline: None,
            progress: Some(step.teller()),
        }
    }
}

/// Makes the backup: a `BackupResult`.
pub(super) async fn create(creation: Creation) -> Result<Value, BackupError> {
    let (cancel, vm_id) = (&creation.terms.cancel, &creation.request.vm_id);
    let _turn = Turn::take(&creation.library, vm_id, cancel).await?;
    let _slot = slot(cancel).await?;
    let machine = &*creation.terms.machine;
    let pending = sweep::sweep(&creation.library, vm_id, machine).await?;
    let access = access(machine, vm_id).await?;
    let paths = || creation.request.disks.iter().map(|disk| &disk.path);
    if matches!(access, Access::Offline) {
        pending::refuse(pending, paths()).await?;
    }
    refuse_frozen(machine, paths()).await?;
    let prepared = prepare(&creation, &access).await?;
    let live = match access {
        Access::Offline => None,
        Access::Live(monitor) => Some(Live::begin(&creation, &prepared, monitor).await?),
    };
    if let Some(live) = &live {
        live.refuse_unfit().await?;
    }
    let planned = offline::planned(&creation, &prepared);
    let request = &creation.request;
    let (library, sequence) = (&creation.library, prepared.next_sequence());
    let draft = Draft::begin(library, &creation.id, request, sequence, planned).await?;
    let began = Instant::now();
    let made = match live {
        None => make_offline(&creation, &prepared, draft).await,
        Some(live) => live.make(draft).await,
    };
    let (outcome, kept) = match made {
        Ok(kept) => (Ok(()), kept),
        Err((error, kept)) => (Err(error), kept),
    };
    let shown = kept.manifest.shown(&kept.folder);
    (creation.terms.audience)(Told::Completed(shown.clone()));
    outcome?;
    Ok(json!({
        "success": true,
        "backupId": creation.id,
        "vmId": creation.request.vm_id,
        "type": creation.request.kind,
        "disks": shown["disks"],
        "totalSize": kept.manifest.total_size,
        "durationMs": millis(began.elapsed()),
    }))
}

async fn make_offline(
    creation: &Creation,
    prepared: &Prepared,
    draft: Draft,
) -> Result<Kept, (BackupError, Kept)> {
    let copied = offline::copy(creation, prepared, &draft).await;
    conclude(creation, draft, copied).await
}

/// All that a backup is made of, before its manifest says so.
pub(super) struct Contents {
    pub(super) disks: Vec<DiskRecord>,
    pub(super) circumstances: Circumstances,
    pub(super) reporter: Reporter,
}

/// Declares the draft whole, and only then tells that nothing is left to do; or takes back what was made.
pub(super) async fn conclude(
    creation: &Creation,
    draft: Draft,
    copied: Result<Contents, BackupError>,
) -> Result<Kept, (BackupError, Kept)> {
    let contents = match copied {
        Ok(contents) => contents,
        Err(error) => return Err(fail(creation, draft, error).await),
    };
    let (disks, circumstances) = (contents.disks, contents.circumstances);
    match draft.complete(disks, circumstances).await {
        Ok(kept) => {
            contents.reporter.all_done();
            Ok(kept)
        }
        Err((error, draft)) => Err(fail(creation, draft, error).await),
    }
}

/// Takes back what was made. A snapshot that cannot be deleted now is kept in mind: it goes with the backup.
async fn fail(creation: &Creation, draft: Draft, error: BackupError) -> (BackupError, Kept) {
    let left = if creation.request.kind == BackupType::Snapshot {
        let machine = &*creation.terms.machine;
        match delete_snapshots(&draft.manifest, machine).await {
            Ok(()) => Vec::new(),
            Err(left) => {
                tracing::warn!(folder = %draft.folder, %left, "a failed backup's snapshot is left");
                draft.manifest.disks.clone()
            }
        }
    } else {
        Vec::new()
    };
    draft.abandon(error, left).await
}
