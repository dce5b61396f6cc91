//! Having machines load their firewall from the database: those of an earlier process, whose rules were
//! damaged or may not be what the database says any more.
//!
//! Invariants: one reload of a machine is outstanding at a time, and none delays another machine's; a
//! damaged machine is closed until its rules are loaded, which is tried until it succeeds; that it failed
//! is told once, and so is its end. Neighbour: [`super::repair`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::Open;
use super::repair::{BREATH, LONGEST};
use crate::error::Failure;
use crate::firewall::ChainNames;
use crate::vm::VmHandle;

/// A VM's task may be busy with another verb; what it has been asked, it does when it is free.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be told of a machine that is to load its rules.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// What of it was missing.
    missing: Vec<Value>,
    /// Whether it was told that it is closed.
    told: bool,
    /// Whether it is to load them once more: what is asked while it loads may concern what it has read already.
    again: bool,
}

impl Open {
    /// Has the machine load its rules in the background. What was `missing` is told when that is done,
    /// and before if it fails.
    pub(super) fn load_again(self: &Arc<Self>, names: ChainNames, missing: Vec<Value>) {
        let mut reloading = self.reloading();
        let is_new = !reloading.contains_key(&names);
        let pending = reloading.entry(names.clone()).or_default();
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
        open.begins(&names);
        drop(open);
        let outcome = ask(&manager, &names, owner).await;
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

async fn ask(manager: &Weak<Open>, names: &ChainNames, owner: VmHandle) -> Result<(), Failure> {
    let mut asked = pin!(owner.reload_firewall());
    if let Ok(outcome) = timeout(PATIENCE, &mut asked).await {
        return outcome;
    }
    if let Some(open) = manager.upgrade() {
        open.tell_closed(names, "it is busy; its rules follow");
    }
    asked.await
}
