//! Machines of other shapes live as long and leave as little as the plain one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use infinization_core::ErrorCode;
use infinization_core::manager::Manager;
use infinization_test_kit as kit;
use kit::machine::{Host, consistent_status, delete, forced, never, pid_of, qemus};
use kit::tpm::Swtpm;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::{Value, json};

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// Creates, stops and starts the machine; `check` sees it in both its runs.
async fn lives(host: &Host, manager: &Manager, machine: Value, check: impl Fn(i32)) {
    let vm_id = machine["vmId"].as_str().unwrap().to_owned();
    let created = manager.create_vm(machine, never()).await.unwrap();
    assert_eq!(
        created["warnings"],
        json!([]),
        "nothing was taken otherwise"
    );
    check(pid_of(&created));
    let status = consistent_status(manager, &vm_id).await;
    assert_eq!(status["qmpStatus"], "running");

    manager
        .stop_vm(vm_id.clone(), forced(), never())
        .await
        .unwrap();
    assert_eq!(consistent_status(manager, &vm_id).await["status"], "off");
    assert_eq!(qemus(host.path()), Vec::<i32>::new());
    manager
        .start_vm(vm_id.clone(), Value::Null, never())
        .await
        .unwrap();
    let status = consistent_status(manager, &vm_id).await;
    assert_eq!(status["qmpStatus"], "running");
    check(pid_of(&status));
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8(bytes).unwrap().replace('\0', " ")
}

#[test]
fn a_card_that_is_not_virtio_takes_no_vhost() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for (vm_id, model, vhost) in [
            ("card-1", "e1000", false),
            (
                "card-2",
                "virtio-net-pci",
                Path::new("/dev/vhost-net").exists(),
            ),
        ] {
            let mut machine = host.machine(vm_id);
            machine["networkModel"] = json!(model);
            lives(&host, &manager, machine, |pid| {
                assert_eq!(holds(pid, "/dev/vhost-net"), vhost, "{model}");
            })
            .await;
            delete(&manager, vm_id).await;
        }
        host.is_clean().await;
    });
}

/// Whether the process has this file open.
fn holds(pid: i32, file: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.into_iter().any(|target| target == Path::new(file))
}

#[test]
fn a_machine_with_uefi_and_a_tpm_keeps_its_variables() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let tpm = Swtpm::new().await;
        let mut machine = host.machine("uefi-1");
        machine["uefiFirmware"] = json!(FIRMWARE);
        machine["tpmSocketPath"] = json!(tpm.socket());
        let vars = host.state_dir().join("disks/uefi-vars-uefi-1.fd");
        manager.create_vm(machine, never()).await.unwrap();
        let line = command_line(qemus(host.path())[0]);
        assert!(line.contains("uefi-vars-uefi-1.fd"), "{line}");
        assert!(
            line.contains("tpm-tis") || line.contains("tpm-crb"),
            "{line}"
        );
        manager
            .stop_vm("uefi-1".into(), forced(), never())
            .await
            .unwrap();

        let tpm = tpm.ended().await;
        let start = || manager.start_vm("uefi-1".into(), Value::Null, never());
        let failure = start().await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::ResourceUnavailable);
        assert_eq!(consistent_status(&manager, "uefi-1").await["status"], "off");
        let tpm = Swtpm::run_in(tpm).await;
        start().await.unwrap();
        assert_eq!(
            consistent_status(&manager, "uefi-1").await["qmpStatus"],
            "running"
        );
        let of_template = fs::metadata("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap();
        assert_eq!(fs::metadata(&vars).unwrap().len(), of_template.len());

        manager
            .stop_vm("uefi-1".into(), forced(), never())
            .await
            .unwrap();
        manager.destroy_vm("uefi-1".into()).await.unwrap();
        tpm.ended().await;
        assert!(vars.exists(), "the variables are the user's data");
        let disk = host.state_dir().join("disks/uefi-1.qcow2");
        assert!(disk.exists());
        delete(&manager, "uefi-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_deleted_machine_with_uefi_leaves_no_variables() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("uefi-2");
        machine["uefiFirmware"] = json!(FIRMWARE);
        lives(&host, &manager, machine, |_pid| {}).await;
        delete(&manager, "uefi-2").await;
        host.is_clean().await;
    });
}

fn nobody() -> (u32, u32) {
    let user = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    (user.uid.as_raw(), user.gid.as_raw())
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = path.symlink_metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

#[test]
fn a_machine_of_another_user_has_all_it_needs_and_no_more() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        // Others may pass through to the files they are given.
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let manager = host.manager().await;
        let mut machine = host.machine("user-1");
        machine["runAsUser"] = json!("nobody");
        machine["uefiFirmware"] = json!(FIRMWARE);
        machine["serialConsole"] = json!(true);
        machine["guestAgentSocketPath"] = json!(host.path().join("user-1-ga.sock"));
        lives(&host, &manager, machine, |pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let (uid, gid) = nobody();
            for (field, id) in [("Uid:", uid), ("Gid:", gid)] {
                let line = status.lines().find(|line| line.starts_with(field)).unwrap();
                let ids: Vec<&str> = line.split_whitespace().skip(1).collect();
                assert_eq!(ids, vec![id.to_string(); 4], "{line}");
            }
            let effective = status.lines().find(|line| line.starts_with("CapEff:"));
            assert_eq!(effective, Some("CapEff:\t0000000000000000"));
            let state = host.state_dir();
            for path in [
                state.join("disks/user-1.qcow2"),
                state.join("disks/uefi-vars-user-1.fd"),
                state.join("run/user-1.sock"),
                state.join("run/user-1-console.sock"),
                host.path().join("user-1-ga.sock"),
            ] {
                assert_eq!(owner(&path), nobody(), "{}", path.display());
                let mode = path.symlink_metadata().unwrap().mode() & 0o777;
                assert_eq!(mode & 0o007, 0, "{} is {mode:o}", path.display());
            }
        })
        .await;
        delete(&manager, "user-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_with_spice_and_a_password_tells_the_password_nobody() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("spice-1");
        machine["displayType"] = json!("spice");
        machine["displayPassword"] = json!("s3cr3t-w0rd");
        let plan = manager.plan_vm(machine.clone()).await.unwrap();
        assert!(!plan.to_string().contains("s3cr3t-w0rd"));
        lives(&host, &manager, machine, |pid| {
            let line = command_line(pid);
            assert!(line.contains("spice"), "{line}");
            assert!(!line.contains("disable-ticketing"), "{line}");
            assert!(!line.contains("s3cr3t-w0rd"));
        })
        .await;
        for file in host.files() {
            // A disk is not a text, and sockets cannot be read.
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains("s3cr3t-w0rd"), "{}", file.display());
        }
        let row = manager.get_vm("spice-1".into()).await.unwrap();
        assert_eq!(row["displayType"], "spice");
        assert!(!row.to_string().contains("s3cr3t-w0rd"));
        delete(&manager, "spice-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_with_a_vnc_password_starts_again_with_it() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("vncpw-1");
        machine["displayPassword"] = json!("s3cr3t");
        lives(&host, &manager, machine, |pid| {
            let line = command_line(pid);
            assert!(line.contains("password=on"), "{line}");
            assert!(!line.contains("s3cr3t"));
        })
        .await;
        delete(&manager, "vncpw-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_with_two_queues_has_a_tap_of_two() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("queue-1");
        machine["cpuCores"] = json!(2);
        machine["networkQueues"] = json!(2);
        lives(&host, &manager, machine, |pid| {
            let line = command_line(pid);
            assert!(
                line.contains("mq=on") || line.contains("\"mq\":true"),
                "{line}"
            );
            let taps = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let taps = taps.filter(|fd| {
                fs::read_link(fd.path()).is_ok_and(|target| target == Path::new("/dev/net/tun"))
            });
            assert_eq!(taps.count(), 2);
        })
        .await;
        let links = host.links.list().await.unwrap();
        let tun = links.iter().find_map(|link| link.tun.as_ref()).unwrap();
        assert!(tun.multi_queue);
        delete(&manager, "queue-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_machine_with_a_raw_disk() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("raw-1");
        machine["disks"] = json!([{ "sizeGB": 1, "format": "raw" }, { "sizeGB": 2 }]);
        lives(&host, &manager, machine, |_pid| {}).await;
        let row = manager.get_vm("raw-1".into()).await.unwrap();
        let disks = row["diskPaths"].as_array().unwrap();
        assert_eq!(disks.len(), 2);
        let raw = fs::metadata(disks[0].as_str().unwrap()).unwrap();
        assert_eq!(raw.len(), 1 << 30);
        assert!(raw.blocks() < 2048, "it is sparse");
        delete(&manager, "raw-1").await;
        host.is_clean().await;
    });
}

#[test]
fn a_pinned_machine_runs_its_cpus_where_it_was_told() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let mut machine = host.machine("pin-1");
        machine["cpuPinning"] = json!([0]);
        lives(&host, &manager, machine, |pid| {
            let vcpus = cpus_of_vcpus(pid);
            assert_eq!(vcpus, ["0"], "the CPU threads' allowed CPUs");
        })
        .await;
        delete(&manager, "pin-1").await;
        host.is_clean().await;
    });
}

/// This host's nodes are what they are: the choice among many has tables, here QEMU is bound to what there is.
#[test]
fn f46_a_machine_near_its_memory_is_bound_to_the_nodes_of_its_cpus() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        for (id, strategy) in [("numa-1", "basic"), ("numa-2", "hybrid")] {
            let mut machine = host.machine(id);
            machine["enableNumaCtlPinning"] = json!(true);
            machine["cpuPinningStrategy"] = json!(strategy);
            lives(&host, &manager, machine, |pid| {
                let line = command_line(pid);
                assert!(line.contains(r#""policy":"bind""#), "{line}");
                let vcpus = cpus_of_vcpus(pid);
                assert!(
                    vcpus.iter().all(|cpus| cpus.parse::<u32>().is_ok()),
                    "{vcpus:?}"
                );
            })
            .await;
            delete(&manager, id).await;
        }
        host.is_clean().await;
    });
}

/// `Cpus_allowed_list` of every vCPU's thread.
fn cpus_of_vcpus(pid: i32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads
        .filter_map(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name))?;
                Some(line[name.len()..].trim().to_owned())
            };
            let is_vcpu = field("Name:")?.starts_with("CPU ");
            is_vcpu.then(|| field("Cpus_allowed_list:"))?
        })
        .collect()
}

/// QEMU 7.2 aborts on `vhost=on` without `/dev/vhost-net`: the device is looked for first.
#[test]
fn a_refused_combination_vhost_without_its_device() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        hide_devices_but(&host.path().join("dev"), &["null", "urandom", "net/tun"]);
        assert!(!Path::new("/dev/vhost-net").exists());
        let manager = host.manager().await;
        let mut machine = host.machine("queue-2");
        machine["cpuCores"] = json!(2);
        machine["networkQueues"] = json!(2);
        lives(&host, &manager, machine, |pid| {
            let line = command_line(pid);
            assert!(!line.contains("vhost"), "{line}");
            assert!(!holds(pid, "/dev/vhost-net"));
        })
        .await;
        delete(&manager, "queue-2").await;
        unhide_devices(&host.path().join("dev"));
        host.is_clean().await;
    });
}

/// Shows this test's threads a `/dev` with nothing but `devices`, which is made at `stand_in`.
fn hide_devices_but(stand_in: &Path, devices: &[&str]) {
    let none: Option<&str> = None;
    // Without this the mount would be seen by the host.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for name in devices {
        let device = stand_in.join(name);
        fs::create_dir_all(device.parent().unwrap()).unwrap();
        let number = fs::metadata(Path::new("/dev").join(name)).unwrap().rdev();
        mknod(
            &device,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            number,
        )
        .unwrap();
    }
    // `nft -f -` reads it by this name.
    std::os::unix::fs::symlink("/proc/self/fd/0", stand_in.join("stdin")).unwrap();
    mount(Some(stand_in), "/dev", none, MsFlags::MS_BIND, none).unwrap();
}

fn unhide_devices(stand_in: &Path) {
    umount2("/dev", MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir_all(stand_in).unwrap();
}
