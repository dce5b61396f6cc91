//! `CgroupsManager`, over the core's `host::cpuset`.

use infinization_core::Failure;
use infinization_core::config::CpusetPaths;
use infinization_core::host::cpuset::Cpusets;
use napi_derive::napi;
use serde_json::{Value, json};

use super::refused::Refused;
use super::warned;
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// Processes kept on some CPUs, each by a cgroup of its own.
#[napi]
#[derive(Debug)]
pub struct CgroupsManager {
    cpusets: Result<Cpusets, Refused>,
}

#[napi]
impl CgroupsManager {
    /// Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(options: Argument) -> Self {
        Self {
            cpusets: cpusets(options).map_err(Refused::from),
        }
    }

    /// Never rejects: why it was not done is in the answer.
    #[napi]
    pub async fn apply_cpu_pinning(&self, pid: Argument, cores: Argument) -> Outcome {
        data(async {
            Ok(match self.pin(pid, cores).await {
                Ok(()) => json!({ "applied": true }),
                Err(why) => not_applied(&why),
            })
        })
        .await
    }

    /// Never rejects: what cannot be swept is swept the next time.
    #[napi]
    pub async fn cleanup_empty_scopes(&self) -> Outcome {
        data(async {
            Ok(match &self.cpusets {
                Ok(cpusets) => cpusets.remove_empty_scopes().await,
                Err(refused) => {
                    let refused = Failure::from(refused);
                    tracing::warn!("cgroups were not swept: {refused}");
                    0
                }
            })
        })
        .await
    }

    /// How many CPUs are online.
    #[napi]
    pub async fn get_host_cpu_count(&self) -> Outcome {
        data(async { Ok(self.cpusets()?.online().await?.len()) }).await
    }

    #[napi]
    pub async fn validate_cores(&self, cores: Argument) -> Outcome {
        done(async {
            let cores: Vec<i64> = cores.shaped("cores")?;
            Ok(self.cpusets()?.validate(&cores).await?)
        })
        .await
    }

    fn cpusets(&self) -> Result<&Cpusets, Failure> {
        Ok(self.cpusets.as_ref()?)
    }

    async fn pin(&self, pid: Argument, cores: Argument) -> Result<(), Failure> {
        let (pid, cores): (i64, Vec<i64>) = (pid.shaped("pid")?, cores.shaped("cores")?);
        Ok(self.cpusets()?.pin(pid, cores).await?)
    }
}

fn cpusets(options: Argument) -> Result<Cpusets, Failure> {
    let paths = CpusetPaths::parse(&options.value("options")?)?;
    Ok(Cpusets::new(warned("CgroupsManager", paths)))
}

fn not_applied(why: &Failure) -> Value {
    tracing::warn!("CPUs were not pinned: {why}");
    json!({ "applied": false, "reason": why.to_string() })
}
