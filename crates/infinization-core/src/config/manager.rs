//! What the whole library is told once: `InfinizationConfig` and the environment.
//!
//! A typed field wins over the environment, the environment over the default.

use std::time::Duration;

use serde_json::Value;

use super::fields::{
    Fields, Report, elements, integer_in, milliseconds, parsed, string, words_of_text,
};
use super::{
    AcceleratorChoice, ConfigError, Context, LONGEST_SOCKET_PATH, Parsed, PathRules, RunAsUser,
    words,
};
use crate::secrets::SecretsKey;
use crate::types::{ByteSize, HostPath, InvalidValue};

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
    /// How long one answer of the user's own database may take. Default 20 s.
    pub database_timeout: Duration,
    /// How often VMs are checked. Default 30 s.
    pub health_monitor_interval: Duration,
    /// Whether `initialize()` starts the monitor. Default true.
    pub auto_start_health_monitor: bool,
    /// What to do on a kernel without connection tracking for bridges. Default fail.
    pub bridge_conntrack_mode: BridgeConntrackMode,
    /// Ports of the host every VM may reach. Default 4000/tcp.
    pub host_services: Vec<HostService>,
    /// Where the firewall's table is kept. Default: nowhere.
    pub firewall_persistence_dir: Option<HostPath>,
    /// Encrypts the embedded store's secrets. Default: none are encrypted, and no disk's key is kept.
    pub secrets_key: Option<SecretsKey>,
}

/// The environment variables the library reads, as they are set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `INFINIZATION_ACCEL`.
    pub accelerator: Option<String>,
    /// `INFINIZATION_QEMU_USER`.
    pub qemu_user: Option<String>,
    /// `INFINIZATION_BRIDGE_CONNTRACK_MODE`: `degrade`, or anything else for fail.
    pub bridge_conntrack_mode: Option<String>,
    /// `INFINIZATION_HOST_SERVICE_PORTS`, such as `4000/tcp,5353/udp`.
    pub host_service_ports: Option<String>,
    /// `INFINIZATION_FIREWALL_PERSISTENCE_DIR`.
    pub firewall_persistence_dir: Option<String>,
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

/// What a [`Context`] needs to know of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// One more than the highest CPU number.
    pub cpus: u32,
    /// All of its memory.
    pub memory: ByteSize,
    /// The size of the default huge page.
    pub hugepage_size: ByteSize,
}

const STATE_DIR: &str = "/var/lib/infinization";
const RUN_DIR: &str = "/var/run/infinization";
pub(super) const RUN_PID_DIR: &str = "/var/run/infinization/pids";
/// The consumer's own API port, which its guests' agents call.
const DEFAULT_SERVICES: [HostService; 1] = [HostService {
    protocol: Transport::Tcp,
    port: 4000,
}];

impl Environment {
    /// Reads the variables through `var`; an empty one is not set.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name| var(name).filter(|value| !value.is_empty());
        Self {
            accelerator: var("INFINIZATION_ACCEL"),
            qemu_user: var("INFINIZATION_QEMU_USER"),
            bridge_conntrack_mode: var("INFINIZATION_BRIDGE_CONNTRACK_MODE"),
            host_service_ports: var("INFINIZATION_HOST_SERVICE_PORTS"),
            firewall_persistence_dir: var("INFINIZATION_FIREWALL_PERSISTENCE_DIR"),
        }
    }

    /// The contract knows one word; every other is the safe mode.
    fn bridge_conntrack_mode(&self) -> BridgeConntrackMode {
        match self.bridge_conntrack_mode.as_deref() {
            Some("degrade") => BridgeConntrackMode::Degrade,
            _ => BridgeConntrackMode::Fail,
        }
    }
}

impl ManagerConfig {
    /// Reads the plain-data half of `InfinizationConfig`. The databases and the event manager are
    /// read by whoever can call them.
    pub fn parse(value: &Value, environment: &Environment) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        let config = Fields::of("config", value, &report).and_then(|fields| {
            Source {
                fields,
                environment,
                report: &report,
            }
            .read()
        });
        report.conclude(config)
    }

    /// What the parser of a VM's configuration needs to know.
    pub fn context(&self, host: HostFacts) -> Context {
        Context {
            disk_dir: self.disk_dir.clone(),
            socket_dir: self.socket_dir.clone(),
            pid_dir: self.pid_dir.clone(),
            path_rules: self.path_rules.clone(),
            accelerator: self.accelerator,
            run_as_user: self.run_as_user.clone(),
            host_cpus: host.cpus,
            host_memory: host.memory,
            hugepage_size: host.hugepage_size,
        }
    }
}

struct Source<'a> {
    fields: Fields<'a>,
    environment: &'a Environment,
    report: &'a Report,
}

struct Dirs {
    state: HostPath,
    disk: HostPath,
    socket: HostPath,
    pid: HostPath,
}

impl Source<'_> {
    fn read(&self) -> Option<ManagerConfig> {
        let fields = &self.fields;
        let dirs = self.dirs();
        let allowed = self.allowed_paths();
        let accelerator = self.either(
            "accelerator",
            ("INFINIZATION_ACCEL", &self.environment.accelerator),
        );
        let bridge_conntrack_mode = fields.optional("bridgeConntrackMode", parsed);
        let run_as_user = self.variable(("INFINIZATION_QEMU_USER", &self.environment.qemu_user));
        let node_id = fields.optional("nodeId", words_of_text);
        let database_timeout = fields.optional("databaseTimeout", interval);
        let interval = fields.optional("healthMonitorInterval", interval);
        let auto_start_health_monitor = fields.flag("autoStartHealthMonitor", true);
        let host_services = self.host_services();
        let firewall_persistence_dir = self.either(
            "firewallPersistenceDir",
            (
                "INFINIZATION_FIREWALL_PERSISTENCE_DIR",
                &self.environment.firewall_persistence_dir,
            ),
        );
        let secrets_key = fields.optional("secretsKey", |key| SecretsKey::from_text(string(key)?));
        self.refuse_overlay();
        fields.skip(&["prismaClient", "databaseAdapter", "eventManager"]);
        fields.finish();
        let Dirs {
            state,
            disk,
            socket,
            pid,
        } = dirs?;
        Some(ManagerConfig {
            path_rules: PathRules {
                // What we make ourselves is always allowed.
                allowed: allowed.map(|given| [given, vec![disk.clone()]].concat()),
                rom_dir: state.join("roms").ok()?,
            },
            state_dir: state,
            disk_dir: disk,
            socket_dir: socket,
            pid_dir: pid,
            accelerator: accelerator.unwrap_or(AcceleratorChoice::Auto),
            run_as_user,
            node_id,
            database_timeout: database_timeout.unwrap_or(Duration::from_secs(20)),
            health_monitor_interval: interval.unwrap_or(Duration::from_secs(30)),
            auto_start_health_monitor,
            bridge_conntrack_mode: bridge_conntrack_mode
                .unwrap_or_else(|| self.environment.bridge_conntrack_mode()),
            host_services,
            firewall_persistence_dir,
            secrets_key,
        })
    }

    fn refuse_overlay(&self) {
        if self.fields.has("overlay") {
            let message = "asks for department overlays, which are not part of this version";
            self.report.refuse("overlay", message);
        }
    }

    /// All under `stateDir` when it is given, else where the public contract has them.
    fn dirs(&self) -> Option<Dirs> {
        let state = self.fields.optional("stateDir", parsed::<HostPath>);
        let [socket, pid] = match &state {
            Some(state) => [state.join("run"), state.join("pids")],
            None => [RUN_DIR, RUN_PID_DIR].map(HostPath::parse),
        };
        let state = state.or_else(|| HostPath::parse(STATE_DIR).ok())?;
        let dirs = Dirs {
            disk: self.dir("diskDir", state.join("disks"))?,
            socket: self.dir("qmpSocketDir", socket)?,
            pid: self.dir("pidfileDir", pid)?,
            state,
        };
        self.check_socket_dir(&dirs.socket);
        Some(dirs)
    }

    fn dir(&self, key: &'static str, default: Result<HostPath, InvalidValue>) -> Option<HostPath> {
        if self.fields.has(key) {
            self.fields.optional(key, parsed)
        } else {
            self.report.check(key, default)
        }
    }

    /// Even the shortest name must fit behind it; each VM's own names are checked with the VM.
    fn check_socket_dir(&self, dir: &HostPath) {
        let shortest = dir.as_str().len() + "/a-console.sock".len();
        if shortest > LONGEST_SOCKET_PATH {
            let message =
                format!("is too long: socket paths have at most {LONGEST_SOCKET_PATH} bytes");
            self.report.refuse("qmpSocketDir", message);
        }
    }

    fn allowed_paths(&self) -> Option<Vec<HostPath>> {
        let paths = self.fields.optional("allowedPaths", elements)?;
        let paths = paths.iter().enumerate();
        let allowed = paths
            .filter_map(|(index, path)| {
                self.report
                    .check(format!("allowedPaths[{index}]"), parsed(path))
            })
            .collect();
        Some(allowed)
    }

    fn host_services(&self) -> Vec<HostService> {
        if self.fields.has("hostServices") {
            let services = self.fields.optional("hostServices", elements);
            let services = services.unwrap_or_default().iter().enumerate();
            return services
                .filter_map(|(index, value)| {
                    Fields::element("hostServices", index, value, self.report)
                })
                .filter_map(|fields| host_service(&fields))
                .collect();
        }
        let variable = "INFINIZATION_HOST_SERVICE_PORTS";
        match &self.environment.host_service_ports {
            Some(text) => self
                .report
                .check(variable, service_list(text))
                .unwrap_or_default(),
            None => DEFAULT_SERVICES.to_vec(),
        }
    }

    fn either<T>(&self, key: &'static str, variable: (&str, &Option<String>)) -> Option<T>
    where
        T: TryFrom<String, Error = InvalidValue>,
    {
        if self.fields.has(key) {
            self.fields.optional(key, parsed)
        } else {
            self.variable(variable)
        }
    }

    fn variable<T>(&self, (name, value): (&str, &Option<String>)) -> Option<T>
    where
        T: TryFrom<String, Error = InvalidValue>,
    {
        self.report.check(name, T::try_from(value.clone()?))
    }
}

pub(super) fn interval(value: &Value) -> Result<Duration, InvalidValue> {
    let interval = milliseconds(value)?;
    if interval < Duration::from_millis(100) {
        Err(InvalidValue::new("must be at least 100 milliseconds"))
    } else {
        Ok(interval)
    }
}

fn host_service(fields: &Fields<'_>) -> Option<HostService> {
    let protocol = fields.required("protocol", parsed);
    let port = fields.required("port", integer_in(1..=u16::MAX.into()));
    fields.finish();
    Some(HostService {
        protocol: protocol?,
        port: port?,
    })
}

/// `4000/tcp,5353/udp`.
fn service_list(text: &str) -> Result<Vec<HostService>, InvalidValue> {
    let refused = || InvalidValue::new("must be a list such as 4000/tcp,5353/udp");
    text.split(',')
        .map(|service| {
            let (port, protocol) = service.trim().split_once('/').ok_or_else(refused)?;
            let port = port.parse().ok().filter(|port| *port != 0);
            Ok(HostService {
                protocol: Transport::parse(protocol).map_err(|_| refused())?,
                port: port.ok_or_else(refused)?,
            })
        })
        .collect()
}
