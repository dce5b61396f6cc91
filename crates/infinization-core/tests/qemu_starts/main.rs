//! Real QEMU takes every command line we write: one test per feature, and per combination that is
//! easily written in a form QEMU refuses. Each compares the text with `golden/<name>.txt`, starts
//! it (TCG, stopped, descriptors really passed) and asks its monitor for the status.
//!
//! `UPDATE_GOLDEN=1 cargo test --test qemu_starts` rewrites the texts.
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a helper that fails fails its test, and json!() values read best in place"
)]

mod acquire;
mod configs;
mod one_vm;

use std::fs;
use std::os::unix::net::UnixStream;

use infinization_core::config::{DiskBus, StoredColumns, VmConfig};
use infinization_core::qemu::Accelerator;
use infinization_core::types::VmId;
use infinization_test_kit as kit;
use serde_json::{Value, json};

use acquire::Extra;
use configs::{context, is_golden, is_golden_with};
use one_vm::{PATIENCE, Vm, lines_until, private, starts, starts_with};

const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// Checks the golden text of a feature and starts it.
fn works(name: &'static str, config: Value) {
    is_golden(name, &config);
    starts(config, |_, _| {});
}

#[test]
fn ubuntu_over_spice() {
    works("ubuntu_over_spice", json!({}));
}

/// The password goes over the monitor, also while the VM is stopped; until then nobody is let in.
#[test]
fn spice_with_a_password() {
    let spice = json!({ "displayPassword": "hunter2" });
    is_golden("spice_with_a_password", &spice);
    starts(spice, |_, monitor| {
        assert_eq!(monitor.ask("query-spice", json!({}))["auth"], "spice");
        let secret = json!({ "protocol": "spice", "password": "hunter2", "connected": "keep" });
        monitor.ask("set_password", secret);
    });
}

#[test]
fn vnc() {
    works("vnc", json!({ "displayType": "vnc" }));
}

#[test]
fn vnc_with_a_password() {
    let vnc =
        json!({ "displayType": "vnc", "displayPassword": "hunter2", "displayAddr": "0.0.0.0" });
    is_golden("vnc_with_a_password", &vnc);
    starts(vnc, |_, monitor| {
        assert_eq!(monitor.ask("query-vnc", json!({}))["auth"], "vnc");
        let secret = json!({ "protocol": "vnc", "password": "hunter2", "connected": "keep" });
        monitor.ask("set_password", secret);
    });
}

#[test]
fn consoles_on_ipv6() {
    for display in ["spice", "vnc"] {
        starts(
            json!({ "displayType": display, "displayAddr": "::1" }),
            |_, _| {},
        );
    }
}

#[test]
fn windows_11() {
    works(
        "windows_11",
        json!({
            "os": "windows11", "uefiFirmware": UEFI_CODE, "tpmSocketPath": "{dir}/tpm.sock",
            "isoPath": "{dir}/installer.iso", "virtioDriversIso": "{dir}/drivers.iso",
            "guestAgentSocketPath": "{dir}/ga.sock", "enableAudio": true,
            "infiniServiceSocketPath": "{dir}/vm-1.socket", "displayPassword": "0123456789abcdef",
            "uuid": "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b",
        }),
    );
}

#[test]
fn a_legacy_guest_on_pc() {
    let dos = json!({ "os": "FreeDOS", "machineType": "pc", "displayType": "vnc", "cpuCores": 1,
        "isoPath": "{dir}/installer.iso" });
    works("a_legacy_guest_on_pc", dos);
}

#[test]
fn a_refused_combination_sata() {
    for machine in ["q35", "pc"] {
        let disks = json!([{ "sizeGB": 1 }, { "sizeGB": 1, "bus": "virtio" }]);
        let config = json!({ "machineType": machine, "diskBus": "sata", "disks": disks });
        works(
            if machine == "q35" {
                "sata_on_q35"
            } else {
                "sata_on_pc"
            },
            config,
        );
    }
}

#[test]
fn a_refused_combination_scsi() {
    for machine in ["q35", "pc"] {
        let disks = json!([{ "sizeGB": 1 }, { "sizeGB": 1 }]);
        let config = json!({ "machineType": machine, "diskBus": "scsi", "disks": disks });
        works(
            if machine == "q35" {
                "scsi_on_q35"
            } else {
                "scsi_on_pc"
            },
            config,
        );
    }
}

#[test]
fn a_refused_combination_e1000_with_several_cores() {
    let e1000 = json!({ "networkModel": "e1000", "cpuCores": 4, "networkQueues": 4 });
    works("e1000_with_several_cores", e1000);
}

#[test]
fn a_refused_combination_several_queues() {
    works("several_queues", json!({ "networkQueues": 4 }));
}

#[test]
fn a_refused_combination_audio_over_vnc() {
    works(
        "audio_over_vnc",
        json!({ "displayType": "vnc", "enableAudio": true }),
    );
}

#[test]
fn audio_over_spice() {
    works("audio_over_spice", json!({ "enableAudio": true }));
}

#[test]
fn a_refused_combination_third_ide_disk_with_cds() {
    for machine in ["q35", "pc"] {
        let config = json!({
            "machineType": machine, "diskBus": "ide",
            "disks": [{ "sizeGB": 1 }, { "sizeGB": 1 }, { "sizeGB": 1 }],
            "isoPath": "{dir}/installer.iso", "virtioDriversIso": "{dir}/drivers.iso",
        });
        let name = if machine == "q35" {
            "three_ide_disks_on_q35"
        } else {
            "three_ide_disks_on_pc"
        };
        works(name, config);
    }
}

/// The sandbox with `-daemonize` or `-runas` is a SIGSYS: privileges are dropped before the exec.
#[test]
fn a_refused_combination_unprivileged_in_the_sandbox() {
    let config = json!({ "guestAgentSocketPath": "{dir}/ga.sock", "serialConsole": true,
        "runAsUser": "65534:65534" });
    is_golden("unprivileged_in_the_sandbox", &config);
    starts(config, |vm, monitor| {
        let status = fs::read_to_string(format!("/proc/{}/status", vm.child.id())).unwrap();
        assert!(status.contains("\nUid:\t65534\t65534"), "{status}");
        assert!(status.contains("\nSeccomp:\t2"), "{status}");
        assert_eq!(
            monitor.ask("query-status", json!({}))["status"],
            "prelaunch"
        );
    });
}

#[test]
fn without_the_sandbox() {
    works("without_the_sandbox", json!({ "disableSandbox": true }));
}

#[test]
fn uefi() {
    works("uefi", json!({ "uefiFirmware": UEFI_CODE }));
}

#[test]
fn uefi_with_secure_boot() {
    works(
        "uefi_with_secure_boot",
        json!({ "uefiFirmware": "/usr/share/OVMF/OVMF_CODE_4M.ms.fd" }),
    );
}

#[test]
fn uefi_on_pc() {
    starts(
        json!({ "uefiFirmware": UEFI_CODE, "machineType": "pc" }),
        |_, _| {},
    );
}

#[test]
fn a_tpm() {
    is_golden("a_tpm", &json!({ "tpmSocketPath": "{dir}/tpm.sock" }));
    starts(
        json!({ "tpmSocketPath": "{dir}/tpm.sock" }),
        |_, monitor| {
            assert_eq!(monitor.ask("query-tpm", json!({}))[0]["model"], "tpm-tis");
        },
    );
}

#[test]
fn a_balloon_and_a_tablet() {
    is_golden(
        "a_balloon_and_a_tablet",
        &json!({ "memoryBalloon": true, "enableUsbTablet": true }),
    );
    starts(
        json!({ "memoryBalloon": true, "enableUsbTablet": true, "ramGB": 1.5 }),
        |_, monitor| {
            let actual = &monitor.ask("query-balloon", json!({}))["actual"];
            assert_eq!(actual, 1536 * 1024 * 1024);
        },
    );
}

#[test]
fn channels_into_the_guest() {
    let config = json!({
        "guestAgentSocketPath": "{dir}/ga.sock", "infiniServiceSocketPath": "{dir}/vm-1.socket",
        "serialConsole": true,
    });
    is_golden("channels_into_the_guest", &config);
    starts(config, |vm, monitor| {
        let chardevs = monitor.ask("query-chardev", json!({}));
        let chardevs = chardevs.as_array().unwrap().iter();
        let labels: Vec<&str> = chardevs
            .filter_map(|chardev| chardev["label"].as_str())
            .collect();
        for id in ["qmp0", "guest-agent0", "infini-service0", "serial0"] {
            assert!(labels.contains(&id), "no {id} in {labels:?}");
        }
        assert!(vm.dir.join("console.log").exists());
    });
}

#[test]
fn every_cache_mode_on_both_formats() {
    for mode in ["none", "writeback", "writethrough", "directsync", "unsafe"] {
        let disks = json!([
            { "sizeGB": 1, "cache": mode },
            { "sizeGB": 1, "cache": mode, "format": "raw", "discard": false },
        ]);
        starts(json!({ "disks": disks }), move |_, monitor| {
            let block = monitor.ask("query-block", json!({}));
            let seen = &block[0]["inserted"]["cache"];
            assert_eq!(
                seen["writeback"],
                !matches!(mode, "writethrough" | "directsync")
            );
            assert_eq!(seen["direct"], matches!(mode, "none" | "directsync"));
            assert_eq!(seen["no-flush"], mode == "unsafe");
        });
    }
    let raw = json!({ "disks": [{ "sizeGB": 1, "cache": "directsync", "format": "raw", "discard": false }] });
    is_golden("a_raw_disk", &raw);
}

/// Servers of such disks are in `network_disks`; a cluster needs more than this host has.
#[test]
fn disks_on_the_network() {
    let tcp = json!({ "type": "nbd", "host": "storage.example", "export": "disks/vm-1", "port": 10810,
        "tls": { "credentials": "/etc/pki/qemu" }, "reconnectDelay": 30 });
    let unix = json!({ "type": "nbd", "path": "/run/nbd.sock", "tls": {
        "credentials": "/etc/pki/qemu", "hostname": "storage.example" } });
    let plain = json!({ "type": "nbd", "host": "2001:db8::1" });
    let disks = json!([{ "location": tcp }, { "location": unix, "bus": "scsi" },
        { "location": plain, "cache": "writeback", "discard": false }]);
    is_golden("nbd_disks", &json!({ "disks": disks }));
    let named = json!({ "type": "rbd", "pool": "vms", "namespace": "prod", "image": "vm-1",
        "user": "infini", "conf": "/etc/ceph/site.conf",
        "monitors": [{ "host": "10.0.0.1" }, { "host": "fd00::2", "port": 3300 }] });
    let short = json!({ "type": "rbd", "pool": "vms", "image": "vm-1, user=admin:key=\"x\"" });
    let disks = json!([{ "location": named }, { "location": short }]);
    is_golden("rbd_disks", &json!({ "disks": disks }));
}

#[test]
fn b8_a_raw_disk_that_looks_like_qcow2_stays_raw() {
    starts(
        json!({ "disks": [{ "sizeGB": 1, "format": "raw" }] }),
        |vm, monitor| {
            let nodes = monitor.ask("query-named-block-nodes", json!({ "flat": true }));
            let disk = nodes
                .as_array()
                .unwrap()
                .iter()
                .find(|node| node["node-name"] == "disk0");
            assert_eq!(disk.unwrap()["drv"], "raw");
            let head = fs::read(vm.dir.join("vm-1.raw")).unwrap();
            assert!(
                head.starts_with(b"QFI\xfb"),
                "the test's own image has no qcow2 magic"
            );
        },
    );
}

#[test]
fn a_thin_clone() {
    let disks = json!([{ "sizeGB": 1, "backingFile": "{dir}/golden.qcow2" }]);
    starts(json!({ "disks": disks }), |_, monitor| {
        let block = monitor.ask("query-block", json!({}));
        assert_eq!(block[0]["inserted"]["backing_file_depth"], 1);
    });
}

#[test]
fn thirty_two_disks_of_each_bus() {
    for bus in DiskBus::ALL {
        let disks = vec![json!({ "sizeGB": 1, "bus": bus.as_str() }); 32];
        starts(
            json!({ "disks": disks, "isoPath": "{dir}/installer.iso" }),
            |_, monitor| {
                let block = monitor.ask("query-block", json!({}));
                assert_eq!(block.as_array().unwrap().len(), 33);
            },
        );
    }
}

#[test]
fn memory_bound_to_a_host_node() {
    let nodes = Extra {
        host_nodes: vec![0],
        ..Extra::default()
    };
    starts_with(json!({}), &nodes, |_, monitor| {
        let memdev = &monitor.ask("query-memdev", json!({}))[0];
        assert_eq!(
            (&memdev["policy"], &memdev["host-nodes"]),
            (&json!("bind"), &json!([0]))
        );
    });
}

/// Whether this host has huge pages is its owner's business: with enough of them QEMU runs, without
/// it does not start, and says why.
#[test]
fn b13_hugepages_are_taken_or_the_start_fails() {
    let config = json!({ "hugepages": true });
    is_golden("hugepages", &config);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let free = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    if free.unwrap().trim().parse::<u64>().unwrap() >= 256 {
        return starts(config, |_, _| {});
    }
    private(move |dir| {
        let words = Vm::spawn(dir, &config, &Extra::default()).fails();
        assert!(words.contains("memory"), "{words}");
    });
}

#[test]
fn b3_a_directory_with_every_odd_character_adds_no_option() {
    let odd = "a b=c'd\"e{}:ä%s;$(id)\\";
    let isos = json!({ "isoPath": "{dir}/installer.iso", "virtioDriversIso": "{dir}/drivers.iso",
        "guestAgentSocketPath": "{dir}/ga.sock", "serialConsole": true, "tpmSocketPath": "{dir}/tpm.sock" });
    private(move |dir| {
        let dir = dir.join(odd);
        fs::create_dir(&dir).unwrap();
        let vm = Vm::spawn(&dir, &isos, &Extra::default());
        let mut monitor = vm.monitor();
        let block = monitor.ask("query-block", json!({}));
        assert_eq!(
            block[0]["inserted"]["file"],
            dir.join("vm-1.qcow2").to_str().unwrap()
        );
        vm.quits(monitor);
    });
}

/// A guest names its interface by the card's address and Windows binds its settings to it: neither
/// moves when other devices come and go.
#[test]
fn the_network_card_keeps_its_slot() {
    let busy = json!({ "memoryBalloon": true, "enableUsbTablet": true, "enableAudio": true,
        "guestAgentSocketPath": "{dir}/ga.sock" });
    for (machine, slot) in [("q35", 2), ("pc", 3)] {
        for mut config in [json!({}), busy.clone()] {
            config["machineType"] = machine.into();
            starts(config, move |_, monitor| {
                let buses = monitor.ask("query-pci", json!({}));
                let devices = buses[0]["devices"].as_array().unwrap();
                let nic = devices.iter().find(|device| device["qdev_id"] == "net0");
                assert_eq!(nic.unwrap()["slot"], slot, "on {machine}");
            });
        }
    }
}

#[test]
fn b35_passthrough_and_vhost_as_text() {
    // Neither is on every machine; the golden text is what QEMU ≥ 7.2 was seen to take.
    is_golden(
        "a_gpu_on_q35",
        &json!({ "gpuPciAddress": "01:00.0", "gpuRomfile": "/srv/roms/card.rom" }),
    );
    is_golden(
        "a_gpu_on_pc",
        &json!({ "gpuPciAddress": "0000:01:00.0", "machineType": "pc" }),
    );
    let extra = Extra {
        accelerator: Some(Accelerator::Kvm),
        vhost: true,
        ..Extra::default()
    };
    is_golden_with("kvm_and_vhost", &json!({ "networkQueues": 2 }), &extra);
}

#[test]
fn hotplug_finds_a_port_on_both_machines() {
    for (machine, bus) in [("q35", "hotplug0"), ("pc", "pci.0")] {
        starts(json!({ "machineType": machine }), move |_, monitor| {
            let node = json!({ "driver": "null-co", "node-name": "late0", "read-zeroes": true });
            monitor.ask("blockdev-add", node);
            let device =
                json!({ "driver": "virtio-blk-pci", "id": "late0", "drive": "late0", "bus": bus });
            monitor.ask("device_add", device);
        });
    }
}

#[test]
fn a_row_without_a_spec_starts() {
    private(|dir| {
        let id = VmId::parse("vm-1").unwrap();
        let columns = StoredColumns {
            disk_paths: Some(vec![dir.join("vm-1.qcow2").to_str().unwrap().to_owned()]),
            ..StoredColumns::new(id, "vm-1", "ubuntu", 2, 0.5)
        };
        let config = VmConfig::from_stored(&columns, None, &context(dir))
            .unwrap()
            .config;
        let vm = Vm::spawn_config(dir, &config, &Extra::default());
        let monitor = vm.monitor();
        vm.quits(monitor);
    });
}

/// The installer's CD boots while the disk is empty, and never again once it is not.
#[test]
fn the_installer_runs_once() {
    private(|dir| {
        let iso = kit::guest_dir()
            .canonicalize()
            .unwrap()
            .join("tiny-install.iso");
        let config =
            json!({ "isoPath": iso.to_str().unwrap(), "serialConsole": true, "cpuCores": 1 });
        let vm = Vm::spawn(dir, &config, &Extra::default());
        let console = UnixStream::connect(dir.join("vm-1-console.sock")).unwrap();
        console.set_read_timeout(Some(5 * PATIENCE)).unwrap();
        let mut monitor = vm.monitor();
        monitor.ask("cont", json!({}));
        let told = lines_until(&console, "INFZ-READY");
        let installed = told
            .iter()
            .filter(|line| line.contains("INFZ-INSTALLED"))
            .count();
        assert_eq!(installed, 1, "{told:#?}");
        vm.quits(monitor);
    });
}
