//! How the firewall's file is written, and where the unit that loads it goes.

use serde_json::Value;

use super::fields::{Fields, Report, parsed};
use super::{ConfigError, Parsed};
use crate::types::HostPath;

/// `PersistenceConfig`; what is absent has the default of whoever uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistenceOptions {
    /// Where.
    pub dir: Option<HostPath>,
    /// Whether the file before the last is kept. Default true.
    pub backup: bool,
    /// Whether other writers are excluded. Default true.
    pub locking: bool,
}

/// `FirewallServiceOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootUnitOptions {
    /// Where the firewall is kept.
    pub dir: Option<HostPath>,
    /// Where systemd looks.
    pub unit_dir: Option<HostPath>,
    /// Whether it is started at boot. Default true.
    pub enable: bool,
}

impl PersistenceOptions {
    /// Reads `PersistenceConfig`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        let options = Fields::of("config", value, &report).map(|fields| {
            let options = Self {
                dir: fields.optional("persistenceDir", parsed),
                backup: fields.flag("createBackup", true),
                locking: fields.flag("useLocking", true),
            };
            fields.finish();
            options
        });
        report.conclude(options)
    }
}

impl BootUnitOptions {
    /// Reads `FirewallServiceOptions`. A misspelt one would have files written where nobody wants them.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        let options = Fields::of("options", value, &report).map(|fields| {
            let options = Self {
                dir: fields.optional("persistenceDir", parsed),
                unit_dir: fields.optional("unitDir", parsed),
                enable: fields.flag("enable", true),
            };
            fields.refuse_strangers();
            options
        });
        report.conclude(options)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_strict() {
        let good = json!({ "persistenceDir": "/etc/x", "unitDir": "/u", "enable": false });
        let read = BootUnitOptions::parse(&good).unwrap().config;
        assert_eq!((read.dir.unwrap().as_str(), read.enable), ("/etc/x", false));
        for (bad, path) in [
            (json!({ "persistenceDir": "etc" }), "persistenceDir"),
            (json!({ "persistenceDir": "/a\nb" }), "persistenceDir"),
            (json!({ "unitDir": 1 }), "unitDir"),
            (json!({ "enable": "yes" }), "enable"),
            (json!({ "unitdir": "/u" }), "unitdir"),
            (json!([]), "options"),
        ] {
            let refused = BootUnitOptions::parse(&bad).unwrap_err();
            assert_eq!(refused.issues[0].path, path, "{bad}");
        }
        assert!(PersistenceOptions::parse(&json!({ "useLocking": 1 })).is_err());
    }
}
