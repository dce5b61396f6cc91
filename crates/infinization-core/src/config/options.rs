use std::time::Duration;

use crate::types::FirewallDefaultAction;

/// What `startVM` is asked beside the VM's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartOptions {
    /// Return only when the guest answers.
    pub wait_for_boot: bool,
    /// How long to wait for that. Default 60 s.
    pub boot_timeout: Duration,
    /// Overrules the VM's own and the department's, for this run.
    pub firewall_default_action: Option<FirewallDefaultAction>,
    /// Runs QEMU without its seccomp filter, for this run.
    pub disable_sandbox: bool,
}

/// What `stopVM` is asked beside the VM's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOptions {
    /// Ask the guest to shut down first.
    pub graceful: bool,
    /// How long the guest may take. Default 30 s.
    pub timeout: Duration,
    /// End QEMU when the guest did not shut down in time.
    pub force: bool,
}
