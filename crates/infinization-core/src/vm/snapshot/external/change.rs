//! What a verb makes of the tree, decided before anything is touched (pure).

use serde::{Deserialize, Serialize};

use super::tree::{ACTIVE, Dependent, Node, Tree, TreeError};
use crate::config::Dependents;
use crate::types::HostPath;

/// What the user says of a new node.
#[derive(Debug, Clone)]
pub(super) struct Label {
    pub(super) name: String,
    pub(super) description: Option<String>,
    /// ISO 8601, UTC.
    pub(super) date: String,
}

/// What becomes of the active layers when the VM goes back to another node.
#[derive(Debug, Clone)]
pub(super) enum Tip {
    /// They are a snapshot from now on.
    Keep(Label),
    /// They are removed.
    Discard,
    /// Nobody has said.
    Undecided,
}

/// New overlays: the VM goes on in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlay {
    /// What they lie on, disk by disk.
    pub(super) on: Vec<HostPath>,
    /// The tree with them.
    pub(super) after: Tree,
    /// Files nobody needs then.
    pub(super) remove: Vec<HostPath>,
}

/// Two neighbours become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Merge {
    /// The node that ends.
    pub(super) lower: String,
    /// What lies on it; more than one can only be rebased.
    pub(super) uppers: Vec<Dependent>,
    /// Whether the snapshot that is left has the lower one's name.
    pub(super) keep_name: bool,
}

/// How the data of two neighbours comes into one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Method {
    /// The upper takes what it needs of the lower, which stays as it is meanwhile
    /// (`block-stream`, `qemu-img rebase`).
    Pull,
    /// The lower takes the upper's data (`block-commit`, `qemu-img commit`).
    Commit,
}

/// What deleting comes down to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deletion {
    /// Nothing lies on it.
    Leaf { after: Tree, remove: Vec<HostPath> },
    /// Something does.
    Merge(Merge),
}

impl Tree {
    /// The active layers become a snapshot, and `overlays` are active.
    pub(super) fn create(
        &self,
        label: Label,
        overlays: Vec<HostPath>,
    ) -> Result<Overlay, TreeError> {
        self.refuse_taken(&label.name)?;
        let mut after = self.clone();
        let name = label.name.clone();
        after.nodes.push(self.tip(label));
        after.current = Some(name);
        after.active = overlays;
        Ok(Overlay {
            on: self.active.clone(),
            after,
            remove: Vec::new(),
        })
    }

    /// The VM goes on from the node `name`, in `overlays`.
    pub(super) fn revert(
        &self,
        name: &str,
        tip: Tip,
        overlays: Vec<HostPath>,
    ) -> Result<Overlay, TreeError> {
        let node = self.find(name)?;
        if node.spoiled {
            let name = name.to_owned();
            return Err(TreeError::Spoiled { name });
        }
        let (on, mut after) = (node.layers.clone(), self.clone());
        let remove = match tip {
            Tip::Undecided => {
                let since = self.current.clone();
                return Err(TreeError::TipUndecided { since });
            }
            Tip::Discard => self.active.clone(),
            Tip::Keep(label) => {
                self.refuse_taken(&label.name)?;
                after.nodes.push(self.tip(label));
                Vec::new()
            }
        };
        after.current = Some(name.to_owned());
        after.active = overlays;
        Ok(Overlay { on, after, remove })
    }

    /// The node `name` ends; the content of all others stays what it is.
    pub(super) fn delete(&self, name: &str, children: Dependents) -> Result<Deletion, TreeError> {
        let node = self.find(name)?;
        let uppers = self.dependents(name);
        if uppers.is_empty() {
            let mut after = self.clone();
            after.nodes.retain(|node| node.name != name);
            let remove = node.layers.clone();
            return Ok(Deletion::Leaf { after, remove });
        }
        if children == Dependents::Refuse {
            return Err(has_children(name, &uppers));
        }
        Ok(Deletion::Merge(Merge {
            lower: name.to_owned(),
            uppers,
            keep_name: false,
        }))
    }

    /// The parent of `name` becomes what `name` is, and `name` ends.
    pub(super) fn commit(&self, name: &str) -> Result<Merge, TreeError> {
        let node = self.find(name)?;
        let Some(lower) = node.parent.clone() else {
            let name = name.to_owned();
            return Err(TreeError::NoParent { name });
        };
        if node.spoiled {
            let name = name.to_owned();
            return Err(TreeError::Spoiled { name });
        }
        let upper = Dependent::Node(name.to_owned());
        let uppers = self.dependents(&lower);
        if uppers.len() > 1 {
            let others: Vec<_> = uppers.into_iter().filter(|one| *one != upper).collect();
            return Err(has_children(&lower, &others));
        }
        Ok(Merge {
            lower,
            uppers: vec![upper],
            keep_name: true,
        })
    }

    /// The tree after the merge, and the files nobody needs then.
    pub(super) fn merged(
        &self,
        merge: &Merge,
        method: Method,
    ) -> Result<(Self, Vec<HostPath>), TreeError> {
        let lower = self.find(&merge.lower)?.clone();
        let mut after = self.clone();
        after.nodes.retain(|node| node.name != lower.name);
        let mut remove = lower.layers.clone();
        for upper in &merge.uppers {
            if method == Method::Commit {
                remove = self.layers(upper).to_vec();
                after.moves(upper, lower.layers.clone());
            }
            match upper {
                Dependent::Active => after.current.clone_from(&lower.parent),
                Dependent::Node(name) => {
                    if let Some(node) = after.find_mut(name) {
                        node.parent.clone_from(&lower.parent);
                    }
                    if merge.keep_name {
                        after.rename(name, &lower);
                    }
                }
            }
        }
        Ok((after, remove))
    }

    fn moves(&mut self, upper: &Dependent, layers: Vec<HostPath>) {
        match upper {
            Dependent::Active => self.active = layers,
            Dependent::Node(name) => {
                if let Some(node) = self.find_mut(name) {
                    node.layers = layers;
                }
            }
        }
    }

    /// The node `name` goes by what `as_was` was called; its content is newer, and so is its date.
    fn rename(&mut self, name: &str, as_was: &Node) {
        for node in &mut self.nodes {
            if node.parent.as_deref() == Some(name) {
                node.parent = Some(as_was.name.clone());
            }
            if node.name == name {
                node.name.clone_from(&as_was.name);
                node.description.clone_from(&as_was.description);
            }
        }
        if self.current.as_deref() == Some(name) {
            self.current = Some(as_was.name.clone());
        }
    }

    fn tip(&self, label: Label) -> Node {
        Node {
            name: label.name,
            parent: self.current.clone(),
            description: label.description,
            date: label.date,
            layers: self.active.clone(),
            spoiled: false,
        }
    }

    fn refuse_taken(&self, name: &str) -> Result<(), TreeError> {
        if self.has(name) {
            let name = name.to_owned();
            return Err(TreeError::Taken { name });
        }
        Ok(())
    }
}

fn has_children(name: &str, children: &[Dependent]) -> TreeError {
    let called = |one: &Dependent| match one {
        Dependent::Node(name) => name.clone(),
        Dependent::Active => ACTIVE.to_owned(),
    };
    TreeError::HasChildren {
        name: name.to_owned(),
        children: children.iter().map(called).collect(),
    }
}

/// The cheaper way, by what the files take: pulling copies the lower's data into each upper,
/// committing copies one upper's data.
pub(super) fn method(lower: u64, uppers: &[u64]) -> Method {
    match uppers {
        [upper] if *upper < lower => Method::Commit,
        _ => Method::Pull,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Vec<HostPath> {
        vec![HostPath::parse(format!("/d/{name}")).unwrap()]
    }

    fn label(name: &str) -> Label {
        Label {
            name: name.to_owned(),
            description: None,
            date: String::new(),
        }
    }

    /// `a` with the children `b` and `kept`; the VM goes on from `b`.
    fn tree() -> Tree {
        let tree = Tree::of(file("base"));
        let tree = tree.create(label("a"), file("1")).unwrap().after;
        let tip = Tip::Keep(label("kept"));
        let tree = tree.revert("a", tip, file("2")).unwrap().after;
        let tree = tree.create(label("b"), file("3")).unwrap().after;
        assert!(tree.is_sound());
        tree
    }

    fn parents(tree: &Tree) -> Vec<(&str, Option<&str>, &str)> {
        let nodes = tree.nodes.iter();
        nodes
            .map(|node| {
                (
                    node.name.as_str(),
                    node.parent.as_deref(),
                    node.layers[0].as_str(),
                )
            })
            .collect()
    }

    #[test]
    fn creating_and_reverting_branch() {
        let tree = tree();
        let expected = [
            ("a", None, "/d/base"),
            ("kept", Some("a"), "/d/1"),
            ("b", Some("a"), "/d/2"),
        ];
        assert_eq!(parents(&tree), expected);
        assert_eq!(
            (tree.current.as_deref(), &tree.active),
            (Some("b"), &file("3"))
        );
        assert_eq!(tree.line().len(), 2);
        let discarded = tree.revert("kept", Tip::Discard, file("4")).unwrap();
        assert_eq!((&discarded.on, &discarded.remove), (&file("1"), &file("3")));
        let undecided = tree.revert("kept", Tip::Undecided, file("4")).unwrap_err();
        assert_eq!(undecided.code(), ErrorCode::DataLossRefused);
    }

    #[test]
    fn b17_a_name_is_given_once() {
        let tree = tree();
        let taken = ErrorCode::SnapshotAlreadyExists;
        assert_eq!(
            tree.create(label("a"), file("4")).unwrap_err().code(),
            taken
        );
        let tip = Tip::Keep(label("b"));
        assert_eq!(tree.revert("a", tip, file("4")).unwrap_err().code(), taken);
    }

    #[test]
    fn children_are_refused_or_merged() {
        let tree = tree();
        let refused = tree.delete("a", Dependents::Refuse).unwrap_err();
        assert_eq!(
            refused.context()["children"],
            serde_json::json!(["kept", "b"])
        );
        let Deletion::Merge(merge) = tree.delete("a", Dependents::Rebase).unwrap() else {
            panic!("a has children")
        };
        let (after, remove) = tree.merged(&merge, Method::Pull).unwrap();
        assert_eq!(
            parents(&after),
            [("kept", None, "/d/1"), ("b", None, "/d/2")]
        );
        assert_eq!(remove, file("base"));
        let refused = tree.delete("b", Dependents::Refuse).unwrap_err();
        assert_eq!(refused.context()["children"], serde_json::json!([ACTIVE]));
        let leaf = tree.delete("kept", Dependents::Refuse).unwrap();
        assert!(matches!(leaf, Deletion::Leaf { remove, .. } if remove == file("1")));
    }

    #[test]
    fn committing_keeps_the_parents_name_and_file() {
        let tree = tree();
        let shared = tree.commit("b").unwrap_err();
        assert_eq!(shared.context()["children"], serde_json::json!(["kept"]));
        let Ok(Deletion::Leaf { after: tree, .. }) = tree.delete("kept", Dependents::Refuse) else {
            panic!("kept is a leaf")
        };
        let merge = tree.commit("b").unwrap();
        let (after, remove) = tree.merged(&merge, Method::Commit).unwrap();
        assert_eq!(parents(&after), [("a", None, "/d/base")]);
        assert_eq!((after.current.as_deref(), remove), (Some("a"), file("2")));
        let (after, remove) = tree.merged(&merge, Method::Pull).unwrap();
        assert_eq!(parents(&after), [("a", None, "/d/2")]);
        assert_eq!(remove, file("base"));
        assert_eq!(
            after.commit("a").unwrap_err().code(),
            ErrorCode::InvalidState
        );
    }

    #[test]
    fn the_active_layer_may_be_committed_too() {
        let tree = Tree::of(file("base"))
            .create(label("a"), file("1"))
            .unwrap()
            .after;
        let Ok(Deletion::Merge(merge)) = tree.delete("a", Dependents::Rebase) else {
            panic!("the active layer builds on it")
        };
        let (after, remove) = tree.merged(&merge, Method::Commit).unwrap();
        assert_eq!((after, remove), (Tree::of(file("base")), file("1")));
        let (after, remove) = tree.merged(&merge, Method::Pull).unwrap();
        assert_eq!((after, remove), (Tree::of(file("1")), file("base")));
    }

    #[test]
    fn the_smaller_one_is_copied() {
        assert_eq!(method(10, &[3]), Method::Commit);
        assert_eq!(method(3, &[10]), Method::Pull);
        assert_eq!(method(10, &[1, 1]), Method::Pull);
    }

    #[test]
    fn what_makes_no_sense_is_not_believed() {
        let tree = tree();
        let mut circle = tree.clone();
        circle.nodes[0].parent = Some("b".to_owned());
        let mut stranger = tree.clone();
        stranger.current = Some("nobody".to_owned());
        let mut shared = tree.clone();
        shared.active = file("1");
        let mut short = tree;
        short.nodes[1].layers.clear();
        for broken in [circle, stranger, shared, short] {
            assert!(!broken.is_sound(), "{broken:?}");
        }
    }

    use crate::error::{Coded as _, ErrorCode};
}
