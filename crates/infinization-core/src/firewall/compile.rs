//! Everything that decides one VM's rules goes in, its chains and a report come out.
//!
//! Invariant: `vm_x` ends in the terminal verdict whatever the rules are. [`super::guard`] and
//! [`super::place`] make the rules, [`super::run`] puts them in their places, and
//! [`super::transaction`] loads them.

use std::net::IpAddr;

use crate::error::{Coded, ErrorCode};
use crate::types::{FirewallDefaultAction, FirewallRuleInput, LinkName, MacAddr, VmId};

use super::digest::Digest;
use super::expr::{Field, Match, NftRule, Verdict};
use super::guard;
use super::merge::{Merged, merge};
use super::names::ChainNames;
use super::parse::parse_rule;
use super::place::{Kernel, REJECT_REPLY, automatic_replies, place};
use super::rule::{Network, RuleError, Transport};
use super::run::{Arranged, Arranging};
use super::transaction::VmRuleset;

/// More rules than this are refused: no packet should walk a longer list.
pub const MAX_RULES: usize = 20_000;

/// What this kernel's bridge family can do; found out by [`crate::host::nft`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `ct state` (module nf_conntrack_bridge).
    pub conntrack: bool,
    /// `reject` in prerouting (module nft_reject_bridge).
    pub reject: bool,
}

/// Whether rules may ask for a connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conntrack {
    /// The kernel tracks connections on bridges.
    Stateful,
    /// It does not: replies are recognised by what they mirror.
    Stateless,
}

/// A service of the host that every VM may use, at the bridge's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostService {
    /// TCP or UDP.
    pub protocol: Transport,
    /// Its port.
    pub port: u16,
}

impl HostService {
    /// What is allowed unless configured otherwise: where guests fetch their agent. DNS always is.
    pub const DEFAULT: [Self; 1] = [Self {
        protocol: Transport::Tcp,
        port: 4000,
    }];
}

/// All that decides one VM's rules.
#[derive(Debug, Clone)]
pub struct VmFirewall {
    /// Names the chains.
    pub vm_id: VmId,
    /// The VM's port on the bridge.
    pub tap: LinkName,
    /// The only source address its frames may carry.
    pub mac: MacAddr,
    /// Its addresses, if they are known to be fixed; those families are then pinned.
    pub known_addresses: Vec<IpAddr>,
    /// The addresses of the bridge its TAP joins, each with the network that is on the link.
    pub bridge_addresses: Vec<Network>,
    /// What it may reach there, beside DNS.
    pub host_services: Vec<HostService>,
    /// Its department's rules.
    pub department_rules: Vec<FirewallRuleInput>,
    /// Its own.
    pub vm_rules: Vec<FirewallRuleInput>,
    /// What happens to the rest.
    pub default_action: FirewallDefaultAction,
    /// What the rules may use.
    pub conntrack: Conntrack,
    /// Whether the kernel can reject in prerouting.
    pub reject: bool,
}

/// One VM's rules, ready to load, and what became of each the user wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The chains' contents.
    pub ruleset: VmRuleset,
    /// How many rules there were after merging; a rule for both directions counts once.
    pub total: usize,
    /// How many of them are in force.
    pub applied: usize,
    /// Those that are not.
    pub failures: Vec<FailedRule>,
    /// Those that are in force in a weaker form.
    pub degraded: Vec<DegradedRule>,
    /// Of its own chains' contents; it is also the comment of a rule, so that the kernel can be asked.
    /// What the department's chains hold is not in it: their names say that.
    pub hash: String,
    /// The [`VmFirewall::bridge_addresses`] that it guards.
    pub bridge_addresses: Vec<Network>,
    /// The [`VmFirewall::known_addresses`] that it is held to.
    pub known_addresses: Vec<IpAddr>,
}

impl Compiled {
    /// The same machine without the user's rules.
    #[must_use]
    pub fn flushed(&self, action: FirewallDefaultAction) -> Self {
        let mut flushed = self.clone();
        flushed.ruleset.vm = vec![terminal(action)];
        flushed.ruleset.shared.clear();
        // The comment that names the contents stays what it was: only the visible chain is changed.
        flushed.hash = content_hash(&flushed.ruleset);
        flushed
    }

    /// This machine with the user's rules that another compilation of it has.
    #[must_use]
    pub fn with_rules_of(&self, other: &Self) -> Self {
        let mut both = other.clone();
        both.bridge_addresses.clone_from(&self.bridge_addresses);
        both.known_addresses.clone_from(&self.known_addresses);
        let (mine, theirs) = (&self.ruleset, &other.ruleset);
        let names = &theirs.names;
        both.ruleset.from = guards(&mine.from, names)
            .chain(rest(&theirs.from, names))
            .collect();
        let replies = guards(&theirs.to, names).filter(is_reject_reply);
        let mine = guards(&mine.to, names).filter(|rule| !is_reject_reply(rule));
        both.ruleset.to = mine.chain(replies).chain(rest(&theirs.to, names)).collect();
        both.ruleset = with_hash(both.ruleset, "");
        both.hash = content_hash(&both.ruleset);
        both.ruleset = with_hash(both.ruleset, &both.hash);
        both
    }

    /// Whether the other is the same machine, behind the same port, with exactly the same rules.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.says_the_same_of_its_own(other)
            && self.ruleset.shared_names().eq(other.ruleset.shared_names())
    }

    /// As [`Compiled::says_the_same`], whatever the chains hold that it shares.
    pub(crate) fn says_the_same_of_its_own(&self, other: &Self) -> bool {
        // What was loaded for a port that is closed now is another's.
        self.hash == other.hash && self.ruleset.tap == other.ruleset.tap
    }
}

/// A rule that is not in force.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedRule {
    /// Its row.
    pub rule_id: String,
    /// Its name, as given.
    pub rule_name: String,
    /// Why.
    pub error: RuleError,
}

/// A rule that does less than it says.
#[derive(Debug, Clone, PartialEq)]
pub struct DegradedRule {
    /// Its row.
    pub rule_id: String,
    /// Its name, as given.
    pub rule_name: String,
    /// In what way.
    pub degradation: Degradation,
}

/// What a rule lost to the kernel it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Degradation {
    /// An accept for new connections applies to every packet it describes.
    #[error("applied to packets of any connection state, as this kernel cannot track them")]
    StateIgnored,
    /// An accept for established connections is left to the mirrored replies.
    #[error("left to the automatic replies, as this kernel cannot track connections on bridges")]
    LeftToReplies,
    /// A reject drops.
    #[error("drops without an answer, as the kernel cannot reject there")]
    RejectDrops,
}

/// There are more than [`MAX_RULES`] rules.
#[derive(Debug, thiserror::Error)]
#[error("{0} rules are more than the {MAX_RULES} a machine may have")]
pub struct TooManyRules(usize);

impl Coded for TooManyRules {
    fn code(&self) -> ErrorCode {
        ErrorCode::RuleInvalid
    }
}

/// Turns everything that is known about a VM's firewall into its chains.
///
/// A rule that makes no sense is reported and left out; the others and the terminal verdict are
/// always there.
pub fn compile(vm: &VmFirewall) -> Result<Compiled, TooManyRules> {
    compile_sharing(vm, true)
}

/// As [`compile`]; unless it `shares`, with the department's rules in the machine's own chain.
pub(super) fn compile_sharing(vm: &VmFirewall, shares: bool) -> Result<Compiled, TooManyRules> {
    let total = vm.department_rules.len() + vm.vm_rules.len();
    if total > MAX_RULES {
        return Err(TooManyRules(total));
    }
    let mut report = Report::default();
    let arranged = arrange(vm, shares, &mut report);
    let ruleset = assemble(vm, arranged);
    let hash = content_hash(&ruleset);
    Ok(Compiled {
        ruleset: with_hash(ruleset, &hash),
        total: report.total,
        applied: report.total - report.failures.len(),
        failures: report.failures,
        degraded: report.degraded,
        hash,
        bridge_addresses: vm.bridge_addresses.clone(),
        known_addresses: vm.known_addresses.clone(),
    })
}

#[derive(Default)]
struct Report {
    total: usize,
    failures: Vec<FailedRule>,
    degraded: Vec<DegradedRule>,
}

fn arrange(vm: &VmFirewall, shares: bool, report: &mut Report) -> Arranged {
    let kernel = Kernel {
        conntrack: vm.conntrack,
        reject: vm.reject,
    };
    let mut all = Arranging::new(shares);
    for Merged {
        rule,
        of_department,
    } in merge(&vm.department_rules, &vm.vm_rules)
    {
        report.total += 1;
        match parse_rule(rule).and_then(|rule| place(&rule, kernel)) {
            Ok(placed) => {
                report.note(rule, placed.degradation);
                for part in placed.parts {
                    all.add(part, of_department);
                }
            }
            Err(error) => report.failures.push(FailedRule {
                rule_id: rule.id.clone(),
                rule_name: rule.name.clone(),
                error,
            }),
        }
    }
    all.end()
}

impl Report {
    fn note(&mut self, input: &FirewallRuleInput, degradation: Option<Degradation>) {
        self.degraded
            .extend(degradation.map(|degradation| DegradedRule {
                rule_id: input.id.clone(),
                rule_name: input.name.clone(),
                degradation,
            }));
    }
}

fn assemble(vm: &VmFirewall, arranged: Arranged) -> VmRuleset {
    let names = ChainNames::of(&vm.vm_id);
    let rejects = !arranged.reject_replies.is_empty();
    VmRuleset {
        from: from_chain(vm, &names, rejects),
        to: to_chain(vm, &names, arranged.reject_replies),
        vm: vm_chain(vm, arranged.rules, arranged.mirror),
        shared: arranged.shared,
        tap: vm.tap.clone(),
        names,
    }
}

fn vm_chain(vm: &VmFirewall, mut rules: Vec<NftRule>, mirror: Vec<NftRule>) -> Vec<NftRule> {
    match vm.conntrack {
        Conntrack::Stateful => rules.push(automatic_replies()),
        Conntrack::Stateless => rules.extend(mirror),
    }
    rules.push(terminal(vm.default_action));
    rules
}

fn from_chain(vm: &VmFirewall, names: &ChainNames, rejects: bool) -> Vec<NftRule> {
    let mut rules = guard::from_vm(vm);
    rules.push(to_users_rules(names));
    if rejects {
        rules.extend(refusals());
    }
    rules.push(closed());
    rules
}

fn to_chain(vm: &VmFirewall, names: &ChainNames, reject_replies: Vec<NftRule>) -> Vec<NftRule> {
    let mut rules = guard::to_vm(vm);
    rules.extend(reject_replies);
    rules.push(to_users_rules(names));
    rules.push(closed());
    rules
}

pub(super) fn to_users_rules(names: &ChainNames) -> NftRule {
    NftRule::new(Verdict::Jump(names.vm.clone()), "infinization-rules")
}

fn closed() -> NftRule {
    NftRule::new(Verdict::Drop, "infinization-closed")
}

/// The verdict on whatever no rule decided.
pub(super) fn terminal(action: FirewallDefaultAction) -> NftRule {
    match action {
        FirewallDefaultAction::Accept => {
            NftRule::new(Verdict::Accept, "infinization-default-accept")
        }
        FirewallDefaultAction::Drop => NftRule::new(Verdict::Drop, "infinization-default-drop"),
    }
}

/// What `from_x` does with a packet that `vm_x` returned: it is to be refused.
fn refusals() -> [NftRule; 2] {
    [
        NftRule::new(Verdict::RejectWithTcpReset, "infinization-reject")
            .when([Match::is(Field::L4Proto, "tcp")]),
        NftRule::new(Verdict::RejectAsUnreachable, "infinization-reject"),
    ]
}

/// Names the contents in the comment of the jump to them: chain comments do not survive nft 1.0.6,
/// rule comments do.
fn with_hash(mut ruleset: VmRuleset, hash: &str) -> VmRuleset {
    for rule in &mut ruleset.from {
        if matches!(rule.verdict, Verdict::Jump(_)) {
            let comment = format!("infinization-rules {hash}");
            rule.comment = comment.trim_end().to_owned().into();
        }
    }
    ruleset
}

/// What stands in `from_x` or `to_x` before the jump to the user's rules.
fn guards(chain: &[NftRule], names: &ChainNames) -> impl Iterator<Item = NftRule> {
    chain[..jump_at(chain, names)].iter().cloned()
}

/// The jump, and what stands after it.
fn rest(chain: &[NftRule], names: &ChainNames) -> impl Iterator<Item = NftRule> {
    chain[jump_at(chain, names)..].iter().cloned()
}

fn jump_at(chain: &[NftRule], names: &ChainNames) -> usize {
    let jumps = |rule: &NftRule| matches!(&rule.verdict, Verdict::Jump(to) if *to == names.vm);
    chain.iter().position(jumps).unwrap_or(chain.len())
}

fn is_reject_reply(rule: &NftRule) -> bool {
    rule.comment == REJECT_REPLY
}

fn content_hash(ruleset: &VmRuleset) -> String {
    let mut digest = Digest::default();
    digest.add(ruleset.tap.as_str());
    for (chain, rules) in ruleset.chains() {
        digest.add(chain);
        digest.add(&rules.len());
        for rule in rules {
            digest.add_without_contents(rule);
        }
    }
    format!("{:032x}", u128::from_be_bytes(digest.head()))
}

#[cfg(test)]
mod tests;
