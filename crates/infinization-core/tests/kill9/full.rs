//! A machine with everything, killed before and after every step of create, start and stop; and a machine that is
//! made anew over the row it left, as programs do that have rows of their own.
//!
//! What is undone leaves nothing, no guest that may have run is ended, and no secret is anywhere in between.

use infinization_core::manager::Manager;
use serde_json::{Value, json};

use super::kit::faults::snapshot;
use super::kit::full::{FullHost, QuickKeys};
use super::kit::machine::{
    consistent_status, delete, forced, has_no_gaps, journal_of, never, qemus,
};
use super::kit::meddler::Deed;
use super::{MOST_STEPS, is_end, kit, meddled_with, partial_images, since_begun, tells_the_kill};

pub(super) const VM: &str = "killed-full";
/// At this step there is nothing left to kill.
const NEVER: usize = MOST_STEPS;

/// Everything with full machines. Answers how many tests that were.
pub(super) fn lane() -> usize {
    kit::in_private_network(|| async { kept_spec_is_the_newest().await });
    println!("f9 create over a machine, killed before its spec is written ... ok");
    let mut passed = 1;
    for verb in ["create", "create anew", "start", "stop"] {
        for deed in [Deed::KillBefore, Deed::KillAfter] {
            let (sender, steps) = std::sync::mpsc::channel();
            kit::in_private_network(move || async move {
                sender.send(at_every_step(verb, deed).await).unwrap();
            });
            let steps = steps.recv().unwrap();
            println!("f9 {verb} of a full machine, {deed:?}: {steps} steps ... ok");
            passed += 1;
        }
    }
    passed
}

/// The verb alone: what comes before it was done by an earlier process.
pub(super) async fn victim(orders: &Value) {
    let (manager, meddler, step) = meddled_with(orders).await;
    meddler.arm(step);
    let vm = || VM.to_owned();
    match orders["verb"].as_str().unwrap() {
        "start" => drop(manager.start_vm(vm(), Value::Null, never()).await.unwrap()),
        "stop" => drop(manager.stop_vm(vm(), forced(), never()).await.unwrap()),
        _ => {
            let machine = orders["machine"].clone();
            let created = manager.create_vm(machine, never()).await.unwrap();
            assert_eq!(created["warnings"], json!([]), "nothing is taken otherwise");
        }
    }
}

async fn at_every_step(verb: &'static str, deed: Deed) -> usize {
    let mut scene = Scene::new(verb, deed).await;
    for step in 0..MOST_STEPS {
        scene = scene.before().await;
        let round = scene.round(step);
        let at = format!("{verb} {deed:?} {step}");
        let manager = scene.host.manager().await;
        let told = scene.told(&manager, &round, &at).await;
        scene.is_as_told(&manager, &round, &told, &at).await;
        scene = scene.goes_on(manager, &at).await;
        if !round.killed {
            assert!(step > 6, "{verb} has only {step} steps");
            scene.ends().await;
            return step;
        }
    }
    panic!("{verb} has more than {MOST_STEPS} steps");
}

/// A create over a machine that was made over another one puts back the spec that was there, not the one before.
async fn kept_spec_is_the_newest() {
    /// After the row was taken; all directories are there.
    const WRITE_SPEC: usize = 1;
    let mut scene = Scene::new("create", Deed::KillBefore).await;
    let spec = scene
        .host
        .host
        .state_dir()
        .join("vms")
        .join(VM)
        .join("spec.json");
    let disks = scene.host.host.state_dir().join("disks");
    let mut known = String::new();
    for (mac, step) in [(1, NEVER), (2, NEVER), (3, WRITE_SPEC)] {
        scene = scene.before().await;
        let mut machine = scene.host.machine(VM);
        machine["macAddress"] = json!(format!("52:54:00:00:00:0{mac}"));
        let killed = scene.run_with("create", step, &machine);
        assert_eq!(killed, step == WRITE_SPEC);
        let manager = scene.host.manager().await;
        if killed {
            assert_eq!(std::fs::read_to_string(&spec).unwrap(), known);
            delete(&manager, VM).await;
        } else {
            stop(&manager).await;
            let found = std::fs::read_to_string(&spec).unwrap();
            assert_ne!(found, std::mem::replace(&mut known, found.clone()));
            std::fs::remove_dir_all(&disks).unwrap();
        }
        manager.shutdown().await.unwrap();
    }
    scene.host.host.is_clean().await;
}

struct Scene {
    host: FullHost,
    keys: QuickKeys,
    verb: &'static str,
    deed: Deed,
    /// What is there when the machine is off, but for a machine that is being made.
    off: Value,
}

/// One victim.
struct Round {
    killed: bool,
    /// The QEMUs that it left, before anybody looked.
    left: Vec<i32>,
}

impl Scene {
    async fn new(verb: &'static str, deed: Deed) -> Self {
        let (host, keys) = (FullHost::new().await, QuickKeys::new().await);
        let mut scene = Self {
            host,
            keys,
            verb,
            deed,
            off: Value::Null,
        };
        if verb == "create" {
            return scene;
        }
        assert!(!scene.run("create", NEVER));
        let manager = scene.host.manager().await;
        stop(&manager).await;
        if verb == "create anew" {
            scene.leaves_its_row(&manager).await;
        } else {
            scene.off = snapshot(&scene.host.host, &manager, VM).await;
        }
        manager.shutdown().await.unwrap();
        Self {
            host: scene.host.tpm_ended().await,
            ..scene
        }
    }

    /// Destroyed, its disks moved away: the row is all that is left, and it is off.
    async fn leaves_its_row(&self, manager: &Manager) {
        manager.destroy_vm(VM.into()).await.unwrap();
        let _absent = std::fs::remove_dir_all(self.host.host.state_dir().join("disks"));
        self.has_only_its_row(manager, "destroyed").await;
    }

    async fn has_only_its_row(&self, manager: &Manager, at: &str) {
        self.host.host.is_clean().await;
        self.host.has_no_trace(VM, at);
        let status = consistent_status(manager, VM).await;
        let known = ["off", "error"].contains(&status["status"].as_str().unwrap());
        assert!(known, "{at}: {status}");
        assert_eq!(status["processAlive"], false, "{at}: {status}");
    }

    /// What the verb is done to.
    async fn before(mut self) -> Self {
        self.host = self.host.tpm_again().await;
        if self.verb == "stop" {
            let manager = self.host.manager().await;
            start(&manager).await;
            manager.shutdown().await.unwrap();
        }
        self
    }

    fn round(&self, step: usize) -> Round {
        let killed = self.run(self.verb, step);
        let left = qemus(self.host.host.path());
        self.host
            .keeps_its_secrets(&format!("{} {step}", self.verb));
        Round { killed, left }
    }

    /// Whether the victim was killed rather than done.
    fn run(&self, verb: &str, step: usize) -> bool {
        self.run_with(verb, step, &self.host.machine(VM))
    }

    fn run_with(&self, verb: &str, step: usize, machine: &Value) -> bool {
        let orders = json!({
            "verb": verb,
            "deed": format!("{:?}", self.deed),
            "step": step,
            "settings": self.host.settings(),
            "machine": machine,
        });
        kit::victim::run_with(&[("PATH", self.keys.path())], &[], &orders)
    }

    /// What the journal has of the round.
    async fn told(&self, manager: &Manager, round: &Round, at: &str) -> Vec<Value> {
        let journal = journal_of(manager, VM).await;
        has_no_gaps(&journal);
        let verb = self.verb.split(' ').next().unwrap();
        let told = since_begun(&journal, verb).to_vec();
        if round.killed {
            tells_the_kill(&told, at);
        } else {
            assert!(told.iter().any(|entry| is_end(entry, verb)), "{at}");
        }
        told
    }

    /// Done or undone: a guest that may have run goes on, and nothing else is left of a launch.
    async fn is_as_told(&self, manager: &Manager, round: &Round, told: &[Value], at: &str) {
        let living = qemus(self.host.host.path());
        self.host.keeps_its_secrets(at);
        if self.verb == "stop" || !self.ran(told) {
            assert_eq!(living, Vec::<i32>::new(), "{at}");
            self.is_undone(manager, at).await;
        } else {
            assert_eq!(living, round.left, "{at}: its guest has run");
            assert_eq!(living.len(), 1, "{at}");
            let status = consistent_status(manager, VM).await;
            assert_eq!(status["status"], "running", "{at}: {status}");
            assert_eq!(status["qmpStatus"], "running", "{at}: {status}");
        }
        let disks = partial_images(self.host.host.path());
        assert_eq!(disks, Vec::<std::path::PathBuf>::new(), "{at}");
    }

    /// Whether the guest's CPUs were let run.
    fn ran(&self, told: &[Value]) -> bool {
        let begun = |step: &str| {
            let of_step = |entry: &&Value| entry["step"] == step && entry["kind"] == "step";
            told.iter().any(|entry| of_step(&entry))
        };
        begun("write status") || (begun("continue") && self.deed == Deed::KillAfter)
    }

    async fn is_undone(&self, manager: &Manager, at: &str) {
        match self.verb {
            "create" => {
                assert_eq!(manager.list_vms().await.unwrap(), json!([]), "{at}");
                self.host.host.is_clean().await;
                self.host.has_no_trace(VM, at);
            }
            "create anew" => self.has_only_its_row(manager, at).await,
            _ => {
                consistent_status(manager, VM).await;
                let found = snapshot(&self.host.host, manager, VM).await;
                assert_eq!(found, self.off, "{at}");
            }
        }
    }

    /// What was undone can be done, what was done goes on to its end, and either ends its TPM.
    async fn goes_on(mut self, manager: Manager, at: &str) -> Self {
        let runs = !qemus(self.host.host.path()).is_empty();
        match (self.verb, runs) {
            ("create" | "create anew", false) => {
                self.host = self.host.tpm_again().await;
                let planned = manager.plan_vm(self.host.machine(VM)).await;
                planned.unwrap_or_else(|error| panic!("{at}: cannot be made again: {error}"));
            }
            (_, true) => {
                stop(&manager).await;
                self.host = self.host.tpm_ended().await;
            }
            (_, false) => {
                self.host = self.host.tpm_again().await;
                start(&manager).await;
                stop(&manager).await;
                self.host = self.host.tpm_ended().await;
            }
        }
        match (self.verb, runs) {
            ("create", true) => delete(&manager, VM).await,
            ("create anew", true) => self.leaves_its_row(&manager).await,
            _ => {}
        }
        manager.shutdown().await.unwrap();
        self
    }

    async fn ends(self) {
        let manager = self.host.manager().await;
        if self.verb != "create" {
            delete(&manager, VM).await;
        }
        manager.shutdown().await.unwrap();
        self.host.host.is_clean().await;
        self.host.has_no_trace(VM, "deleted");
    }
}

/// With the key that the store has kept.
async fn start(manager: &Manager) {
    let started = manager.start_vm(VM.into(), Value::Null, never()).await;
    started.unwrap_or_else(|error| panic!("cannot be started: {error:?}"));
}

async fn stop(manager: &Manager) {
    let stopped = manager.stop_vm(VM.into(), forced(), never()).await;
    stopped.unwrap_or_else(|error| panic!("cannot be stopped: {error:?}"));
}
