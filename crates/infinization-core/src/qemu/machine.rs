//! The machine itself: name, chipset, accelerator, sandbox, boot.

use super::Accelerator;
use super::args::Device;
use super::args::{Opts, ToArgs, json};
use crate::config::{GuestUuid, MachineType};
use crate::types::InternalName;
use serde::Serialize;

/// `-name`. The text after it is part of the process' identity: it is looked for in
/// `/proc/<pid>/cmdline`.
#[derive(Debug)]
pub(super) struct Name<'a> {
    pub(super) guest: &'a InternalName,
}

impl ToArgs for Name<'_> {
    fn to_args(&self) -> Vec<String> {
        vec!["-name".to_owned(), name_argument(self.guest)]
    }
}

/// The argument after `-name`, by which a process is proven to be a VM's QEMU.
pub fn name_argument(guest: &InternalName) -> String {
    // The type's alphabet has none of QEMU's separators.
    format!("guest={guest},debug-threads=on")
}

/// `-machine`.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) r#type: MachineType,
    /// System management mode, for Secure Boot; QEMU's default otherwise.
    pub(super) smm: bool,
    /// The object that is guest memory, when it is not plain.
    pub(super) memory_backend: Option<&'static str>,
    /// Whether the flash chips are `pflash0` and `pflash1`.
    pub(super) pflash: bool,
}

impl ToArgs for Machine {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-machine")
            .with("type", self.r#type.as_str())
            .with_some("smm", self.smm.then_some("on"))
            .with_some("memory-backend", self.memory_backend)
            .with_some("pflash0", self.pflash.then_some("pflash0"))
            .with_some("pflash1", self.pflash.then_some("pflash1"))
            .args()
    }
}

/// `-accel`.
impl ToArgs for Accelerator {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-accel").head(self.as_str()).args()
    }
}

/// `-uuid`.
impl ToArgs for GuestUuid {
    fn to_args(&self) -> Vec<String> {
        vec!["-uuid".to_owned(), self.to_string()]
    }
}

/// `-sandbox`: no obsolete system calls, no new privileges, no other programs, no resource limits.
/// `-daemonize` and `-runas` die under it (SIGSYS), so QEMU is detached and unprivileged before.
#[derive(Debug)]
pub(super) struct Sandbox;

impl ToArgs for Sandbox {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-sandbox")
            .head("on")
            .with("obsolete", "deny")
            .with("elevateprivileges", "deny")
            .with("spawn", "deny")
            .with("resourcecontrol", "deny")
            .args()
    }
}

/// `-boot strict=on`: only devices with a `bootindex` are booted from, never the network.
///
/// An installer CD comes after disk 0: it boots as long as the disk cannot, and the first reboot
/// after the installation comes up from the disk, under BIOS and UEFI alike. (`once=d` says the
/// same to BIOS only.)
#[derive(Debug)]
pub(super) struct Boot;

impl ToArgs for Boot {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-boot").on_off("strict", true).args()
    }
}

/// `pvpanic`: tells us that the guest's kernel gave up, which nothing else does.
#[derive(Debug, Serialize)]
#[serde(tag = "driver", rename = "pvpanic")]
pub(super) struct Pvpanic {
    id: &'static str,
}

impl Device for Pvpanic {}

impl Pvpanic {
    pub(super) const DEVICE: Self = Self { id: "pvpanic0" };
}

/// `-action panic=none`: the event is sent and the guest goes on; its own settings decide whether
/// it reboots.
#[derive(Debug)]
pub(super) struct Action;

impl ToArgs for Action {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-action").with("panic", "none").args()
    }
}

/// `-global` of a property every device of a driver has.
#[derive(Debug, Serialize)]
pub(super) struct Global {
    pub(super) driver: &'static str,
    pub(super) property: &'static str,
    pub(super) value: &'static str,
}

impl ToArgs for Global {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-global")
            .with("driver", self.driver)
            .with("property", self.property)
            .with("value", self.value)
            .args()
    }
}

/// `-object` in JSON form.
pub(super) fn object(value: &impl Serialize) -> Vec<String> {
    json("-object", value)
}
