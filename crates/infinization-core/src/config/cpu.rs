//! The guest's processors.

use serde::{Deserialize, Serialize};

use super::words;
use crate::types::{InvalidValue, checked_string};

/// Virtual CPUs and where they may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuConfig {
    /// vCPUs, shown to the guest as the cores of one socket (client editions of Windows use two
    /// sockets at most). 1 to [`CpuConfig::MOST_CORES`].
    pub cores: u32,
    /// CPU model. `host` becomes `max` under TCG.
    pub model: CpuModel,
    /// Host CPUs the VM may use; `None` is all of them, or those that `numa_pinning` chooses.
    pub pinned_to: Option<Vec<u32>>,
    /// Pin vCPUs near each other and bind memory to the same host nodes.
    pub numa_pinning: bool,
    /// How `numa_pinning` chooses where `pinned_to` does not.
    pub pinning_strategy: PinningStrategy,
}

impl CpuConfig {
    /// More needs x2APIC ids behind an emulated IOMMU, which no machine of ours has.
    pub const MOST_CORES: u32 = 255;
}

/// A CPU model's name as `qemu-system-x86_64 -cpu help` prints it, without feature flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuModel(String);

checked_string!(CpuModel, check_model);

impl CpuModel {
    /// The host's own CPU, only with KVM.
    pub const HOST: &str = "host";
    /// All the accelerator can do.
    pub const MAX: &str = "max";

    /// Whether it is [`CpuModel::HOST`].
    pub fn is_host(&self) -> bool {
        self.0 == Self::HOST
    }
}

impl Default for CpuModel {
    fn default() -> Self {
        Self(Self::HOST.to_owned())
    }
}

fn check_model(text: &str) -> Result<(), InvalidValue> {
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'));
    if !plain || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || text.len() > 64 {
        return Err(InvalidValue::new(
            "must be a CPU model's name: letters, digits, '-', '_', '.', '+'",
        ));
    }
    Ok(())
}

words! {
    /// How NUMA pinning chooses among the CPUs of the host nodes a machine is on.
    pub enum PinningStrategy {
        /// In order, and from each node its share.
        Basic = "basic",
        /// Shuffled, so that many machines do not meet on the first.
        Hybrid = "hybrid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b12_a_model_cannot_bring_options() {
        for bad in ["", "host,+vmx", "host=1", "-cpu", "a b", "a\n"] {
            assert!(CpuModel::parse(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["host", "Skylake-Client-v4", "Opteron_G5", "qemu64", "486"] {
            assert!(CpuModel::parse(good).is_ok(), "{good:?} was refused");
        }
    }
}
