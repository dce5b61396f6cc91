//! What networks and their machines may be called.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::fields::string;
use crate::types::{InvalidValue, LinkName, checked_string};

/// What a network is called: also the name of its folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

checked_string!(NetworkName, check_name);

fn check_name(text: &str) -> Result<(), InvalidValue> {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && text.len() <= 32 && text.chars().all(inside) {
        return Ok(());
    }
    Err(InvalidValue::new(
        "must have 1 to 32 letters, digits, '-' and '_', and begin with a letter or digit",
    ))
}

/// A name in the DNS: labels of letters, digits and '-'.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

checked_string!(DnsName, check_dns_name);

fn check_dns_name(text: &str) -> Result<(), InvalidValue> {
    let is_label = |label: &str| {
        let plain = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(());
    }
    Err(InvalidValue::new(
        "must be a DNS name: labels of letters, digits and '-'",
    ))
}

pub(super) fn label(value: &Value) -> Result<DnsName, InvalidValue> {
    let name = DnsName::parse(string(value)?)?;
    if name.as_str().contains('.') {
        return Err(InvalidValue::new("must be one label, without '.'"));
    }
    if is_keyword(name.as_str()) {
        return Err(InvalidValue::new("is a word or a time of dnsmasq's"));
    }
    Ok(name)
}

/// Whether `dhcp-host` takes it for something else than a name: dnsmasq would give nobody the address, or
/// another lease time (dnsmasq(8)).
fn is_keyword(name: &str) -> bool {
    let is = |word: &str| name.eq_ignore_ascii_case(word);
    let time = name.trim_end_matches(|unit: char| "smhdwSMHDW".contains(unit));
    let is_time = name.len() - time.len() <= 1 && !time.is_empty();
    is("ignore") || is("infinite") || is_time && time.bytes().all(|byte| byte.is_ascii_digit())
}

pub(super) fn bridge_of(name: &NetworkName) -> LinkName {
    let digest = Sha256::digest(name.as_str().as_bytes());
    let text = format!(
        "infinet-{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2]
    );
    LinkName::parse(text).expect("14 letters, digits and '-'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_dnsmasq_takes_for_something_else_are_told_from_the_rest() {
        for word in ["ignore", "infinite", "5m", "45", "2W"] {
            assert!(is_keyword(word), "{word}");
        }
        for name in ["m", "web5m", "5mm", "ignored", "5-m"] {
            assert!(!is_keyword(name), "{name}");
        }
    }
}
