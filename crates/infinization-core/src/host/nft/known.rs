//! What this process has loaded, and how to tell whether it is still there.
//!
//! A machine's chains are nobody else's ([`super::machine`]). The hooks' are shared with other processes
//! that load the same, so those are compared by what they say; so are the chains that machines share
//! ([`super::shared`]). What all of that is, is in [`super::beliefs`]. Nothing here talks to the kernel.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::beliefs::Beliefs;
use super::line::Moment;
use super::machine::{Damage, Loaded, Rules};
use super::netlink::Port;
use super::transport::{CommittedRule, Reading};
use crate::firewall::{ChainNames, Compiled, Masquerade, SharedChain, Transaction};
use crate::types::{FirewallDefaultAction, LinkName};

/// Everything that is believed to be in force.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Beliefs>);

impl Known {
    /// The hooks were set up.
    pub(super) fn hooked(&self) {
        self.beliefs().hooked = true;
    }

    /// Whether the hooks were ever set up.
    pub(super) fn has_hooked(&self) -> bool {
        self.beliefs().hooked
    }

    /// The table was gone; it is there again, and nothing leads to any machine.
    pub(super) fn remade(&self) {
        let mut beliefs = self.beliefs();
        (beliefs.hooked, beliefs.remade) = (true, true);
    }

    /// Whether the table was made again since this was asked.
    pub(super) fn was_remade(&self) -> bool {
        std::mem::take(&mut self.beliefs().remade)
    }

    /// The hooks look like this; nobody else has touched them since they were set up.
    pub(super) fn saw_hooks(&self, reading: &Reading) {
        self.beliefs().hooks = Some(reading.hooks.clone());
    }

    /// Whether it is known what the hooks must look like.
    pub(super) fn knows_hooks(&self) -> bool {
        self.beliefs().hooks.is_some()
    }

    /// The machine's rules were loaded.
    /// If it only `follows`, its own chains are as they were: what others did to those counts on.
    pub(super) fn loaded(&self, compiled: &Arc<Compiled>, follows: bool) {
        let mut beliefs = self.beliefs();
        beliefs.loads += 1;
        let before = beliefs.machines.get(&compiled.ruleset.names.vm);
        // What is opened again as it was is no newer than it was.
        let is_opened = |it: &&Loaded| {
            let is_same = it.ours().is_some_and(|it| it.says_the_same(compiled));
            !it.attached && is_same
        };
        let load = before.filter(is_opened).map_or(beliefs.loads, |it| it.load);
        let kept = before.filter(|_| follows);
        let kept = kept.map(|it| it.touched.clone());
        beliefs.load(compiled, load);
        let machine = beliefs.machines.get_mut(&compiled.ruleset.names.vm);
        if let (Some(machine), Some(touched)) = (machine, kept) {
            machine.touched = touched;
        }
    }

    /// What had been loaded for the machine was loaded again.
    pub(super) fn put_back(&self, compiled: &Arc<Compiled>) {
        let mut beliefs = self.beliefs();
        let machine = beliefs.machines.get(&compiled.ruleset.names.vm);
        let load = machine.map_or(0, |machine| machine.load);
        beliefs.load(compiled, load);
    }

    /// Between the loads so far and those to come.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.beliefs().loads)
    }

    /// What was loaded for the machine since that moment.
    pub(super) fn newer_than(&self, moment: Moment, names: &ChainNames) -> Option<Arc<Compiled>> {
        let beliefs = self.beliefs();
        let machine = beliefs.machines.get(&names.vm)?;
        let newer = machine.ours().filter(|_| machine.load > moment.0);
        newer.map(Arc::clone)
    }

    /// The machine's chains are there, whatever is in them, and this port leads to them.
    pub(super) fn attached(&self, names: &ChainNames, tap: &LinkName) {
        self.found(names, tap, false);
    }

    /// As [`Known::attached`]; whether they hold what they should has yet to be found out.
    pub(super) fn adopted(&self, names: &ChainNames, tap: &LinkName) {
        self.found(names, tap, true);
    }

    fn found(&self, names: &ChainNames, tap: &LinkName, unconfirmed: bool) {
        let mut beliefs = self.beliefs();
        let machine = beliefs.machines.entry(names.vm.clone());
        let machine = machine.or_insert_with(|| Loaded::found(names, tap));
        machine.unconfirmed |= unconfirmed;
        let is_other = machine.tap != *tap;
        if is_other && machine.attached && machine.ours().is_some() {
            machine.others.insert(tap.clone());
            return;
        }
        machine.tap = tap.clone();
        machine.attached = true;
        // What was loaded was for the other port.
        if is_other || matches!(machine.rules, Rules::Closed) {
            machine.rules = Rules::Found;
        }
    }

    /// Nothing leads to the machine's chains any more, until its rules are loaded.
    pub(super) fn closed(&self, names: &ChainNames) {
        if let Some(loaded) = self.beliefs().machines.get_mut(&names.vm) {
            loaded.rules = Rules::Closed;
        }
    }

    /// Whether the machine is closed until its rules are loaded.
    pub(super) fn is_closed(&self, names: &ChainNames) -> bool {
        let beliefs = self.beliefs();
        let loaded = beliefs.machines.get(&names.vm);
        loaded.is_some_and(|loaded| matches!(loaded.rules, Rules::Closed))
    }

    /// All machines that are closed until their rules are loaded.
    pub(super) fn all_closed(&self) -> Vec<ChainNames> {
        let beliefs = self.beliefs();
        let machines = beliefs.machines.values();
        let closed = machines.filter(|loaded| matches!(loaded.rules, Rules::Closed));
        closed.map(|loaded| loaded.names.clone()).collect()
    }

    /// The machines whose chains may hold other rules than they should.
    pub(super) fn unconfirmed(&self) -> Vec<ChainNames> {
        let beliefs = self.beliefs();
        let machines = beliefs.machines.values();
        let unconfirmed = machines.filter(|loaded| loaded.unconfirmed);
        unconfirmed.map(|loaded| loaded.names.clone()).collect()
    }

    /// Elements that must go before the machine's rules can be loaded, or all that lead to it.
    pub(super) fn in_the_way(&self, names: &ChainNames, reading: &Reading) -> Vec<Port> {
        let beliefs = self.beliefs();
        let Some(loaded) = beliefs.machines.get(&names.vm) else {
            return Vec::new();
        };
        let elements = reading.listing.elements.iter();
        let out = elements.filter(|element| match loaded.rules {
            Rules::Ours(_) => loaded.is_misled_by(element),
            _ => loaded.is_reached_by(element),
        });
        out.filter_map(|element| Some((element.map, LinkName::parse(&*element.tap).ok()?)))
            .collect()
    }

    /// The user's rules were taken out of the machine's visible chain.
    pub(super) fn flushed(&self, names: &ChainNames, action: FirewallDefaultAction) {
        let mut beliefs = self.beliefs();
        beliefs.loads += 1;
        let load = beliefs.loads;
        if let Some(loaded) = beliefs.machines.get_mut(&names.vm) {
            if let Rules::Ours(compiled) = &mut loaded.rules {
                *compiled = Arc::new(compiled.flushed(action));
            }
            loaded.load = load;
            loaded.touched.remove(&names.vm);
        }
    }

    /// A commit of ours was confirmed with these rules, in order.
    pub(super) fn committed(&self, transaction: &Transaction, confirmed: &[CommittedRule]) {
        self.beliefs().handles.follow(transaction, confirmed);
    }

    /// Another has touched the rules of this chain.
    pub(super) fn touched(&self, chain: &str) {
        self.beliefs().touched(chain);
    }

    /// Others may have done anything of which nothing was told.
    pub(super) fn missed(&self) {
        self.beliefs().missed();
    }

    /// Nobody knows what is in the chain now.
    pub(super) fn lost(&self, chain: &str) {
        let mut beliefs = self.beliefs();
        beliefs.handles.forget(chain);
        beliefs.touched(chain);
    }

    /// What makes the machine's chains what they are to be, if it is known what they and its port are.
    pub(super) fn change(&self, new: &Compiled) -> Option<Transaction> {
        let beliefs = self.beliefs();
        let machine = beliefs.machines.get(&new.ruleset.names.vm)?;
        let old = machine.ours().filter(|_| machine.is_as_loaded())?;
        let is_same_port = old.ruleset.tap == new.ruleset.tap;
        let mut change = Transaction::default();
        let pairs = old.ruleset.chains().into_iter().zip(new.ruleset.chains());
        for ((chain, old), (_, new)) in pairs {
            change.change_chain(chain, (old, beliefs.handles.of(chain)), new);
        }
        is_same_port.then_some(change)
    }

    /// Has the new chain take the place of one that is known.
    pub(super) fn replace(&self, all: &mut Transaction, old: &SharedChain, new: &SharedChain) {
        let beliefs = self.beliefs();
        all.replace_shared(old, beliefs.handles.of(&old.name), new);
    }

    /// The machine has no chains any more.
    pub(super) fn forget(&self, names: &ChainNames) {
        self.beliefs().machines.remove(&names.vm);
    }

    /// The port is closed. What it led to is kept for the day it is opened again, as far as it is known.
    pub(super) fn detached(&self, tap: &LinkName) {
        let mut beliefs = self.beliefs();
        beliefs
            .machines
            .retain(|_, loaded| loaded.detach(tap) || loaded.ours().is_some());
    }

    /// What was loaded for the machine, if it was by this process and its port is open.
    pub(super) fn compiled(&self, names: &ChainNames) -> Option<Arc<Compiled>> {
        let beliefs = self.beliefs();
        let machine = beliefs.machines.get(&names.vm)?;
        machine.ours().filter(|_| machine.attached).map(Arc::clone)
    }

    /// The ports beside the one it was loaded for that lead to the machine's chains.
    pub(super) fn other_ports(&self, names: &ChainNames) -> BTreeSet<LinkName> {
        let beliefs = self.beliefs();
        let machine = beliefs.machines.get(&names.vm);
        machine.map_or_else(BTreeSet::new, |machine| machine.others.clone())
    }

    /// What was loaded for the machine, if it was by this process and for this port, open or not.
    pub(super) fn compiled_for(&self, names: &ChainNames, tap: &LinkName) -> Option<Arc<Compiled>> {
        let beliefs = self.beliefs();
        let machine = beliefs.machines.get(&names.vm)?;
        machine
            .ours()
            .filter(|it| it.ruleset.tap == *tap)
            .map(Arc::clone)
    }

    /// Whether this process has loaded the machine's rules.
    pub(super) fn knows(&self, names: &ChainNames) -> bool {
        let beliefs = self.beliefs();
        let machine = beliefs.machines.get(&names.vm);
        machine.is_some_and(|machine| machine.ours().is_some())
    }

    /// Whether exactly this was loaded.
    pub(super) fn has(&self, compiled: &Compiled) -> bool {
        let loaded = self.compiled(&compiled.ruleset.names);
        loaded.is_some_and(|loaded| loaded.says_the_same(compiled))
    }

    /// The shared chains that nobody would be known to jump to without these machines.
    pub(super) fn unused_without(&self, machines: &BTreeSet<&ChainNames>) -> Vec<String> {
        let beliefs = self.beliefs();
        let (going, staying): (Vec<_>, Vec<_>) = beliefs
            .ours()
            .partition(|it| machines.contains(&it.ruleset.names));
        let staying = staying.iter().flat_map(|it| it.ruleset.shared_names());
        let staying: BTreeSet<_> = staying.collect();
        let going = going.iter().flat_map(|it| it.ruleset.shared_names());
        let unused: BTreeSet<_> = going
            .filter(|chain| !staying.contains(chain) && !beliefs.shared.is_used_elsewhere(chain))
            .collect();
        unused.into_iter().map(str::to_owned).collect()
    }

    /// The machines that jump to this chain, if all that do were loaded by this process, as far as was
    /// read.
    pub(super) fn only_users(&self, chain: &str) -> Option<Vec<ChainNames>> {
        let beliefs = self.beliefs();
        if beliefs.shared.is_used_elsewhere(chain) {
            return None;
        }
        let jumps = |it: &&Arc<Compiled>| it.ruleset.shared_names().any(|name| name == chain);
        let users = beliefs.ours().filter(jumps);
        Some(users.map(|it| it.ruleset.names.clone()).collect())
    }

    /// The shared chain of this name, if a machine loaded by this process jumps to it.
    pub(super) fn shared(&self, chain: &str) -> Option<Arc<SharedChain>> {
        let beliefs = self.beliefs();
        let mut all = beliefs.ours().flat_map(|it| &it.ruleset.shared);
        all.find(|it| it.name == chain).map(Arc::clone)
    }

    /// Whether this process has loaded the shared chain for a machine that jumps to it.
    pub(super) fn has_loaded_shared(&self, chain: &str) -> bool {
        let beliefs = self.beliefs();
        let mut names = beliefs.ours().flat_map(|it| it.ruleset.shared_names());
        names.any(|name| name == chain)
    }

    /// These chains hold what their names say.
    pub(super) fn loaded_shared<'a>(&self, chains: impl IntoIterator<Item = &'a str>) {
        let mut beliefs = self.beliefs();
        for chain in chains {
            beliefs.shared.loaded(chain);
        }
    }

    /// The bridge's masquerading was set up.
    pub(super) fn masquerades(&self, masquerade: Masquerade) {
        let mut beliefs = self.beliefs();
        let bridge = masquerade.bridge.clone();
        beliefs.masquerades.insert(bridge, masquerade);
    }

    /// The bridge's masquerading was taken away.
    pub(super) fn forget_masquerade(&self, bridge: &LinkName) {
        self.beliefs().masquerades.remove(bridge);
    }

    /// All masquerading that was set up.
    pub(super) fn all_masquerades(&self) -> Vec<Masquerade> {
        self.beliefs().masquerades.values().cloned().collect()
    }

    /// What of all this the kernel does not hold.
    pub(super) fn compare(&self, reading: &Reading) -> Vec<Damage> {
        let mut beliefs = self.beliefs();
        beliefs.judge_touched(reading);
        let mut found = beliefs.damaged_hooks(reading);
        found.extend(beliefs.damaged_shared(reading));
        beliefs.forget_gone(reading);
        let shared = &beliefs.shared;
        let machines = beliefs.machines.values().filter(|loaded| loaded.attached);
        found.extend(machines.flat_map(|loaded| loaded.damages(reading, shared)));
        beliefs.remember(reading, &found);
        found
    }

    fn beliefs(&self) -> MutexGuard<'_, Beliefs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
