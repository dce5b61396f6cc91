//! The promises a plan's order makes, for many kinds of machine.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::plan::Undo;
use super::*;
use crate::config::{AcceleratorChoice, Context, PathRules};
use crate::firewall::{Conntrack, Network, VmFirewall, compile};
use crate::types::{ByteSize, FirewallDefaultAction};

const PASSWORD: &str = "hunter2";

fn path(text: &str) -> HostPath {
    HostPath::parse(text).unwrap()
}

fn config(overrides: &Value) -> VmConfig {
    let context = Context {
        disk_dir: path("/srv/disks"),
        socket_dir: path("/run/vms"),
        pid_dir: path("/run/vms"),
        path_rules: PathRules {
            allowed: None,
            rom_dir: path("/srv/roms"),
        },
        accelerator: AcceleratorChoice::Auto,
        run_as_user: None,
        host_cpus: 8,
        host_memory: ByteSize::mib(16 * 1024),
        hugepage_size: ByteSize::mib(2),
    };
    let mut value = json!({
        "vmId": "vm-1", "name": "one", "internalName": "vm-1", "os": "ubuntu", "cpuCores": 2,
        "ramGB": 2, "disks": [{ "sizeGB": 20 }], "bridge": "br0", "displayType": "spice",
        "displayPort": 5901,
    });
    for (key, given) in overrides.as_object().unwrap() {
        value[key] = given.clone();
    }
    VmConfig::parse(&value, &context).unwrap().config
}

/// Everything a machine can ask of a plan.
fn rich() -> VmConfig {
    config(&json!({
        "disks": [{ "sizeGB": 20 }, { "sizeGB": 5 }], "networkQueues": 2, "cpuPinning": [0, 1],
        "displayPassword": PASSWORD, "serialConsole": true, "machineType": "q35",
        "uefiFirmware": "/usr/share/OVMF/OVMF_CODE_4M.fd",
    }))
}

fn plain() -> VmConfig {
    config(&json!({}))
}

fn names(config: &VmConfig) -> VmNames {
    VmNames::of(&config.id)
}

fn facts(config: &VmConfig, tap: TapState, row: RowClaim) -> Facts {
    let names = names(config);
    let firewall = compile(&VmFirewall {
        vm_id: config.id.clone(),
        tap: names.tap,
        mac: names.mac,
        known_addresses: Vec::new(),
        bridge_addresses: vec![Network {
            address: IpAddr::from([10, 0, 0, 1]),
            prefix: 24,
        }],
        host_services: Vec::new(),
        department_rules: Vec::new(),
        vm_rules: Vec::new(),
        default_action: FirewallDefaultAction::Drop,
        conntrack: Conntrack::Stateful,
        reject: true,
    });
    Facts {
        accelerator: Accelerator::Tcg,
        vhost: true,
        display_port: 5907,
        display_address: config.display.address.clone(),
        tap,
        firewall: firewall.unwrap(),
        firewall_as_of: Moment::default(),
        vars_template: config
            .firmware
            .as_ref()
            .map(|_| path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
        row,
        missing_directories: vec![path("/srv/disks"), path("/run/vms")],
        pinned_cpus: config.cpu.pinned_to.clone(),
        host_nodes: Vec::new(),
        encrypted_below: BTreeMap::new(),
        directory: path("/var/lib/vms/vm-1"),
    }
}

fn transition() -> RowClaim {
    RowClaim::Transition {
        from: "off".to_owned(),
        version: 7,
    }
}

fn create(config: &VmConfig) -> Plan {
    let facts = facts(config, TapState::Absent, RowClaim::Insert);
    plan_create(config, &names(config), &facts).unwrap()
}

fn start(config: &VmConfig, tap: TapState) -> Plan {
    let facts = facts(config, tap, transition());
    plan_start(config, &names(config), &facts).unwrap()
}

/// Every kind of plan: with everything and with little, creating and starting.
fn all_plans() -> Vec<(String, Plan)> {
    let mut plans = Vec::new();
    for (kind, config) in [("rich", rich()), ("plain", plain())] {
        plans.push((format!("create {kind}"), create(&config)));
        for tap in [TapState::Absent, TapState::Kept, TapState::OtherQueues] {
            plans.push((format!("start {kind}, TAP {tap:?}"), start(&config, tap)));
        }
    }
    plans
}

fn steps(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.stages.iter().flatten()
}

/// The number of the stage the action named so is in.
fn stage_of(plan: &Plan, action: &str) -> Option<usize> {
    let named = |step: &Step| step.action.name() == action;
    plan.stages.iter().position(|stage| stage.iter().any(named))
}

fn releases(plan: &Plan) -> Vec<&Release> {
    steps(plan)
        .flat_map(|step| step.undo.iter().map(|undo| &undo.release))
        .collect()
}

fn spawned(plan: &Plan) -> &Spawn {
    let spawn = steps(plan).find_map(|step| match &step.action {
        Action::SpawnQemu(spawn) => Some(spawn.as_ref()),
        _ => None,
    });
    spawn.unwrap()
}

#[test]
fn the_row_is_claimed_before_anything_exists() {
    let table = [
        (RowClaim::Insert, "insert row", Release::DeleteRow),
        (
            RowClaim::Take,
            "take row",
            Release::RestoreStatus {
                status: "error".to_owned(),
            },
        ),
        (
            transition(),
            "transition status",
            Release::RestoreStatus {
                status: "off".to_owned(),
            },
        ),
    ];
    for (row, action, undo) in table {
        let config = plain();
        let facts = facts(&config, TapState::Absent, row);
        let plan = plan_create(&config, &names(&config), &facts).unwrap();
        let first = &plan.stages[0][0];
        assert_eq!(first.action.name(), action);
        assert_eq!(
            first.undo,
            [Undo {
                lifetime: Lifetime::Attempt,
                release: undo
            }]
        );
        assert_eq!(plan.stages[0].len(), 1);
        let others: Vec<_> = plan.stages[1]
            .iter()
            .map(|step| step.action.name())
            .collect();
        assert_eq!(others, ["make directory", "make directory", "write spec"]);
    }
}

#[test]
fn every_plan_keeps_the_order_that_makes_it_safe() {
    let before = [
        ("create disk", "spawn QEMU"),
        ("copy firmware variables", "spawn QEMU"),
        ("create TAP", "spawn QEMU"),
        ("open TAP", "spawn QEMU"),
        ("open vhost-net", "spawn QEMU"),
        ("listen on socket", "spawn QEMU"),
        ("spawn QEMU", "connect monitor"),
        ("spawn QEMU", "write pidfile"),
        ("load firewall", "attach TAP to bridge"),
        ("connect monitor", "set display password"),
        ("connect monitor", "pin vCPUs"),
        ("attach TAP to bridge", "continue"),
        ("set display password", "continue"),
        ("pin vCPUs", "continue"),
        ("write configuration", "continue"),
    ];
    for (kind, plan) in all_plans() {
        for (first, then) in before {
            let (Some(first_at), Some(then_at)) = (stage_of(&plan, first), stage_of(&plan, then))
            else {
                continue;
            };
            assert!(first_at < then_at, "{kind}: {first} is not before {then}");
        }
    }
}

#[test]
fn what_a_plan_is_made_of_depends_on_the_machine() {
    let table = [
        ("set display password", true, false),
        ("pin vCPUs", true, false),
        ("copy firmware variables", true, false),
        ("create disk", true, true),
        ("load firewall", true, true),
        ("attach TAP to bridge", true, true),
        ("continue", true, true),
        ("open TAP", false, false),
    ];
    for (action, in_rich, in_plain) in table {
        for (config, expected) in [(rich(), in_rich), (plain(), in_plain)] {
            let there = stage_of(&create(&config), action).is_some();
            assert_eq!(there, expected, "{action}");
        }
    }
}

#[test]
fn running_is_written_last_and_alone() {
    for (kind, plan) in all_plans() {
        let last = plan.stages.last().unwrap();
        let running = Action::WriteStatus { status: "running" };
        assert_eq!(last, &[Step::new(running.clone())], "{kind}");
        let times = steps(&plan).filter(|step| step.action == running).count();
        assert_eq!(times, 1, "{kind}");
    }
}

#[test]
fn whatever_is_acquired_has_its_release() {
    let file = |path: &HostPath| Release::RemoveFile { path: path.clone() };
    for (kind, plan) in all_plans() {
        for step in steps(&plan) {
            let undone: Vec<_> = step.undo.iter().map(|undo| undo.release.clone()).collect();
            let wanted = match &step.action {
                Action::CreateDisk(disk) => file(disk.path().unwrap()),
                Action::CopyFirmwareVars { path, .. } => file(path),
                Action::Listen { slot, path } => Release::RemoveSocket {
                    slot: *slot,
                    path: path.clone(),
                },
                Action::WritePidFile { path } => Release::RemovePidFile { path: path.clone() },
                Action::CreateTap { tap, .. } => Release::DeleteTap { tap: tap.clone() },
                Action::AttachTap { tap, .. } => Release::DetachTap { tap: tap.clone() },
                Action::LoadFirewall { .. } => Release::DetachFirewall,
                Action::SpawnQemu(_) => Release::EndQemu,
                _ => continue,
            };
            assert!(undone.contains(&wanted), "{kind}: {}", step.action.name());
        }
    }
}

#[test]
fn the_users_data_outlives_the_run() {
    for (kind, plan) in all_plans() {
        for step in steps(&plan) {
            let lifetimes: Vec<_> = step.undo.iter().map(|undo| undo.lifetime).collect();
            let wanted = match &step.action {
                Action::CreateDisk(_) | Action::CopyFirmwareVars { .. } => Lifetime::Data,
                Action::CreateTap { .. } => Lifetime::Machine,
                Action::Listen { .. } | Action::AttachTap { .. } | Action::WritePidFile { .. } => {
                    Lifetime::Run
                }
                _ => continue,
            };
            assert_eq!(lifetimes, [wanted], "{kind}: {}", step.action.name());
        }
    }
}

#[test]
fn qemu_is_ended_before_its_cgroup_is_removed() {
    let plan = create(&plain());
    let position = |wanted| releases(&plan).iter().position(|found| **found == wanted);
    // Releases are done newest first.
    assert!(position(Release::RemoveCgroup) < position(Release::EndQemu));
}

#[test]
fn a_failed_start_keeps_the_chain_the_tap_and_the_disks_and_a_failed_create_keeps_nothing() {
    let config = rich();
    let delete = Release::DeleteTap {
        tap: names(&config).tap,
    };
    let plan = create(&config);
    assert!(releases(&plan).contains(&&Release::RemoveFirewall));
    assert!(releases(&plan).contains(&&delete));

    let table = [
        (TapState::Kept, false),
        (TapState::Absent, true),
        (TapState::OtherQueues, true),
    ];
    for (tap, deletes) in table {
        let plan = start(&config, tap);
        assert!(!releases(&plan).contains(&&Release::RemoveFirewall));
        assert_eq!(releases(&plan).contains(&&delete), deletes, "{tap:?}");
        assert_eq!(stage_of(&plan, "create disk"), None);
        assert_eq!(stage_of(&plan, "open TAP").is_some(), !deletes, "{tap:?}");
    }
}

#[test]
fn only_a_tap_with_other_queues_is_replaced() {
    for (tap, replaced) in [(TapState::Absent, false), (TapState::OtherQueues, true)] {
        let plan = start(&plain(), tap);
        let replaces = steps(&plan).find_map(|step| match step.action {
            Action::CreateTap { replace, .. } => Some(replace),
            _ => None,
        });
        assert_eq!(replaces, Some(replaced), "{tap:?}");
    }
}

#[test]
fn no_plan_tells_the_password() {
    for (kind, plan) in all_plans() {
        let shown = serde_json::to_string(&plan).unwrap();
        assert!(!shown.contains(PASSWORD), "{kind}: {shown}");
        let debugged = format!("{plan:?}");
        assert!(!debugged.contains(PASSWORD), "{kind}: {debugged}");
    }
}

#[test]
fn the_keys_of_disks_are_kept_before_the_disks_are_made() {
    let config = config(&json!({ "disks": [{ "sizeGB": 1, "encryptionKey": PASSWORD }] }));
    for (row, undone) in [(RowClaim::Insert, false), (RowClaim::Take, true)] {
        let facts = facts(&config, TapState::Absent, row);
        let plan = plan_create(&config, &names(&config), &facts).unwrap();
        assert!(stage_of(&plan, "keep keys of disks") < stage_of(&plan, "create disk"));
        assert!(
            stage_of(&plan, "keep keys of disks") > Some(0),
            "the row is there"
        );
        let paths = vec![config.disks[0].path().unwrap().clone()];
        let forgets = releases(&plan).contains(&&Release::ForgetDiskKeys { paths });
        assert_eq!(forgets, undone);
        assert!(!format!("{plan:?}").contains(PASSWORD));
    }
    let plan = start(&config, TapState::Kept);
    assert_eq!(
        stage_of(&plan, "keep keys of disks"),
        None,
        "QEMU is to say whether they fit"
    );
}

#[test]
fn the_plan_names_the_port_that_was_reserved() {
    let plan = create(&plain());
    let row = steps(&plan).find_map(|step| match &step.action {
        Action::WriteConfiguration(row) => Some(row.as_ref()),
        _ => None,
    });
    assert_eq!(row.unwrap().graphic_port, Some(5907));
    let args = spawned(&plan).args.join(" ");
    assert!(args.contains("5907") && !args.contains("5901"), "{args}");
}

/// All descriptor numbers the arguments speak of.
fn in_arguments(args: &[String]) -> Vec<RawFd> {
    let keys = ["fd", "fds", "vhostfd", "vhostfds"];
    let options = args.iter().flat_map(|arg| arg.split(','));
    let lists = options.filter_map(|option| {
        let (key, list) = option.split_once('=')?;
        keys.contains(&key).then_some(list)
    });
    let mut numbers: Vec<RawFd> = lists
        .flat_map(|list| list.split(':'))
        .filter_map(|number| number.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn qemu_is_told_of_exactly_the_descriptors_it_gets() {
    for (kind, plan) in all_plans() {
        let spawn = spawned(&plan);
        let given: Vec<RawFd> = spawn
            .descriptors
            .iter()
            .map(|(_, number)| *number)
            .collect();
        let count = RawFd::try_from(given.len()).unwrap();
        let consecutive: Vec<RawFd> = (FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + count).collect();
        assert_eq!(given, consecutive, "{kind}");
        assert_eq!(in_arguments(&spawn.args), given, "{kind}: {:?}", spawn.args);
    }
}

#[test]
fn every_socket_qemu_gets_is_listened_on_by_the_plan() {
    for (kind, plan) in all_plans() {
        let listening: Vec<Slot> = steps(&plan)
            .filter_map(|step| match step.action {
                Action::Listen { slot, .. } => Some(slot),
                _ => None,
            })
            .collect();
        let given: Vec<Slot> = spawned(&plan)
            .descriptors
            .iter()
            .map(|(slot, _)| *slot)
            .filter(|slot| !matches!(slot, Slot::Tap(_) | Slot::Vhost(_)))
            .collect();
        assert_eq!(given, listening, "{kind}");
        assert!(listening.contains(&Slot::Monitor), "{kind}");
    }
}

#[test]
fn a_machine_near_its_memory_runs_where_the_host_said() {
    let config = plain();
    let mut facts = facts(&config, TapState::Absent, RowClaim::Insert);
    facts.pinned_cpus = Some(vec![3, 2]);
    facts.host_nodes = vec![1];
    let plan = plan_create(&config, &names(&config), &facts).unwrap();
    let pinned = steps(&plan)
        .any(|step| matches!(&step.action, Action::PinVcpus { cpus } if cpus.as_slice() == [3, 2]));
    assert!(pinned);
    let args = &spawned(&plan).args;
    assert!(
        args.iter()
            .any(|arg| arg.contains(r#""host-nodes":[1],"policy":"bind""#)),
        "{args:?}"
    );
}
