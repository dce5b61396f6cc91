//! A random walk over trees of layers under a guest that writes, against a model that knows of each snapshot
//! what the guest had written by then, and of the guest what it must be able to read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::ext4::{Ext4, Written, content, oldest};
use super::guest::WritingGuest;
use super::kit::machine::{Host, never};
use super::{kit, run, text};

/// Two reverts, one of which keeps what was written, merges up and down, snapshots of both kinds.
const STEPS: usize = 12;
const SEED: u64 = 192;
/// How many steps the long form has, and where another one goes.
const STEPS_VARIABLE: &str = "INFINIZATION_WALK_STEPS";
const SEED_VARIABLE: &str = "INFINIZATION_WALK_SEED";
/// So that chains stay what a user could have.
const MOST_NODES: usize = 6;

/// A snapshot: what it was made on, and every byte of it in short.
struct Node {
    parent: Option<String>,
    fingerprint: String,
}

/// What the guest has read or written since it was started.
struct Run {
    /// What was on its disk.
    found: Option<Written>,
    /// The word that is in what it has written itself.
    boot: String,
}

impl Run {
    /// What the file of a number must say, once it is written. A disk that was like after a power cut may have
    /// the last number without its file.
    fn line(&self, number: u32) -> Option<String> {
        let found = self.found.as_ref();
        match found.filter(|found| number <= found.counter) {
            Some(found) => found.line(number).map(ToOwned::to_owned),
            None => Some(format!("{number} {}", self.boot)),
        }
    }
}

struct Walker<'h> {
    guest: WritingGuest<'h>,
    dice: u64,
    nodes: BTreeMap<String, Node>,
    current: Option<String>,
    run: Run,
    named: usize,
    starts: usize,
}

impl<'h> Walker<'h> {
    async fn begin(host: &'h Host, seed: u64) -> Self {
        let guest = WritingGuest::boot(host, "writing-walk").await;
        let boot = boot_of(&guest).await;
        Self {
            guest,
            dice: seed,
            nodes: BTreeMap::new(),
            current: None,
            run: Run { found: None, boot },
            named: 0,
            starts: 1,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*: a walk that fails can be walked again.
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        let mixed = self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).unwrap() % limit
    }

    fn name(&mut self) -> String {
        self.named += 1;
        format!("n{}", self.named)
    }

    fn any(&mut self) -> String {
        let at = self.below(self.nodes.len());
        self.nodes.keys().nth(at).unwrap().clone()
    }

    /// A snapshot that its parent can become: nobody else builds on that.
    fn committable(&self) -> Option<String> {
        let mut named = self.nodes.iter();
        let found = named.find(|(_, node)| {
            let parent = node.parent.as_deref();
            parent.is_some_and(|parent| self.dependents(parent) == 1)
        });
        found.map(|(name, _)| name.clone())
    }

    fn dependents(&self, name: &str) -> usize {
        let on = |parent: Option<&str>| usize::from(parent == Some(name));
        let nodes = self.nodes.values().map(|node| on(node.parent.as_deref()));
        nodes.sum::<usize>() + on(self.current.as_deref())
    }

    /// Takes a snapshot out of the model's tree.
    fn end(&mut self, name: &str) -> Node {
        let gone = self.nodes.remove(name).unwrap();
        let parents = self.nodes.values_mut().map(|node| &mut node.parent);
        for parent in parents.chain([&mut self.current]) {
            if parent.as_deref() == Some(name) {
                parent.clone_from(&gone.parent);
            }
        }
        gone
    }

    /// One operation; answers what was done, for whoever reads a failure.
    async fn step(&mut self) -> String {
        let full = self.nodes.len() >= MOST_NODES;
        let committable = self.committable();
        match self.below(100) {
            _ if self.nodes.is_empty() => self.create().await,
            0..45 if !full => self.create().await,
            45..53 => self.revert(full).await,
            53..75 if committable.is_some() => self.commit(committable.unwrap()).await,
            _ => self.remove().await,
        }
    }

    async fn create(&mut self) -> String {
        let (name, quiesce) = (self.name(), self.below(2) == 0);
        let told = format!("create {name}, quiesced: {quiesce}");
        let (certain, layer) = (self.guest.written().await, self.guest.disk().await);
        let options = json!({ "name": name, "kind": "external", "quiesce": quiesce });
        let taken = self.guest.take(options).await;
        taken.unwrap_or_else(|failure| panic!("{told}: {failure:?}"));
        let disk = Ext4::of(&layer);
        self.add(name, disk.fingerprint());
        if quiesce {
            disk.was_frozen();
            let written = disk.written();
            assert!(written.counter >= certain, "{told}");
            self.is_of_this_run(&written, written.counter, &told);
        } else {
            disk.recovers();
            self.is_of_this_run(&disk.written(), certain, &told);
        }
        told
    }

    /// A snapshot of what the guest had, which it goes on from.
    fn add(&mut self, name: String, fingerprint: String) {
        let parent = self.current.replace(name.clone());
        let node = Node {
            parent,
            fingerprint,
        };
        self.nodes.insert(name, node);
    }

    /// Whether a disk holds all that the guest has written until this number.
    fn is_of_this_run(&self, written: &Written, until: u32, at: &str) {
        for number in written.oldest()..=until {
            let line = self.run.line(number);
            assert_eq!(written.line(number), line.as_deref(), "{at}: {number}");
        }
    }

    async fn revert(&mut self, full: bool) -> String {
        let (to, keep) = (self.any(), !full && self.below(2) == 0);
        let (certain, layer) = (self.guest.written().await, self.guest.disk().await);
        let kept = keep.then(|| self.name());
        let options = match &kept {
            Some(name) => json!({ "restart": true, "keep": name }),
            None => json!({ "restart": true, "discard": true }),
        };
        let told = format!("revert {to} {options}");
        self.guest.revert(&to, options).await;
        if let Some(name) = kept {
            let disk = Ext4::of(&layer);
            self.add(name, disk.fingerprint());
            disk.recovers();
            self.is_of_this_run(&disk.written(), certain, &told);
        }
        self.goes_on_from(&to).await;
        self.current = Some(to);
        told
    }

    /// The guest was started again on a snapshot.
    async fn goes_on_from(&mut self, name: &str) {
        self.starts += 1;
        self.guest.is_up(self.starts).await;
        let disk = Ext4::of(&self.layer(name).await);
        if disk.needs_recovery() {
            disk.recovers();
        }
        self.run = Run {
            found: Some(disk.written()),
            boot: boot_of(&self.guest).await,
        };
    }

    async fn commit(&mut self, name: String) -> String {
        let (vm, manager) = (self.guest.vm, &self.guest.manager);
        let told = format!("commit {name}");
        let done = manager
            .commit_snapshot(vm.into(), name.clone(), never())
            .await;
        done.unwrap_or_else(|failure| panic!("{told}: {failure:?}"));
        let gone = self.end(&name);
        let parent = self.nodes.get_mut(&gone.parent.unwrap()).unwrap();
        parent.fingerprint = gone.fingerprint;
        told
    }

    async fn remove(&mut self) -> String {
        let name = self.any();
        self.guest.remove(&name).await;
        self.end(&name);
        format!("delete {name}")
    }

    async fn tree(&self) -> Value {
        let tree = self.guest.manager.snapshot_tree(self.guest.vm.into());
        tree.await.unwrap()
    }

    /// The file of the disk that the guest writes to, in a snapshot.
    async fn layer(&self, name: &str) -> PathBuf {
        let tree = self.tree().await;
        let mut nodes = tree["snapshots"].as_array().unwrap().iter();
        let node = nodes.find(|node| node["name"] == name).unwrap();
        node["layers"][1]["path"].as_str().unwrap().into()
    }

    /// Whether the tree is the model's, and the guest reads from its disk what it has written.
    async fn agrees(&self, at: &str) {
        let tree = self.tree().await;
        assert_eq!(tree["current"], json!(self.current), "{at}");
        let told = tree["snapshots"].as_array().unwrap().iter();
        let told: BTreeMap<_, _> = told
            .map(|node| (node["name"].as_str().unwrap(), node["parent"].as_str()))
            .collect();
        let nodes = self.nodes.iter();
        let known = nodes.map(|(name, node)| (name.as_str(), node.parent.as_deref()));
        assert_eq!(told, known.collect(), "{at}");

        let certain = self.guest.written().await;
        let sums = self.guest.checksums().await;
        // One more may be under way, and has the oldest one removed.
        let newest = self.guest.written().await + 1;
        for number in oldest(newest)..=certain {
            if let Some(line) = self.run.line(number) {
                let sum = sha256(&content(&line));
                assert_eq!(sums.get(&number), Some(&sum), "{at}: {number}");
            }
        }
    }

    async fn holds(&self, name: &str, at: &str) {
        let now = Ext4::of(&self.layer(name).await).fingerprint();
        assert_eq!(now, self.nodes[name].fingerprint, "{at}: {name}");
    }

    #[expect(clippy::print_stdout, reason = "what led to a failure")]
    async fn walk(&mut self, steps: usize) {
        for step in 0..steps {
            self.guest.writes_on().await;
            let at = format!("step {step}: {}", self.step().await);
            println!("{at}");
            self.guest.writes_on().await;
            self.agrees(&at).await;
            if !self.nodes.is_empty() {
                let name = self.any();
                self.holds(&name, &at).await;
            }
        }
    }

    /// Stops the guest, and looks at all there is.
    async fn arrives(self) {
        let certain = self.guest.written().await;
        self.guest.stop().await;
        for name in self.nodes.keys() {
            self.holds(name, "at the end").await;
        }
        let disk = self.guest.disk().await;
        run("qemu-img", &["check", "-q", text(&disk)]);
        let disk = Ext4::of(&disk);
        disk.recovers();
        self.is_of_this_run(&disk.written(), certain, "at the end");
        self.guest.end().await;
    }
}

async fn boot_of(guest: &WritingGuest<'_>) -> String {
    let boot = "cut -c1-8 /proc/sys/kernel/random/boot_id";
    guest.says(boot).await.unwrap()
}

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text);
    let hexadecimal = |text, byte| format!("{text}{byte:02x}");
    digest.iter().fold(String::new(), hexadecimal)
}

fn asked(variable: &str) -> Option<u64> {
    let asked = std::env::var(variable).ok()?;
    Some(asked.parse().expect("a number"))
}

#[test]
fn a_walk_under_a_guest_that_writes_changes_nothing_it_has_written() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let seed = asked(SEED_VARIABLE).unwrap_or(SEED);
        let steps = asked(STEPS_VARIABLE).map(|steps| usize::try_from(steps).unwrap());
        let mut walker = Walker::begin(&host, seed).await;
        walker.walk(steps.unwrap_or(STEPS)).await;
        walker.arrives().await;
    });
}
