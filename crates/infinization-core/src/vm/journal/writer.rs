//! The thread that writes all journals: files may wait for a disk, so it happens here and nowhere
//! else. It takes what has come meanwhile together, one write per machine.
//!
//! Entries get their numbers here, when they are written: one that could not be written leaves no
//! gap. What waits is bounded; what does not fit is counted and told. A disk that hangs holds up whoever
//! waits once, and for [`PATIENCE`]: then nobody waits until the thread goes on.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::KEPT;
use super::entry::{Actor, JournalEntry, Note, number_of};
use crate::config::JournalKind as Kind;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::line_log::LineLog;
use crate::types::VmId;

/// How many entries may wait for a disk that is slower than they come.
const BACKLOG: usize = 4096;
/// How many are taken together at most.
const BATCH: usize = 256;

/// How long whoever wants to know that his entries are written waits for a disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How many entries of each machine could not be written.
type Losses = HashMap<VmId, u64>;

/// An entry that has no number yet.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) vm_id: VmId,
    pub(super) timestamp: u64,
    pub(super) actor: Actor,
    pub(super) operation: Cow<'static, str>,
    pub(super) note: Note,
}

#[derive(Debug)]
enum Job {
    Write(Box<Draft>),
    Tell(oneshot::Sender<()>),
    Prune,
}

/// The way to the thread. It ends when this is dropped and what was sent is done.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    changes: watch::Receiver<u64>,
    waiting: Arc<AtomicUsize>,
    /// How long anybody waits for the disk; for ever without.
    patience: Option<Duration>,
    /// Somebody has waited in vain, and the thread has not gone on since.
    hangs: Arc<AtomicBool>,
    /// What did not fit, by machine.
    lost: Arc<Mutex<Losses>>,
}

impl Writer {
    pub(super) fn start(
        directory: PathBuf,
        machines: PathBuf,
        limit: u64,
        patience: Option<Duration>,
    ) -> Result<Self, Failure> {
        let (jobs, queue) = mpsc::channel();
        let (changed, changes) = watch::channel(0);
        let (waiting, lost) = <(Arc<AtomicUsize>, Arc<Mutex<Losses>>)>::default();
        let hangs = Arc::new(AtomicBool::new(false));
        let writer = Self {
            jobs,
            changes,
            waiting: Arc::clone(&waiting),
            patience,
            hangs: Arc::clone(&hangs),
            lost: Arc::clone(&lost),
        };
        let desk = Desk {
            directory,
            machines,
            limit,
            waiting,
            hangs,
            lost,
            next: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("infinization-journal".to_owned())
            .spawn(move || desk.work(&queue, &changed))
            .map_err(|error| {
                let message = format!("the journal's thread could not be started: {error}");
                Failure::new(ErrorCode::SpawnFailed, message)
            })?;
        Ok(writer)
    }

    pub(super) fn put(&self, draft: Draft) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= BACKLOG {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            *locked(&self.lost).entry(draft.vm_id).or_default() += 1;
            return;
        }
        let _ended = self.jobs.send(Job::Write(Box::new(draft)));
    }

    /// Returns when everything that was put is written, or when the disk hangs.
    pub(super) async fn written(&self) {
        if self.hangs.load(Ordering::Relaxed) {
            return;
        }
        let (tell, told) = oneshot::channel();
        if self.jobs.send(Job::Tell(tell)).is_err() {
            return;
        }
        let Some(patience) = self.patience else {
            let _ended = told.await;
            return;
        };
        if timeout(patience, told).await.is_err() {
            tracing::warn!("the journals' disk hangs: nobody waits for it");
            self.hangs.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn prune(&self) {
        let _ended = self.jobs.send(Job::Prune);
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

fn locked(lost: &Mutex<Losses>) -> MutexGuard<'_, Losses> {
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread knows.
struct Desk {
    directory: PathBuf,
    machines: PathBuf,
    limit: u64,
    waiting: Arc<AtomicUsize>,
    hangs: Arc<AtomicBool>,
    lost: Arc<Mutex<Losses>>,
    /// The number each machine's next entry gets.
    next: HashMap<VmId, u64>,
}

impl Desk {
    fn work(mut self, queue: &mpsc::Receiver<Job>, changed: &watch::Sender<u64>) {
        while let Ok(first) = queue.recv() {
            let mut drafts: HashMap<VmId, Vec<Draft>> = HashMap::new();
            let mut tells = Vec::new();
            let mut prune = false;
            let more = std::iter::from_fn(|| queue.try_recv().ok());
            for job in std::iter::once(first).chain(more.take(BATCH)) {
                match job {
                    Job::Write(draft) => {
                        drafts.entry(draft.vm_id.clone()).or_default().push(*draft);
                    }
                    Job::Tell(tell) => tells.push(tell),
                    Job::Prune => prune = true,
                }
            }
            let some = !drafts.is_empty();
            for (vm_id, drafts) in drafts {
                self.write(&vm_id, drafts);
            }
            if self.hangs.swap(false, Ordering::Relaxed) {
                tracing::warn!("the journals' disk goes on");
            }
            if prune {
                self.prune();
            }
            if some {
                changed.send_modify(|count| *count += 1);
            }
            for tell in tells {
                let _unheard = tell.send(());
            }
        }
    }

    fn write(&mut self, vm_id: &VmId, drafts: Vec<Draft>) {
        let count = drafts.len();
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let lost = locked(&self.lost).remove(vm_id);
        if let Err(error) = self.try_write(vm_id, drafts, lost) {
            tracing::warn!(vm = %vm_id, %error, count, "the journal could not be written");
            *locked(&self.lost).entry(vm_id.clone()).or_default() +=
                lost.unwrap_or_default() + count as u64;
            // What is in the file is looked at again.
            self.next.remove(vm_id);
        }
    }

    fn try_write(
        &mut self,
        vm_id: &VmId,
        drafts: Vec<Draft>,
        lost: Option<u64>,
    ) -> std::io::Result<()> {
        let log = LineLog::of(&self.directory, vm_id.as_str());
        let mut next = match self.next.get(vm_id) {
            Some(next) => *next,
            None => next_number(&log)?,
        };
        let mut lines = Vec::new();
        for draft in lost
            .map(|count| loss(vm_id, count))
            .into_iter()
            .chain(drafts)
        {
            serde_json::to_writer(&mut lines, &numbered(draft, next))?;
            lines.push(b'\n');
            next += 1;
        }
        log.append(&lines, self.limit)?;
        self.next.insert(vm_id.clone(), next);
        Ok(())
    }

    /// Of machines that have no state directory, the journals beyond the newest [`KEPT`] go.
    fn prune(&mut self) {
        let listed = LineLog::list(&self.directory).unwrap_or_default();
        let is_gone = |name: &str| !self.machines.join(name).exists();
        let mut gone: Vec<_> = listed
            .into_iter()
            .filter(|(name, _)| is_gone(name))
            .collect();
        gone.sort_by_key(|(_, written)| std::cmp::Reverse(*written));
        // What is gone is not numbered on from memory: somebody may use the id again.
        for (name, _) in &gone {
            self.next.retain(|vm_id, _| vm_id.as_str() != name);
        }
        for (name, _) in gone.iter().skip(KEPT) {
            if let Err(error) = LineLog::of(&self.directory, name).remove() {
                tracing::warn!(vm = name, %error, "an old journal could not be removed");
            }
        }
    }
}

/// Where a journal of an earlier process goes on.
fn next_number(log: &LineLog) -> std::io::Result<u64> {
    let last = log.open(|line| number_of(line).is_some())?;
    Ok(last
        .and_then(|line| number_of(&line))
        .map_or(0, |seq| seq + 1))
}

fn loss(vm_id: &VmId, count: u64) -> Draft {
    Draft {
        vm_id: vm_id.clone(),
        timestamp: now_ms(),
        actor: Actor::Process,
        operation: super::RUN.into(),
        note: Note::of(Kind::Lost).detail(json!({ "count": count })),
    }
}

fn numbered(draft: Draft, seq: u64) -> JournalEntry {
    let Draft {
        vm_id,
        timestamp,
        actor,
        operation,
        note,
    } = draft;
    JournalEntry {
        vm_id,
        seq,
        timestamp,
        actor,
        operation,
        kind: note.kind,
        step: note.step,
        phase: note.phase,
        from: note.from,
        to: note.to,
        detail: note.detail,
    }
}

/// Which machines have a journal in `directory`.
pub(super) fn machines_of(directory: &Path) -> Vec<VmId> {
    let listed = LineLog::list(directory).unwrap_or_default();
    let names = listed.into_iter().map(|(name, _)| name);
    names.filter_map(|name| VmId::parse(name).ok()).collect()
}
