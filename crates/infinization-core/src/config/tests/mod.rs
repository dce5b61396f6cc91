//! The doors as their users see them: what is taken, what is refused, and under which name.

mod create;
mod manager;
mod stored;

use serde_json::{Value, json};

use super::*;
use crate::types::{ByteSize, HostPath};

fn path(text: &str) -> HostPath {
    HostPath::parse(text).unwrap()
}

fn context() -> Context {
    Context {
        disk_dir: path("/srv/disks"),
        socket_dir: path("/run/vms"),
        pid_dir: path("/run/vms/pids"),
        path_rules: PathRules {
            allowed: Some(vec![path("/srv/disks"), path("/srv/isos")]),
            rom_dir: path("/srv/roms"),
        },
        accelerator: AcceleratorChoice::Auto,
        run_as_user: Some(RunAsUser::parse("qemu").unwrap()),
        host_cpus: 8,
        host_memory: ByteSize::mib(16 * 1024),
        hugepage_size: ByteSize::mib(2),
    }
}

fn with(overrides: &Value) -> Value {
    let mut value = json!({
        "vmId": "vm-1", "name": "one", "internalName": "vm-1", "os": "ubuntu", "cpuCores": 2,
        "ramGB": 2, "disks": [{ "sizeGB": 20 }], "bridge": "br0", "displayType": "spice",
        "displayPort": 5901,
    });
    for (key, given) in overrides.as_object().unwrap() {
        value[key] = given.clone();
    }
    value
}

fn taken(overrides: &Value) -> Parsed {
    VmConfig::parse(&with(overrides), &context()).unwrap()
}

fn refused(overrides: &Value) -> Vec<String> {
    let error = VmConfig::parse(&with(overrides), &context()).unwrap_err();
    error.issues.into_iter().map(|issue| issue.path).collect()
}

fn warned<T>(parsed: &Parsed<T>) -> Vec<&str> {
    let warnings = parsed.warnings.iter();
    warnings.map(|warning| warning.path.as_str()).collect()
}
