//! The card handed to the guest: is there one at that address, and is it one that can be handed over.

use std::fs;
use std::path::Path;

use crate::config::{Issue, VmConfig};
use crate::types::PciAddress;

/// Where the kernel lists its PCI functions.
const DEVICES: &str = "/sys/bus/pci/devices";
/// Class codes without their programming interface (PCI Code and ID Assignment, 1.7): bridges that
/// belong to the host's own topology. VFIO takes none of them.
const BRIDGES: [(u32, &str); 3] = [
    (0x0600, "the host bridge"),
    (0x0604, "a PCI bridge"),
    (0x0609, "a PCI bridge"),
];

/// What is wrong with the card, if one is wanted.
pub(super) fn issues(config: &VmConfig) -> Option<Issue> {
    let gpu = config.gpu.as_ref()?;
    issue(Path::new(DEVICES), gpu.address)
}

fn issue(devices: &Path, address: PciAddress) -> Option<Issue> {
    let field = "gpuPciAddress";
    let device = devices.join(address.to_string());
    if !device.exists() {
        let message = format!("names {address}, which is no PCI device of this host");
        return Some(Issue::unavailable(field, message));
    }
    let class = fs::read_to_string(device.join("class")).unwrap_or_default();
    let bridge = bridge(&class)?;
    let message = format!("names {address}, which is {bridge}: it stays with the host");
    Some(Issue::invalid(field, message))
}

/// What kind of bridge has this class (`0x060400`), if it is one.
fn bridge(class: &str) -> Option<&'static str> {
    let class = u32::from_str_radix(class.trim().strip_prefix("0x")?, 16).ok()?;
    let bridge = BRIDGES.iter().find(|(code, _)| *code == class >> 8);
    bridge.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn b35_bridges_stay_with_the_host() {
        let devices = tempfile::tempdir().unwrap();
        let address = PciAddress::parse("0000:01:00.0").unwrap();
        let issue = || issue(devices.path(), address);
        assert_eq!(issue().unwrap().code, ErrorCode::ResourceUnavailable);
        let device = devices.path().join("0000:01:00.0");
        fs::create_dir(&device).unwrap();
        for (class, refused) in [
            ("0x060000\n", true),
            ("0x060400\n", true),
            ("0x060401\n", true),
            ("0x060940\n", true),
            ("0x030000\n", false),
            ("0x068000\n", false),
            ("0x0604000\n", false),
            ("", false),
        ] {
            fs::write(device.join("class"), class).unwrap();
            let code = issue().map(|issue| (issue.path, issue.code));
            let expected = refused.then(|| ("gpuPciAddress".into(), ErrorCode::InvalidConfig));
            assert_eq!(code, expected, "{class:?}");
        }
    }
}
