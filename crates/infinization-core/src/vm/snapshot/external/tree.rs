//! The tree itself: which snapshots there are, on what each builds, and which file holds what (pure).
//!
//! Invariants: every node has one layer per disk; a layer belongs to one node, or is active; the layers
//! of a node lie on those of its parent, and the active ones on those of the current node.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};
use crate::types::HostPath;

/// All external snapshots of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tree {
    /// Oldest first.
    pub(super) nodes: Vec<Node>,
    /// The node the active layers lie on; none when they lie on no snapshot.
    pub(super) current: Option<String>,
    /// What the VM writes into: one file per disk.
    pub(super) active: Vec<HostPath>,
}

/// One snapshot: files that are written no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) parent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// ISO 8601, UTC.
    pub(super) date: String,
    /// One file per disk.
    pub(super) layers: Vec<HostPath>,
    /// What builds on it was about to be written into it: only that can still be read.
    #[serde(default)]
    pub(super) spoiled: bool,
}

/// Who lies on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Dependent {
    /// The layers of this snapshot.
    Node(String),
    /// The active layers.
    Active,
}

/// Why the tree does not allow it. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TreeError {
    #[error("there is no external snapshot {name}")]
    Unknown { name: String },
    #[error("there is a snapshot {name} already")]
    Taken { name: String },
    #[error("on the snapshot {name} build {}", listed(children))]
    HasChildren { name: String, children: Vec<String> },
    #[error("the snapshot {name} has no parent it could be committed to")]
    NoParent { name: String },
    #[error(
        "committing what builds on the snapshot {name} was cut short: commit it again, or delete \
         {name} with {{ children: 'rebase' }}"
    )]
    Spoiled { name: String },
    #[error(
        "what was written since {} would be lost: pass {{ keep: 'a name' }} or {{ discard: true }}",
        .since.as_deref().map_or_else(|| "the start".to_owned(), |name| format!("the snapshot {name}"))
    )]
    TipUndecided { since: Option<String> },
}

/// The word for the active layers in a list of children.
pub(super) const ACTIVE: &str = "(active)";

fn listed(children: &[String]) -> String {
    children.join(", ")
}

impl Coded for TreeError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::SnapshotNotFound,
            Self::Taken { .. } => ErrorCode::SnapshotAlreadyExists,
            Self::HasChildren { .. } => ErrorCode::SnapshotHasChildren,
            Self::NoParent { .. } | Self::Spoiled { .. } => ErrorCode::InvalidState,
            Self::TipUndecided { .. } => ErrorCode::DataLossRefused,
        }
    }

    fn context(&self) -> Map<String, Value> {
        match self {
            Self::HasChildren { children, .. } => {
                Map::from_iter([("children".to_owned(), Value::from(children.clone()))])
            }
            _ => Map::new(),
        }
    }
}

impl Tree {
    /// The tree of a VM without snapshots.
    pub(super) fn of(disks: Vec<HostPath>) -> Self {
        Self {
            active: disks,
            ..Self::default()
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<&Node, TreeError> {
        let mut nodes = self.nodes.iter();
        let found = nodes.find(|node| node.name == name);
        found.ok_or_else(|| TreeError::Unknown {
            name: name.to_owned(),
        })
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// What lies on the node: snapshots in the order they were made, then the active layers.
    pub(super) fn dependents(&self, name: &str) -> Vec<Dependent> {
        let on = |parent: &Option<String>| parent.as_deref() == Some(name);
        let children = self.nodes.iter().filter(|node| on(&node.parent));
        let nodes = children.map(|node| Dependent::Node(node.name.clone()));
        let active = on(&self.current).then_some(Dependent::Active);
        nodes.chain(active).collect()
    }

    pub(super) fn layers(&self, of: &Dependent) -> &[HostPath] {
        match of {
            Dependent::Active => &self.active,
            Dependent::Node(name) => self.find(name).map_or(&[], |node| &node.layers),
        }
    }

    /// The nodes the active layers lie on, nearest first.
    pub(super) fn line(&self) -> Vec<&Node> {
        let mut line: Vec<&Node> = Vec::new();
        let mut at = self.current.as_deref();
        while let Some(node) = at.and_then(|name| self.find(name).ok()) {
            if line.len() > self.nodes.len() {
                break;
            }
            line.push(node);
            at = node.parent.as_deref();
        }
        line
    }

    /// Every file of the tree.
    pub(super) fn files(&self) -> Vec<HostPath> {
        let layers = self.nodes.iter().flat_map(|node| &node.layers);
        layers.chain(&self.active).cloned().collect()
    }

    /// Whether what was read from a file makes sense.
    pub(super) fn is_sound(&self) -> bool {
        let names: HashSet<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let (files, disks) = (self.files(), self.active.len());
        let distinct: HashSet<&HostPath> = files.iter().collect();
        let mut parents = self.nodes.iter().map(|node| &node.parent);
        names.len() == self.nodes.len()
            && distinct.len() == files.len()
            && self.nodes.iter().all(|node| node.layers.len() == disks)
            && parents.all(|parent| parent.as_deref().is_none_or(|name| names.contains(name)))
            && (self.current.as_deref()).is_none_or(|name| names.contains(name))
            && self.nodes.iter().all(|node| self.leads_up(node))
    }

    /// Whether its parents come to an end.
    fn leads_up(&self, node: &Node) -> bool {
        let mut at = Some(node);
        for _ in 0..=self.nodes.len() {
            let Some(node) = at else { return true };
            at = (node.parent.as_deref()).and_then(|name| self.find(name).ok());
        }
        false
    }
}
