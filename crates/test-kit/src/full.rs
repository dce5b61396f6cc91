//! A machine that has everything a create and a start have a step for: firmware with variables of its own, a
//! TPM, a password, pinned CPUs, every channel, a console, a user to drop to, two disks of which one is
//! encrypted and has its key in the store, two queues, and a rule.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use infinization_core::host::qemu_img::{CreateImage, Encryption, Job, create};
use infinization_core::manager::Manager;
use infinization_core::types::{ByteSize, DiskKey, HostPath};
use serde_json::{Value, json};

use super::machine::{Host, qemus};
use super::tpm::Swtpm;

pub const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const KEY: &str = "a-key-nobody-guesses";
const PASSWORD: &str = "s3cr3t-w";

/// A host for such machines.
pub struct FullHost {
    pub host: Host,
    pub tpm: Swtpm,
}

impl FullHost {
    pub async fn new() -> Self {
        let host = Host::new().await;
        // Others may pass through to the files they are given.
        fs::set_permissions(host.path(), Permissions::from_mode(0o711)).unwrap();
        let tpm = Swtpm::new().await;
        Self { host, tpm }
    }

    /// What makes its store keep the keys of disks.
    pub fn settings(&self) -> Value {
        let mut settings = self.host.settings();
        settings["secretsKey"] = json!("5a".repeat(32));
        settings
    }

    pub async fn manager(&self) -> Manager {
        let manager = Manager::new(self.settings());
        manager.initialize().await.unwrap();
        manager
    }

    pub fn machine(&self, vm_id: &str) -> Value {
        let socket = |end: &str| json!(self.host.path().join(format!("{vm_id}-{end}.sock")));
        let mut machine = self.host.machine(vm_id);
        let full = json!({
            "cpuCores": 2,
            "networkQueues": 2,
            "disks": [{ "sizeGB": 1 }, { "sizeGB": 1, "encryptionKey": KEY }],
            "displayPassword": PASSWORD,
            "cpuPinning": [0],
            "uefiFirmware": FIRMWARE,
            "tpmSocketPath": self.tpm.socket(),
            "guestAgentSocketPath": socket("ga"),
            "infiniServiceSocketPath": socket("is"),
            "serialConsole": true,
            "runAsUser": "nobody",
            "firewallRules": [{
                "id": "1", "name": "web", "action": "ACCEPT", "direction": "IN", "priority": 10,
                "protocol": "tcp", "dstPortStart": 80,
            }],
        });
        let full = full.as_object().unwrap().clone();
        machine.as_object_mut().unwrap().extend(full);
        machine
    }

    /// A TPM for the next QEMU.
    pub async fn tpm_again(self) -> Self {
        let tpm = self.tpm.again().await;
        Self { tpm, ..self }
    }

    /// The TPM has ended with its QEMU; another one waits for the next.
    pub async fn tpm_ended(self) -> Self {
        let tpm = Swtpm::run_in(self.tpm.ended().await).await;
        Self { tpm, ..self }
    }

    /// Asserts that no file but an image, and nothing the kernel shows of a QEMU, holds a secret, and that
    /// what QEMU is given is closed to others.
    pub fn keeps_its_secrets(&self, at: &str) {
        let directory = self.host.path();
        let mut seen: Vec<PathBuf> = all_files(directory);
        seen.retain(|file| !file.starts_with(directory.join("state/disks")));
        for pid in qemus(directory) {
            seen.extend(["cmdline", "environ"].map(|file| format!("/proc/{pid}/{file}").into()));
        }
        for file in seen {
            // A process may end and a socket cannot be read.
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            for secret in [KEY, PASSWORD] {
                assert!(!text.contains(secret), "{at}: {} tells", file.display());
            }
        }
        for file in all_files(&directory.join("state/disks")) {
            let mode = fs::metadata(&file).map_or(0, |it| it.permissions().mode());
            assert_eq!(mode & 0o007, 0, "{at}: {} is {mode:o}", file.display());
        }
    }

    /// Asserts that nothing of a machine is left where [`Host::is_clean`] does not look: sockets without a file, elements
    /// of the dispatch, cgroups.
    pub fn has_no_trace(&self, vm_id: &str, at: &str) {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        let scratch = self.host.path().to_str().unwrap();
        let of_ours = sockets.lines().filter(|line| line.contains(scratch));
        assert_eq!(of_ours.collect::<Vec<_>>(), Vec::<&str>::new(), "{at}");
        assert!(!ruleset().contains("vnet-"), "{at}: {}", ruleset());
        let scope = format!("/sys/fs/cgroup/infinization.slice/qemu-{vm_id}.scope");
        assert!(!Path::new(&scope).exists(), "{at}: {scope} is left");
    }
}

/// The whole ruleset, elements of maps included; what ports of VMs are matched by in general left out.
pub fn ruleset() -> String {
    let mut nft = Command::new("nft");
    let listed = nft.args(["-s", "list", "ruleset"]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.replace("\"vnet-*\"", "any port")
}

fn all_files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => all_files(&entry.path()),
        _ => vec![entry.path()],
    });
    below.collect()
}

/// A `qemu-img` that gives an encrypted disk in a moment: measuring how fast keys are derived takes it a second of
/// a core each time. The image it gives is one that it made before.
pub struct QuickKeys(tempfile::TempDir);

impl QuickKeys {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("encrypted.qcow2");
        let encryption = Encryption {
            key: DiskKey::try_from(KEY.to_owned()).unwrap(),
            iter_time: Some(Duration::from_millis(10)),
        };
        let path = HostPath::parse(image.to_str().unwrap()).unwrap();
        let new = CreateImage {
            encryption: Some(encryption),
            ..CreateImage::new(path, ByteSize::mib(1024))
        };
        create(&new, &Job::default()).await.unwrap();
        let script = directory.path().join("qemu-img");
        fs::write(&script, quick_script(&image)).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    /// The `PATH` it is first in.
    pub fn path(&self) -> OsString {
        let here = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(self.0.path().to_owned()).chain(std::env::split_paths(&here));
        std::env::join_paths(all).unwrap()
    }
}

/// The image's path is the last argument but one.
fn quick_script(image: &Path) -> String {
    let image = image.display();
    let path = std::env::var("PATH").unwrap();
    format!(
        "#!/bin/sh\n\
         PATH='{path}'\n\
         case \"$*\" in *encrypt.format=luks*) ;; *) exec qemu-img \"$@\" ;; esac\n\
         while [ $# -gt 2 ]; do shift; done\n\
         cat > /dev/null\n\
         exec cat '{image}' > \"$1\"\n"
    )
}
