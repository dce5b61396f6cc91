//! Which CPUs and nodes of the host a machine is given when it asks to be near its memory.
//!
//! Invariants: pure, and the same for the same host, machine and seed. A machine that fits on one node is on one node;
//! others are spread over a few that are enough, and none of them is too many. Its memory is bound to the nodes of its
//! CPUs, and these have enough of it: free, if any have. Neighbours: `host::numa` tells the nodes; the `vm` layer pins and binds.

use std::cmp::Reverse;

use super::PinningStrategy;
use crate::types::ByteSize;

/// A node of the host, with what of it machines may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNode {
    /// The kernel's number of it.
    pub id: u32,
    /// Its CPUs, ascending.
    pub cpus: Vec<u32>,
    /// All the memory it has for machines of this kind.
    pub memory: ByteSize,
    /// What of it is free now, or could be at once.
    pub free: ByteSize,
}

/// Where a machine shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// A host CPU for each vCPU.
    pub cpus: Vec<u32>,
    /// The nodes its memory is bound to, ascending.
    pub nodes: Vec<u32>,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory.
    pub memory: ByteSize,
    /// How CPUs are chosen.
    pub strategy: PinningStrategy,
    /// What [`PinningStrategy::Hybrid`] shuffles by.
    pub seed: u32,
}

/// A host that has not what is wanted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlacement {
    /// None of the host's nodes has CPUs that machines may have.
    #[error("no node of this host has CPUs that may be used")]
    NoCpus,
    /// These CPUs are on no node that machines may have memory of.
    #[error("no node of this host has memory beside CPU {cpu}")]
    NoNode {
        /// One of them.
        cpu: u32,
    },
    /// The nodes are smaller than the machine.
    #[error(
        "the host nodes {nodes:?} have {} MiB of memory, the machine {} MiB", has.as_mib(), wanted.as_mib()
    )]
    TooSmall {
        /// The nodes.
        nodes: Vec<u32>,
        /// All their memory.
        has: ByteSize,
        /// The machine's.
        wanted: ByteSize,
    },
}

/// Chooses nodes, and CPUs on them.
pub fn place(nodes: &[HostNode], wanted: Wanted) -> Result<Placement, NoPlacement> {
    let among = fewest(nodes, wanted);
    let lists: Vec<&[u32]> = among.iter().map(|node| node.cpus.as_slice()).collect();
    let cpus = spread(&lists, wanted.vcpus, wanted.strategy, wanted.seed);
    if cpus.is_empty() {
        return Err(NoPlacement::NoCpus);
    }
    let nodes = large_enough(&among, wanted.memory)?;
    Ok(Placement { cpus, nodes })
}

/// A CPU for each vCPU among all of these nodes'; none where they have none.
pub fn spread(nodes: &[&[u32]], vcpus: u32, strategy: PinningStrategy, seed: u32) -> Vec<u32> {
    match strategy {
        _ if nodes.iter().all(|cpus| cpus.is_empty()) => Vec::new(),
        PinningStrategy::Basic => basic(nodes, vcpus),
        PinningStrategy::Hybrid => hybrid(nodes, vcpus, seed),
    }
}

/// The nodes that CPUs which somebody else has chosen are on; they must have this much memory.
pub fn beside(nodes: &[HostNode], cpus: &[u32], memory: ByteSize) -> Result<Vec<u32>, NoPlacement> {
    let mut on: Vec<&HostNode> = Vec::new();
    for cpu in cpus {
        let node = nodes.iter().find(|node| node.cpus.contains(cpu));
        let node = node.filter(|node| is_usable(node));
        on.push(node.ok_or(NoPlacement::NoNode { cpu: *cpu })?);
    }
    on.sort_by_key(|node| node.id);
    on.dedup_by_key(|node| node.id);
    large_enough(&on, memory)
}

/// A few nodes that are enough and of which none could be left out, those with the most free memory first. Enough is
/// what is free; where all of that is too little, what there is: others may give it back. All nodes if they are not
/// enough. Ascending.
fn fewest(nodes: &[HostNode], wanted: Wanted) -> Vec<&HostNode> {
    let all: Vec<&HostNode> = nodes.iter().filter(|node| is_usable(node)).collect();
    let chosen = enough(&all, wanted, |node| node.free);
    let chosen = chosen.or_else(|| enough(&all, wanted, |node| node.memory));
    let mut chosen = chosen.unwrap_or(all);
    chosen.sort_by_key(|node| node.id);
    chosen
}

fn enough<'n>(
    all: &[&'n HostNode],
    wanted: Wanted,
    of: fn(&HostNode) -> ByteSize,
) -> Option<Vec<&'n HostNode>> {
    let suffice = |nodes: &[&HostNode]| {
        let cpus: usize = nodes.iter().map(|node| node.cpus.len()).sum();
        let memory: u64 = nodes.iter().map(|node| of(node).as_bytes()).sum();
        cpus >= wanted.vcpus as usize && memory >= wanted.memory.as_bytes()
    };
    let mut chosen = all.to_vec();
    chosen.sort_by_key(|node| (!suffice(&[*node]), Reverse(node.free), node.id));
    let count = (1..=chosen.len()).find(|count| suffice(&chosen[..*count]))?;
    chosen.truncate(count);
    // The first ones are the freest, but may have brought few CPUs.
    for at in (0..count).rev() {
        let mut fewer = chosen.clone();
        fewer.remove(at);
        if suffice(&fewer) {
            chosen = fewer;
        }
    }
    Some(chosen)
}

/// A node without memory cannot be bound to.
fn is_usable(node: &HostNode) -> bool {
    !node.cpus.is_empty() && memory_of(&[node]) > ByteSize::bytes(0)
}

fn memory_of(nodes: &[&HostNode]) -> ByteSize {
    ByteSize::bytes(nodes.iter().map(|node| node.memory.as_bytes()).sum())
}

fn large_enough(nodes: &[&HostNode], wanted: ByteSize) -> Result<Vec<u32>, NoPlacement> {
    let (has, nodes) = (memory_of(nodes), nodes.iter().map(|node| node.id).collect());
    if has < wanted {
        return Err(NoPlacement::TooSmall { nodes, has, wanted });
    }
    Ok(nodes)
}

/// Each node takes the share of its CPUs, and of what a division leaves over the last takes all. A node's CPUs are
/// taken in order, and again from the first when there are too few.
fn basic(nodes: &[&[u32]], vcpus: u32) -> Vec<u32> {
    let total: usize = nodes.iter().map(|cpus| cpus.len()).sum();
    let vcpus = vcpus as usize;
    let mut chosen = Vec::with_capacity(vcpus);
    for (index, cpus) in nodes.iter().enumerate() {
        let share = if index + 1 == nodes.len() {
            vcpus - chosen.len()
        } else {
            cpus.len() * vcpus / total
        };
        chosen.extend(cpus.iter().cycle().take(share));
    }
    chosen
}

/// All CPUs, shuffled (Fisher and Yates, from the end), and again from the first when there are too few.
fn hybrid(nodes: &[&[u32]], vcpus: u32, seed: u32) -> Vec<u32> {
    let mut cpus = nodes.concat();
    let mut random = Mulberry32(seed);
    for last in (1..cpus.len()).rev() {
        cpus.swap(last, random.below(last + 1));
    }
    cpus.iter().copied().cycle().take(vcpus as usize).collect()
}

/// The generator whose numbers the other implementations of these strategies have as well.
struct Mulberry32(u32);

impl Mulberry32 {
    fn below(&mut self, bound: usize) -> usize {
        // `next / 2^32 * bound`, rounded down, without a fraction in between.
        let scaled = u64::from(self.next()) * bound as u64;
        usize::try_from(scaled >> 32).unwrap_or(0)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x6D2B_79F5);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 15)).wrapping_mul(mixed | 1);
        mixed ^= mixed.wrapping_add((mixed ^ (mixed >> 7)).wrapping_mul(mixed | 0x3D));
        mixed ^ (mixed >> 14)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: [&[u32]; 2] = [&[0, 1, 2, 3], &[4, 5, 6, 7]];

    fn node(id: u32, cpus: &[u32], memory: u64, free: u64) -> HostNode {
        HostNode {
            id,
            cpus: cpus.to_vec(),
            memory: ByteSize::mib(memory),
            free: ByteSize::mib(free),
        }
    }

    fn wanted(vcpus: u32, memory: u64) -> Wanted {
        Wanted {
            vcpus,
            memory: ByteSize::mib(memory),
            strategy: PinningStrategy::Basic,
            seed: 42,
        }
    }

    #[test]
    fn basic_gives_each_node_its_share() {
        for (vcpus, expected) in [
            (4, &[0, 1, 4, 5][..]),
            (3, &[0, 4, 5]),
            (1, &[4]),
            (10, &[0, 1, 2, 3, 0, 4, 5, 6, 7, 4]),
        ] {
            assert_eq!(basic(&FOUR, vcpus), expected, "{vcpus} vCPUs");
        }
    }

    #[test]
    fn hybrid_shuffles_as_others_do() {
        assert_eq!(hybrid(&FOUR, 4, 42), [2, 7, 1, 0]);
        assert_eq!(hybrid(&FOUR, 10, 7), [4, 6, 1, 2, 3, 5, 7, 0, 4, 6]);
        let mut random = Mulberry32(42);
        for expected in [0.601_103_751_920_163_6, 0.448_290_558_997_541_67] {
            let got = f64::from(random.next()) / 4_294_967_296.0;
            assert!((got - expected).abs() < 1e-15, "{got}");
        }
    }

    /// Six CPUs and two, one node without CPUs, and a small one.
    fn host() -> [HostNode; 5] {
        [
            node(0, &[0, 1, 2, 3, 4, 5], 4096, 1024),
            node(1, &[6, 7], 4096, 2048),
            node(2, &[], 8192, 8192),
            node(3, &[8, 9], 512, 512),
            node(4, &[10], 0, 0),
        ]
    }

    #[test]
    fn a_machine_is_on_as_few_nodes_as_it_fits_on() {
        for (vcpus, memory, cpus, nodes) in [
            (1, 1024, &[6][..], &[1][..]),
            (2, 1024, &[6, 7], &[1]),
            (3, 1024, &[0, 1, 2], &[0]),
            (1, 1536, &[6], &[1]),
            (6, 1536, &[0, 1, 2, 3, 6, 7], &[0, 1]),
            // Nobody has as much free: what is taken may be given back.
            (6, 4096, &[0, 1, 2, 3, 4, 5], &[0]),
            (2, 5000, &[0, 6], &[0, 1]),
            (7, 1024, &[0, 1, 2, 3, 4, 6, 7], &[0, 1]),
            (9, 1024, &[0, 1, 2, 3, 4, 6, 8, 9, 8], &[0, 1, 3]),
        ] {
            let expected = Placement {
                cpus: cpus.to_vec(),
                nodes: nodes.to_vec(),
            };
            let placed = place(&host(), wanted(vcpus, memory));
            assert_eq!(placed, Ok(expected), "{vcpus} vCPUs, {memory} MiB");
        }
    }

    #[test]
    fn the_freest_node_is_taken_and_of_equals_the_first() {
        let host = [node(1, &[1], 512, 256), node(0, &[0], 512, 256)];
        assert_eq!(place(&host, wanted(1, 256)).unwrap().nodes, [0]);
        let host = [node(1, &[1], 512, 256), node(0, &[0], 512, 255)];
        assert_eq!(place(&host, wanted(1, 256)).unwrap().nodes, [1]);
    }

    #[test]
    fn a_node_without_which_the_others_are_enough_is_left_out() {
        let host = [
            node(0, &[0, 1], 4096, 4096),
            node(1, &[2, 3, 4, 5], 4096, 2048),
            node(2, &[6, 7, 8, 9], 4096, 1024),
        ];
        assert_eq!(place(&host, wanted(8, 1024)).unwrap().nodes, [1, 2]);
        assert_eq!(place(&host, wanted(8, 6144)).unwrap().nodes, [0, 1, 2]);
    }

    #[test]
    fn cpus_that_somebody_chose_lead_to_their_nodes() {
        let beside = |cpus: &[u32], memory| beside(&host(), cpus, ByteSize::mib(memory));
        assert_eq!(beside(&[7, 0, 6], 8192), Ok(vec![0, 1]));
        assert_eq!(beside(&[9], 512), Ok(vec![3]));
        for strange in [10, 11] {
            assert_eq!(
                beside(&[0, strange], 1),
                Err(NoPlacement::NoNode { cpu: strange })
            );
        }
        let refused = beside(&[9], 513).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the host nodes [3] have 512 MiB of memory, the machine 513 MiB"
        );
    }

    #[test]
    fn b15_a_host_that_has_not_enough_is_refused() {
        let refused = place(&host(), wanted(1, 8705)).unwrap_err();
        assert!(matches!(refused, NoPlacement::TooSmall { nodes, .. } if nodes == [0, 1, 3]));
        assert_eq!(place(&host()[2..3], wanted(1, 1)), Err(NoPlacement::NoCpus));
        assert_eq!(place(&[], wanted(1, 1)), Err(NoPlacement::NoCpus));
    }
}
