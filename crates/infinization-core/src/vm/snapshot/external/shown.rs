//! The tree as users see it.

use serde::Serialize;

use super::tree::{Dependent, Tree};
use crate::error::Failure;
use crate::host::qemu_img::allocated;
use crate::types::{ByteSize, HostPath};

/// `VMSnapshotTree`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotTree {
    /// The snapshot the VM has gone on from; none if it has gone on from no snapshot.
    pub current: Option<String>,
    /// What the VM writes into, one per disk.
    pub active: Vec<ShownLayer>,
    /// Oldest first.
    pub snapshots: Vec<ShownNode>,
}

/// `VMExternalSnapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownNode {
    /// Its name.
    pub name: String,
    /// The text it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it was made: ISO 8601, UTC, to the millisecond.
    pub date: String,
    /// The snapshot it builds on.
    pub parent: Option<String>,
    /// The snapshots that build on it.
    pub children: Vec<String>,
    /// Whether the VM has gone on from it.
    pub current: bool,
    /// Whether it can be reverted to: not if committing to it was cut short.
    pub complete: bool,
    /// One per disk.
    pub layers: Vec<ShownLayer>,
}

/// `VMSnapshotLayer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownLayer {
    /// The file.
    pub path: HostPath,
    /// What it takes on the host, in bytes.
    pub allocation: ByteSize,
}

/// Looks at the files' sizes. A VM without snapshots may have disks of any format.
pub(super) async fn of(tree: &Tree) -> Result<SnapshotTree, Failure> {
    let mut snapshots = Vec::new();
    for node in &tree.nodes {
        let children = tree.dependents(&node.name).into_iter();
        snapshots.push(ShownNode {
            name: node.name.clone(),
            description: node.description.clone(),
            date: node.date.clone(),
            parent: node.parent.clone(),
            children: children
                .filter_map(|one| match one {
                    Dependent::Node(name) => Some(name),
                    Dependent::Active => None,
                })
                .collect(),
            current: tree.current.as_ref() == Some(&node.name),
            complete: !node.spoiled,
            layers: sizes(&node.layers).await?,
        });
    }
    Ok(SnapshotTree {
        current: tree.current.clone(),
        active: sizes(&tree.active).await?,
        snapshots,
    })
}

async fn sizes(layers: &[HostPath]) -> Result<Vec<ShownLayer>, Failure> {
    let mut shown = Vec::new();
    for path in layers {
        shown.push(ShownLayer {
            path: path.clone(),
            allocation: allocated(path).await?,
        });
    }
    Ok(shown)
}
