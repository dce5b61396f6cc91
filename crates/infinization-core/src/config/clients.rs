//! What the classes that users construct themselves are given beside their target.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, Report, integer_in, milliseconds, parsed, string, words_of_text};
use super::manager::{RUN_PID_DIR, interval};
use super::options::read;
use super::{ConfigError, Parsed};
use crate::types::{HostPath, InvalidValue, Secret};

/// `QMPClientOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpClientOptions {
    /// For connecting and the handshake together. Default 5 s.
    pub connect_timeout: Duration,
    /// For each command. Default 30 s.
    pub command_timeout: Duration,
    /// Whether a connection that breaks is made again. Default false.
    pub reconnect: bool,
    /// Before each attempt. Default 1 s.
    pub reconnect_delay: Duration,
    /// How many attempts. Default 3.
    pub max_reconnect_attempts: u32,
}

/// `GuestAgentClientOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAgentClientOptions {
    /// For connecting and the first answer together. Default 5 s.
    pub connect_timeout: Duration,
    /// For each command. Default 30 s.
    pub command_timeout: Duration,
}

/// `EventHandlerConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventHandlerOptions {
    /// Each event becomes a line of the log. Default true.
    pub enable_logging: bool,
    /// The `vm:*` events are emitted. Default true.
    pub emit_custom_events: bool,
}

/// The plain data of `HealthMonitorConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthMonitorOptions {
    /// Between two cycles. Default 30 s.
    pub check_interval: Duration,
    /// What a dead QEMU held on the host is given back. Default true.
    pub enable_cleanup: bool,
    /// Where the pidfiles are. Default `/var/run/infinization/pids`.
    pub pid_dir: HostPath,
}

/// What `CommandExecutor.execute` is told beside the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOptions {
    /// Written to its standard input, which may be a secret. Default: nothing.
    pub stdin: Option<Secret>,
    /// When it is ended. Default 10 min; `None`, which is 0 outside, is never.
    pub timeout: Option<Duration>,
    /// More bytes than this on one stream end it. Default 64 MiB.
    pub max_output: u64,
    /// Between SIGTERM and SIGKILL. Default 5 s.
    pub kill_grace: Duration,
    /// A failure is no reason for a warning. Default false.
    pub expect_non_zero_exit: bool,
}

impl Default for CommandOptions {
    fn default() -> Self {
        Self {
            stdin: None,
            timeout: Some(Duration::from_secs(600)),
            max_output: 64 * 1024 * 1024,
            kill_grace: Duration::from_secs(5),
            expect_non_zero_exit: false,
        }
    }
}

/// What `CgroupsManager` is told of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpusetPaths {
    /// The cgroup v2 tree. Default `/sys/fs/cgroup`.
    pub cgroups: PathBuf,
    /// Where the scopes are. Default `<cgroups>/infinization.slice`.
    pub slice: Option<PathBuf>,
    /// The list of CPUs that are online. Default `/sys/devices/system/cpu/online`.
    pub online_cpus: PathBuf,
    /// The NUMA nodes. Default `/sys/devices/system/node`.
    pub nodes: PathBuf,
}

impl Default for CpusetPaths {
    fn default() -> Self {
        Self {
            cgroups: "/sys/fs/cgroup".into(),
            slice: None,
            online_cpus: "/sys/devices/system/cpu/online".into(),
            nodes: "/sys/devices/system/node".into(),
        }
    }
}

impl CpusetPaths {
    /// Where the scopes are.
    pub fn slice(&self) -> PathBuf {
        let default = || self.cgroups.join("infinization.slice");
        self.slice.clone().unwrap_or_else(default)
    }

    /// Reads the options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let path = |key| fields.optional(key, absolute);
            let default = Self::default();
            Self {
                cgroups: path("cgroupsV2Base").unwrap_or(default.cgroups),
                slice: path("infinizationSlice"),
                online_cpus: path("onlineCpusPath").unwrap_or(default.online_cpus),
                nodes: path("nodeSysfsBase").unwrap_or(default.nodes),
            }
        })
    }
}

impl Default for QmpClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
            reconnect: false,
            reconnect_delay: Duration::from_secs(1),
            max_reconnect_attempts: 3,
        }
    }
}

impl Default for GuestAgentClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for EventHandlerOptions {
    fn default() -> Self {
        Self {
            enable_logging: true,
            emit_custom_events: true,
        }
    }
}

impl QmpClientOptions {
    /// Reads the options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let default = Self::default();
            Self {
                connect_timeout: time(fields, "connectTimeout", default.connect_timeout),
                command_timeout: time(fields, "commandTimeout", default.command_timeout),
                reconnect: fields.flag("reconnect", default.reconnect),
                reconnect_delay: time(fields, "reconnectDelay", default.reconnect_delay),
                max_reconnect_attempts: fields
                    .optional("maxReconnectAttempts", integer_in(0..=1_000_000))
                    .unwrap_or(default.max_reconnect_attempts),
            }
        })
    }
}

impl GuestAgentClientOptions {
    /// Reads the options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let default = Self::default();
            Self {
                connect_timeout: time(fields, "connectTimeout", default.connect_timeout),
                command_timeout: time(fields, "commandTimeout", default.command_timeout),
            }
        })
    }
}

impl CommandOptions {
    /// Reads the options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let default = Self::default();
            let timeout = fields
                .optional("timeoutMs", milliseconds)
                .or(default.timeout);
            // All of it becomes one text of JavaScript's, which has an end.
            let max_output = fields.optional("maxBuffer", integer_in(0..=256 * 1024 * 1024));
            Self {
                stdin: fields.optional("stdin", |text| Ok(Secret::new(string(text)?))),
                timeout: timeout.filter(|timeout| !timeout.is_zero()),
                max_output: max_output.unwrap_or(default.max_output),
                kill_grace: time(fields, "killGraceMs", default.kill_grace),
                expect_non_zero_exit: fields.flag("expectNonZeroExit", false),
            }
        })
    }
}

impl EventHandlerOptions {
    /// Reads the options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let default = Self::default();
            Self {
                enable_logging: fields.flag("enableLogging", default.enable_logging),
                emit_custom_events: fields.flag("emitCustomEvents", default.emit_custom_events),
            }
        })
    }
}

impl HealthMonitorOptions {
    /// Reads the options.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let default_dir = HostPath::parse(RUN_PID_DIR);
        let report = Report::default();
        let options = Fields::of("config", value, &report).and_then(|fields| {
            let check_interval = fields.optional("checkIntervalMs", interval);
            let enable_cleanup = fields.flag("enableCleanup", true);
            let pid_dir = fields.optional("pidfileDir", parsed);
            fields.finish();
            Some(Self {
                check_interval: check_interval.unwrap_or(Duration::from_secs(30)),
                enable_cleanup,
                pid_dir: pid_dir.or(report.check("pidfileDir", default_dir))?,
            })
        });
        report.conclude(options)
    }
}

fn time(fields: &Fields<'_>, key: &'static str, default: Duration) -> Duration {
    fields.optional(key, milliseconds).unwrap_or(default)
}

/// A path, also one where paths of machines may not be (`/sys`).
fn absolute(value: &Value) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(words_of_text(value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(InvalidValue::new("must be an absolute path"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn b19_absent_and_null_are_the_defaults() {
        for given in [json!(null), json!({}), json!({ "reconnect": null })] {
            let read = QmpClientOptions::parse(&given).unwrap().config;
            assert_eq!(read, QmpClientOptions::default(), "{given}");
        }
        let monitor = HealthMonitorOptions::parse(&json!({})).unwrap().config;
        assert_eq!(monitor.pid_dir.as_str(), "/var/run/infinization/pids");
        assert!(monitor.enable_cleanup);
    }

    #[test]
    fn b10_every_wrong_value_is_named() {
        let given = json!({ "connectTimeout": "5", "reconnect": 1, "maxReconnectAttempts": -1 });
        let refused = QmpClientOptions::parse(&given).unwrap_err();
        let paths: Vec<&str> = refused.issues.iter().map(|issue| &*issue.path).collect();
        assert_eq!(
            paths,
            ["connectTimeout", "reconnect", "maxReconnectAttempts"]
        );
        let given = json!({ "checkIntervalMs": 0, "pidfileDir": "pids" });
        let refused = HealthMonitorOptions::parse(&given).unwrap_err();
        assert_eq!(refused.issues.len(), 2);
    }

    #[test]
    fn no_timeout_is_0_and_what_is_read_is_secret() {
        let read = |given| CommandOptions::parse(&given).unwrap().config;
        assert_eq!(read(json!({})), CommandOptions::default());
        let given = read(json!({ "timeoutMs": 0, "stdin": "hunter2", "maxBuffer": 0 }));
        assert_eq!((given.timeout, given.max_output), (None, 0));
        assert!(!format!("{given:?}").contains("hunter2"));
        assert!(CommandOptions::parse(&json!({ "killGraceMs": -1 })).is_err());
    }

    #[test]
    fn a_slice_is_in_the_tree_unless_it_is_elsewhere() {
        let read = |given| CpusetPaths::parse(&given).unwrap().config;
        assert_eq!(
            read(json!(null)).slice(),
            PathBuf::from("/sys/fs/cgroup/infinization.slice")
        );
        let given = read(json!({ "cgroupsV2Base": "/tmp/c", "infinizationSlice": "/tmp/s" }));
        assert_eq!(
            (given.slice(), given.cgroups),
            ("/tmp/s".into(), "/tmp/c".into())
        );
        assert!(CpusetPaths::parse(&json!({ "onlineCpusPath": "online" })).is_err());
    }

    #[test]
    fn b21_an_unknown_key_is_told() {
        let read = GuestAgentClientOptions::parse(&json!({ "timeout": 5 })).unwrap();
        assert_eq!(read.warnings[0].path, "timeout");
    }
}
