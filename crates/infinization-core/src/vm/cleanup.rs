//! What a clean-up did, resource by resource, and what of it is told: `CleanupResult`,
//! `CleanupAlertEvent`. The clean-up itself is in [`super::run`].

use serde_json::{Value, json};

use super::action::{Release, Slot};
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::types::VmId;

/// From this many failures on an alert is an `error`.
const SEVERE: usize = 3;

/// One resource that was to be given back.
#[derive(Debug)]
pub struct Resource {
    /// How it is given back.
    pub release: Release,
    /// How often that was tried.
    pub attempts: u32,
    /// Why it did not succeed; its entry stays in the ledger then.
    pub failure: Option<Failure>,
    /// When it was tried last, in milliseconds since the Unix epoch.
    pub last_attempt_at: u64,
}

impl Resource {
    /// `CleanupResourceState`.
    fn to_json(&self, vm_id: &VmId) -> Value {
        let mut state = json!({
            "type": resource_type(&self.release),
            "identifier": identifier(&self.release, vm_id),
            "status": if self.failure.is_none() { "SUCCESS" } else { "FAILED" },
            "attempts": self.attempts,
            "lastAttemptAt": self.last_attempt_at,
        });
        if let Some(failure) = &self.failure {
            state["lastError"] = failure.to_string().into();
        }
        state
    }
}

/// A clean-up that is over.
#[derive(Debug, Default)]
pub struct Cleanup {
    /// In the order in which they were tried.
    pub resources: Vec<Resource>,
}

impl Cleanup {
    /// Whether nothing is left.
    pub fn is_complete(&self) -> bool {
        self.stuck().next().is_none()
    }

    /// What could not be given back.
    pub fn stuck(&self) -> impl Iterator<Item = (&Resource, &Failure)> {
        let stuck = |resource: &'_ Resource| resource.failure.is_some();
        let resources = self.resources.iter().filter(move |one| stuck(one));
        resources.filter_map(|resource| Some((resource, resource.failure.as_ref()?)))
    }

    /// `CLEANUP_FAILED` with the first failure, if there is one.
    pub(super) fn complete(self, vm_id: &VmId) -> Result<(), Failure> {
        let mut resources = self.resources.into_iter();
        let first = resources.find_map(|resource| Some((resource.release, resource.failure?)));
        let Some((release, failure)) = first else {
            return Ok(());
        };
        let message = format!("the VM was not destroyed: {} failed", release.name());
        Err(Failure::caused_by(ErrorCode::CleanupFailed, message, failure).of_vm(vm_id))
    }

    /// `CleanupResult`.
    pub(super) fn to_json(&self, vm_id: &VmId) -> Value {
        let states = self.resources.iter().map(|one| one.to_json(vm_id));
        let failed = self.stuck().count();
        json!({
            "vmId": vm_id,
            "totalResources": self.resources.len(),
            "successfulCleanups": self.resources.len() - failed,
            "failedCleanups": failed,
            "resources": states.collect::<Vec<_>>(),
            "timestamp": now_ms(),
        })
    }

    /// `CleanupAlertEvent`, when something is left.
    pub(super) fn to_alert(&self, vm_id: &VmId) -> Option<Value> {
        let stuck = self.stuck().map(|(resource, _)| resource.to_json(vm_id));
        let failed: Vec<Value> = stuck.collect();
        let severity = match failed.len() {
            0 => return None,
            count if count >= SEVERE => "error",
            _ => "warning",
        };
        Some(json!({
            "vmId": vm_id,
            "failedResources": failed,
            "timestamp": now_ms(),
            "severity": severity,
        }))
    }
}

/// `CleanupResourceType`.
fn resource_type(release: &Release) -> &'static str {
    match release {
        Release::DeleteTap { .. } | Release::DetachTap { .. } => "TAP_DEVICE",
        Release::DetachFirewall | Release::RemoveFirewall => "FIREWALL_CHAIN",
        Release::RemoveSocket {
            slot: Slot::Monitor,
            ..
        } => "QMP_SOCKET",
        Release::RemoveSocket { .. } => "SOCKET",
        Release::RemovePidFile { .. } => "PIDFILE",
        Release::RemoveFile { .. } | Release::RestoreSpec => "FILE",
        Release::EndQemu => "PROCESS",
        Release::RemoveCgroup => "CGROUP",
        Release::DeleteRow | Release::ForgetDiskKeys { .. } | Release::RestoreStatus { .. } => {
            "DB_CONFIGURATION"
        }
    }
}

fn identifier(release: &Release, vm_id: &VmId) -> String {
    match release {
        Release::DeleteTap { tap } | Release::DetachTap { tap } => tap.to_string(),
        Release::RemoveFile { path }
        | Release::RemoveSocket { path, .. }
        | Release::RemovePidFile { path } => path.to_string(),
        Release::DetachFirewall
        | Release::RemoveFirewall
        | Release::EndQemu
        | Release::RemoveCgroup
        | Release::ForgetDiskKeys { .. }
        | Release::DeleteRow
        | Release::RestoreSpec
        | Release::RestoreStatus { .. } => vm_id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{HostPath, LinkName};

    fn cleanup(failures: usize) -> Cleanup {
        let path = |text: &str| HostPath::parse(text).unwrap();
        let tap = LinkName::parse("vnet-0123456789").unwrap();
        let releases = [
            Release::DetachTap { tap },
            Release::DetachFirewall,
            Release::RemoveSocket {
                slot: Slot::Monitor,
                path: path("/run/vm-1.sock"),
            },
            Release::RemovePidFile {
                path: path("/run/vm-1.pid"),
            },
        ];
        let resources = releases.into_iter().enumerate().map(|(at, release)| {
            let failed = at < failures;
            Resource {
                release,
                attempts: if failed { 3 } else { 1 },
                failure: failed.then(|| Failure::new(ErrorCode::NetworkError, "device busy")),
                last_attempt_at: 7,
            }
        });
        Cleanup {
            resources: resources.collect(),
        }
    }

    fn vm_id() -> VmId {
        VmId::parse("vm-1").unwrap()
    }

    #[test]
    fn a_result_tells_every_resource() {
        let told = cleanup(1).to_json(&vm_id());
        assert_eq!(told["vmId"], "vm-1");
        assert_eq!(told["totalResources"], 4);
        assert_eq!(told["successfulCleanups"], 3);
        assert_eq!(told["failedCleanups"], 1);
        assert_eq!(
            told["resources"],
            json!([
                {
                    "type": "TAP_DEVICE", "identifier": "vnet-0123456789", "status": "FAILED",
                    "attempts": 3, "lastAttemptAt": 7, "lastError": "device busy",
                },
                {
                    "type": "FIREWALL_CHAIN", "identifier": "vm-1", "status": "SUCCESS",
                    "attempts": 1, "lastAttemptAt": 7,
                },
                {
                    "type": "QMP_SOCKET", "identifier": "/run/vm-1.sock", "status": "SUCCESS",
                    "attempts": 1, "lastAttemptAt": 7,
                },
                {
                    "type": "PIDFILE", "identifier": "/run/vm-1.pid", "status": "SUCCESS",
                    "attempts": 1, "lastAttemptAt": 7,
                },
            ])
        );
    }

    #[test]
    fn an_alert_is_severe_from_three_failures_on() {
        for (failures, severity) in [
            (0, None),
            (1, Some("warning")),
            (2, Some("warning")),
            (3, Some("error")),
        ] {
            let alert = cleanup(failures).to_alert(&vm_id());
            assert_eq!(cleanup(failures).is_complete(), severity.is_none());
            let Some(alert) = alert else {
                assert_eq!(severity, None, "{failures}");
                continue;
            };
            assert_eq!(alert["severity"].as_str(), severity, "{failures}");
            let told = alert["failedResources"].as_array().unwrap();
            assert_eq!(told.len(), failures);
        }
    }
}
