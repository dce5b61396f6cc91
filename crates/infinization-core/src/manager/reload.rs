//! Having machines load their firewall from the database: those of an earlier process, whose rules were
//! damaged or may not be what the database says any more.
//!
//! Invariants: one reload of a machine is outstanding at a time; a damaged machine waits for no other's, and is closed
//! until its rules are loaded, which is tried until it succeeds; that it failed is told once, and so is its end. The
//! others take turns. Neighbour: [`super::repair`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::Open;
use super::repair::{BREATH, LONGEST};
use crate::error::Failure;
use crate::firewall::ChainNames;
use crate::vm::VmHandle;

/// A VM's task may be busy with another verb; what it has been asked, it does when it is free.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many machines load rules at once while their old ones are in force, as all do after a start of this process. What
/// more would take of memory, the allocator keeps.
const AT_ONCE: usize = 8;

/// Who loads rules next.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    /// None if it cannot wait for one any more.
    async fn next(self, damaged: &Notify) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            // Nobody closes it.
            turn = self.0.acquire_owned() => turn.ok(),
            () = damaged.notified() => None,
        }
    }
}

/// What is to be told of a machine that is to load its rules.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// What of it was missing.
    missing: Vec<Value>,
    /// Whether it was told that it is closed.
    told: bool,
    /// Whether it is to load them once more: what is asked while it loads may concern what it has read already.
    again: bool,
    /// Is told when it was damaged.
    damaged: Arc<Notify>,
}

impl Open {
    /// Has the machine load its rules in the background. What was `missing` is told when that is done,
    /// and before if it fails.
    pub(super) fn load_again(self: &Arc<Self>, names: ChainNames, missing: Vec<Value>) {
        let mut reloading = self.reloading();
        let is_new = !reloading.contains_key(&names);
        let pending = reloading.entry(names.clone()).or_default();
        if !missing.is_empty() {
            pending.damaged.notify_one();
        }
        for part in missing {
            if !pending.missing.contains(&part) {
                pending.missing.push(part);
            }
        }
        pending.again = !is_new;
        drop(reloading);
        if is_new {
            let until = self.services.closing.child_token();
            let reload = load(Arc::downgrade(self), names);
            tokio::spawn(async move { until.run_until_cancelled_owned(reload).await });
        } else {
            self.tell_closed(&names, "its rules could not be loaded yet");
        }
    }

    pub(super) fn owner_of(&self, names: &ChainNames) -> Option<VmHandle> {
        let vms = self.vms();
        let found = vms
            .iter()
            .find(|(vm_id, _)| ChainNames::of(vm_id) == *names);
        found.map(|(_, handle)| handle.clone())
    }

    /// Told once, and only of a machine that was damaged.
    fn tell_closed(&self, names: &ChainNames, error: &str) {
        let missing = match self.reloading().get_mut(names) {
            Some(pending) if !pending.told && !pending.missing.is_empty() => {
                pending.told = true;
                pending.missing.clone()
            }
            _ => return,
        };
        let failed = json!({ "vmId": self.id_of(names), "error": error });
        self.tell_repaired(&missing, Some(failed));
    }

    /// Whether nothing more is to be done; a machine that was closed meanwhile, or
    /// was to load its rules once more, loads them again.
    fn is_loaded(&self, names: &ChainNames) -> bool {
        let mut reloading = self.reloading();
        let again = reloading.get(names).is_some_and(|pending| pending.again);
        if again || self.services.nft.is_closed(names) {
            return false;
        }
        let pending = reloading.remove(names).unwrap_or_default();
        drop(reloading);
        self.tell_repaired(&pending.missing, None);
        true
    }

    /// Nobody's chains were made by hand, and are made again by hand.
    fn give_up(&self, names: &ChainNames) {
        if self.services.nft.is_closed(names) {
            self.services.nft.abandon_vm(names);
            self.tell_closed(names, "its rules are not known");
        }
        self.reloading().remove(names);
    }

    fn damaged(&self, names: &ChainNames) -> Arc<Notify> {
        let reloading = self.reloading();
        let pending = reloading.get(names);
        pending.map_or_else(Arc::default, |pending| Arc::clone(&pending.damaged))
    }

    /// What was asked until now, the machine is about to load.
    fn begins(&self, names: &ChainNames) {
        if let Some(pending) = self.reloading().get_mut(names) {
            pending.again = false;
        }
    }

    fn reloading(&self) -> MutexGuard<'_, HashMap<ChainNames, Pending>> {
        let reloading = self.reloading.lock();
        reloading.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries until it succeeds. The manager is not held while it waits.
async fn load(manager: Weak<Open>, names: ChainNames) {
    let mut pause = BREATH;
    loop {
        let Some(open) = manager.upgrade() else {
            return;
        };
        let Some(owner) = open.owner_of(&names) else {
            return open.give_up(&names);
        };
        let is_closed = open.services.nft.is_closed(&names);
        let (turns, damaged) = (open.turns.clone(), open.damaged(&names));
        drop(open);
        let turn = if is_closed {
            None
        } else {
            turns.next(&damaged).await
        };
        // Boxed: who waits for a turn is small.
        let outcome = Box::pin(ask(&manager, &names, owner, turn)).await;
        let Some(open) = manager.upgrade() else {
            return;
        };
        match outcome {
            Ok(()) if open.is_loaded(&names) => return,
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(chain = names.vm, %error, "a machine's firewall is not loaded yet");
                open.tell_closed(&names, &error.to_string());
            }
        }
        drop(open);
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// One that is busy keeps its turn no longer than our patience.
async fn ask(
    manager: &Weak<Open>,
    names: &ChainNames,
    owner: VmHandle,
    turn: Option<OwnedSemaphorePermit>,
) -> Result<(), Failure> {
    if let Some(open) = manager.upgrade() {
        open.begins(names);
    }
    let mut asked = pin!(owner.reload_firewall());
    if let Ok(outcome) = timeout(PATIENCE, &mut asked).await {
        return outcome;
    }
    drop(turn);
    if let Some(open) = manager.upgrade() {
        open.tell_closed(names, "it is busy; its rules follow");
    }
    asked.await
}
