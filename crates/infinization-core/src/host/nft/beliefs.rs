//! What is believed to be in force, all of it, and what reading the kernel says about that.
//!
//! Neighbours: [`super::known`] is the door to it; [`super::machine`], [`super::shared`] and
//! [`super::handles`] are its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::conditions::Conditions;
use super::handles::Handles;
use super::machine::{Damage, Loaded, Part, Rules, comments};
use super::shared::Shared;
use super::transport::Reading;
use crate::firewall::{Compiled, Hook, Masquerade, SharedChain, TABLE, Transaction};
use crate::types::LinkName;

#[derive(Debug, Default)]
pub(super) struct Beliefs {
    /// By visible chain.
    pub(super) machines: BTreeMap<String, Loaded>,
    /// Whether the hooks were ever set up.
    pub(super) hooked: bool,
    /// Whether the table was found gone and made again, which is to be told.
    pub(super) remade: bool,
    /// What they look like in nft's words, once that was seen.
    pub(super) hooks: Option<BTreeMap<&'static str, String>>,
    pub(super) shared: Shared,
    conditions: Conditions,
    /// Which numbers the kernel has given to the rules of all these chains.
    pub(super) handles: Handles,
    /// How many loads there have been.
    pub(super) loads: u64,
    pub(super) masquerades: BTreeMap<LinkName, Masquerade>,
}

impl Beliefs {
    pub(super) fn load(&mut self, compiled: &Arc<Compiled>, load: u64) {
        self.hooked = true;
        let compiled = self.shared.with_one_copy(compiled);
        let compiled = Arc::new(self.conditions.with_one_copy(&compiled));
        self.shared.is_ours(&compiled.ruleset.names.vm);
        let (names, tap) = (compiled.ruleset.names.clone(), &compiled.ruleset.tap);
        let before = self.machines.get(&names.vm).filter(|it| it.attached);
        let ports = before.into_iter().flat_map(Loaded::ports);
        let others = ports.filter(|port| *port != tap).cloned().collect();
        let loaded = Loaded {
            others,
            load,
            ..Loaded::found(&names, tap)
        };
        let rules = Rules::Ours(compiled);
        self.machines.insert(names.vm, Loaded { rules, ..loaded });
    }

    pub(super) fn touched(&mut self, chain: &str) {
        if SharedChain::is_name(chain) {
            self.shared.touched(chain);
            return;
        }
        for loaded in self.machines.values_mut() {
            if loaded.names.all().contains(&chain) {
                loaded.touched.insert(chain.to_owned());
            }
        }
    }

    /// Something was done that nobody has told. Reading finds it, except a rule replaced under its comment in a
    /// chain that was not read since we changed it: such a chain is as good as touched.
    pub(super) fn missed(&mut self) {
        let handles = &self.handles;
        let is_unseen = |chain: &&str| !handles.has_seen(chain);
        let ours = self.machines.values_mut();
        for loaded in ours {
            let Rules::Ours(compiled) = &loaded.rules else {
                continue;
            };
            for chain in compiled.ruleset.shared_names().filter(is_unseen) {
                self.shared.touched(chain);
            }
            let own = loaded.names.all().into_iter().filter(is_unseen);
            loaded.touched.extend(own.map(str::to_owned));
        }
    }

    /// Whose rules are others than they were was touched, whoever has heard of it; whose are the same was not.
    pub(super) fn judge_touched(&mut self, reading: &Reading) {
        for chain in self.handles.check(reading) {
            self.touched(&chain);
        }
        let handles = &self.handles;
        for loaded in self.machines.values_mut() {
            let is_touched = |chain: &String| handles.is_as_seen(chain, reading) != Some(true);
            loaded.touched.retain(is_touched);
        }
    }

    /// Takes in how chains look that are as they should be.
    pub(super) fn remember(&mut self, reading: &Reading, damages: &[Damage]) {
        let damaged: BTreeSet<_> = damages.iter().map(|damage| damage.name.as_str()).collect();
        let machines = self.machines.values().flat_map(|it| it.names.all());
        let shared = self.ours().flat_map(|it| it.ruleset.shared_names());
        let is_new = |chain: &&str| self.handles.is_as_seen(chain, reading).is_none();
        let sound = machines.chain(shared).filter(is_new);
        let sound: BTreeSet<_> = sound.filter(|chain| !damaged.contains(chain)).collect();
        let sound: Vec<_> = sound.into_iter().map(str::to_owned).collect();
        for chain in sound {
            self.handles.saw(&chain, reading);
        }
    }

    /// Machines whose port is closed, and whose chains are not what they were any more: nobody looks
    /// after those.
    pub(super) fn forget_gone(&mut self, reading: &Reading) {
        let shared = &self.shared;
        let is_whole = |loaded: &Loaded| {
            let mut chains = loaded.names.all().into_iter();
            chains.all(|chain| {
                reading.chains.contains(chain) && loaded.chain_is_sound(chain, reading, shared)
            })
        };
        self.machines
            .retain(|_, loaded| loaded.attached || is_whole(loaded));
    }

    /// What this process has loaded.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Arc<Compiled>> {
        self.machines.values().filter_map(Loaded::ours)
    }

    /// Also takes in who else jumps where.
    pub(super) fn damaged_shared(&mut self, reading: &Reading) -> Vec<Damage> {
        let chains: BTreeMap<_, _> = self
            .ours()
            .flat_map(|it| &it.ruleset.shared)
            .map(|chain| (chain.name.clone(), Arc::clone(chain)))
            .collect();
        let is_ours = |chain: &str| {
            self.machines
                .get(chain)
                .is_some_and(|it| it.ours().is_some())
        };
        let others = reading.jumps.keys().filter(|chain| !is_ours(chain));
        self.shared.saw(reading, others);
        let damaged = chains
            .values()
            .filter_map(|chain| self.shared.damage(chain, reading));
        damaged.collect()
    }

    pub(super) fn damaged_hooks(&self, reading: &Reading) -> Vec<Damage> {
        let damage = |part, name: &str| Damage {
            machine: None,
            part,
            name: name.to_owned(),
        };
        if !self.hooked {
            return Vec::new();
        }
        if !reading.table || reading.dormant {
            return vec![damage(Part::Table, TABLE)];
        }
        let names = Hook::ALL.map(Hook::as_str).into_iter();
        let damaged = names.filter(|hook| !self.hook_is_sound(hook, reading));
        damaged.map(|hook| damage(Part::Hook, hook)).collect()
    }

    fn hook_is_sound(&self, hook: &str, reading: &Reading) -> bool {
        if let Some(seen) = &self.hooks {
            return seen.get(hook) == reading.hooks.get(hook);
        }
        let wanted = Transaction::table();
        let wanted = wanted.added_rules().filter(|(chain, _)| *chain == hook);
        wanted.eq(comments(&reading.listing).filter(|(chain, _)| *chain == hook))
    }
}
