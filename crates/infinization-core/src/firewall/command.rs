//! The words a transaction is made of: hooks, verdict maps, and single steps.
//!
//! Neighbour: [`super::transaction`] puts them together.

use crate::types::LinkName;

use super::expr::{Field, NftRule};

/// The hooks of the table. The first two see every frame of a bridge port: bridged, routed, to and from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Where frames come in; `iifname` is known.
    Prerouting,
    /// Where frames leave; `oifname` is known.
    Postrouting,
    /// Where frames leave that the host has made or routed, before [`Hook::Postrouting`]: no other hook tells those
    /// from bridged ones. It decides nothing.
    Output,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Prerouting, Self::Postrouting, Self::Output];

    /// The hook's name, and its base chain's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Postrouting => "postrouting",
            Self::Output => "output",
        }
    }
}

/// A verdict map keyed by port: sends each port's frames to their chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictMap {
    /// By `iifname`.
    FromVm,
    /// By `oifname`.
    ToVm,
}

impl VerdictMap {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FromVm, Self::ToVm];

    /// The hook that looks ports up in it.
    pub fn hook(self) -> Hook {
        match self {
            Self::FromVm => Hook::Prerouting,
            Self::ToVm => Hook::Postrouting,
        }
    }

    /// Its name in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FromVm => "from_vm",
            Self::ToVm => "to_vm",
        }
    }

    /// The field it is keyed by.
    pub fn key(self) -> Field {
        match self {
            Self::FromVm => Field::Iifname,
            Self::ToVm => Field::Oifname,
        }
    }
}

/// One step, in the table [`super::TABLE`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "libnftables' own words")]
pub enum Command {
    AddTable,
    AddMap(VerdictMap),
    AddBaseChain(Hook),
    /// Sends each port to its chain.
    AddDispatch(VerdictMap),
    AddChain(String),
    /// Fails if the chain exists.
    CreateChain(String),
    FlushChain(String),
    DeleteChain(String),
    /// What jumps to it stays.
    RenameChain {
        chain: String,
        to: String,
    },
    AddRule {
        chain: String,
        rule: NftRule,
    },
    /// Before the rule with this handle, which stays.
    InsertRule {
        chain: String,
        rule: NftRule,
        before: u64,
    },
    DeleteRule {
        chain: String,
        handle: u64,
    },
    AddElement {
        map: VerdictMap,
        tap: LinkName,
        chain: String,
    },
    DeleteElement {
        map: VerdictMap,
        tap: LinkName,
    },
}

impl Command {
    /// The chain whose rules it changes, if it changes any.
    pub fn changed_chain(&self) -> Option<&str> {
        match self {
            Self::FlushChain(chain)
            | Self::CreateChain(chain)
            | Self::DeleteChain(chain)
            | Self::RenameChain { chain, .. }
            | Self::AddRule { chain, .. }
            | Self::InsertRule { chain, .. }
            | Self::DeleteRule { chain, .. } => Some(chain),
            Self::AddDispatch(map) => Some(map.hook().as_str()),
            Self::AddTable
            | Self::AddMap(_)
            | Self::AddBaseChain(_)
            | Self::AddChain(_)
            | Self::AddElement { .. }
            | Self::DeleteElement { .. } => None,
        }
    }
}
