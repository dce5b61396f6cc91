//! `InfinizationConfig`.

use serde_json::{Value, json};

use super::*;
use crate::error::{Coded, ErrorCode};

fn managed(value: &Value, environment: &Environment) -> ManagerConfig {
    ManagerConfig::parse(value, environment).unwrap().config
}

#[test]
fn directories_follow_the_state_directory() {
    let dirs = |value: Value| {
        let config = managed(&value, &Environment::default());
        let all = [
            &config.state_dir,
            &config.disk_dir,
            &config.socket_dir,
            &config.pid_dir,
            &config.path_rules.rom_dir,
        ];
        all.map(ToString::to_string)
    };
    assert_eq!(
        dirs(json!({ "prismaClient": null })),
        [
            "/var/lib/infinization",
            "/var/lib/infinization/disks",
            "/var/run/infinization",
            "/var/run/infinization/pids",
            "/var/lib/infinization/roms",
        ]
    );
    assert_eq!(
        dirs(json!({ "stateDir": "/srv/x", "pidfileDir": "/opt/pids" })),
        [
            "/srv/x",
            "/srv/x/disks",
            "/srv/x/run",
            "/opt/pids",
            "/srv/x/roms"
        ]
    );
    assert_eq!(
        dirs(json!({ "qmpSocketDir": "/opt/sockets" }))[2..4],
        ["/opt/sockets", "/var/run/infinization/pids"]
    );
}

#[test]
fn a_field_wins_over_the_environment() {
    let environment = Environment::read(|name| {
        let value = match name {
            "INFINIZATION_ACCEL" => "tcg",
            "INFINIZATION_QEMU_USER" => "qemu",
            "INFINIZATION_BRIDGE_CONNTRACK_MODE" => "degrade",
            "INFINIZATION_HOST_SERVICE_PORTS" => "53/udp, 4000/tcp",
            _ => "",
        };
        Some(value.to_owned())
    });
    let config = managed(&json!({}), &environment);
    assert_eq!(config.accelerator, AcceleratorChoice::Tcg);
    assert_eq!(config.bridge_conntrack_mode, BridgeConntrackMode::Degrade);
    assert_eq!(config.host_services.len(), 2);
    assert_eq!(
        config.run_as_user.as_ref().map(RunAsUser::as_str),
        Some("qemu")
    );
    let fields = json!({ "accelerator": "kvm", "bridgeConntrackMode": "fail", "hostServices": [] });
    let config = managed(&fields, &environment);
    assert_eq!(config.accelerator, AcceleratorChoice::Kvm);
    assert_eq!(config.bridge_conntrack_mode, BridgeConntrackMode::Fail);
    assert_eq!(config.host_services, []);
}

#[test]
fn the_environment_knows_one_word_for_the_conntrack_mode() {
    for (word, mode) in [
        ("degrade", BridgeConntrackMode::Degrade),
        ("fail", BridgeConntrackMode::Fail),
        ("DEGRADE", BridgeConntrackMode::Fail),
        ("maybe", BridgeConntrackMode::Fail),
        ("", BridgeConntrackMode::Fail),
    ] {
        let environment = Environment {
            bridge_conntrack_mode: Some(word.to_owned()),
            ..Environment::default()
        };
        assert_eq!(
            managed(&json!({}), &environment).bridge_conntrack_mode,
            mode,
            "{word:?}"
        );
    }
}

#[test]
fn the_firewall_is_kept_where_somebody_says_and_nowhere_else() {
    let named = Environment {
        firewall_persistence_dir: Some("/etc/a".to_owned()),
        ..Environment::default()
    };
    let dir = |value: Value, environment: &Environment| {
        let dir = managed(&value, environment).firewall_persistence_dir;
        dir.map(String::from)
    };
    assert_eq!(dir(json!({}), &Environment::default()), None);
    assert_eq!(dir(json!({}), &named).as_deref(), Some("/etc/a"));
    let given = json!({ "firewallPersistenceDir": "/etc/b" });
    assert_eq!(dir(given, &named).as_deref(), Some("/etc/b"));
}

#[test]
fn an_overlay_is_refused() {
    let parse = |value: &Value| ManagerConfig::parse(value, &Environment::default());
    let error = parse(&json!({ "overlay": { "vtepIp": "10.0.0.1" } })).unwrap_err();
    assert_eq!(
        (error.code(), error.issues[0].path.as_str()),
        (ErrorCode::InvalidConfig, "overlay")
    );
    assert!(error.to_string().contains("not part of this version"));
    assert!(parse(&json!({ "overlay": null })).is_ok());
}

#[test]
fn what_we_make_is_inside_the_allowed_paths() {
    let config = managed(
        &json!({ "allowedPaths": ["/srv/isos"] }),
        &Environment::default(),
    );
    assert!(
        config
            .path_rules
            .allows(path("/var/lib/infinization/disks/a.qcow2"))
    );
    assert!(!config.path_rules.allows(path("/etc/shadow")));
    let facts = HostFacts {
        cpus: 2,
        memory: ByteSize::mib(4096),
        hugepage_size: ByteSize::mib(2),
    };
    assert_eq!(config.context(facts).path_rules, config.path_rules);
}

#[test]
fn bad_manager_settings_are_named_at_once() {
    let value = json!({
        "stateDir": "relative", "qmpSocketDir": format!("/{}", "a".repeat(100)), "nodeId": "",
        "healthMonitorInterval": 1, "databaseTimeout": 99, "hostServices": [{ "protocol": "icmp", "port": 0 }],
        "allowedPaths": ["x"], "bridgeConntrackMode": "maybe", "nodeid": 1,
    });
    let environment = Environment {
        accelerator: Some("hvf".to_owned()),
        ..Environment::default()
    };
    let error = ManagerConfig::parse(&value, &environment).unwrap_err();
    let mut paths: Vec<&str> = error
        .issues
        .iter()
        .map(|issue| issue.path.as_str())
        .collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "INFINIZATION_ACCEL",
            "allowedPaths[0]",
            "bridgeConntrackMode",
            "databaseTimeout",
            "healthMonitorInterval",
            "hostServices[0].port",
            "hostServices[0].protocol",
            "nodeId",
            "qmpSocketDir",
            "stateDir",
        ]
    );
}
