//! What the host has, and what another machine has already.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;

use infinization_core::types::{VmId, VmNames};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

#[test]
fn b31_no_machine_gets_another_one_s_mac_address() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let derived = |vm_id: &str| VmNames::of(&VmId::parse(vm_id).unwrap()).mac;
        let machine = |vm_id: &str, mac: &str| {
            let mut machine = host.machine(vm_id);
            machine["macAddress"] = json!(mac);
            machine["displayPort"] = json!(5905);
            machine
        };
        let of_later = derived("mac-later").to_string().to_uppercase();
        stopped(&host, &manager, "mac-1").await;
        let given = machine("mac-2", &of_later);
        manager.create_vm(given, never()).await.unwrap();

        let taken = derived("mac-1").to_string();
        let later = host.machine("mac-later");
        for (machine, holder) in [
            (machine("mac-3", &taken), "mac-1"),
            (machine("mac-3", &of_later), "mac-2"),
            (later.clone(), "mac-2"),
        ] {
            let failure = refused(&host, &manager, machine).await;
            assert_eq!(failure.code(), ErrorCode::InvalidConfig);
            assert_eq!(fields(&failure), [("macAddress", "INVALID_CONFIG")]);
            assert!(failure.to_string().contains(holder), "{failure}");
        }
        let own = machine("mac-3", &derived("mac-3").to_string());
        manager.plan_vm(own).await.unwrap();
        start(&manager, "mac-1").await.unwrap();
        for vm_id in ["mac-1", "mac-2"] {
            delete(&manager, vm_id).await;
        }
        manager.plan_vm(later).await.unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b31_of_two_creates_at_once_only_one_gets_the_mac_address() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let machine = |vm_id: &str| {
            let mut machine = host.machine(vm_id);
            machine["macAddress"] = json!("52:54:00:b3:10:01");
            manager.create_vm(machine, never())
        };
        let (one, other) = tokio::join!(machine("mac-race-1"), machine("mac-race-2"));
        let (made, failure) = match (one, other) {
            (Ok(_), Err(failure)) => ("mac-race-1", failure),
            (Err(failure), Ok(_)) => ("mac-race-2", failure),
            both => panic!("one was to be refused: {both:?}"),
        };
        assert_eq!(fields(&failure), [("macAddress", "INVALID_CONFIG")]);
        assert!(failure.to_string().contains(made), "{failure}");
        delete(&manager, made).await;
        host.is_clean().await;
    });
}

#[test]
fn b32_a_link_that_is_no_bridge_is_refused() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for bridge in ["lo", "nosuchbr0"] {
            let mut machine = host.machine("bridge-1");
            machine["bridge"] = json!(bridge);
            let failure = refused(&host, &manager, machine).await;
            assert!(failure.has(ErrorCode::NetworkError), "{failure:?}");
            assert!(failure.has(ErrorCode::BridgeNotFound), "{failure:?}");
            assert_eq!(fields(&failure), [("bridge", "NETWORK_ERROR")]);
        }
        host.is_clean().await;
    });
}

/// The addresses of this machine's PCI functions, with their class codes.
fn functions() -> Vec<(String, String)> {
    let entries = fs::read_dir("/sys/bus/pci/devices");
    let entries = entries.into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let class = fs::read_to_string(entry.path().join("class")).unwrap();
            (entry.file_name().into_string().unwrap(), class)
        })
        .collect()
}

#[test]
fn b35_a_card_must_be_there_and_be_no_bridge() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let failure = async |address: &str| {
            let mut machine = host.machine("card-1");
            machine["gpuPciAddress"] = json!(address);
            refused(&host, &manager, machine).await
        };
        let absent = failure("0000:ff:1f.7").await;
        assert_eq!(absent.code(), ErrorCode::ResourceUnavailable);
        let said = [("gpuPciAddress", "RESOURCE_UNAVAILABLE")];
        assert_eq!(fields(&absent), said);
        // A machine without PCI has none; the table beside the code has all kinds.
        let bridges = functions().into_iter();
        for (address, _) in
            bridges.filter(|(_, class)| ["0x0600", "0x0604"].iter().any(|it| class.starts_with(it)))
        {
            let bridge = failure(&address).await;
            assert_eq!(bridge.code(), ErrorCode::InvalidConfig, "{address}");
            assert_eq!(fields(&bridge), [("gpuPciAddress", "INVALID_CONFIG")]);
        }
        host.is_clean().await;
    });
}

/// A file system whose server never answers. Dropping it lets go of everybody who waits for it.
struct DeadFileSystem {
    server: Option<File>,
    directory: tempfile::TempDir,
}

impl DeadFileSystem {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut fuse = OpenOptions::new();
        let server = fuse.read(true).write(true).open("/dev/fuse").unwrap();
        let none: Option<&str> = None;
        // Without this the mount would be seen by the host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            server.as_raw_fd()
        );
        let (name, kind) = (Some("dead"), Some("fuse"));
        let options = Some(options.as_str());
        mount(name, directory.path(), kind, MsFlags::empty(), options).unwrap();
        Self {
            server: Some(server),
            directory,
        }
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        drop(self.server.take());
        umount2(self.directory.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_dead_file_system_stalls_nobody_else() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let dead = DeadFileSystem::new();
        // More than the runtime has threads for tasks.
        let stuck = ["dead-1", "dead-2", "dead-3"].map(|vm_id| {
            let mut machine = host.machine(vm_id);
            machine["isoPath"] = json!(dead.directory.path().join("disc.iso"));
            let manager = manager.clone();
            tokio::spawn(async move { manager.create_vm(machine, never()).await })
        });
        create(&host, &manager, "quick-1").await;
        delete(&manager, "quick-1").await;
        for stuck in stuck {
            let failure = stuck.await.unwrap().unwrap_err();
            assert!(failure.has(ErrorCode::Timeout), "{failure:?}");
        }
        drop(dead);
        host.is_clean().await;
    });
}

#[test]
fn a_qemu_without_the_driver_is_told() {
    kit::in_private_network(|| async {
        without_rbd();
        let host = Host::new().await;
        let manager = host.manager().await;
        let at = json!({ "type": "rbd", "pool": "p", "image": "i" });
        let mut machine = host.machine("rbd-1");
        machine["disks"] = json!([{ "location": at }]);
        let absent = refused(&host, &manager, machine).await;
        assert_eq!(
            fields(&absent),
            [("disks[0].location", "RESOURCE_UNAVAILABLE")]
        );
        assert!(absent.to_string().contains("qemu-block-extra"), "{absent}");
    });
}

/// Hides the module, where it is installed, from this mount namespace.
fn without_rbd() {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let entries = fs::read_dir("/usr/lib").unwrap().flatten();
    let modules = entries.map(|entry| entry.path().join("qemu/block-rbd.so"));
    for module in modules.filter(|module| module.exists()) {
        mount(Some("/dev/null"), &module, none, MsFlags::MS_BIND, none).unwrap();
    }
}
