//! `createVM`.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::error::{Coded, ErrorCode};

#[test]
fn defaults_are_the_contracts() {
    let Parsed { config, warnings } = taken(&json!({}));
    assert_eq!(warnings, []);
    assert_eq!(config.machine, MachineType::Q35);
    assert!(config.cpu.model.is_host());
    assert_eq!(config.memory.size, ByteSize::mib(2048));
    assert_eq!(config.disks[0].path(), Some(&path("/srv/disks/vm-1.qcow2")));
    assert_eq!(config.disks[0].size, Some(ByteSize::mib(20 * 1024)));
    assert!(config.disks[0].discard);
    assert_eq!(config.network.mac.to_string(), "52:54:2d:62:b0:03");
    assert_eq!(config.network.queues, 2);
    assert_eq!(config.display.address, BindAddress::LOOPBACK);
    assert_eq!(config.paths.qmp_socket, path("/run/vms/vm-1.sock"));
    assert_eq!(config.paths.pid_file, path("/run/vms/pids/vm-1.pid"));
    assert_eq!(config.channels, ChannelsConfig::default());
    assert_eq!(config.run_as_user.unwrap().as_str(), "qemu");
    assert!(config.sandbox && !config.usb_tablet && !config.audio);
}

/// What the real consumer sends: optional keys are there and undefined (null on the way here).
#[test]
fn b19_null_is_the_same_as_missing() {
    let nulls = json!({
        "displayPassword": null, "displayAddr": null, "firewallDefaultAction": null,
        "runAsUser": null, "disableSandbox": null, "macAddress": null, "gpuPciAddress": null,
        "gpuRomfile": null, "machineType": null, "cpuModel": null, "diskBus": null,
        "diskCacheMode": null, "networkModel": null, "networkQueues": null, "memoryBalloon": null,
        "hugepages": null, "uefiFirmware": null, "isoPath": null, "uuid": null,
        "unattendedInstall": null, "cpuPinning": null, "enableNumaCtlPinning": null,
        "cpuPinningStrategy": null, "tpmSocketPath": null, "guestAgentSocketPath": null,
        "infiniServiceSocketPath": null, "virtioDriversIso": null, "enableAudio": null,
        "enableUsbTablet": null, "accelerator": null, "serialConsole": null, "firewallRules": null,
        "disks": [{ "sizeGB": 20, "format": null, "bus": null, "cache": null, "discard": null, "backingFile": null }],
    });
    assert_eq!(taken(&nulls), taken(&json!({})));
}

#[test]
fn every_required_field_is_named_at_once() {
    let error = VmConfig::parse(&json!({}), &context()).unwrap_err();
    let paths: Vec<&str> = error
        .issues
        .iter()
        .map(|issue| issue.path.as_str())
        .collect();
    for field in [
        "vmId",
        "name",
        "internalName",
        "os",
        "cpuCores",
        "ramGB",
        "disks",
        "bridge",
        "displayType",
        "displayPort",
    ] {
        assert!(paths.contains(&field), "{field} is not in {paths:?}");
    }
    assert_eq!(error.code(), ErrorCode::InvalidConfig);
    assert_eq!(error.context()["issues"][0]["path"], "vmId");
    assert_eq!(error.context()["issues"][0]["code"], "INVALID_CONFIG");
}

#[test]
fn b1_to_b35_bad_values_are_refused_by_name() {
    let table = [
        ("vmId", json!("../x")),
        ("internalName", json!("a/b")),
        ("internalName", json!("a".repeat(65))),
        ("name", json!("a,b")),
        ("name", json!("a=b")),
        ("name", json!("a\nb")),
        ("name", json!(" ")),
        ("os", json!("")),
        ("cpuCores", json!(0)),
        ("cpuCores", json!(1.5)),
        ("cpuCores", json!("2")),
        ("cpuCores", json!(1_000_000)),
        ("ramGB", json!(0.25)),
        ("ramGB", json!(-1)),
        ("ramGB", json!(17)),
        ("ramGB", json!(1e308)),
        ("disks", json!([])),
        ("disks", json!("one")),
        ("disks[0]", json!(["20"])),
        ("cpuPinning", json!([])),
        ("cpuPinning", json!([8])),
        ("cpuPinning", json!([1, 1])),
        ("cpuPinning", json!([0.5])),
        ("cpuPinningStrategy", json!("best")),
        ("machineType", json!("microvm")),
        ("cpuModel", json!("host,+vmx")),
        ("diskBus", json!("nvme")),
        ("diskCacheMode", json!("fast")),
        ("networkModel", json!("rtl8139")),
        ("networkQueues", json!(0)),
        ("networkQueues", json!(2.5)),
        ("macAddress", json!("01:00:5e:00:00:01")),
        ("bridge", json!("a-bridge-with-16")),
        ("displayType", json!("none")),
        ("displayPort", json!(-1)),
        ("displayPort", json!("5900")),
        ("displayAddr", json!("256.1.1.1")),
        ("displayPassword", json!("a,b")),
        ("displayPassword", json!("")),
        ("displayPassword", json!("pässword")),
        ("uuid", json!("vm-1")),
        ("isoPath", json!("nbd:host:1")),
        ("isoPath", json!("/etc/shadow")),
        ("isoPath", json!("/srv/isos/../../etc/shadow")),
        ("virtioDriversIso", json!("/srv/isos2/x.iso")),
        ("uefiFirmware", json!("OVMF.fd")),
        ("gpuPciAddress", json!("1:0.0")),
        ("tpmSocketPath", json!("/dev/tpm0")),
        (
            "guestAgentSocketPath",
            json!(format!("/run/{}", "a".repeat(103))),
        ),
        ("guestAgentSocketPath", json!("/run/vms/vm-1.sock")),
        ("runAsUser", json!("root;id")),
        ("accelerator", json!("hvf")),
        ("firewallDefaultAction", json!("allow")),
        ("firewallRules[0]", json!(["allow"])),
        ("enableAudio", json!(1)),
        ("disableSandbox", json!("false")),
    ];
    for (issue, value) in table {
        let field = issue.split('[').next().unwrap();
        assert_eq!(
            refused(&json!({ field: value })),
            [issue],
            "{field}: {value}"
        );
    }
}

#[test]
fn b10_disk_sizes_are_whole_gib() {
    for size in [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("50"),
        json!(1e308),
        json!(9.3e18),
        json!(null),
    ] {
        let disks = json!([{ "sizeGB": 20 }, { "sizeGB": size }]);
        assert_eq!(
            refused(&json!({ "disks": disks })),
            ["disks[1].sizeGB"],
            "{size}"
        );
    }
}

#[test]
fn b3_disks_come_with_checked_settings() {
    let disks =
        json!([{ "sizeGB": 1, "bus": "usb", "cache": "x", "format": "vmdk", "discard": 1 }]);
    assert_eq!(
        refused(&json!({ "disks": disks })),
        [
            "disks[0].format",
            "disks[0].bus",
            "disks[0].cache",
            "disks[0].discard"
        ]
    );
    let raw_clone = json!([{ "sizeGB": 1, "format": "raw", "backingFile": "/srv/disks/a.qcow2" }]);
    assert_eq!(refused(&json!({ "disks": raw_clone })), ["disks[0].format"]);
    let outside = json!([{ "sizeGB": 1, "backingFile": "/etc/shadow" }]);
    assert_eq!(
        refused(&json!({ "disks": outside })),
        ["disks[0].backingFile"]
    );
    let many = vec![json!({ "sizeGB": 1 }); 33];
    assert_eq!(refused(&json!({ "disks": many })), ["disks"]);
    let five = vec![json!({ "sizeGB": 1, "bus": "ide" }); 5];
    assert_eq!(
        refused(&json!({ "disks": five, "machineType": "pc" })),
        ["disks"]
    );
}

#[test]
fn a_disk_on_the_network_is_raw_and_neither_made_nor_shared() {
    let nbd = |more: Value| {
        let mut disk = json!({ "location": { "type": "nbd", "host": "n", "export": "e" } });
        let more = more.as_object().unwrap().clone();
        disk.as_object_mut().unwrap().extend(more);
        disk
    };
    let config = taken(&json!({ "disks": [nbd(json!({ "bus": "scsi" }))] })).config;
    assert_eq!(
        (config.disks[0].format, config.disks[0].size),
        (DiskFormat::Raw, None)
    );
    assert_eq!(config.disks[0].path(), None);
    for (more, field) in [
        (json!({ "format": "qcow2" }), "disks[0].format"),
        (json!({ "sizeGB": 1 }), "disks[0].sizeGB"),
        (
            json!({ "backingFile": "/srv/disks/a" }),
            "disks[0].backingFile",
        ),
        (
            json!({ "location": { "type": "nbd", "path": "/run/x" } }),
            "disks[0].location.path",
        ),
        (
            json!({ "location": { "type": "rbd", "pool": "p", "image": "i", "conf": "/tmp/c" } }),
            "disks[0].location.conf",
        ),
    ] {
        assert_eq!(refused(&json!({ "disks": [nbd(more)] })), [field]);
    }
    let twice = json!({ "disks": [nbd(json!({})), nbd(json!({}))] });
    assert_eq!(refused(&twice), ["disks[1].location"]);
}

#[test]
fn presets_follow_the_guest_and_give_way_to_the_user() {
    let devices = |overrides: Value| {
        let config = taken(&overrides).config;
        let disk = &config.disks[0];
        (
            disk.bus,
            disk.cache,
            config.network.model,
            config.usb_tablet,
        )
    };
    assert_eq!(
        devices(json!({ "os": "windows10" })),
        (
            DiskBus::Virtio,
            CacheMode::None,
            NetworkModel::VirtioNetPci,
            true
        )
    );
    assert_eq!(
        devices(json!({ "os": "Windows 98", "enableUsbTablet": false })),
        (
            DiskBus::Ide,
            CacheMode::Writethrough,
            NetworkModel::E1000,
            false
        )
    );
    let given = json!({ "os": "freedos", "diskBus": "sata", "networkModel": "virtio-net-pci",
        "disks": [{ "sizeGB": 1, "cache": "directsync" }] });
    assert_eq!(
        devices(given),
        (
            DiskBus::Sata,
            CacheMode::Directsync,
            NetworkModel::VirtioNetPci,
            false
        )
    );
}

#[test]
fn queues_are_clamped_aloud() {
    let queues = |overrides: Value| {
        let parsed = taken(&overrides);
        let warnings = warned(&parsed).len();
        (parsed.config.network.queues, warnings)
    };
    assert_eq!(queues(json!({ "cpuCores": 8 })), (4, 0));
    assert_eq!(queues(json!({ "networkQueues": 16 })), (4, 1));
    assert_eq!(queues(json!({ "networkQueues": 1, "cpuCores": 8 })), (1, 0));
    assert_eq!(
        queues(json!({ "networkModel": "e1000", "cpuCores": 8 })),
        (1, 0)
    );
    assert_eq!(
        queues(json!({ "networkModel": "e1000", "networkQueues": 4 })),
        (1, 1)
    );
}

#[test]
fn a_port_outside_the_range_is_the_first() {
    for (given, port, warnings) in [
        (0, 5900, 0),
        (80, 5900, 1),
        (70_000, 5900, 1),
        (6000, 6000, 0),
    ] {
        let parsed = taken(&json!({ "displayPort": given }));
        assert_eq!(
            (parsed.config.display.port, parsed.warnings.len()),
            (port, warnings)
        );
    }
    let vnc = json!({ "displayType": "vnc", "displayPort": 6000 });
    assert_eq!(refused(&vnc), ["displayPort"]);
}

#[test]
fn b33_b34_consoles_are_guarded() {
    for open in ["0.0.0.0", "::", "192.0.2.1", "host.example"] {
        assert_eq!(
            refused(&json!({ "displayAddr": open })),
            ["displayPassword"],
            "{open}"
        );
        taken(&json!({ "displayAddr": open, "displayPassword": "0123456789abcdef" }));
    }
    let vnc = |password: &str| json!({ "displayType": "vnc", "displayPassword": password });
    assert_eq!(refused(&vnc("123456789")), ["displayPassword"]);
    taken(&vnc("12345678"));
}

#[test]
fn b34_the_password_is_in_no_text() {
    let given = json!({ "displayPassword": "hunter2" });
    let config = taken(&given).config;
    assert_eq!(
        config.display.password.as_ref().unwrap().reveal(),
        "hunter2"
    );
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
    let bad = json!({ "displayPassword": "hunter2,", "cpuCores": 0 });
    let error = VmConfig::parse(&with(&bad), &context()).unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

#[test]
fn b6_roms_stay_in_their_directory() {
    let rom = |file: &str| json!({ "gpuPciAddress": "01:00.0", "gpuRomfile": file });
    taken(&rom("/srv/roms/a.rom"));
    assert_eq!(refused(&rom("/srv/disks/a.rom")), ["gpuRomfile"]);
    assert_eq!(
        refused(&json!({ "gpuRomfile": "/srv/roms/a.rom" })),
        ["gpuRomfile"]
    );
}

#[test]
fn b13_hugepages_divide_the_memory() {
    taken(&json!({ "hugepages": true, "ramGB": 1.5 }));
    let mut context = context();
    context.hugepage_size = ByteSize::mib(1024);
    let value = with(&json!({ "hugepages": true, "ramGB": 1.5 }));
    assert_eq!(
        VmConfig::parse(&value, &context).unwrap_err().issues[0].path,
        "ramGB"
    );
}

#[test]
fn b37_secure_boot_wants_q35() {
    let firmware =
        json!({ "uefiFirmware": "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "machineType": "pc" });
    assert_eq!(refused(&firmware), ["uefiFirmware"]);
}

#[test]
fn b18_b21_unknown_keys_are_warned_about() {
    let given = json!({ "__proto__": { "x": 1 }, "cpuCoers": 4, "signal": {},
        "disks": [{ "sizeGB": 1, "size": 2 }] });
    assert_eq!(
        warned(&taken(&given)),
        ["disks[0].size", "__proto__", "cpuCoers"]
    );
}

#[test]
fn b21_a_misspelt_key_of_a_rule_is_refused() {
    let rule = json!({ "id": "1", "name": "web", "action": "ACCEPT", "direction": "IN",
        "priority": 1, "protocol": "tcp", "dstPort": 80, "dstPortEnd": null });
    assert_eq!(
        refused(&json!({ "firewallRules": [rule] })),
        ["firewallRules[0].dstPort"]
    );
}

#[test]
fn an_unattended_install_is_refused_as_unavailable() {
    let value = with(&json!({ "unattendedInstall": { "os": "ubuntu" } }));
    let error = VmConfig::parse(&value, &context()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ResourceUnavailable);
    assert!(error.to_string().contains("not part of this version"));
    let worse = with(&json!({ "unattendedInstall": {}, "cpuCores": 0 }));
    let error = VmConfig::parse(&worse, &context()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidConfig);
}

#[test]
fn b20_what_is_no_object_is_refused() {
    for value in [json!(null), json!([]), json!("{}"), json!(1)] {
        let error = VmConfig::parse(&value, &context()).unwrap_err();
        assert_eq!(error.issues[0].path, "config");
    }
}

proptest! {
    /// B20: no JSON in any field makes the parser panic or forget to name the field.
    #[test]
    fn any_json_in_any_field_is_taken_or_named(
        field in proptest::sample::select(vec![
            "vmId", "name", "os", "cpuCores", "ramGB", "disks", "bridge", "displayPort",
            "displayAddr", "networkQueues", "cpuPinning", "isoPath", "firewallRules", "uuid",
        ]),
        value in any_json(),
    ) {
        if let Err(error) = VmConfig::parse(&with(&json!({ field: value })), &context()) {
            prop_assert!(!error.issues.is_empty());
            let named = error.issues.iter().all(|issue| issue.path.starts_with(field));
            prop_assert!(named || field == "displayAddr", "{}", error);
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::hash_map(any::<String>(), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
