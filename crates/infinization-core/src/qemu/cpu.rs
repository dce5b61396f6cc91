//! Virtual CPUs.

use super::Accelerator;
use super::args::{Opts, ToArgs};
use crate::config::{CpuConfig, CpuModel};

/// `-cpu`.
#[derive(Debug)]
pub(super) struct Cpu<'a> {
    pub(super) model: &'a str,
}

impl<'a> Cpu<'a> {
    /// TCG has no host CPU to show; `max` is all it can do.
    pub(super) fn new(model: &'a CpuModel, accelerator: Accelerator) -> Self {
        let model = match accelerator {
            Accelerator::Tcg if model.is_host() => CpuModel::MAX,
            _ => model.as_str(),
        };
        Self { model }
    }
}

impl ToArgs for Cpu<'_> {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-cpu").head(self.model).args()
    }
}

/// `-smp`. The whole topology is written out: what QEMU fills in has changed between releases.
#[derive(Debug)]
pub(super) struct Smp {
    pub(super) cores: u32,
}

impl Smp {
    pub(super) fn new(cpu: &CpuConfig) -> Self {
        Self { cores: cpu.cores }
    }
}

impl ToArgs for Smp {
    fn to_args(&self) -> Vec<String> {
        Opts::new("-smp")
            .with("cpus", self.cores)
            .with("sockets", 1)
            .with("cores", self.cores)
            .with("threads", 1)
            .args()
    }
}
