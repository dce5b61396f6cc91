//! What the verbs take beside a VM's id.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::create::default_action;
use super::fields::{Fields, Report, milliseconds, string};
use super::{ConfigError, Parsed};
use crate::types::{DiskKey, FirewallDefaultAction, HostPath, InvalidValue};

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
    /// The keys of encrypted disks.
    pub disk_keys: DiskKeys,
}

/// Keys of encrypted disks, by the disks' paths.
pub type DiskKeys = BTreeMap<HostPath, DiskKey>;

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

/// What `deleteVM` is asked beside the VM's id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteOptions {
    /// Also remove the disks and firmware variables. Default false.
    pub delete_disks: bool,
}

/// What `guestExec` is asked beside the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestExecOptions {
    /// How long the command may run. Default 30 s.
    pub timeout: Duration,
}

impl Default for GuestExecOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
        }
    }
}

impl Default for StartOptions {
    fn default() -> Self {
        Self {
            wait_for_boot: false,
            boot_timeout: Duration::from_secs(60),
            firewall_default_action: None,
            disable_sandbox: false,
            disk_keys: DiskKeys::new(),
        }
    }
}

impl Default for StopOptions {
    fn default() -> Self {
        Self {
            graceful: true,
            timeout: Duration::from_secs(30),
            force: true,
        }
    }
}

impl StartOptions {
    /// Reads `VMStartConfig`; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let default = Self::default();
            Self {
                wait_for_boot: fields.flag("waitForBoot", default.wait_for_boot),
                boot_timeout: fields
                    .optional("bootTimeout", milliseconds)
                    .unwrap_or(default.boot_timeout),
                firewall_default_action: fields.optional("firewallDefaultAction", default_action),
                disable_sandbox: fields.flag("disableSandbox", default.disable_sandbox),
                disk_keys: fields.optional("diskKeys", disk_keys).unwrap_or_default(),
            }
        })
    }
}

/// `changeDiskKey`'s options.
#[derive(Debug, Clone, Default)]
pub struct ChangeDiskKeyOptions {
    /// What opens the disk; `None`: the one that it was started with, or that is stored.
    pub key: Option<DiskKey>,
    /// What will open it. Only `None` in options that were refused.
    pub new_key: Option<DiskKey>,
    /// How long the host is kept busy to make a passphrase of the new one, now and at every start. Default: QEMU's.
    pub iter_time: Option<Duration>,
}

impl ChangeDiskKeyOptions {
    /// Reads `changeDiskKey`'s options.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| Self {
            key: fields.optional("encryptionKey", disk_key),
            new_key: fields.required("newKey", disk_key),
            iter_time: fields.optional("iterTime", milliseconds),
        })
    }
}

/// A refusal does not say what was given.
fn disk_key(value: &Value) -> Result<DiskKey, InvalidValue> {
    DiskKey::try_from(string(value)?.to_owned())
}

impl StopOptions {
    /// Reads `VMStopConfig`; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let default = Self::default();
            Self {
                graceful: fields.flag("graceful", default.graceful),
                timeout: fields
                    .optional("timeout", milliseconds)
                    .unwrap_or(default.timeout),
                force: fields.flag("force", default.force),
            }
        })
    }
}

impl DeleteOptions {
    /// Reads `deleteVM`'s options; null is all defaults.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| Self {
            delete_disks: fields.flag("deleteDisks", false),
        })
    }
}

impl GuestExecOptions {
    /// Reads `guestExec`'s options; null is all defaults. `cwd` is accepted and has no effect: the
    /// agent has no such argument.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            fields.skip(&["cwd"]);
            Self {
                timeout: fields
                    .optional("timeout", milliseconds)
                    .unwrap_or(Self::default().timeout),
            }
        })
    }
}

/// A refusal names the path whose key it is about, never the key: nor what does not begin as a path, for the two
/// may have changed places.
pub fn disk_keys(value: &Value) -> Result<DiskKeys, InvalidValue> {
    let refused = || InvalidValue::new("must be an object of the disks' paths and their keys");
    let keys = value.as_object().ok_or_else(refused)?;
    let key = |(path, key): (&String, &Value)| {
        let about = |why: InvalidValue| {
            let path = Some(path).filter(|path| path.starts_with('/'));
            InvalidValue::new(path.map_or_else(
                || format!("has an entry whose name {why}"),
                |path| format!("has {path:?}, which {why}"),
            ))
        };
        let path = HostPath::parse(path.as_str()).map_err(about)?;
        let key = DiskKey::try_from(string(key).map_err(about)?.to_owned()).map_err(about)?;
        Ok((path, key))
    };
    keys.iter().map(key).collect()
}

/// Reads an options object; null is all defaults.
pub(super) fn read<T: Default>(
    value: &Value,
    build: impl FnOnce(&Fields<'_>) -> T,
) -> Result<Parsed<T>, ConfigError> {
    let report = Report::default();
    if value.is_null() {
        return report.conclude(Some(T::default()));
    }
    let options = Fields::of("options", value, &report).map(|fields| {
        let options = build(&fields);
        // An AbortSignal travels in the same object; whoever called us has taken it.
        fields.skip(&["signal"]);
        fields.finish();
        options
    });
    report.conclude(options)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn b19_null_and_absent_are_the_defaults() {
        let all_null = json!({ "graceful": null, "timeout": null, "force": null });
        for value in [Value::Null, json!({}), all_null] {
            assert_eq!(
                StopOptions::parse(&value).unwrap().config,
                StopOptions::default()
            );
            assert_eq!(
                StartOptions::parse(&value).unwrap().config,
                StartOptions::default()
            );
        }
    }

    #[test]
    fn b20_wrong_types_are_all_named() {
        let value = json!({ "graceful": 1, "timeout": "30000", "force": "no", "grace": true });
        let error = StopOptions::parse(&value).unwrap_err();
        let paths: Vec<&str> = error
            .issues
            .iter()
            .map(|issue| issue.path.as_str())
            .collect();
        assert_eq!(paths, ["graceful", "timeout", "force"]);
        let parsed = StartOptions::parse(&json!({ "bootTimeout": 1500, "x": 1 })).unwrap();
        assert_eq!(parsed.config.boot_timeout, Duration::from_millis(1500));
        assert_eq!(parsed.warnings[0].path, "x");
        assert!(StartOptions::parse(&json!([])).is_err());
        assert!(StartOptions::parse(&json!({ "firewallDefaultAction": "allow" })).is_err());
        for keys in [
            json!([]),
            json!({ "relative": "k" }),
            json!({ "/a": 1 }),
            json!({ "/a": "" }),
        ] {
            let refused = StartOptions::parse(&json!({ "diskKeys": keys })).unwrap_err();
            assert_eq!(refused.issues[0].path, "diskKeys", "{keys}");
        }
    }

    #[test]
    fn b38_a_key_that_stands_where_its_path_should_is_not_quoted() {
        let value = json!({ "diskKeys": { "hunter2": "/srv/a.qcow2" } });
        let refused = StartOptions::parse(&value).unwrap_err();
        let message = &refused.issues[0].message;
        assert_eq!(message, "has an entry whose name must be an absolute path");
    }
}
