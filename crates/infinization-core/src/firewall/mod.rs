//! What a VM may send and receive, compiled to nftables. Pure: values in, values out.
//!
//! ```text
//! FirewallRuleInput ──parse──► Rule ──┐
//! department + VM rules ──merge───────┼──compile──► Compiled ──transaction──► JSON for `nft`
//! MAC, bridge addresses ──guard───────┘
//! ```
//!
//! The table `bridge infinization`, as one VM sees it (`x` = 24 hex digits of its id's SHA-256):
//!
//! ```text
//! prerouting:   iifname vmap @from_vm ─► from_x ─┐      from_x, to_x: anti-spoofing, allowances
//!               iifname "vnet-*" drop            ├─► vm_x ─► dept_in_y, dept_out_z
//! postrouting:  oifname vmap @to_vm ───► to_x ───┘      vm_x: user rules, replies, terminal verdict
//!               oifname "vnet-*" drop                   dept_*: department rules, shared by VMs
//! ```
//!
//! A packet between two VMs passes the sender's chains in `prerouting` and the receiver's in
//! `postrouting`, so neither side's accept can overrule the other's drop. A managed port without a
//! map element is closed. `vm_x` never falls through; *returning* from it means "refuse": `from_x`
//! then rejects (only that hook can), `to_x` drops.
//!
//! Everything a user wrote travels as a JSON string; nothing is spliced into a script.
//! Where a department's rules stand, and how they stay in the order of priorities, is [`run`]'s.
//! Beside it: [`nat`] is the table that masquerades, [`saved`] and [`boot_unit`] are what a reboot is
//! survived with, [`preset`] makes rules for services, and [`text`]
//! shows a compiled machine in nft's syntax.
//! Neighbours: [`crate::host::nft`] runs the transactions.

mod boot_unit;
mod command;
mod compile;
mod dhcp;
mod digest;
mod edits;
mod expr;
mod guard;
mod json;
mod merge;
mod names;
mod nat;
mod parse;
mod place;
mod preset;
mod rule;
mod run;
mod saved;
mod text;
mod transaction;
mod translator;

pub use boot_unit::{DEFAULT_DENY_FILE, SAVED_FILE, UNIT_NAME, UNIT_WANTED_BY, boot_unit};
pub use command::{Command, Hook, VerdictMap};
pub use compile::{
    Capabilities, Compiled, Conntrack, Degradation, DegradedRule, FailedRule, HostService,
    MAX_RULES, TooManyRules, VmFirewall, compile,
};
pub use edits::{Edit, edits};
pub(crate) use expr::IP4_MORE_FRAGMENTS;
pub use expr::{Field, Item, Match, NftRule, Op, Origin, Verdict};
pub use json::document;
pub use merge::{Merged, merge};
pub use names::{ChainNames, TABLE};
pub use nat::{
    Masquerade, NAT_CHAIN, NAT_DEPARTMENTS, NAT_TABLE, NatListing, NatRule, NatTransaction, Subnet,
};
pub use parse::parse_rule;
pub use preset::{OneOrMany, PresetError, PresetOptions, Service, ServicePort, preset_values};
pub use rule::{
    Action, Direction, Network, PortRange, Ports, Protocol, Rule, RuleError, Side, States,
    Transport,
};
pub use run::SharedChain;
pub use saved::{default_deny, loadable, saved};
pub use text::{ChainText, chain_texts, table_text};
pub(crate) use transaction::DISPATCH;
pub use transaction::{Transaction, VmRuleset};
pub use translator::{FirewallRuleTranslator, TranslationError};

use serde::{Deserialize, Serialize};

/// What to do on a kernel that cannot track connections on bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BridgeConntrackMode {
    /// Refuse to set up firewalls (the default).
    #[default]
    Fail,
    /// Filter without connection state, and say so once.
    Degrade,
}
