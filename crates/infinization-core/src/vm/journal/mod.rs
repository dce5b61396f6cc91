//! A VM's journal: who asked for what, what was done, and how it ended. For people who have to
//! explain an outage, and for nothing else: the library never decides by what it says.
//!
//! ```text
//! Journal (one VM's) ──note──► Writer (one thread of the manager) ──► journals/<vmId>.jsonl
//!         └──written──► waits until the kernel has it        JournalReader ◄──┘
//! ```
//!
//! Invariants: a machine's entries are numbered from 0 without gaps, over restarts of this process
//! and `kill -9`; what [`Journal::written`] was awaited for before something is done is in the
//! kernel when that can be seen. A journal that cannot be written, and a disk that hangs, stop
//! nothing: what was lost is counted and told by the next entry. It outlives its machine, and the id goes on with it if it is
//! used again; of machines that are gone the newest [`KEPT`] journals stay.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `entry` | the words (pure) |
//! | `writer` | the thread that numbers and writes |
//! | `reader` | entries in order, of one machine or of all |

mod entry;
mod reader;
mod writer;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;

pub use self::entry::{Actor, JournalEntry, Note, Phase};
pub use self::reader::JournalReader;
use self::writer::{Draft, PATIENCE, Writer};
pub use crate::config::JournalKind as Kind;
use crate::error::Failure;
use crate::events::now_ms;
use crate::types::VmId;

/// How many bytes a journal's newer file may have; the older one has as many at most.
const LIMIT: u64 = 1024 * 1024;
/// How many journals of machines that are gone are kept.
const KEPT: usize = 256;
/// How many events of a guest or its monitor are noted within [`EVENT_WINDOW`]: a guest that resets
/// itself without end must not push everything else out.
const MOST_EVENTS: u32 = 64;
const EVENT_WINDOW: Duration = Duration::from_secs(60);
/// What is under way between operations.
const RUN: &str = "run";

/// All journals of a state directory.
#[derive(Debug, Clone)]
pub struct Journals {
    directory: PathBuf,
    writer: Arc<Writer>,
}

impl Journals {
    /// Starts the writer of the journals in `{state_dir}/journals`.
    pub fn start(state_dir: &Path) -> Result<Self, Failure> {
        Self::with_limit(state_dir, LIMIT)
    }

    fn with_limit(state_dir: &Path, limit: u64) -> Result<Self, Failure> {
        Self::with(state_dir, limit, Some(PATIENCE))
    }

    /// Whose entries are waited for, however long it takes: for tests whose clock goes on by itself while
    /// the writer's thread works.
    #[cfg(test)]
    pub(super) fn patient(state_dir: &Path) -> Result<Self, Failure> {
        Self::with(state_dir, LIMIT, None)
    }

    fn with(state_dir: &Path, limit: u64, patience: Option<Duration>) -> Result<Self, Failure> {
        let directory = state_dir.join("journals");
        let machines = state_dir.join("vms");
        let writer = Writer::start(directory.clone(), machines, limit, patience)?;
        Ok(Self {
            directory,
            writer: Arc::new(writer),
        })
    }

    /// One machine's.
    pub fn of(&self, vm_id: &VmId) -> Journal {
        Journal {
            vm_id: vm_id.clone(),
            writer: Arc::clone(&self.writer),
            scope: Mutex::default(),
        }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Counts up whenever something was written: what a reader that follows waits for.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.writer.changes()
    }

    /// Returns when everything noted so far is the kernel's.
    pub async fn written(&self) {
        self.writer.written().await;
    }

    /// Removes the oldest journals of machines that are gone, beyond [`KEPT`].
    pub fn prune(&self) {
        self.writer.prune();
    }
}

/// Whose operation is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    actor: Actor,
    operation: Cow<'static, str>,
    /// The status the machine was last known to have.
    status: Option<String>,
    /// Nothing is noted: there is no machine.
    silent: bool,
    events: Events,
}

/// The events of this window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Events {
    since: Option<Instant>,
    noted: u32,
    left_out: u64,
}

impl Events {
    /// Whether another one is noted; if it begins a new window, how many the last one left out.
    fn admits(&mut self, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        let fresh = self.since.is_none_or(|since| now - since >= EVENT_WINDOW);
        if fresh {
            left_out = std::mem::take(&mut self.left_out);
            self.since = Some(now);
            self.noted = 0;
        }
        let admitted = self.noted < MOST_EVENTS;
        if admitted {
            self.noted += 1;
        } else {
            self.left_out += 1;
        }
        (admitted, left_out)
    }
}

impl Default for Scope {
    fn default() -> Self {
        Self {
            actor: Actor::Process,
            operation: RUN.into(),
            status: None,
            silent: false,
            events: Events::default(),
        }
    }
}

/// One machine's journal. A machine does one thing at a time, so it knows on whose behalf.
#[derive(Debug)]
pub struct Journal {
    vm_id: VmId,
    writer: Arc<Writer>,
    scope: Mutex<Scope>,
}

impl Journal {
    /// From now on everything is done for this operation.
    pub fn enter(&self, actor: Actor, operation: &'static str) {
        let mut scope = self.scope();
        scope.actor = actor;
        scope.operation = operation.into();
    }

    /// The operation is over.
    pub fn leave(&self) {
        self.enter(Actor::Process, RUN);
        self.scope().silent = false;
    }

    /// Nothing is noted until the operation is over.
    pub fn be_silent(&self) {
        self.scope().silent = true;
    }

    /// Notes what a guest or its monitor did, unless too much was lately; that is told with the next.
    pub fn event(&self, note: Note) {
        let (admitted, left_out) = self.scope().events.admits(Instant::now());
        if left_out > 0 {
            self.note(Note::of(Kind::Lost).detail(json!({ "count": left_out })));
        }
        if admitted {
            self.note(note);
        }
    }

    /// Notes something. Never waits.
    pub fn note(&self, note: Note) {
        let (actor, operation) = match &*self.scope() {
            Scope { silent: true, .. } => return,
            scope => (scope.actor, scope.operation.clone()),
        };
        self.writer.put(Draft {
            vm_id: self.vm_id.clone(),
            timestamp: now_ms(),
            actor: note.actor.unwrap_or(actor),
            operation,
            note,
        });
    }

    /// Notes that the operation that was entered begins, is done or has failed.
    pub fn operation(&self, phase: Phase, detail: Value) {
        let note = Note::of(Kind::Operation).phase(phase);
        self.note(note.detail(detail));
    }

    /// Notes how the operation ended.
    pub fn ended<T>(&self, outcome: &Result<T, Failure>, detail: impl FnOnce(&T) -> Value) {
        match outcome {
            Ok(answer) => self.operation(Phase::Done, detail(answer)),
            Err(failure) => self.note(Note::of(Kind::Operation).failure(failure)),
        }
    }

    /// Notes the machine's status, if it is another than before.
    pub fn status(&self, status: &str) {
        let before = self.scope().status.replace(status.to_owned());
        if before.as_deref() != Some(status) {
            self.note(Note::of(Kind::Status).change(before, status));
        }
    }

    /// The status somebody else wrote, for the next change to start from.
    pub fn found_status(&self, status: &str) {
        self.scope().status = Some(status.to_owned());
    }

    /// Returns when everything noted so far is the kernel's, or cannot be written, or when the disk has
    /// hung for two seconds.
    pub async fn written(&self) {
        self.writer.written().await;
    }

    fn scope(&self) -> MutexGuard<'_, Scope> {
        self.scope.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
