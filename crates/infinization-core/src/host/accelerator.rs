//! What this host can give a VM: hardware virtualisation, vhost-net, CPUs, memory, huge pages.
//!
//! The parsers are pure, the functions that read are thin. Nothing is cached: a module may be
//! loaded, and a CPU taken offline, while we run.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use crate::error::{Coded, ErrorCode};
use crate::types::ByteSize;

/// Whether guests can run on the CPU itself, and the sentence that says why or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAcceleration {
    /// `-accel kvm` works.
    pub kvm_usable: bool,
    /// The reason, for logs and for the error when `kvm` was asked for.
    pub why: String,
}

/// Looks whether KVM is usable: `/dev/kvm` opens for reading and writing **and** the CPU can
/// virtualise. The device alone proves nothing: para-virtualised hosts offer one under which stock
/// guest kernels hang.
pub fn detect() -> HostAcceleration {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge(opens("/dev/kvm"), &cpuinfo, std::env::consts::ARCH)
}

/// Whether QEMU may be given `vhost=on`: without the device, 7.2 aborts on an assertion.
pub fn vhost_net_available() -> bool {
    opens("/dev/vhost-net").is_ok()
}

fn opens(device: &str) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(device)?;
    drop(device);
    Ok(())
}

fn judge(kvm: io::Result<()>, cpuinfo: &str, arch: &str) -> HostAcceleration {
    let (kvm_usable, why) = match kvm {
        Err(error) => (false, format!("/dev/kvm cannot be opened: {error}")),
        Ok(()) if can_virtualise(cpuinfo, arch) => (true, "KVM is available".to_owned()),
        Ok(()) => (
            false,
            "/dev/kvm opens, but the CPU has neither vmx nor svm".to_owned(),
        ),
    };
    HostAcceleration { kvm_usable, why }
}

/// x86 says so in its flags; elsewhere `/dev/kvm` exists only where the CPU can.
fn can_virtualise(cpuinfo: &str, arch: &str) -> bool {
    if !matches!(arch, "x86" | "x86_64") {
        return true;
    }
    let flags = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    flags
        .filter(|(key, _)| key.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_ascii_whitespace())
        .any(|flag| matches!(flag, "vmx" | "svm"))
}

/// How large this host is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSize {
    /// The numbers of the CPUs that are online. They need not be consecutive.
    pub online_cpus: BTreeSet<u32>,
    /// Physical memory, as the kernel counts it.
    pub memory: ByteSize,
}

/// The host's size could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HostSizeError {
    #[error("{path} could not be read")]
    Read {
        path: &'static str,
        source: io::Error,
    },
    #[error("{path} makes no sense")]
    Parse { path: &'static str },
}

impl Coded for HostSizeError {
    fn code(&self) -> ErrorCode {
        ErrorCode::HostFile
    }
}

/// Reads the host's size.
pub fn host_size() -> Result<HostSize, HostSizeError> {
    Ok(HostSize {
        online_cpus: read("/sys/devices/system/cpu/online", parse_cpu_list)?,
        memory: read("/proc/meminfo", parse_total_memory)?,
    })
}

/// The size of a huge page where nobody names one (`Hugepagesize` of `/proc/meminfo`): what a VM's
/// memory must be a multiple of. 2 MiB on a kernel without huge pages, where QEMU refuses them.
pub fn default_hugepage_size() -> Result<ByteSize, HostSizeError> {
    let size = read("/proc/meminfo", |meminfo| {
        Some(kib_of(meminfo, "Hugepagesize:"))
    })?;
    Ok(size.unwrap_or(ByteSize::mib(2)))
}

fn read<T>(path: &'static str, parse: fn(&str) -> Option<T>) -> Result<T, HostSizeError> {
    let text = fs::read_to_string(Path::new(path))
        .map_err(|source| HostSizeError::Read { path, source })?;
    parse(&text).ok_or(HostSizeError::Parse { path })
}

/// Reads the kernel's list format: `0-3,8,10-11`. Empty, reversed and open ranges are refused.
pub fn parse_cpu_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu_number(first)?, cpu_number(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The kernel's own limit (`NR_CPUS`) is 8192, so a larger number is no CPU.
fn cpu_number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|number| *number < 8192)
}

fn parse_total_memory(meminfo: &str) -> Option<ByteSize> {
    kib_of(meminfo, "MemTotal:")
}

pub(super) fn kib_of(meminfo: &str, key: &str) -> Option<ByteSize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(ByteSize::bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_cpu() {
        let intel = "processor\t: 0\nflags\t\t: fpu vmx sse\nvmx flags\t: ept\n";
        let amd = "flags : fpu svm\n";
        let neither = "flags\t: fpu svme novmx\nvmx flags\t: vmx\nmodel name : vmx svm\n";
        let absent = || Err(io::Error::from_raw_os_error(libc::ENOENT));
        let table = [
            (Ok(()), intel, "x86_64", true),
            (Ok(()), amd, "x86_64", true),
            (Ok(()), neither, "x86_64", false),
            (Ok(()), "", "x86_64", false),
            (Ok(()), "", "aarch64", true),
            (absent(), intel, "x86_64", false),
            (absent(), "", "aarch64", false),
        ];
        for (kvm, cpuinfo, arch, usable) in table {
            let found = judge(kvm, cpuinfo, arch);
            assert_eq!(
                found.kvm_usable, usable,
                "{cpuinfo:?} {arch}: {}",
                found.why
            );
            assert!(!found.why.is_empty());
        }
    }

    #[test]
    fn b14_cpu_lists_are_read_strictly() {
        let good: [(&str, &[u32]); 4] = [
            ("0\n", &[0]),
            ("0-3\n", &[0, 1, 2, 3]),
            ("0,2-3,10", &[0, 2, 3, 10]),
            ("7,1", &[1, 7]),
        ];
        for (text, cpus) in good {
            assert!(parse_cpu_list(text).unwrap().iter().eq(cpus), "{text:?}");
        }
        for bad in [
            "",
            "\n",
            "0-",
            "-1",
            "3-1",
            "0,,1",
            "a",
            "0-4294967295",
            "+1",
            "1 2",
        ] {
            assert_eq!(parse_cpu_list(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn this_host_has_a_cpu_and_memory() {
        let size = host_size().unwrap();
        let usable = std::thread::available_parallelism().unwrap().get();
        assert!(size.online_cpus.len() >= usable);
        assert!(size.memory > ByteSize::mib(64));
    }

    #[test]
    fn total_memory_is_in_kib() {
        let text = "MemTotal:       24684092 kB\nMemFree:        1 kB\n";
        assert_eq!(
            parse_total_memory(text),
            Some(ByteSize::bytes(24_684_092 * 1024))
        );
        assert_eq!(parse_total_memory("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn b13_huge_pages_are_the_kernel_s() {
        let text = "HugePages_Total:       0\nHugepagesize:    1048576 kB\nHugetlb: 0 kB\n";
        let size = kib_of(text, "Hugepagesize:");
        assert_eq!(size, Some(ByteSize::mib(1024)));
        assert!(default_hugepage_size().unwrap() >= ByteSize::bytes(64 * 1024));
    }
}
