//! A random walk over trees, against a model that only knows names and contents.

use std::collections::BTreeMap;

use chain::CLUSTERS;

use super::*;

/// How many machines walk at the same time, and how far each.
const MACHINES: u64 = 4;
const STEPS: usize = 260;
const RUNNING_STEPS: usize = 50;
/// So that chains and lists stay what a user could have.
const MOST_NODES: usize = 10;

type Content = Vec<u8>;

struct Model {
    /// Name to parent and content, disk by disk.
    nodes: BTreeMap<String, (Option<String>, Vec<Content>)>,
    current: Option<String>,
    active: Vec<Content>,
    named: usize,
}

/// Deterministic: a walk that fails can be walked again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).unwrap() % limit
    }

    fn writes(&mut self) -> Vec<(usize, u8)> {
        let some = 1 + self.below(3);
        let mut write = || {
            (
                self.below(CLUSTERS),
                u8::try_from(1 + self.below(255)).unwrap(),
            )
        };
        (0..some).map(|_| write()).collect()
    }
}

impl Model {
    fn new(disks: usize) -> Self {
        Self {
            nodes: BTreeMap::new(),
            current: None,
            active: vec![vec![0; CLUSTERS]; disks],
            named: 0,
        }
    }

    fn name(&mut self) -> String {
        self.named += 1;
        format!("n{}", self.named)
    }

    fn any(&self, dice: &mut Dice) -> String {
        let names: Vec<_> = self.nodes.keys().collect();
        names[dice.below(names.len())].clone()
    }

    fn children(&self, name: &str) -> Vec<String> {
        let of = |parent: &Option<String>| parent.as_deref() == Some(name);
        let nodes = self.nodes.iter().filter(|(_, (parent, _))| of(parent));
        nodes.map(|(name, _)| name.clone()).collect()
    }

    fn dependents(&self, name: &str) -> usize {
        self.children(name).len() + usize::from(self.current.as_deref() == Some(name))
    }

    fn end(&mut self, name: &str) {
        let (parent, _) = self.nodes.remove(name).unwrap();
        for child in self.children(name) {
            self.nodes.get_mut(&child).unwrap().0.clone_from(&parent);
        }
        if self.current.as_deref() == Some(name) {
            self.current = parent;
        }
    }

    /// Whether the tree is the model's, by what its files hold. The active ones of a running machine
    /// are QEMU's until they are layers.
    fn agrees(&self, tree: &Value, on: bool, at: &str) {
        assert_eq!(json!(self.current), tree["current"], "{at}");
        let told = tree["snapshots"].as_array().unwrap();
        assert_eq!(told.len(), self.nodes.len(), "{at}");
        for (name, (parent, content)) in &self.nodes {
            let node = node(tree, name);
            assert_eq!(json!(parent), node["parent"], "{at}: {name}");
            assert_eq!(node["complete"], true, "{at}: {name}");
            for (path, content) in paths(&node["layers"]).iter().zip(content) {
                assert_eq!(&patterns(path), content, "{at}: {name}");
            }
        }
        for (path, content) in paths(&tree["active"]).iter().zip(&self.active) {
            assert!(on || &patterns(path) == content, "{at}: active");
        }
    }

    /// The same through QEMU's own eyes.
    fn agrees_with_qemu(&self, tree: &Value) {
        for (name, (_, content)) in &self.nodes {
            for (path, content) in paths(&node(tree, name)["layers"]).iter().zip(content) {
                qemu_reads(path, content);
            }
        }
        for (path, content) in paths(&tree["active"]).iter().zip(&self.active) {
            qemu_reads(path, content);
        }
    }
}

struct Walker<'a> {
    manager: &'a Manager,
    vm: &'a str,
    on: bool,
    model: Model,
    dice: Dice,
}

impl Walker<'_> {
    async fn write(&mut self) {
        for disk in 0..self.model.active.len() {
            if self.dice.below(2) == 0 {
                continue;
            }
            let writes = self.dice.writes();
            if self.on {
                write_live(self.manager, self.vm, disk, &writes).await;
            } else {
                let tree = tree(self.manager, self.vm).await;
                write_offline(&paths(&tree["active"])[disk], &writes);
            }
            for (cluster, pattern) in writes {
                self.model.active[disk][cluster] = pattern;
            }
        }
    }

    /// One operation; answers what was done, for whoever reads a failure.
    async fn step(&mut self) -> String {
        let full = self.model.nodes.len() >= MOST_NODES;
        match self.dice.below(100) {
            _ if self.model.nodes.is_empty() => self.create().await,
            0..35 if !full => self.create().await,
            35..60 if !self.on => self.revert(full).await,
            60..75 => self.commit().await,
            _ => self.delete().await,
        }
    }

    async fn create(&mut self) -> String {
        let name = self.model.name();
        take(self.manager, self.vm, &name).await.unwrap();
        let node = (self.model.current.clone(), self.model.active.clone());
        self.model.nodes.insert(name.clone(), node);
        self.model.current = Some(name.clone());
        format!("create {name}")
    }

    async fn revert(&mut self, full: bool) -> String {
        let to = self.model.any(&mut self.dice);
        let keep = !full && self.dice.below(2) == 0;
        let options = if keep {
            let name = self.model.name();
            let node = (self.model.current.clone(), self.model.active.clone());
            self.model.nodes.insert(name.clone(), node);
            json!({ "keep": name })
        } else {
            json!({ "discard": true })
        };
        let told = format!("revert {to} {options}");
        revert(self.manager, self.vm, &to, options).await.unwrap();
        self.model.active.clone_from(&self.model.nodes[&to].1);
        self.model.current = Some(to);
        told
    }

    async fn commit(&mut self) -> String {
        let name = self.model.any(&mut self.dice);
        let done = commit(self.manager, self.vm, &name).await;
        let (parent, content) = self.model.nodes[&name].clone();
        let told = format!("commit {name}");
        let Some(parent) = parent else {
            assert_eq!(done.unwrap_err().code(), ErrorCode::InvalidState);
            return told;
        };
        if self.model.dependents(&parent) > 1 {
            assert_eq!(done.unwrap_err().code(), ErrorCode::SnapshotHasChildren);
            return told;
        }
        done.unwrap_or_else(|failure| panic!("{told}: {failure:?}"));
        self.model.end(&name);
        self.model.nodes.get_mut(&parent).unwrap().1 = content;
        told
    }

    async fn delete(&mut self) -> String {
        let name = self.model.any(&mut self.dice);
        let consent = self.dice.below(3) > 0;
        let options = if consent { rebase() } else { Value::Null };
        let told = format!("delete {name} {options}");
        let done = remove(self.manager, self.vm, &name, options).await;
        if !consent && self.model.dependents(&name) > 0 {
            assert_eq!(done.unwrap_err().code(), ErrorCode::SnapshotHasChildren);
        } else {
            done.unwrap_or_else(|failure| panic!("{told}: {failure:?}"));
            self.model.end(&name);
        }
        told
    }

    async fn walk(mut self, steps: usize) -> Self {
        for step in 0..steps {
            self.write().await;
            let told = self.step().await;
            let tree = tree(self.manager, self.vm).await;
            let at = format!("{} step {step}: {told}", self.vm);
            self.model.agrees(&tree, self.on, &at);
        }
        self
    }
}

#[test]
fn a_thousand_steps_over_trees_change_no_content() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let names: Vec<_> = (0..MACHINES)
            .map(|at| format!("layers-walk-{at}"))
            .collect();
        for vm in &names {
            stopped(&host, &manager, vm, 1).await;
        }
        let walks = (1..).zip(&names).map(|(seed, vm)| {
            let walker = Walker {
                manager: &manager,
                vm,
                on: false,
                model: Model::new(1),
                dice: Dice(0x9e37_79b9_7f4a_7c15 ^ seed),
            };
            walker.walk(STEPS)
        });
        let walked = futures_util::future::join_all(walks).await;
        let mut trees = Vec::new();
        for walker in &walked {
            let tree = tree(&manager, walker.vm).await;
            walker.model.agrees_with_qemu(&tree);
            trees.push(tree);
        }
        sound(&no_orphans(&host, &trees));
        drop(walked);
        for vm in &names {
            delete(&manager, vm).await;
        }
        host.is_clean().await;
    });
}

#[test]
fn a_walk_under_a_running_machine_changes_no_content() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "layers-walk-live";
        running(&host, &manager, vm, 2).await;
        let walker = Walker {
            manager: &manager,
            vm,
            on: true,
            model: Model::new(2),
            dice: Dice(0x1234_5678_9abc_def1),
        };
        let mut walker = walker.walk(RUNNING_STEPS).await;
        stop(&manager, vm).await;
        let now = tree(&manager, vm).await;
        walker.model.agrees(&now, false, "after the stop");
        walker.model.agrees_with_qemu(&now);
        sound(&no_orphans(&host, &[now]));

        walker.on = false;
        let walker = walker.walk(20).await;
        start(&manager, vm).await;
        let walker = Walker { on: true, ..walker };
        let walker = walker.walk(20).await;
        stop(&manager, vm).await;
        let now = tree(&manager, vm).await;
        walker.model.agrees_with_qemu(&now);
        sound(&no_orphans(&host, &[now]));
        drop(walker);
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}
