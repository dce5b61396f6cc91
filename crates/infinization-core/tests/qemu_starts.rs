//! Real QEMU takes every command line we write: one test per feature and per combination that is
//! easily written in a form QEMU refuses. Each compares the text with `golden/<name>.txt`, starts
//! it (TCG, stopped, descriptors really passed) and asks its monitor for the status.
//!
//! `UPDATE_GOLDEN=1 cargo test --test qemu_starts` rewrites the texts.

mod kit;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use infinization_core::config::{
    AcceleratorChoice, Context, DiskBus, PathRules, StoredColumns, VmConfig,
};
use infinization_core::qemu::{
    Accelerator, Acquired, ChannelListeners, DisplayEndpoint, FirmwareFiles, QemuCommand,
    SerialConsole,
};
use infinization_core::types::{ByteSize, HostPath, VmId};
use serde_json::{Value, json};

/// Longer than QEMU ever takes to answer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

// ---- features ----

/// Checks the golden text of a feature and starts it.
fn works(name: &'static str, config: Value) {
    is_golden(name, &config);
    starts(config, |_, _| {});
}

#[test]
fn ubuntu_over_spice() {
    works("ubuntu_over_spice", json!({}));
}

#[test]
fn spice_with_a_password() {
    works(
        "spice_with_a_password",
        json!({ "displayPassword": "hunter2" }),
    );
}

#[test]
fn vnc() {
    works("vnc", json!({ "displayType": "vnc" }));
}

#[test]
fn vnc_with_a_password() {
    let vnc =
        json!({ "displayType": "vnc", "displayPassword": "hunter2", "displayAddr": "0.0.0.0" });
    works("vnc_with_a_password", vnc);
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

// ---- one VM ----

const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// What is acquired beyond what the configuration asks for.
#[derive(Debug, Clone, Default)]
struct Extra {
    accelerator: Option<Accelerator>,
    host_nodes: Vec<u32>,
    vhost: bool,
}

/// Runs QEMU in a private network with `config` over the smallest VM; `{dir}` in a value is the
/// scratch directory.
fn starts(config: Value, check: impl Fn(&Vm, &mut Monitor) + Send + 'static) {
    starts_with(config, &Extra::default(), check);
}

fn starts_with(config: Value, extra: &Extra, check: impl Fn(&Vm, &mut Monitor) + Send + 'static) {
    let extra = extra.clone();
    private(move |dir| {
        let vm = Vm::spawn(dir, &config, &extra);
        let mut monitor = vm.monitor();
        check(&vm, &mut monitor);
        vm.quits(monitor);
    });
}

/// A scratch directory and a network of one's own, so that every VM may have port 5900.
fn private(test: impl FnOnce(&Path) + Send + 'static) {
    kit::in_private_network(async move || {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        test(dir.path());
    });
}

/// One running QEMU. Dropping it ends it.
struct Vm {
    dir: PathBuf,
    child: Child,
    _swtpm: Option<Swtpm>,
}

/// Descriptors are made inheritable just before a spawn; no other spawn may come between.
static SPAWN: Mutex<()> = Mutex::new(());

impl Vm {
    fn spawn(dir: &Path, overrides: &Value, extra: &Extra) -> Self {
        Self::spawn_config(dir, &parse(dir, overrides), extra)
    }

    fn spawn_config(dir: &Path, config: &VmConfig, extra: &Extra) -> Self {
        make_files(dir, config);
        let swtpm = config.tpm_socket.as_ref().map(|_| Swtpm::start(dir));
        let alone = SPAWN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handed = Vec::new();
        let acquired = acquire(dir, config, extra, &mut handed);
        let command = QemuCommand::new(config, &acquired);
        let mut process = Command::new(&command.binary);
        process
            .args(&command.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if config.run_as_user.is_some() {
            process.uid(65534).gid(65534);
        }
        let stderr = fs::File::create(dir.join("stderr")).unwrap();
        let child = process.stderr(stderr).spawn().unwrap();
        drop((handed, alone));
        Self {
            dir: dir.to_owned(),
            child,
            _swtpm: swtpm,
        }
    }

    fn monitor(&self) -> Monitor {
        let stream = UnixStream::connect(self.dir.join("vm-1.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Monitor {
            stream: BufReader::new(stream),
            stderr: self.dir.join("stderr"),
        };
        monitor.line().unwrap_or_else(|| monitor.ended());
        monitor.ask("qmp_capabilities", json!({}));
        let status = monitor.ask("query-status", json!({}));
        assert_eq!(status["status"], "prelaunch");
        monitor
    }

    fn quits(mut self, mut monitor: Monitor) {
        monitor.ask("quit", json!({}));
        while monitor.line().is_some() {}
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.words());
        assert_eq!(self.words(), "", "QEMU complained");
    }

    /// What QEMU says when it must not start.
    fn fails(mut self) -> String {
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "QEMU started");
        self.words()
    }

    /// What QEMU has written for people; only once it has ended.
    fn words(&self) -> String {
        fs::read_to_string(self.dir.join("stderr")).unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Ours and not yet reaped, or already gone.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A QMP conversation, without a client of ours in between.
struct Monitor {
    stream: BufReader<UnixStream>,
    stderr: PathBuf,
}

impl Monitor {
    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").unwrap();
        loop {
            let mut reply = self.line().unwrap_or_else(|| self.ended());
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(answer) = reply.get_mut("return") {
                return answer.take();
            }
        }
    }

    fn ended(&self) -> ! {
        panic!("QEMU ended: {}", fs::read_to_string(&self.stderr).unwrap());
    }

    /// The next reply or event; `None` when QEMU is gone.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the monitor is silent: {error}"),
        }
    }
}

/// A TPM emulator, which ends with its QEMU.
struct Swtpm {
    state: tempfile::TempDir,
}

impl Swtpm {
    /// `--daemon` returns when the socket is there. The socket's path is relative, because swtpm
    /// splits its options at commas and the test's directory may hold anything.
    fn start(dir: &Path) -> Self {
        let state = tempfile::tempdir().unwrap();
        let at = state.path().display();
        let started = Command::new("swtpm")
            .current_dir(dir)
            .args(["socket", "--tpm2", "--daemon", "--terminate"])
            .args(["--ctrl", "type=unixio,path=tpm.sock"])
            .args(["--tpmstate", &format!("dir={at}")])
            .args(["--pid", &format!("file={at}/pid")])
            .status()
            .unwrap();
        assert!(started.success());
        Self { state }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // It removes its pidfile when it ends by itself.
        if let Ok(pid) = fs::read_to_string(self.state.path().join("pid")) {
            let _gone = Command::new("kill").arg(pid.trim()).status();
        }
    }
}

/// Reads a console until a line holds `mark`.
fn lines_until(console: &UnixStream, mark: &str) -> Vec<String> {
    let mut told = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        told.push(String::from_utf8_lossy(&line.unwrap()).trim().to_owned());
        if told.last().unwrap().contains(mark) {
            break;
        }
    }
    told
}

// ---- what a plan would acquire ----

fn acquire(dir: &Path, config: &VmConfig, extra: &Extra, handed: &mut Vec<OwnedFd>) -> Acquired {
    let mut listen = |path: &HostPath| {
        let listener = UnixListener::bind(path.as_path()).unwrap();
        hand_over(listener.into(), handed)
    };
    let qmp = listen(&config.paths.qmp_socket);
    let channels = ChannelListeners {
        guest_agent: config.channels.guest_agent.as_ref().map(&mut listen),
        infini_service: config.channels.infini_service.as_ref().map(&mut listen),
        serial_console: config
            .channels
            .serial_console
            .as_ref()
            .map(|path| SerialConsole {
                listener: listen(path),
                log: host_path(dir, "console.log"),
            }),
    };
    let queues = config.network.queues;
    Acquired {
        qmp,
        channels,
        tap: (0..queues)
            .map(|_| hand_over(open_tap(queues > 1), handed))
            .collect(),
        ..planned(config, extra)
    }
}

/// What needs no descriptor.
fn planned(config: &VmConfig, extra: &Extra) -> Acquired {
    Acquired {
        accelerator: extra.accelerator.unwrap_or(Accelerator::Tcg),
        display: DisplayEndpoint {
            address: config.display.address.clone(),
            port: config.display.port,
        },
        qmp: -1,
        tap: Vec::new(),
        vhost: Vec::new(),
        channels: ChannelListeners::default(),
        firmware: config.firmware.as_ref().map(|firmware| FirmwareFiles {
            code: firmware.code.clone(),
            vars: firmware.vars.clone(),
        }),
        tpm_socket: config.tpm_socket.clone(),
        host_nodes: extra.host_nodes.clone(),
    }
}

/// Lets the next child inherit `fd` under its number here.
fn hand_over(fd: OwnedFd, handed: &mut Vec<OwnedFd>) -> RawFd {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let number = fd.as_raw_fd();
    handed.push(fd);
    number
}

/// A queue of the private network's one TAP.
fn open_tap(multi_queue: bool) -> OwnedFd {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let queue_flag = if multi_queue {
        libc::IFF_MULTI_QUEUE
    } else {
        0
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queue_flag;
    // SAFETY: `ifreq` is plain old data, for which all zero is a value.
    #[expect(unsafe_code, reason = "TUNSETIFF has no safe binding")]
    let outcome = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap-test") {
            *to = libc::c_char::try_from(*from).unwrap();
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request)
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
    file.into()
}

fn make_files(dir: &Path, config: &VmConfig) {
    for iso in ["installer.iso", "drivers.iso"] {
        fs::write(dir.join(iso), vec![0; 1 << 20]).unwrap();
    }
    for disk in &config.disks {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if let Some(golden) = &disk.backing_file {
            make_image(
                Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]),
                golden,
            );
            create.args(["-F", "qcow2", "-b", golden.as_str()]);
        }
        // Raw disks too: a guest may have written a qcow2 header into its own disk.
        make_image(&mut create, &disk.path);
    }
    if let Some(firmware) = &config.firmware {
        let templates = firmware.vars_templates().unwrap();
        let template = templates.iter().find(|path| path.as_path().exists());
        fs::copy(template.unwrap(), &firmware.vars).unwrap();
    }
}

fn make_image(create: &mut Command, path: &HostPath) {
    assert!(
        create
            .args([path.as_str(), "64M"])
            .status()
            .unwrap()
            .success()
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
}

// ---- configurations and golden texts ----

/// The smallest VM the contract takes, with `overrides`; `{dir}` stands for `dir`.
fn parse(dir: &Path, overrides: &Value) -> VmConfig {
    let mut value = json!({
        "vmId": "vm-1", "name": "one", "internalName": "vm-1", "os": "ubuntu", "cpuCores": 2,
        "ramGB": 0.5, "disks": [{ "sizeGB": 1 }], "bridge": "br0", "displayType": "spice",
        "displayPort": 5900, "networkQueues": 1,
    });
    for (key, given) in overrides.as_object().unwrap() {
        value[key] = with_dir(dir, given);
    }
    VmConfig::parse(&value, &context(dir)).unwrap().config
}

fn with_dir(dir: &Path, value: &Value) -> Value {
    match value {
        Value::String(text) => text.replace("{dir}", dir.to_str().unwrap()).into(),
        Value::Array(items) => items.iter().map(|item| with_dir(dir, item)).collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, field)| (key.clone(), with_dir(dir, field)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

fn context(dir: &Path) -> Context {
    let dir = HostPath::parse(dir.to_str().unwrap()).unwrap();
    Context {
        disk_dir: dir.clone(),
        socket_dir: dir.clone(),
        pid_dir: dir,
        path_rules: PathRules {
            allowed: None,
            rom_dir: HostPath::parse("/srv/roms").unwrap(),
        },
        accelerator: AcceleratorChoice::Tcg,
        run_as_user: None,
        host_cpus: 64,
        host_memory: ByteSize::mib(64 * 1024),
        hugepage_size: ByteSize::mib(2),
    }
}

fn host_path(dir: &Path, name: &str) -> HostPath {
    HostPath::parse(dir.join(name).to_str().unwrap()).unwrap()
}

fn is_golden(name: &str, overrides: &Value) {
    is_golden_with(name, overrides, &Extra::default());
}

/// The text is that of a VM in /srv/vms whose descriptors count up from 3.
fn is_golden_with(name: &str, overrides: &Value, extra: &Extra) {
    let dir = Path::new("/srv/vms");
    let config = parse(dir, overrides);
    let queues = RawFd::from(config.network.queues);
    let channels = &config.channels;
    let acquired = Acquired {
        qmp: 3,
        channels: ChannelListeners {
            guest_agent: channels.guest_agent.as_ref().map(|_| 4),
            infini_service: channels.infini_service.as_ref().map(|_| 5),
            serial_console: channels.serial_console.as_ref().map(|_| SerialConsole {
                listener: 6,
                log: host_path(dir, "console.log"),
            }),
        },
        tap: (10..10 + queues).collect(),
        vhost: (20..20 + queues).filter(|_| extra.vhost).collect(),
        ..planned(&config, extra)
    };
    let text = format!("{}\n", QemuCommand::new(&config, &acquired));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let golden = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, golden, "tests/golden/{name}.txt differs");
}
