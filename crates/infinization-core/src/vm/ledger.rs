//! The ledger: what a VM holds on this host and how each thing is released.
//!
//! One file per VM, written before a step acquires anything and again when it has, so that after
//! our process was killed at any moment the next one knows what to release. It survives a killed
//! process; after a host crash only disks are left to know of, and a torn file says so by its
//! checksum. The same list serves rollback, stop, crash clean-up, destroy and the orphan sweep.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::action::Release;
use super::outcome::EndCause;
use super::plan::{Lifetime, Operation, Undo};
use crate::firewall::Network;
use crate::host::process::ProcessId;
use crate::host::state_file::{self, Durability, StateFileError};
use crate::types::{FirewallDefaultAction, HostPath, LinkName};

/// The file's name in the VM's state directory.
const FILE: &str = "ledger.json";
/// What a damaged one is called.
const DAMAGED: &str = "ledger.json.damaged";

/// One thing that is held, or about to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Numbers the acquisitions, oldest first.
    pub number: u64,
    /// How it is released.
    #[serde(flatten)]
    pub undo: Undo,
    /// False from just before the step until it has succeeded.
    pub held: bool,
}

/// The QEMU process that belongs to the VM now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lived {
    /// Pid, start time and boot.
    pub process: ProcessId,
    /// The argument after `-name`, by which the process is proven to be this VM's.
    pub name_argument: String,
    /// Where its monitor listens.
    pub qmp_socket: HostPath,
    /// The display port it listens on.
    pub display_port: u16,
    /// What its run was started with in place of the department's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall_default_action: Option<FirewallDefaultAction>,
    /// Where its TAP was seen last; none before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<Seat>,
    /// The addresses its rules guard, of which nobody else knows while its bridge is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guarded: Vec<Network>,
}

/// The bridge a TAP was last seen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seat {
    /// The kernel's number for it, which no other bridge gets until the host is started again.
    pub index: u32,
    /// What it was called then. A bridge that is renamed keeps its ports, and its successor is who takes its name.
    pub name: String,
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    /// What was going on when it was written; `None` between operations.
    pub operation: Option<Operation>,
    /// When that began, in milliseconds since the Unix epoch.
    pub began_at_ms: u64,
    /// The number of the first entry that operation may have added.
    pub attempt: u64,
    /// The number the next entry gets. Numbers are never used twice.
    pub next: u64,
    /// Counts the QEMU processes this VM has had.
    pub generation: u64,
    /// The process that runs now.
    pub lived: Option<Lived>,
    /// Why the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<EndCause>,
    /// The process that runs has ended as a step of an installation, for this reason: what it held stays
    /// until the installation is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postponed: Option<EndCause>,
    /// Whether its guest's CPUs may have run: a launch that got so far is never undone.
    #[serde(default)]
    pub guest_may_run: bool,
    /// What is held, oldest first.
    pub entries: Vec<Entry>,
}

impl Contents {
    /// The TAP the VM has.
    pub fn tap(&self) -> Option<&LinkName> {
        let mut entries = self.entries.iter();
        entries.find_map(|entry| match &entry.undo.release {
            Release::DeleteTap { tap } => Some(tap),
            _ => None,
        })
    }
}

/// A VM's ledger, in memory and on disk.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    contents: Mutex<Contents>,
}

impl Ledger {
    /// Reads the ledger in `directory`; absent means an empty one.
    pub fn open(directory: &Path) -> Result<Self, StateFileError> {
        let path = directory.join(FILE);
        let contents = match state_file::read(&path)? {
            // Its checksum fits but its words do not: no less damaged than a torn one.
            Some(body) => serde_json::from_slice(&body).map_err(|_words| StateFileError::Torn {
                path: path.display().to_string(),
            })?,
            None => Contents::default(),
        };
        Ok(Self {
            path,
            contents: Mutex::new(contents),
        })
    }

    /// A ledger in the place of a damaged one, which is kept beside it.
    pub(super) fn replace_damaged(directory: &Path, held: &[Undo]) -> Result<Self, StateFileError> {
        let path = directory.join(FILE);
        let aside = directory.join(DAMAGED);
        // The name is never without a file: another reader finds the damaged ledger or the new one.
        let kept = match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => std::fs::hard_link(&path, &aside),
        };
        kept.map_err(|source| StateFileError::Write {
            path: aside.display().to_string(),
            source,
        })?;
        let ledger = Self {
            path,
            contents: Mutex::default(),
        };
        ledger.intend(held)?;
        Ok(ledger)
    }

    /// What it holds now.
    pub fn contents(&self) -> Contents {
        self.lock().clone()
    }

    /// Notes that an operation begins.
    pub fn begin(&self, operation: Operation, now_ms: u64) -> Result<(), StateFileError> {
        self.change(|contents| {
            contents.operation = Some(operation);
            contents.guest_may_run &= !operation.is_launch();
            contents.began_at_ms = now_ms;
            contents.attempt = contents.next;
        })
    }

    /// Notes that what was acquired is about to be given back: nothing is lost if that cannot be
    /// written, so it never fails.
    pub fn begin_release(&self, operation: Operation, now_ms: u64) {
        if let Err(error) = self.begin(operation, now_ms) {
            tracing::warn!(%error, operation = operation.as_str(), "the ledger could not be written");
        }
    }

    /// Notes what else is to be given back, if only in memory.
    pub fn release_too(&self, undos: impl Iterator<Item = Undo>) {
        let contents = self.contents();
        let is_new = |undo: &Undo| {
            let mut listed = contents.entries.iter();
            listed.all(|entry| entry.undo.release != undo.release)
        };
        let missing: Vec<Undo> = undos.filter(is_new).collect();
        if let Err(error) = self.intend(&missing) {
            tracing::warn!(%error, "the ledger could not be written");
            intend(&mut self.lock(), &missing);
        }
    }

    /// Notes what a stage is about to acquire, before it does. Answers the entries' numbers.
    pub fn intend(&self, undos: &[Undo]) -> Result<Vec<u64>, StateFileError> {
        self.change(|contents| intend(contents, undos))
    }

    /// Notes that what the entries speak of has been acquired.
    pub fn hold(&self, numbers: &[u64]) -> Result<(), StateFileError> {
        self.change(|contents| {
            for entry in &mut contents.entries {
                entry.held |= numbers.contains(&entry.number);
            }
        })
    }

    /// Forgets entries that were released, or never acquired.
    pub fn forget(&self, numbers: &[u64]) -> Result<(), StateFileError> {
        self.change(|contents| {
            contents
                .entries
                .retain(|entry| !numbers.contains(&entry.number));
        })
    }

    /// Notes the process that was just started, and counts the generation up.
    pub fn live(&self, lived: Lived) -> Result<u64, StateFileError> {
        self.change(|contents| {
            contents.generation += 1;
            contents.lived = Some(lived);
            contents.guest_may_run = false;
            contents.generation
        })
    }

    /// Where the TAP of the process that runs was seen last.
    pub fn seat(&self) -> Option<Seat> {
        self.lock().lived.as_ref()?.seat.clone()
    }

    /// Notes where the TAP of the process that runs is, if one does.
    pub fn sits_on(&self, seat: &Seat) -> Result<(), StateFileError> {
        self.change(|contents| {
            if let Some(lived) = &mut contents.lived {
                lived.seat = Some(seat.clone());
            }
        })
    }

    /// The addresses that the rules of the process that runs guard, as was noted last.
    pub fn guarded(&self) -> Vec<Network> {
        let contents = self.lock();
        let lived = contents.lived.as_ref();
        lived.map_or_else(Vec::new, |lived| lived.guarded.clone())
    }

    /// Notes which addresses the rules of the process that runs guard, if one does.
    pub fn guards(&self, addresses: Vec<Network>) -> Result<(), StateFileError> {
        self.change(|contents| {
            if let Some(lived) = &mut contents.lived {
                lived.guarded = addresses;
            }
        })
    }

    /// Notes that the guest's CPUs are about to run.
    pub fn guest_may_run(&self) -> Result<(), StateFileError> {
        self.change(|contents| contents.guest_may_run = true)
    }

    /// Notes that the process of an undone launch is gone.
    pub fn died(&self) -> Result<(), StateFileError> {
        self.change(|contents| contents.lived = None)
    }

    /// Notes that the process is gone, and why.
    pub fn ended(&self, cause: &EndCause) -> Result<(), StateFileError> {
        self.change(|contents| {
            contents.lived = None;
            contents.postponed = None;
            contents.last_exit = Some(cause.clone());
        })
    }

    /// The process has ended as a step of an installation.
    pub fn postpone(&self, cause: &EndCause) -> Result<(), StateFileError> {
        self.change(|contents| contents.postponed = Some(cause.clone()))
    }

    /// Ends the operation well: what was for the attempt alone is forgotten.
    pub fn commit(&self) -> Result<(), StateFileError> {
        self.change(|contents| {
            contents.operation = None;
            contents
                .entries
                .retain(|entry| entry.undo.lifetime != Lifetime::Attempt);
        })
    }

    /// Forgets that the file exists, after its directory was removed.
    pub fn discard(&self) {
        *self.lock() = Contents::default();
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a copy, writes it, then keeps it: memory never claims what the file does not say.
    fn change<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> Result<T, StateFileError> {
        let mut contents = self.lock();
        let mut next = contents.clone();
        let answer = change(&mut next);
        if next != *contents {
            let body = serde_json::to_vec(&next).map_err(|error| StateFileError::Write {
                path: self.path.display().to_string(),
                source: error.into(),
            })?;
            state_file::write(&self.path, &body, Durability::ProcessCrash)?;
            *contents = next;
        }
        Ok(answer)
    }
}

fn intend(contents: &mut Contents, undos: &[Undo]) -> Vec<u64> {
    let numbers: Vec<u64> = (contents.next..).take(undos.len()).collect();
    contents.next += numbers.len() as u64;
    let entries = undos.iter().zip(&numbers).map(|(undo, &number)| Entry {
        number,
        undo: undo.clone(),
        held: false,
    });
    contents.entries.extend(entries);
    numbers
}

#[cfg(test)]
mod tests;
