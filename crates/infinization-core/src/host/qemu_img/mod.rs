//! Disk images, by way of `qemu-img`: create, inspect, resize, convert, check, offline snapshots, layers. What is
//! simple is done without a program: describing (`describe`), and an empty qcow2 (`empty`).
//!
//! What holds for every verb:
//! - The format is the caller's; none is ever probed, since a guest can write a header into its
//!   disk. Paths are absolute and come after `--`.
//! - A new image appears under its name whole or not at all, and never in the place of another
//!   file: it grows as `.<file>.<random>.partial` beside it (`partial`).
//! - An image that another process has open is `IMAGE_IN_USE` before anything else is said about it
//!   (`in_use`); two verbs of this process wait for each other ([`lock`]).
//! - What was begun on an existing image is carried to its end, even if the caller stops waiting.
//!   Making a new image ends when the caller stops waiting, and leaves nothing.
//! - A verb that opens an image's backing files has seen the chain first ([`inspect()`]).
//! - What an encrypted image holds is written to nothing that is not encrypted, unless the caller says so
//!   ([`ImageError::PlainText`]). Its key travels through a pipe, never on a command line or in a file.
//!
//! QEMU itself never learns of a path through here, and a running machine's disks are the monitor's
//! business, not ours.

mod backup;
mod below;
mod bitmap;
mod change_key;
mod check;
mod command;
mod convert;
mod create;
mod describe;
mod empty;
mod encryption;
mod error;
mod filling;
mod format;
mod header;
mod held;
mod in_use;
mod incoming;
mod info;
mod inspect;
mod job;
mod layer;
mod lift;
mod lock;
mod opened;
mod outgoing;
mod partial;
mod resize;
mod snapshot;
mod tables;
mod untouched;
mod vmdk;
mod written;

pub use backup::{Clusters, Parent, Source, difference, export, flatten, make_target};
pub use below::files_below;
pub use change_key::{ChangeKey, add_key, change_key, erase_key, key_opens, keys_in};
pub use check::{ImageCheck, check, check_with_key};
pub use command::{MEASUREMENTS, UNMEASURED};
pub use convert::{ConvertImage, convert};
pub use create::{CreateImage, Preallocation, create};
pub use encryption::{Encryption, pipe_of};
pub use error::ImageError;
pub use filling::{Filling, Tables};
pub use format::ImageFormat;
pub use held::{Held, hold_all};
pub use in_use::{
    Claim, Holder, Unchanged, claim_now, ensure_unused, ensure_unused_now, ensure_unwritten_now,
    keep_unchanged_now,
};
pub use incoming::{Incoming, IncomingImage};
pub use info::{ImageInfo, Sharing, info};
pub use inspect::{
    Inspection, inspect, inspect_closed, inspect_now, inspect_with_key_now, is_encrypted,
    is_encrypted_now, refuse_plain_text_now,
};
pub use job::{Job, Teller};
pub use layer::{
    Layer, Rebase, Terms, allocated, commit_layer, flush, freeze_layer, layer, make_overlay,
    outwait_orphan, rebase, reclaim,
};
pub use outgoing::Outgoing;
pub use partial::{sweep_partials, sweep_partials_of};
pub use resize::{Resize, resize, resize_with_key};
pub use snapshot::{
    SnapshotInfo, SnapshotName, create_snapshot, create_snapshot_with_key, delete_snapshot,
    delete_snapshot_with_key, list_snapshots, revert_snapshot, revert_snapshot_with_key,
    snapshot_exists,
};
pub use untouched::DiskState;
pub use written::is_unwritten_since;
