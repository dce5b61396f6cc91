//! Backups of machines' disks: made of stopped and of running machines, restored, verified, deleted.
//!
//! # On disk
//! ```text
//! <backupRootDir>/<vmId>/
//!     lock                            one process changes a machine's backups at a time
//!     restore.json                    what an unfinished restore has staged
//!     revert.json                     which disks an unfinished one puts back to a SNAPSHOT inside them
//!     <backupId>/                     <destinationDir>/<backupId>, the usual destinationDir being this
//!         backup.json                 the manifest
//!         disk-0.qcow2                or disk-0.qcow2.gz
//!     <backupId>.place                where a backup is whose destinationDir is another one
//! ```
//! An id is a UUID in its one canonical spelling, a machine's id is a [`VmId`](crate::types::VmId): no
//! other text ever becomes part of a path. A destination that is a symbolic link is refused; links
//! above it are resolved once. The manifest is versioned JSON, names files relative to itself, and
//! holds length and checksum of each. The whole tree may be moved.
//!
//! The checksum is of the file as it lies there, of every byte: its BLAKE3 (`pieces`); of older backups its
//! SHA-256. Of what a running QEMU writes most pieces are
//! summed while the rest is written (`live/follow`): only those that the file's own tables name as finished data, and
//! again those that they do not in the end. It is written down after the flush, which it runs beside.
//!
//! # How one is made
//! The folder appears with a manifest that says `IN_PROGRESS`; the files grow under their final
//! names; `COMPLETED` is written last, by an atomic rename, after every byte is on disk. A *full* one
//! is a flat qcow2. An *incremental* one is a qcow2 with what differs from its parent, and nothing
//! else. Of a stopped machine that is found by comparing the disk with the parent: no bookkeeping
//! inside the disk can be lost or wrong. Only a disk whose files' inodes say that nobody wrote to them since
//! the parent was made, of the stopped machine too, is not read again. Of a running one QEMU copies, inside one `transaction` over
//! all disks, what a persistent dirty bitmap named after the parent has marked; where there is no such
//! bitmap, or it is not to be trusted, QEMU copies everything and the copy is compared. Each live backup
//! leaves a new bitmap, named after itself, and takes its parent's away only once it is complete.
//! qemu-img never reads a disk that a machine writes to.
//!
//! # Encrypted disks
//! The file of an encrypted disk is encrypted from its first byte on, as is what is made in between: LUKS inside
//! qcow2 with the disk's key, and a data key of its own. The key is the caller's or the machine's owner's, and is
//! kept nowhere here; all links of a chain have the same. Such a file is not compressed: QEMU has no clusters that
//! are both, and what is encrypted does not get smaller. Verifying reads files, not what they hold, so it needs
//! no key.
//!
//! # What a crash leaves
//! Whoever next changes the machine's backups holds the lock, so whatever says `IN_PROGRESS` then has
//! no living maker: its files go and it becomes `FAILED`. Parents are only ever read. So at any moment
//! every `COMPLETED` link is whole. What a QEMU still copies is ended by whoever has its monitor next, on
//! taking the machine back or before a backup; until then the files it has open keep their names. A guest is
//! thawed by whoever takes the machine back, since that it may be frozen is noted before it is.
//!
//! # Restoring
//! The links are checked against their checksums, and opened by an explicit list: no backing name out
//! of a file is followed. Every disk is staged beside its target; only when all are on disk are they
//! renamed, and a rename that fails puts back those before it. A crash between two renames is carried
//! on from `restore.json`, unless the disks were used since: by whoever changes the machine's backups next, or by
//! the machine's next start, which finds a note beside its disks. The machine must be known to be stopped. A SNAPSHOT
//! that is inside the disks is gone back to in each, all being held, and what they were is kept in a snapshot until
//! all have: a crash is undone from `revert.json`, by the same two, unless the disks were used since.
//! While one cannot be ended, as a disk is away, say, its journal stays and its disks are left alone.
//!
//! # What retention may delete
//! Complete backups beyond the wanted number, oldest first, but none that one that stays builds on;
//! children go before their parents. Failed ones never count, and go once they are older than all
//! that stay.
//!
//! | file | holds |
//! | --- | --- |
//! | `names`, `kinds`, `request`, `manifest` | the words, and what a caller may ask (pure) |
//! | `chain`, `retention` | which backups belong together, and which may go (pure) |
//! | `turn` | one change at a time per machine, and the limit over all |
//! | `folder`, `draft`, `digest`, `pieces` | the tree above, a backup in the making, gzip, checksums |
//! | `keys` | what opens encrypted disks, and backups of them |
//! | `prepare`, `create`, `offline`, `live`, `seal`, `quiesce` | making one |
//! | `progress`, `pass` | how far it is, by bytes |
//! | `restore`, `stage`, `reverting`, `cut_short` | restoring one, and ending what a crash left of it |
//! | `pending` | what cannot be ended now |
//! | `remove`, `sweep` | deleting, and clearing what the dead left |
//! | [`service`](BackupService) | the verbs |
//!
//! Neighbours: [`host::qemu_img`](crate::host::qemu_img) does the copying, [`qmp`](crate::qmp) talks to
//! the running machine, which is shown to this layer as a [`Machine`] and nothing more.

mod chain;
mod create;
mod cut_short;
mod digest;
mod draft;
mod error;
mod folder;
mod keys;
mod kinds;
mod live;
mod machine;
mod manifest;
mod names;
mod offline;
mod pass;
mod pending;
mod pieces;
mod prepare;
mod progress;
mod quiesce;
mod remove;
mod request;
mod restore;
mod retention;
mod reverting;
mod seal;
mod service;
mod stage;
mod sweep;
mod turn;

pub use cut_short::end_cut_short_restore;
pub use error::BackupError;
pub use kinds::{BackupStatus, BackupType, Compression};
pub use machine::Machine;
pub use manifest::{DiskRecord, Manifest};
pub use names::BackupId;
pub use progress::Progress;
pub use request::{CreateBackup, Keys, RestoreBackup, SourceDisk};
pub use retention::{Keep, expired, made_by, next_parent};
pub use service::{Audience, BackupService, Told};
pub use turn::MAX_CONCURRENT_BACKUPS;

use crate::host::blocking::blocking;

/// Does `work` where it may block.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match blocking(work).await {
        Ok(outcome) => outcome,
        Err(not_done) => Err(BackupError::NotDone {
            source: not_done.into(),
        }),
    }
}

/// The time, as the contract writes it.
fn now() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or_default();
    crate::types::iso_date(seconds, since.subsec_millis())
}
