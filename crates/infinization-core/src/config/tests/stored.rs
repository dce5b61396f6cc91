//! `startVM`.

use serde_json::json;

use super::*;
use crate::types::{Secret, VmId};

fn row() -> StoredColumns {
    let id = VmId::parse("vm-1").unwrap();
    StoredColumns {
        configured: true,
        ..StoredColumns::new(id, "vm-1", "ubuntu", 2, 2.0)
    }
}

fn started(row: &StoredColumns, spec: Option<&VmConfig>) -> VmConfig {
    VmConfig::from_stored(row, spec, &context()).unwrap().config
}

#[test]
fn a_bare_row_starts_as_in_the_contract() {
    let config = started(&row(), None);
    assert_eq!(config.disks.len(), 1);
    assert_eq!(config.disks[0].path(), Some(&path("/srv/disks/vm-1.qcow2")));
    assert_eq!(config.disks[0].size, None);
    assert_eq!(config.network.bridge.as_str(), "virbr0");
    assert_eq!(
        (config.display.protocol, config.display.port),
        (DisplayProtocol::Spice, 5900)
    );
    assert_eq!(
        config.channels.infini_service,
        Some(path("/run/vms/vm-1.socket"))
    );
}

/// B15 of the bug log: what create was told is there at the next start, though no column holds it.
#[test]
fn the_spec_remembers_what_has_no_column() {
    let created = taken(&json!({
        "macAddress": "52:54:00:00:00:01", "uuid": "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b",
        "runAsUser": "nobody", "firewallDefaultAction": "accept", "serialConsole": true,
        "accelerator": "tcg", "cpuPinningStrategy": "hybrid", "isoPath": "/srv/isos/a.iso",
        "disableSandbox": true, "gpuPciAddress": "01:00.0", "gpuRomfile": "/srv/roms/a.rom",
        "disks": [{ "sizeGB": 1 }, { "sizeGB": 2, "format": "raw", "bus": "scsi", "discard": false },
            { "location": { "type": "nbd", "host": "n", "export": "e", "reconnectDelay": 5 } },
            { "location": { "type": "rbd", "pool": "p", "image": "i", "user": "u" } }],
    }))
    .config;
    let kept = serde_json::to_string(&created).unwrap();
    let spec: VmConfig = serde_json::from_str(&kept).unwrap();
    assert_eq!(spec, created);
    let paths = created.disks.iter().map(|disk| disk.location.to_string());
    let row = StoredColumns {
        disk_paths: Some(paths.collect()),
        gpu_pci_address: Some("01:00.0".to_owned()),
        bridge: Some("br0".to_owned()),
        ..row()
    };
    let started = started(&row, Some(&spec));
    let expected = VmConfig {
        name: "vm-1".to_owned(),
        // Of the first run alone.
        installer_iso: None,
        sandbox: true,
        channels: ChannelsConfig {
            infini_service: Some(path("/run/vms/vm-1.socket")),
            ..created.channels.clone()
        },
        ..created
    };
    assert_eq!(started, expected);
}

/// Whoever can write a row cannot have QEMU connect anywhere by it.
#[test]
fn b3_no_row_makes_a_location_on_the_network() {
    let created = taken(&json!({ "disks": [
        { "location": { "type": "nbd", "host": "n", "export": "e" } }, { "sizeGB": 1 }] }));
    let texts = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect());
    for (given, is_taken) in [
        (["nbd://n:10809/e", "/srv/disks/vm-1-disk1.qcow2"], true),
        (
            ["nbd://n:10809/other", "/srv/disks/vm-1-disk1.qcow2"],
            false,
        ),
        (["/srv/disks/vm-1-disk1.qcow2", "rbd:p/i"], false),
    ] {
        let row = StoredColumns {
            disk_paths: texts(&given),
            ..row()
        };
        let started = VmConfig::from_stored(&row, Some(&created.config), &context());
        assert_eq!(started.is_ok(), is_taken, "{given:?}");
    }
}

#[test]
fn columns_win_over_the_spec() {
    let spec = taken(
        &json!({ "diskBus": "sata", "disks": [{ "sizeGB": 1 }, { "sizeGB": 1, "bus": "scsi" }] }),
    );
    let row = StoredColumns {
        cpu_cores: 4,
        machine_type: Some("pc".to_owned()),
        disk_bus: Some("virtio".to_owned()),
        network_queues: Some(3),
        graphic_protocol: Some("vnc".to_owned()),
        graphic_password: Some(Secret::new("secret")),
        graphic_host: Some("192.0.2.1".to_owned()),
        enable_audio: Some(true),
        ..row()
    };
    let config = started(&row, Some(&spec.config));
    assert_eq!(config.cpu.cores, 4);
    assert_eq!(config.machine, MachineType::Pc);
    assert_eq!(config.network.queues, 3);
    assert_eq!(config.display.protocol, DisplayProtocol::Vnc);
    assert!(config.display.password.is_some() && config.audio);
    // The column moves the disks that had their bus from it; the other keeps its own.
    let buses: Vec<DiskBus> = config.disks.iter().map(|disk| disk.bus).collect();
    assert_eq!(buses, [DiskBus::Virtio, DiskBus::Scsi]);
}

#[test]
fn null_takes_away_what_only_a_column_gives() {
    let spec = taken(&json!({
        "gpuPciAddress": "01:00.0", "gpuRomfile": "/srv/roms/a.rom", "cpuPinning": [1],
        "virtioDriversIso": "/srv/isos/a.iso", "uefiFirmware": "/usr/share/OVMF/OVMF_CODE.fd",
        "tpmSocketPath": "/run/vms/tpm.sock",
    }))
    .config;
    let config = started(&row(), Some(&spec));
    assert_eq!(
        (config.gpu, config.cpu.pinned_to, config.drivers_iso),
        (None, None, None)
    );
    // A guest does not boot without its firmware and loses its keys without its TPM.
    assert_eq!(
        (config.firmware, config.tpm_socket),
        (spec.firmware, spec.tpm_socket)
    );
}

#[test]
fn a_foreign_spec_is_not_looked_at() {
    let mut spec = taken(&json!({ "macAddress": "52:54:00:00:00:01" })).config;
    spec.id = VmId::parse("vm-2").unwrap();
    assert_eq!(started(&row(), Some(&spec)), started(&row(), None));
}

#[test]
fn corrupt_columns_are_refused_by_name() {
    let row = StoredColumns {
        cpu_cores: 0,
        ram_gb: 0.0,
        internal_name: "a/b".to_owned(),
        machine_type: Some("q36".to_owned()),
        disk_paths: Some(vec!["/srv/disks/a.qcow2".to_owned(), "b.qcow2".to_owned()]),
        ..row()
    };
    let error = VmConfig::from_stored(&row, None, &context()).unwrap_err();
    let paths: Vec<&str> = error
        .issues
        .iter()
        .map(|issue| issue.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "internalName",
            "cpuCores",
            "ramGB",
            "machineType",
            "diskPaths[1]"
        ]
    );
}

#[test]
fn a_stored_console_may_be_healed_later() {
    let at = |host: &str| StoredColumns {
        graphic_host: Some(host.to_owned()),
        ..row()
    };
    assert_eq!(
        started(&at("192.0.2.1"), None).display.address.to_string(),
        "192.0.2.1"
    );
    assert_eq!(
        started(&at(""), None).display.address,
        BindAddress::LOOPBACK
    );
    assert!(VmConfig::from_stored(&at("0.0.0.0"), None, &context()).is_err());
}
