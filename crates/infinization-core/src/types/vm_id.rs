//! What machines are called: the caller's id, and the name QEMU runs under.

use serde::{Deserialize, Serialize};

use super::{InvalidValue, checked_string};

/// The machine's id in the user's database.
///
/// It becomes a directory name and a log field, so only letters, digits, `.`, `_` and `-` are
/// taken, it starts with a letter or digit, and it has at most 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(String);

checked_string!(VmId, check_id);

/// The name that disks, sockets and the process carry (`<internalName>.qcow2`).
///
/// Same alphabet as [`VmId`], at most 64 characters, because socket paths are limited to 107 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InternalName(String);

checked_string!(InternalName, check_internal_name);

fn check_id(text: &str) -> Result<(), InvalidValue> {
    check_file_stem(text, 128)
}

fn check_internal_name(text: &str) -> Result<(), InvalidValue> {
    check_file_stem(text, 64)
}

fn check_file_stem(text: &str, longest: usize) -> Result<(), InvalidValue> {
    if text.is_empty() {
        return Err(InvalidValue::new("must not be empty"));
    }
    if text.len() > longest {
        return Err(InvalidValue::new(format!(
            "must have at most {longest} characters"
        )));
    }
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if !starts_well || !plain {
        return Err(InvalidValue::new(
            "must start with a letter or digit and hold only letters, digits, '.', '_' and '-'",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_uuids_and_short_names() {
        for good in ["vm-1", "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b", "a", "x.y_z"] {
            assert_eq!(VmId::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn b1_refuses_what_could_leave_its_directory() {
        let long = "a".repeat(300);
        for bad in [
            "",
            "..",
            ".",
            "a/b",
            "../x",
            "a\0b",
            "a\nb",
            "-a",
            "ä",
            long.as_str(),
        ] {
            assert!(VmId::parse(bad).is_err(), "{bad:?} was taken");
            assert!(InternalName::parse(bad).is_err(), "{bad:?} was taken");
        }
    }
}
