//! Configurations over the smallest VM, and the texts they make.

use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

use infinization_core::config::{AcceleratorChoice, Context, PathRules, VmConfig};
use infinization_core::qemu::{Acquired, ChannelListeners, QemuCommand, SerialConsole};
use infinization_core::types::{ByteSize, HostPath};
use serde_json::{Value, json};

use crate::acquire::{Extra, planned};

/// The smallest VM the contract takes, with `overrides`; `{dir}` stands for `dir`.
pub(crate) fn parse(dir: &Path, overrides: &Value) -> VmConfig {
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

pub(crate) fn context(dir: &Path) -> Context {
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

pub(crate) fn host_path(dir: &Path, name: &str) -> HostPath {
    HostPath::parse(dir.join(name).to_str().unwrap()).unwrap()
}

pub(crate) fn is_golden(name: &str, overrides: &Value) {
    is_golden_with(name, overrides, &Extra::default());
}

/// The text is that of a VM in /srv/vms whose descriptors count up from 3.
pub(crate) fn is_golden_with(name: &str, overrides: &Value, extra: &Extra) {
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
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/qemu_starts/golden/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let golden = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, golden, "tests/qemu_starts/golden/{name}.txt differs");
}
