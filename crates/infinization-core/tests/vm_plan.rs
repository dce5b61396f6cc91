//! `planVM` says what `createVM` then does: the same steps in the same order, the same command line, and
//! the files, links and rules it lists are those that come to be. Planning itself touches nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use infinization_core::manager::Manager;
use infinization_test_kit as kit;
use kit::full::{FullHost, ruleset};
use kit::machine::{delete, journal_of, never, pid_of};
use serde_json::{Value, json};

const VM: &str = "planned-1";

/// A step's name in a plan and in a journal.
const NAMES: [(&str, &str); 21] = [
    ("insertRow", "insert row"),
    ("makeDirectory", "make directory"),
    ("writeSpec", "write spec"),
    ("keepDiskKeys", "keep keys of disks"),
    ("createDisk", "create disk"),
    ("copyFirmwareVars", "copy firmware variables"),
    ("createTap", "create TAP"),
    ("openTap", "open TAP"),
    ("openVhost", "open vhost-net"),
    ("listen", "listen on socket"),
    ("spawnQemu", "spawn QEMU"),
    ("loadFirewall", "load firewall"),
    ("writePidFile", "write pidfile"),
    ("connectMonitor", "connect monitor"),
    ("writeConfiguration", "write configuration"),
    ("attachTap", "attach TAP to bridge"),
    ("setDisplayPassword", "set display password"),
    ("pinVcpus", "pin vCPUs"),
    ("continue", "continue"),
    ("writeStatus", "write status"),
    ("takeRow", "take row"),
];

/// Everything on this host that an operation may change: files with their times, links, and rules.
async fn touchable(full: &FullHost) -> (BTreeSet<String>, Vec<String>, String) {
    let mut files = BTreeSet::new();
    for path in paths_below(full.host.path()) {
        // The store's shared memory and its log change as it is read.
        if !path.to_string_lossy().contains("infinization.db-") {
            let known = fs::symlink_metadata(&path).unwrap();
            files.insert(format!(
                "{} {} {:?}",
                path.display(),
                known.len(),
                known.modified()
            ));
        }
    }
    let links = full.host.links.list().await.unwrap();
    let links = links.iter().map(|link| format!("{link:?}")).collect();
    (files, links, ruleset())
}

fn paths_below(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut paths = BTreeSet::new();
    for entry in entries {
        if entry.file_type().unwrap().is_dir() {
            paths.extend(paths_below(&entry.path()));
        }
        paths.insert(entry.path());
    }
    paths
}

fn steps(plan: &Value) -> Vec<&Value> {
    let stages = plan["stages"].as_array().unwrap().iter();
    stages.flat_map(|stage| stage.as_array().unwrap()).collect()
}

fn of<'p>(plan: &'p Value, action: &'static str) -> impl Iterator<Item = &'p Value> {
    let wanted = move |step: &&Value| step["action"] == action;
    steps(plan).into_iter().filter(wanted)
}

#[test]
fn a_create_does_what_was_planned_and_planning_does_nothing() {
    kit::in_private_network(|| async {
        let full = FullHost::new().await;
        let manager = full.manager().await;
        let before = touchable(&full).await;
        let plan = manager.plan_vm(full.machine(VM)).await.unwrap();
        assert_eq!(touchable(&full).await, before, "a plan touches something");
        assert_eq!(manager.list_vms().await.unwrap(), json!([]));
        let again = manager.plan_vm(full.machine(VM)).await.unwrap();
        assert_eq!(again, plan, "a plan is planned otherwise each time");

        let paths = paths_below(full.host.path());
        let created = manager.create_vm(full.machine(VM), never()).await.unwrap();
        assert_eq!(created["warnings"], plan["warnings"]);
        steps_are_those_of(&plan, &manager).await;
        command_line_is_that_of(&plan, &created);
        files_are_those_of(&plan, &full, &paths);
        network_is_that_of(&plan, &full, &created).await;

        delete(&manager, VM).await;
        full.host.is_clean().await;
    });
}

/// The journal has them in the plan's order, each with what the plan says of it.
async fn steps_are_those_of(plan: &Value, manager: &Manager) {
    let journal = journal_of(manager, VM).await;
    let begun = |entry: &&Value| entry["kind"] == "step" && entry["phase"] == "begun";
    let told: Vec<&Value> = journal.iter().filter(begun).collect();
    let name = |step: &Value| {
        let named = |(action, _): &&(&str, &str)| step["action"] == **action;
        NAMES
            .iter()
            .find(named)
            .unwrap_or_else(|| panic!("{step}"))
            .1
    };
    let planned: Vec<_> = steps(plan).into_iter().map(name).collect();
    let done: Vec<_> = told
        .iter()
        .map(|entry| entry["step"].as_str().unwrap())
        .collect();
    assert_eq!(done, planned);
    for (step, entry) in steps(plan).into_iter().zip(told) {
        for (fact, value) in entry["detail"].as_object().into_iter().flatten() {
            assert_eq!(&step[fact], value, "{fact} of {step}");
        }
    }
}

/// To the last word: not even ports and descriptors are decided later, unless somebody else takes the port.
fn command_line_is_that_of(plan: &Value, created: &Value) {
    let spawn = of(plan, "spawnQemu").next().unwrap();
    let line = fs::read(format!("/proc/{}/cmdline", pid_of(created))).unwrap();
    let line = String::from_utf8(line).unwrap();
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    // Found in `PATH`.
    let program = Path::new(words[0]).file_name().unwrap();
    assert_eq!(json!(program.to_str()), spawn["binary"]);
    assert_eq!(json!(words[1..]), spawn["args"]);
}

/// Beside what steps name there are the ledger and the spec, and the console's log, which the command line names.
fn files_are_those_of(plan: &Value, full: &FullHost, before: &BTreeSet<PathBuf>) {
    let directory = full.host.state_dir().join("vms").join(VM);
    let paths = paths_below(full.host.path());
    let new: BTreeSet<&PathBuf> = paths.difference(before).collect();
    let files = new.into_iter().filter(|path| !path.is_dir()).cloned();
    let files: BTreeSet<PathBuf> = files.filter(|path| !is_kept_by_us(path)).collect();

    let with_paths = ["createDisk", "copyFirmwareVars", "listen", "writePidFile"];
    let named = with_paths.into_iter().flat_map(|action| of(plan, action));
    let named = named.map(|step| &step["path"]);
    let logs = of(plan, "spawnQemu").map(|step| &step["log"]);
    let named = named.chain(logs).map(|path| path.as_str().unwrap().into());
    let own = ["ledger.json", "spec.json", "serial.log"].map(|name| directory.join(name));
    assert_eq!(files, named.chain(own).collect());
    let console = directory.join("serial.log");
    let args = of(plan, "spawnQemu").next().unwrap()["args"].to_string();
    assert!(args.contains(console.to_str().unwrap()), "{args}");
    for made in of(plan, "makeDirectory") {
        assert!(Path::new(made["path"].as_str().unwrap()).is_dir(), "{made}");
    }
}

/// The store and the journals are there whatever a machine does.
fn is_kept_by_us(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("infinization.db") || text.contains("/journals/")
}

async fn network_is_that_of(plan: &Value, full: &FullHost, created: &Value) {
    let tap = &of(plan, "createTap").next().unwrap()["tap"];
    assert_eq!(json!(full.host.links().await), json!([tap]));
    assert_eq!(created["tapDevice"], *tap);
    let joined = of(plan, "attachTap").next().unwrap();
    assert_eq!(
        (&joined["tap"], &joined["bridge"]),
        (tap, &json!("testbr0"))
    );
    let links = full.host.links.list().await.unwrap();
    let index = |name: &str| links.iter().find(|link| link.name == name).unwrap();
    let (port, bridge) = (index(tap.as_str().unwrap()), index("testbr0"));
    assert_eq!(port.master, Some(bridge.index));

    let document = of(plan, "loadFirewall").next().unwrap();
    let planned = document["rules"]["nftables"].as_array().unwrap();
    let planned: Vec<&Value> = planned.iter().filter_map(|it| it.get("add")).collect();
    let mut nft = std::process::Command::new("nft");
    let listed = nft.args(["-j", "list", "ruleset"]).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed: Vec<&Value> = listed["nftables"].as_array().unwrap().iter().collect();
    let chains = rules_by_chain(&planned);
    assert!(chains.len() >= 3, "{chains:?}");
    assert_eq!(rules_by_chain(&listed), chains);
}

/// The rules of the VM's chains, in order, by their comments.
fn rules_by_chain(objects: &[&Value]) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names = objects.iter().filter_map(|it| it.get("chain"));
    let names: BTreeSet<String> = names.map(|chain| text(&chain["name"])).collect();
    let of_vm = |name: &String| {
        ["vm_", "from_", "to_"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let rules = |name: &str| {
        let rules = objects.iter().filter_map(|it| it.get("rule"));
        let rules = rules.filter(|rule| rule["chain"] == name);
        rules.map(|rule| text(&rule["comment"])).collect()
    };
    let names = names.into_iter().filter(of_vm);
    names.map(|name| (name.clone(), rules(&name))).collect()
}
