//! F9: our process is killed before and after every step of create, start, stop, restart, destroy and
//! delete. The next one finds each VM done or undone, never both, never starts a second QEMU, and its
//! journal tells without a gap what was under way and what became of it.
//!
//! Suspend, resume and reset have no steps; they are killed ever later after they were begun, as the verbs on
//! snapshots are (`vm_snapshots/kills.rs`, `vm_layers/kills.rs`).
//!
//! The test starts itself again as the victim, in the same private network. What is done with plain machines
//! is done beside what is done with a full one (`full`), since either waits a lot.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that is its own `main`: it fails by panicking, and says what it did"
)]

mod full;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use infinization_core::manager::Manager;
use infinization_test_kit as kit;
use kit::machine::{Host, forced, has_no_gaps, journal_of, never, next_event, qemus, send_signal};
use kit::meddler::{Deed, Meddler, die};
use kit::switch::{Mode, Switch};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const VM: &str = "killed-1";
/// The deed of a victim that is killed while the database is away, at no step of the verb's.
const OUTAGE: &str = "KillInOutage";
/// No verb has this many steps; reaching it means that the victim never ends.
const MOST_STEPS: usize = 60;
/// How much later each kill of a verb without steps comes.
const LATER: Duration = Duration::from_micros(400);

fn main() {
    if let Some(orders) = kit::victim::orders() {
        kit::runtime().block_on(victim(&orders));
        return;
    }
    let lanes = [plain, full::lane].map(std::thread::spawn);
    let mut passed = 0;
    for lane in lanes {
        match lane.join() {
            Ok(of_lane) => passed += of_lane,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    println!("{passed} passed, 0 failed");
}

/// Everything with plain machines. Answers how many tests that were.
fn plain() -> usize {
    let mut passed = 0;
    for verb in ["stop", "destroy", "suspend", "crash"] {
        kit::in_private_network(move || async move { killed_in_an_outage(verb).await });
        println!("f9 f31 {verb}, killed before the database was back ... ok");
        passed += 1;
    }
    for verb in ["create", "start", "stop", "restart", "destroy", "delete"] {
        for deed in [Deed::KillBefore, Deed::KillAfter] {
            let (sender, steps) = std::sync::mpsc::channel();
            kit::in_private_network(move || async move {
                sender.send(kill_at_every_step(verb, deed).await).unwrap();
            });
            println!("f9 {verb} {deed:?}: {} steps ... ok", steps.recv().unwrap());
            passed += 1;
        }
    }
    for verb in ["suspend", "resume", "reset"] {
        let (sender, rounds) = std::sync::mpsc::channel();
        kit::in_private_network(move || async move {
            sender.send(kill_ever_later(verb).await).unwrap();
        });
        println!(
            "f9 {verb} ever later: {} kills ... ok",
            rounds.recv().unwrap()
        );
        passed += 1;
    }
    passed
}

/// What happened while the database was away dies with the process that kept it: the next one finds
/// it out by looking.
async fn killed_in_an_outage(verb: &'static str) {
    let host = Host::new().await;
    assert!(run_victim(&host, verb, OUTAGE, 0));
    // Nothing is checked on a timer here: starting alone makes the row true.
    let mut settings = host.settings();
    settings["autoStartHealthMonitor"] = json!(false);
    let manager = Manager::new(settings);
    manager.initialize().await.unwrap();
    if verb == "destroy" {
        // Its state directory is gone: the health monitor finds that nobody has what the row claims.
        manager.check_all_vms().await.unwrap();
    }
    let status = manager.get_vm_status(VM.into()).await.unwrap();
    let word = if verb == "suspend" {
        "suspended"
    } else {
        "off"
    };
    assert_eq!(status["status"], word, "{verb}: {status}");
    assert_eq!(status["consistent"], true, "{verb}: {status}");
    let with_disks = json!({ "deleteDisks": true });
    manager.delete_vm(VM.into(), with_disks).await.unwrap();
    manager.shutdown().await.unwrap();
    host.is_clean().await;
}

/// Does the verb while the database is away, and is killed before it is back.
async fn victim_of_an_outage(orders: &Value) {
    let switch = Switch::new();
    let wrapper = Some(switch.wrapper());
    let manager = Manager::with_wrappers(orders["settings"].clone(), None, wrapper);
    manager.initialize().await.unwrap();
    let machine = orders["machine"].clone();
    let created = manager.create_vm(machine, never()).await.unwrap();
    let mut events = manager.subscribe();
    switch.turn(Mode::Down);
    match orders["verb"].as_str().unwrap() {
        "stop" => drop(manager.stop_vm(VM.into(), forced(), never()).await.unwrap()),
        "destroy" => drop(manager.destroy_vm(VM.into()).await.unwrap()),
        "suspend" => {
            let asked = manager.qmp_execute(VM, "stop", Value::Null);
            asked.await.unwrap();
            next_event(&mut events, "vm:suspended").await;
        }
        _ => {
            let pid = created["pid"].as_i64().unwrap();
            send_signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
            next_event(&mut events, "crash").await;
        }
    }
    die();
}

/// What the victim does: everything up to the verb undisturbed, then the verb.
async fn victim(orders: &Value) {
    if orders["deed"] == OUTAGE {
        return victim_of_an_outage(orders).await;
    }
    if orders["machine"]["vmId"] == full::VM {
        return full::victim(orders).await;
    }
    let (manager, meddler, step) = meddled_with(orders).await;
    let machine = orders["machine"].clone();
    let forced = json!({ "graceful": false, "force": true });
    match orders["verb"].as_str().unwrap() {
        "create" => {
            meddler.arm(step);
            manager.create_vm(machine, never()).await.unwrap();
        }
        "start" => {
            manager.create_vm(machine, never()).await.unwrap();
            manager.stop_vm(VM.into(), forced, never()).await.unwrap();
            meddler.arm(step);
            manager
                .start_vm(VM.into(), Value::Null, never())
                .await
                .unwrap();
        }
        "stop" => {
            manager.create_vm(machine, never()).await.unwrap();
            meddler.arm(step);
            manager.stop_vm(VM.into(), forced, never()).await.unwrap();
        }
        "restart" => {
            manager.create_vm(machine, never()).await.unwrap();
            meddler.arm(step);
            let mut events = manager.subscribe();
            // This guest does not hear the power button.
            let ends = async {
                next_event(&mut events, "vm:powerdown").await;
                for pid in qemus(Path::new(orders["settings"]["stateDir"].as_str().unwrap())) {
                    send_signal(pid, nix::sys::signal::SIGTERM);
                }
            };
            let (restarted, ()) = tokio::join!(manager.restart_vm(VM.into()), ends);
            let restarted = restarted.unwrap();
            assert_eq!(restarted["success"], true, "{restarted}");
        }
        verb @ ("suspend" | "resume" | "reset") => {
            manager.create_vm(machine, never()).await.unwrap();
            if verb == "resume" {
                manager.suspend_vm(VM.into()).await.unwrap();
            }
            // These have no steps of a plan.
            let delay = LATER * u32::try_from(step).unwrap();
            kit::victim::die_when_begun(orders, VM, verb, delay);
            match verb {
                "suspend" => manager.suspend_vm(VM.into()).await,
                "resume" => manager.resume_vm(VM.into()).await,
                _ => manager.reset_vm(VM.into()).await,
            }
            .unwrap();
        }
        "destroy" => {
            manager.create_vm(machine, never()).await.unwrap();
            meddler.arm(step);
            manager.destroy_vm(VM.into()).await.unwrap();
        }
        _ => {
            manager.create_vm(machine, never()).await.unwrap();
            meddler.arm(step);
            let with_disks = json!({ "deleteDisks": true });
            manager.delete_vm(VM.into(), with_disks).await.unwrap();
        }
    }
}

/// A manager whose process is killed when the meddler is armed for the step.
async fn meddled_with(orders: &Value) -> (Manager, Arc<Meddler>, usize) {
    let deed = match orders["deed"].as_str() {
        Some("KillBefore") => Deed::KillBefore,
        _ => Deed::KillAfter,
    };
    let step = usize::try_from(orders["step"].as_u64().unwrap()).unwrap();
    let meddler = Meddler::new(deed);
    let manager = Manager::with_effects(orders["settings"].clone(), Some(meddler.wrapper()));
    manager.initialize().await.unwrap();
    (manager, meddler, step)
}

/// Kills ever later, until the verb is done first. Answers how often that took.
async fn kill_ever_later(verb: &str) -> usize {
    let host = Host::new().await;
    let mut rounds = 0;
    for attempt in 0..MOST_STEPS {
        let round = rounds;
        let killed = run_victim(&host, verb, &format!("{:?}", Deed::KillBefore), round);
        let at = format!("{verb} killed in round {round}");
        let manager = host.manager().await;
        let status = manager.get_vm_status(VM.into()).await.unwrap();
        assert_eq!(status["consistent"], true, "{at}: {status}");
        let agreed = [
            ("running", "running"),
            ("suspended", "paused"),
            ("suspended", "prelaunch"),
        ];
        let words = (
            status["status"].as_str().unwrap(),
            status["qmpStatus"].as_str().unwrap(),
        );
        assert!(agreed.contains(&words), "{at}: {status}");
        let journal = journal_of(&manager, VM).await;
        has_no_gaps(&journal);
        let mut told = since_begun(&journal, verb).iter();
        let found = told.find(|entry| entry["step"] == "taking stock").unwrap();
        assert_eq!(found["detail"]["found"], "alive", "{at}");
        assert_eq!(found["detail"]["status"], status["status"], "{at}");
        manager
            .delete_vm(VM.into(), json!({ "deleteDisks": true }))
            .await
            .unwrap();
        manager.shutdown().await.unwrap();
        host.is_clean().await;
        // On a busy machine the first kill may come too late; then it is tried again.
        if killed {
            rounds += 1;
        } else if round > 0 {
            return round;
        }
        assert!(rounds > 0 || attempt < 20, "{verb} was never killed");
    }
    panic!("{verb} takes longer than {:?}", LATER * 60);
}

async fn kill_at_every_step(verb: &str, deed: Deed) -> usize {
    let host = Host::new().await;
    for step in 0..MOST_STEPS {
        let killed = run_victim(&host, verb, &format!("{deed:?}"), step);
        converges(&host, verb, step, killed).await;
        if !killed {
            assert!(step > 0, "{verb} has no steps");
            return step;
        }
    }
    panic!("{verb} has more than {MOST_STEPS} steps");
}

/// Whether the victim was killed rather than done.
fn run_victim(host: &Host, verb: &str, deed: &str, step: usize) -> bool {
    let orders = json!({
        "verb": verb,
        "deed": deed,
        "step": step,
        "settings": host.settings(),
        "machine": host.machine(VM),
    });
    kit::victim::run(&[], &orders)
}

/// The next process finds the machine wholly there or wholly gone, and can go on with it.
async fn converges(host: &Host, verb: &str, step: usize, killed: bool) {
    let at = format!("{verb} killed at step {step}");
    let manager = host.manager().await;
    let journal = journal_of(&manager, VM).await;
    has_no_gaps(&journal);
    let told = since_begun(&journal, verb);
    if killed {
        tells_the_kill(told, &at);
    } else {
        assert!(
            told.iter().any(|entry| is_end(entry, verb)),
            "{at}: {told:#?}"
        );
    }
    let machines = manager.list_vms().await.unwrap();
    let living = qemus(host.path());
    assert!(living.len() <= 1, "{at}: a second QEMU");
    match machines.as_array().unwrap().as_slice() {
        [] => {
            assert!(["create", "delete"].contains(&verb), "{at}: it vanished");
            host.is_clean().await;
        }
        [machine] => {
            let status = manager.get_vm_status(VM.into()).await.unwrap();
            assert_eq!(status["consistent"], true, "{at}: {status}");
            assert_eq!(status["processAlive"], !living.is_empty(), "{at}: {status}");
            assert_eq!(machine["status"], status["status"], "{at}");
            let word = if living.is_empty() { "off" } else { "running" };
            assert_eq!(status["status"], word, "{at}");
            goes_on(&manager, living.is_empty(), &at).await;
        }
        more => panic!("{at}: {} machines", more.len()),
    }
    if !machines.as_array().unwrap().is_empty() {
        manager
            .delete_vm(VM.into(), json!({ "deleteDisks": true }))
            .await
            .unwrap();
    }
    manager.shutdown().await.unwrap();
    host.is_clean().await;
    assert_eq!(partial_images(host.path()), Vec::<PathBuf>::new(), "{at}");
}

/// What the journal has since the verb was last begun.
fn since_begun<'j>(journal: &'j [Value], verb: &str) -> &'j [Value] {
    let begun = |entry: &Value| {
        entry["kind"] == "operation" && entry["operation"] == verb && entry["phase"] == "begun"
    };
    &journal[journal.iter().rposition(begun).unwrap()..]
}

fn is_end(entry: &Value, verb: &str) -> bool {
    entry["kind"] == "operation" && entry["operation"] == verb && entry["phase"] != "begun"
}

/// The verb has no end, the step it was killed at was told before it was begun, and the next process
/// has told what it found: `unknown` while QEMU is just ending, which the next verb looks at again.
fn tells_the_kill(told: &[Value], at: &str) {
    let verb = told[0]["operation"].as_str().unwrap();
    assert!(
        !told.iter().any(|entry| is_end(entry, verb)),
        "{at}: {told:#?}"
    );
    let (by_verb, after): (Vec<&Value>, Vec<&Value>) =
        told.iter().partition(|entry| entry["operation"] == verb);
    let of_phase = |begun: bool| {
        let steps = by_verb
            .iter()
            .filter(|entry| ["step", "release", "undo"].contains(&entry["kind"].as_str().unwrap()));
        steps
            .filter(|entry| (entry["phase"] == "begun") == begun)
            .count()
    };
    assert!(
        of_phase(true) > of_phase(false),
        "{at}: no step is open: {told:#?}"
    );
    let found = after
        .iter()
        .find(|entry| entry["actor"] == "recovery" && entry["step"] == "taking stock");
    let found = found.unwrap_or_else(|| panic!("{at}: nobody took stock: {told:#?}"));
    let word = found["detail"]["found"].as_str().unwrap();
    assert!(
        ["alive", "off", "undone", "unknown"].contains(&word),
        "{at}: {found}"
    );
}

/// It can be started where it is off, and stopped where it runs.
async fn goes_on(manager: &Manager, off: bool, at: &str) {
    if off {
        let started = manager.start_vm(VM.into(), Value::Null, never()).await;
        started.unwrap_or_else(|error| panic!("{at}: cannot be started again: {error}"));
    }
    let forced = json!({ "graceful": false, "force": true });
    let stopped = manager.stop_vm(VM.into(), forced, never()).await;
    stopped.unwrap_or_else(|error| panic!("{at}: cannot be stopped: {error}"));
}

fn partial_images(directory: &Path) -> Vec<PathBuf> {
    let disks = directory.join("state/disks");
    let entries = std::fs::read_dir(disks).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".partial"))
        .collect()
}
