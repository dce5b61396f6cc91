use std::time::Duration;

use super::{AcceleratorChoice, PathRules, RunAsUser, words};
use crate::types::HostPath;

/// The plain-data half of `InfinizationConfig`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerConfig {
    /// Embedded store, specs, journals. Default `/var/lib/infinization`.
    pub state_dir: HostPath,
    /// Disks. Default `{stateDir}/disks`.
    pub disk_dir: HostPath,
    /// Sockets. Default `/var/run/infinization`, or `{stateDir}/run` when `stateDir` is given.
    pub socket_dir: HostPath,
    /// Pidfiles. Default `/var/run/infinization/pids`, or `{stateDir}/pids`.
    pub pid_dir: HostPath,
    /// `allowedPaths`, and `{stateDir}/roms`.
    pub path_rules: PathRules,
    /// The accelerator of VMs that do not name one. Default auto.
    pub accelerator: AcceleratorChoice,
    /// The user of VMs that do not name one, from the environment.
    pub run_as_user: Option<RunAsUser>,
    /// Only machines of this node are scanned. Default: all.
    pub node_id: Option<String>,
    /// How often VMs are checked. Default 30 s.
    pub health_monitor_interval: Duration,
    /// Whether `initialize()` starts the monitor. Default true.
    pub auto_start_health_monitor: bool,
    /// What to do on a kernel without connection tracking for bridges. Default fail.
    pub bridge_conntrack_mode: BridgeConntrackMode,
    /// Ports of the host every VM may reach. Default 4000/tcp.
    pub host_services: Vec<HostService>,
}

/// The environment variables the library reads, as they are set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `INFINIZATION_ACCEL`.
    pub accelerator: Option<String>,
    /// `INFINIZATION_QEMU_USER`.
    pub qemu_user: Option<String>,
    /// `INFINIZATION_BRIDGE_CONNTRACK_MODE`.
    pub bridge_conntrack_mode: Option<String>,
    /// `INFINIZATION_HOST_SERVICE_PORTS`, such as `4000/tcp,5353/udp`.
    pub host_service_ports: Option<String>,
}

words! {
    /// What to do on a kernel without connection tracking for bridges.
    pub enum BridgeConntrackMode {
        /// `initialize()` is refused.
        Fail = "fail",
        /// Rules are applied without connection state.
        Degrade = "degrade",
    }
}

words! {
    /// A transport protocol.
    pub enum Transport {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// A port of the host that every VM may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostService {
    /// TCP or UDP.
    pub protocol: Transport,
    /// 1 to 65535.
    pub port: u16,
}
