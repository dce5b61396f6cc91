//! What is asked of nftables in one piece: all of it happens, or none.
//!
//! Invariant: every transaction that touches a VM's chains leaves `vm_x` with a terminal verdict,
//! and names no chain of another VM. A chain that VMs share is given the contents its name says, or
//! another name with other contents.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::types::{FirewallDefaultAction, LinkName};

use super::command::{Command, Hook, VerdictMap};
use super::compile::{Compiled, terminal, to_users_rules};
use super::dhcp;
use super::edits::{Edit, edits};
use super::expr::{Match, NftRule, Verdict};
use super::names::ChainNames;
use super::run::SharedChain;

/// One VM's chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRuleset {
    /// What they are called.
    pub names: ChainNames,
    /// The port they are for.
    pub tap: LinkName,
    /// `vm_x`.
    pub vm: Vec<NftRule>,
    /// `from_x`.
    pub from: Vec<NftRule>,
    /// `to_x`.
    pub to: Vec<NftRule>,
    /// What `vm_x` jumps to, in order.
    pub shared: Vec<Arc<SharedChain>>,
}

impl VmRuleset {
    /// Its own chains, each with its rules.
    pub fn chains(&self) -> [(&str, &[NftRule]); 3] {
        let names = &self.names;
        [
            (&names.vm, &self.vm),
            (&names.from, &self.from),
            (&names.to, &self.to),
        ]
    }

    /// The names of what `vm_x` jumps to, in order.
    pub fn shared_names(&self) -> impl Iterator<Item = &str> {
        self.shared.iter().map(|chain| chain.name.as_str())
    }

    /// Every rule of its own chains with the chain's name, in order.
    pub fn rules<'a>(&'a self) -> impl Iterator<Item = (&'a str, &'a NftRule)> {
        let in_chain =
            |(name, rules): (&'a str, &'a [NftRule])| rules.iter().map(move |rule| (name, rule));
        self.chains().into_iter().flat_map(in_chain)
    }
}

/// More edits of one chain are not looked for: loading it anew costs about as much by then.
const MOST_EDITS: usize = 256;

/// Steps that are taken together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// In order.
    pub commands: Vec<Command>,
    /// The number of nftables' state that it was made for: in any other it must not be committed.
    pub generation: Option<u32>,
}

impl Transaction {
    /// The table, its hooks and nobody's rules: every managed port without rules is closed.
    pub fn table() -> Self {
        let mut all = Self {
            commands: vec![Command::AddTable],
            ..Self::default()
        };
        all.commands.extend(VerdictMap::ALL.map(Command::AddMap));
        for hook in Hook::ALL {
            let chain = hook.as_str().to_owned();
            all.commands.push(Command::AddBaseChain(hook));
            all.commands.push(Command::FlushChain(chain));
        }
        for map in VerdictMap::ALL {
            all.commands.push(Command::AddDispatch(map));
            all.add_rule(map.hook().as_str(), closed_unless_dispatched(map));
        }
        for rule in dhcp::from_the_host() {
            all.add_rule(Hook::Output.as_str(), rule);
        }
        all
    }

    /// Never committed: asks whether the kernel takes this rule where frames come in.
    pub fn probe(rule: NftRule) -> Self {
        let hook = Hook::Prerouting;
        let chain = hook.as_str().to_owned();
        Self {
            commands: vec![
                Command::AddTable,
                Command::AddBaseChain(hook),
                Command::AddRule { chain, rule },
            ],
            ..Self::default()
        }
    }

    /// Takes `forward` out of the table: the base chain of the earlier implementation, which jumps
    /// into the `vm_*` chains and would evaluate them twice.
    #[must_use]
    pub fn without_forward(mut self) -> Self {
        let forward = || "forward".to_owned();
        self.commands.extend([
            Command::AddChain(forward()),
            Command::FlushChain(forward()),
            Command::DeleteChain(forward()),
        ]);
        self
    }

    /// Everything a VM needs, whatever of it exists: table, hooks, chains, rules, dispatch.
    pub fn ensure_vm(compiled: &Compiled) -> Self {
        Self::ensure_vms([compiled])
    }

    /// Everything these VMs need, which may be none, and the chains they share.
    pub fn ensure_vms<'a>(all_compiled: impl IntoIterator<Item = &'a Compiled>) -> Self {
        let all_compiled: Vec<_> = all_compiled.into_iter().collect();
        let shared = all_compiled.iter().flat_map(|it| &it.ruleset.shared);
        let shared: BTreeMap<_, _> = shared.map(|chain| (&chain.name, chain)).collect();
        let mut all = Self::table();
        for chain in shared.into_values() {
            all.load_shared(chain);
        }
        for compiled in all_compiled {
            all.load_vm(&compiled.ruleset);
        }
        all
    }

    /// Gives a chain its contents anew, or for the first time.
    pub fn load_shared(&mut self, chain: &SharedChain) {
        self.commands.push(Command::AddChain(chain.name.clone()));
        self.replace_rules(&chain.name, &chain.rules);
    }

    /// Puts `new` in the place of the chain that was `old`, which exists and has these `handles` if they are
    /// known, for all that jump there.
    pub fn replace_shared(
        &mut self,
        old: &SharedChain,
        handles: Option<&[u64]>,
        new: &SharedChain,
    ) {
        self.change_chain(&old.name, (&old.rules, handles), &new.rules);
        self.commands.push(Command::RenameChain {
            chain: old.name.clone(),
            to: new.name.clone(),
        });
    }

    /// Gives a chain the new rules in place of those it has, which are all there is in it.
    pub fn replace_rules(&mut self, chain: &str, rules: &[NftRule]) {
        self.commands.push(Command::FlushChain(chain.to_owned()));
        self.add_all(chain, rules);
    }

    /// Makes `new` of a chain that holds `old`; `handles` are the numbers of those, if they are known. Few
    /// edits are made one by one; otherwise the chain is given all of its rules anew.
    pub fn change_chain(
        &mut self,
        chain: &str,
        (old, handles): (&[NftRule], Option<&[u64]>),
        new: &[NftRule],
    ) {
        let handles = handles.filter(|handles| handles.len() == old.len());
        let edited = handles.and_then(|handles| Some((handles, edits(old, new, MOST_EDITS)?)));
        let Some((handles, edits)) = edited else {
            return self.replace_rules(chain, new);
        };
        let command = |edit| {
            let chain = chain.to_owned();
            match edit {
                Edit::Delete(index) => Command::DeleteRule {
                    chain,
                    handle: handles[index],
                },
                Edit::Insert { item, before } => {
                    let rule = new[item].clone();
                    match before.map(|index| handles[index]) {
                        Some(before) => Command::InsertRule {
                            chain,
                            rule,
                            before,
                        },
                        None => Command::AddRule { chain, rule },
                    }
                }
            }
        };
        self.commands.extend(edits.into_iter().map(command));
    }

    /// Closes ports.
    pub fn close(ports: Vec<(VerdictMap, LinkName)>) -> Self {
        let delete = |(map, tap)| Command::DeleteElement { map, tap };
        Self {
            commands: ports.into_iter().map(delete).collect(),
            ..Self::default()
        }
    }

    /// Deletes chains that nothing jumps to any more, whether or not they exist.
    pub fn delete_shared<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            self.commands.push(Command::AddChain(name.clone()));
            self.commands.push(Command::FlushChain(name.clone()));
            self.commands.push(Command::DeleteChain(name.clone()));
        }
    }

    /// One VM's own chains and dispatch. The table and what it jumps to exist.
    pub fn load_vm(&mut self, ruleset: &VmRuleset) {
        for chain in ruleset.names.all() {
            self.commands.push(Command::AddChain(chain.to_owned()));
            self.commands.push(Command::FlushChain(chain.to_owned()));
        }
        self.add_rules(ruleset);
        self.dispatch(&ruleset.names, &ruleset.tap);
    }

    /// Everything these VMs need and these chains, after the elements that are `in_the_way` were
    /// deleted. Fails if one of those is absent.
    pub fn put_back<'a>(
        in_the_way: &[(VerdictMap, LinkName)],
        shared: impl IntoIterator<Item = &'a SharedChain>,
        all_compiled: impl IntoIterator<Item = &'a Compiled>,
    ) -> Self {
        let mut all = Self::default();
        for (map, tap) in in_the_way {
            all.commands.extend(Self::detach(&[*map], tap).commands);
        }
        all.commands.extend(Self::table().commands);
        for chain in shared {
            all.load_shared(chain);
        }
        for compiled in all_compiled {
            all.load_vm(&compiled.ruleset);
        }
        all
    }

    /// The chains of a VM whose rules are not known yet: closed both ways, not dispatched. Fails
    /// if they exist.
    pub fn create_chains(names: &ChainNames) -> Self {
        let mut all = Self::table();
        all.commands.push(Command::CreateChain(names.vm.clone()));
        all.commands.push(Command::AddChain(names.from.clone()));
        all.commands.push(Command::AddChain(names.to.clone()));
        all.add_rule(&names.vm, terminal(FirewallDefaultAction::Drop));
        for chain in [&names.from, &names.to] {
            all.add_rule(chain, to_users_rules(names));
        }
        all
    }

    /// Sends the port's frames to the VM's chains, which exist.
    pub fn attach(names: &ChainNames, tap: &LinkName) -> Self {
        let mut all = Self::default();
        all.dispatch(names, tap);
        all
    }

    /// Stops sending the port's frames anywhere: it is closed. Fails if an element is absent.
    pub fn detach(maps: &[VerdictMap], tap: &LinkName) -> Self {
        let delete = |map: &VerdictMap| Command::DeleteElement {
            map: *map,
            tap: tap.clone(),
        };
        Self {
            commands: maps.iter().map(delete).collect(),
            ..Self::default()
        }
    }

    /// Takes the VM's chains and their dispatch away, whatever of them exists, as long as the table
    /// does. nft 1.0.6 cannot delete what may be absent, so everything is added first.
    pub fn remove_vm(names: &ChainNames, taps: &[LinkName]) -> Self {
        let mut all = Self::default();
        for chain in names.all() {
            all.commands.push(Command::AddChain(chain.to_owned()));
        }
        for tap in taps {
            all.dispatch(names, tap);
            all.commands
                .extend(Self::detach(&[VerdictMap::FromVm, VerdictMap::ToVm], tap).commands);
        }
        for chain in names.all() {
            all.commands.push(Command::FlushChain(chain.to_owned()));
        }
        for chain in names.all() {
            all.commands.push(Command::DeleteChain(chain.to_owned()));
        }
        all
    }

    /// Leaves only the terminal verdict of the user's rules. Fails if the chain does not exist.
    pub fn flush_vm(names: &ChainNames, action: FirewallDefaultAction) -> Self {
        let mut all = Self::default();
        all.commands.push(Command::FlushChain(names.vm.clone()));
        all.add_rule(&names.vm, terminal(action));
        all
    }

    /// The rules it adds: `(chain, comment)` in order.
    pub fn added_rules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.commands.iter().filter_map(|command| match command {
            Command::AddRule { chain, rule } | Command::InsertRule { chain, rule, .. } => {
                Some((chain.as_str(), &*rule.comment))
            }
            Command::AddDispatch(map) => Some((map.hook().as_str(), DISPATCH)),
            _ => None,
        })
    }

    fn add_all(&mut self, chain: &str, rules: &[NftRule]) {
        for rule in rules {
            self.add_rule(chain, rule.clone());
        }
    }

    fn add_rules(&mut self, ruleset: &VmRuleset) {
        for (chain, rule) in ruleset.rules() {
            self.add_rule(chain, rule.clone());
        }
    }

    fn add_rule(&mut self, chain: &str, rule: NftRule) {
        let chain = chain.to_owned();
        self.commands.push(Command::AddRule { chain, rule });
    }

    fn dispatch(&mut self, names: &ChainNames, tap: &LinkName) {
        for (map, chain) in [
            (VerdictMap::FromVm, &names.from),
            (VerdictMap::ToVm, &names.to),
        ] {
            self.commands.push(Command::AddElement {
                map,
                tap: tap.clone(),
                chain: chain.clone(),
            });
        }
    }
}

/// The comment of the rule that looks a port up.
pub(crate) const DISPATCH: &str = "infinization-dispatch";

/// All managed ports share this prefix, so a TAP is closed from the moment it exists.
fn closed_unless_dispatched(map: VerdictMap) -> NftRule {
    let managed = Match::is(map.key(), "vnet-*");
    NftRule::new(Verdict::Drop, "infinization-closed").when([managed])
}
