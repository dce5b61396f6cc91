//! The chipset, the accelerator a VM may run with, its UUID, and whom QEMU runs as.

use serde::{Deserialize, Serialize};

use super::words;
use crate::types::{InvalidValue, checked_string};

words! {
    /// The chipset.
    pub enum MachineType {
        /// Intel Q35 of 2009: PCI Express, AHCI. The default.
        Q35 = "q35",
        /// Intel i440FX of 1996: PCI, PIIX IDE; for guests that know nothing newer.
        Pc = "pc",
    }
}

words! {
    /// Which accelerator a VM may run with.
    pub enum AcceleratorChoice {
        /// KVM where `/dev/kvm` opens and the CPU can virtualise, else TCG.
        Auto = "auto",
        /// KVM or nothing.
        Kvm = "kvm",
        /// Emulation.
        Tcg = "tcg",
    }
}

/// An SMBIOS system UUID in the one form QEMU reads: 8-4-4-4-12 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestUuid(String);

checked_string!(GuestUuid, check_uuid);

fn check_uuid(text: &str) -> Result<(), InvalidValue> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hex = groups
        .iter()
        .all(|group| group.chars().all(|c| c.is_ascii_hexdigit()));
    if lengths != [8, 4, 4, 4, 12] || !hex {
        return Err(InvalidValue::new(
            "must be an RFC 4122 UUID such as 3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b",
        ));
    }
    Ok(())
}

/// A user on this host: a login name, or `uid:gid` in decimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunAsUser(String);

checked_string!(RunAsUser, check_user);

fn check_user(text: &str) -> Result<(), InvalidValue> {
    // useradd(8): 32 characters, a letter or '_' first.
    let login = text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    let numeric = text
        .split_once(':')
        .is_some_and(|(uid, gid)| is_id(uid) && is_id(gid));
    if login || numeric {
        return Ok(());
    }
    Err(InvalidValue::new("must be a login name or uid:gid"))
}

fn is_id(text: &str) -> bool {
    // (uid_t)-1 means "leave as it is" to setresuid(2), so it is no user.
    text.chars().all(|c| c.is_ascii_digit()) && text.parse::<u32>().is_ok_and(|id| id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_the_hyphenated_form() {
        assert!(GuestUuid::parse("3F2B8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b").is_ok());
        for bad in [
            "",
            "vm-1",
            "3f2b8c1e7a4d4e559b0a1c2d3e4f5a6b",
            "{3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b}",
            "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6g",
            "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b-",
        ] {
            assert!(GuestUuid::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn run_as_is_a_login_or_two_numbers() {
        for good in ["nobody", "_apt", "libvirt-qemu", "65534:65534"] {
            assert!(RunAsUser::parse(good).is_ok(), "{good:?} was refused");
        }
        for bad in [
            "",
            "1000",
            "a b",
            "a,b",
            "-x",
            "1:",
            ":1",
            "4294967295:0",
            "1:+2",
            "a=b",
        ] {
            assert!(RunAsUser::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
