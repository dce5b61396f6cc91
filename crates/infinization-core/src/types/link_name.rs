//! Names of network interfaces, as the kernel takes them.

use serde::{Deserialize, Serialize};

use super::{InvalidValue, checked_string};

/// The name of a network interface.
///
/// The kernel keeps 15 bytes (`IFNAMSIZ` less the NUL) and cuts longer names silently, so the
/// length is checked here; the alphabet is what an nftables interface match takes without quoting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

checked_string!(LinkName, check_link_name);

impl LinkName {
    /// `vnet-` and ten hex digits: always a name.
    pub(super) fn of_tap(digits: &str) -> Self {
        Self(format!("vnet-{digits}"))
    }
}

fn check_link_name(text: &str) -> Result<(), InvalidValue> {
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if text.is_empty() || text.len() > 15 || !plain || text == "." || text == ".." {
        return Err(InvalidValue::new(
            "must have 1 to 15 characters out of letters, digits, '.', '_' and '-'",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b32_refuses_what_the_kernel_would_cut_or_reject() {
        for bad in ["", "a123456789012345", "a b", "a/b", "..", "br\n"] {
            assert!(LinkName::parse(bad).is_err(), "{bad:?} was taken");
        }
        assert!(LinkName::parse("infinibr-abc123").is_ok());
    }
}
