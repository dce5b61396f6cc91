//! Where on the host a machine's CPUs run and its memory lies: what it asked for, or a refusal.
//!
//! Asked anew at every start: the row keeps what was asked for, not what came of it, since the host may have changed.

use sha2::{Digest as _, Sha256};

use super::about;
use crate::config::{self, CpuConfig, HostNode, NoPlacement, Placement, VmConfig, Wanted};
use crate::error::{ErrorCode, Failure};
use crate::host::{accelerator, numa};
use crate::types::{ByteSize, VmId};

/// What comes of the two ways to ask.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pinning {
    /// A CPU for each vCPU, starting over when there are fewer.
    pub(super) cpus: Option<Vec<u32>>,
    /// The nodes memory is bound to; empty is any.
    pub(super) nodes: Vec<u32>,
}

pub(super) fn pinning(config: &VmConfig) -> Result<Pinning, Failure> {
    if let Some(wanted) = &config.cpu.pinned_to {
        check_online(wanted)?;
    }
    if !config.cpu.numa_pinning {
        return Ok(Pinning {
            cpus: config.cpu.pinned_to.clone(),
            nodes: Vec::new(),
        });
    }
    let pages = config.memory.hugepages;
    let pages = pages.then(accelerator::default_hugepage_size).transpose()?;
    let nodes = numa::nodes(pages);
    let nodes = nodes.map_err(|error| about("enableNumaCtlPinning", error.into()))?;
    let found = near_memory(&config.cpu, config.memory.size, &config.id, &nodes);
    found.map_err(|why| {
        let message = format!("enableNumaCtlPinning: {why}");
        let failure = Failure::new(ErrorCode::ResourceUnavailable, message);
        about("enableNumaCtlPinning", failure)
    })
}

fn near_memory(
    cpu: &CpuConfig,
    memory: ByteSize,
    id: &VmId,
    nodes: &[HostNode],
) -> Result<Pinning, NoPlacement> {
    if let Some(cpus) = &cpu.pinned_to {
        // What no vCPU runs on has no say in where memory lies.
        let used = cpus.get(..cpu.cores as usize).unwrap_or(cpus);
        let nodes = config::beside(nodes, used, memory)?;
        return Ok(Pinning {
            cpus: Some(cpus.clone()),
            nodes,
        });
    }
    let wanted = Wanted {
        vcpus: cpu.cores,
        memory,
        strategy: cpu.pinning_strategy,
        seed: seed(id),
    };
    let Placement { cpus, nodes } = config::place(nodes, wanted)?;
    Ok(Pinning {
        cpus: Some(cpus),
        nodes,
    })
}

/// The same machine is shuffled the same way at every start.
fn seed(id: &VmId) -> u32 {
    let digest = Sha256::digest(id.as_str().as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

fn check_online(wanted: &[u32]) -> Result<(), Failure> {
    let online = accelerator::host_size()?.online_cpus;
    let offline = wanted.iter().filter(|cpu| !online.contains(cpu));
    let offline: Vec<u32> = offline.copied().collect();
    if offline.is_empty() {
        return Ok(());
    }
    let message = "cpuPinning names CPUs that are not online on this host";
    let failure = Failure::new(ErrorCode::ResourceUnavailable, message).with("offline", offline);
    Err(about("cpuPinning", failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CpuModel, PinningStrategy};

    fn asked(pinned_to: Option<&[u32]>) -> CpuConfig {
        CpuConfig {
            cores: 2,
            model: CpuModel::default(),
            pinned_to: pinned_to.map(<[u32]>::to_vec),
            numa_pinning: true,
            pinning_strategy: PinningStrategy::Basic,
        }
    }

    fn node(id: u32, cpus: &[u32]) -> HostNode {
        HostNode {
            id,
            cpus: cpus.to_vec(),
            memory: ByteSize::mib(1024),
            free: ByteSize::mib(1024),
        }
    }

    #[test]
    fn memory_goes_with_the_cpus_whoever_chose_them() {
        let host = [node(0, &[0, 1]), node(1, &[2, 3])];
        let id = VmId::parse("vm-1").unwrap();
        for (pinned_to, cpus, nodes) in [
            (None, &[0, 1][..], &[0][..]),
            (Some(&[3, 2][..]), &[3, 2], &[1]),
            (Some(&[3]), &[3], &[1]),
            (Some(&[0, 3]), &[0, 3], &[0, 1]),
            (Some(&[0, 1, 2]), &[0, 1, 2], &[0]),
        ] {
            let found = near_memory(&asked(pinned_to), ByteSize::mib(512), &id, &host);
            let expected = Pinning {
                cpus: Some(cpus.to_vec()),
                nodes: nodes.to_vec(),
            };
            assert_eq!(found, Ok(expected), "{pinned_to:?}");
        }
        let too_large = near_memory(&asked(Some(&[0])), ByteSize::mib(1025), &id, &host);
        assert!(matches!(too_large, Err(NoPlacement::TooSmall { .. })));
    }
}
