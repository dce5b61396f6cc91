//! Plans: what an operation will do, in order, and how each step is undone.
//!
//! Pure. A plan is stages of steps; the steps of a stage do not depend on each other and are
//! performed at once. `planVM` returns a plan as it stands, `createVM` and `startVM` execute it.

use serde::{Deserialize, Serialize};

use super::action::{Action, Release};

/// How long what a step acquires is meant to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lifetime {
    /// Until this attempt fails or succeeds: undone by a rollback, forgotten by a commit.
    Attempt,
    /// While QEMU runs: released by a stop, a guest shutdown or a crash.
    Run,
    /// While the machine exists: released by destroy.
    Machine,
    /// The user's data: released only by `deleteVM({ deleteDisks: true })`, or when the attempt
    /// that made it fails.
    Data,
}

/// How one thing is released, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undo {
    /// How long it is held.
    pub lifetime: Lifetime,
    /// What releases it.
    #[serde(flatten)]
    pub release: Release,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What is done.
    #[serde(flatten)]
    pub action: Action,
    /// What releases what it acquires; a step may acquire several things or none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Undo>,
}

impl Step {
    /// A step that acquires nothing.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            undo: Vec::new(),
        }
    }

    /// Says how what it acquires is released.
    #[must_use]
    pub fn undone_by(mut self, lifetime: Lifetime, release: Release) -> Self {
        self.undo.push(Undo { lifetime, release });
        self
    }
}

/// What a VM's ledger says was going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Operation {
    /// `createVM`.
    Create,
    /// `startVM`.
    Start,
    /// `stopVM`.
    Stop,
    /// `destroyVM`.
    Destroy,
    /// `deleteVM`.
    Delete,
    /// `deleteVM` with the disks.
    DeleteData,
}

impl Operation {
    /// Whether it makes a QEMU.
    pub fn is_launch(self) -> bool {
        matches!(self, Self::Create | Self::Start)
    }

    /// As in `createVM`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
            Self::Delete => "delete",
            Self::DeleteData => "delete with data",
        }
    }
}

/// What an operation will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Which operation.
    pub operation: Operation,
    /// In order; the steps of one stage are performed at once.
    pub stages: Vec<Vec<Step>>,
}
