//! The host's NUMA nodes, with what of them this process, and so its QEMUs, may use.
//!
//! Read from `/sys/devices/system/node` and cut down to `Cpus_allowed_list` and `Mems_allowed_list` of
//! `/proc/self/status`: what a cpuset keeps from us, QEMU cannot have either. Nothing is cached. What is torn or missing
//! is an error: a machine is not bound to a guess.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::accelerator::{kib_of, parse_cpu_list};
use crate::config::HostNode;
use crate::error::{Coded, ErrorCode};
use crate::types::ByteSize;

/// The nodes could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NumaError {
    #[error("{} could not be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} makes no sense", path.display())]
    Parse { path: PathBuf },
}

impl Coded for NumaError {
    fn code(&self) -> ErrorCode {
        ErrorCode::ResourceUnavailable
    }
}

/// The nodes that are online, ascending; those whose memory is kept from us are left out. With the size of the host's
/// default huge pages, a node's memory is these pages.
pub fn nodes(huge_pages: Option<ByteSize>) -> Result<Vec<HostNode>, NumaError> {
    read_nodes(
        Path::new("/sys/devices/system/node"),
        Path::new("/proc/self/status"),
        huge_pages,
    )
}

fn read_nodes(
    sysfs: &Path,
    status: &Path,
    huge_pages: Option<ByteSize>,
) -> Result<Vec<HostNode>, NumaError> {
    let allowed = |key: &'static str| read(status, move |text| list_after(text, key));
    let (cpus, mems) = (
        allowed("Cpus_allowed_list:")?,
        allowed("Mems_allowed_list:")?,
    );
    let online = read(&sysfs.join("online"), parse_cpu_list)?;
    let ids = online.intersection(&mems).copied();
    ids.map(|id| read_node(sysfs, id, &cpus, huge_pages))
        .collect()
}

fn read_node(
    sysfs: &Path,
    id: u32,
    allowed: &BTreeSet<u32>,
    huge_pages: Option<ByteSize>,
) -> Result<HostNode, NumaError> {
    let directory = sysfs.join(format!("node{id}"));
    let cpus = read(&directory.join("cpulist"), parse_cpus_of_node)?;
    let (memory, free) = read(&directory.join("meminfo"), |text| match huge_pages {
        Some(size) => huge_pages_of(text, id, size),
        None => memory_of(text, id),
    })?;
    Ok(HostNode {
        id,
        cpus: cpus.intersection(allowed).copied().collect(),
        memory,
        free,
    })
}

/// All of it, and what is free or given back to whoever wants it: the page cache, but not what only memory holds.
fn memory_of(meminfo: &str, id: u32) -> Option<(ByteSize, ByteSize)> {
    let of = |key: &str| kib_of(meminfo, &format!("Node {id} {key}:")).map(ByteSize::as_bytes);
    let cache = of("FilePages")?.saturating_sub(of("Shmem")?);
    let (memory, free) = (of("MemTotal")?, of("MemFree")?.checked_add(cache)?);
    Some((ByteSize::bytes(memory), ByteSize::bytes(free)))
}

/// The free pages twice: they are taken at the start of a machine, and those of others do not come back.
fn huge_pages_of(meminfo: &str, id: u32, size: ByteSize) -> Option<(ByteSize, ByteSize)> {
    let key = format!("Node {id} HugePages_Free:");
    let line = meminfo.lines().find_map(|line| line.strip_prefix(&key))?;
    let pages: u64 = line.trim().parse().ok()?;
    let free = ByteSize::bytes(pages.checked_mul(size.as_bytes())?);
    Some((free, free))
}

/// A node may have no CPU; the kernel writes an empty line then. Only CPUs that are online are in it.
fn parse_cpus_of_node(text: &str) -> Option<BTreeSet<u32>> {
    if text.trim().is_empty() {
        return Some(BTreeSet::new());
    }
    parse_cpu_list(text)
}

fn list_after(text: &str, key: &str) -> Option<BTreeSet<u32>> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    parse_cpu_list(line)
}

fn read<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, NumaError> {
    let text = fs::read_to_string(path).map_err(|source| NumaError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text).ok_or_else(|| NumaError::Parse {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of three nodes: the second has no CPU, the third's memory is kept from us.
    fn host(directory: &Path) {
        fs::write(directory.join("online"), "0-2\n").unwrap();
        for (id, cpus) in [(0, "0-2,8\n"), (1, "\n"), (2, "4-7\n")] {
            let node = directory.join(format!("node{id}"));
            fs::create_dir(&node).unwrap();
            fs::write(node.join("cpulist"), cpus).unwrap();
            let meminfo = format!(
                "Node {id} MemTotal:       4096 kB\nNode {id} MemFree:        1024 kB\n\
                 Node {id} FilePages:      768 kB\nNode {id} Shmem:          256 kB\n\
                 Node {id} HugePages_Free:     {id}\n"
            );
            fs::write(node.join("meminfo"), meminfo).unwrap();
        }
        let status =
            "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-1,4-8\nMems_allowed_list:\t0-1\n";
        fs::write(directory.join("status"), status).unwrap();
    }

    fn nodes_of(directory: &Path) -> Result<Vec<HostNode>, NumaError> {
        read_nodes(directory, &directory.join("status"), None)
    }

    #[test]
    fn nodes_are_what_may_be_used_of_them() {
        let directory = tempfile::tempdir().unwrap();
        host(directory.path());
        let node = |id, cpus: &[u32]| HostNode {
            id,
            cpus: cpus.to_vec(),
            memory: ByteSize::mib(4),
            free: ByteSize::bytes(1536 * 1024),
        };
        let expected = [node(0, &[0, 1, 8]), node(1, &[])];
        assert_eq!(nodes_of(directory.path()).unwrap(), expected);
    }

    #[test]
    fn huge_pages_are_a_pool_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        host(directory.path());
        let status = directory.path().join("status");
        let nodes = read_nodes(directory.path(), &status, Some(ByteSize::mib(2))).unwrap();
        let free: Vec<_> = nodes.iter().map(|node| (node.memory, node.free)).collect();
        let pages = |count: u64| (ByteSize::mib(2 * count), ByteSize::mib(2 * count));
        assert_eq!(free, [pages(0), pages(1)]);
    }

    #[test]
    fn b15_what_is_torn_or_missing_is_no_host() {
        for (file, text) in [
            ("online", ""),
            ("status", "Cpus_allowed_list:\t0\n"),
            ("node0/cpulist", "3-1\n"),
            ("node0/meminfo", "Node 0 MemTotal: many kB\n"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            host(directory.path());
            fs::write(directory.path().join(file), text).unwrap();
            let told = nodes_of(directory.path()).unwrap_err();
            assert!(matches!(&told, NumaError::Parse { .. }), "{file}: {told}");
            fs::remove_file(directory.path().join(file)).unwrap();
            let told = nodes_of(directory.path()).unwrap_err();
            assert!(matches!(&told, NumaError::Read { .. }), "{file}: {told}");
        }
    }

    #[test]
    fn this_host_has_a_node_with_cpus_and_memory() {
        let nodes = nodes(None).unwrap();
        let some = |node: &HostNode| !node.cpus.is_empty() && node.memory > ByteSize::mib(64);
        assert!(nodes.iter().any(some), "{nodes:?}");
    }
}
