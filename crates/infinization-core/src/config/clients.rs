//! What the classes that users construct themselves are given beside their target.

use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, Report, integer_in, milliseconds, parsed};
use super::manager::{RUN_PID_DIR, interval};
use super::options::read;
use super::{ConfigError, Parsed};
use crate::types::HostPath;

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
    fn b21_an_unknown_key_is_told() {
        let read = GuestAgentClientOptions::parse(&json!({ "timeout": 5 })).unwrap();
        assert_eq!(read.warnings[0].path, "timeout");
    }
}
