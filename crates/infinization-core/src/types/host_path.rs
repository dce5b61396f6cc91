//! Absolute paths that can stand on QEMU's command line and in its JSON.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{InvalidValue, checked_string};

/// An absolute path on the host that is safe to hand to QEMU and qemu-img.
///
/// Absolute, because a relative name with a `:` is a protocol to QEMU's block layer; without `..`,
/// control characters or `,` (QEMU's option separator), and not inside `/proc`, `/sys` or `/dev`.
/// Block devices are named by [`HostPath::parse_device`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPath(String);

checked_string!(HostPath, check_path);

impl HostPath {
    /// Takes a path below `/dev`, for the options that name a host device.
    pub fn parse_device(text: impl Into<String>) -> Result<Self, InvalidValue> {
        let text = text.into();
        check_shape(&text)?;
        if !text.starts_with("/dev/") {
            return Err(InvalidValue::new("must name a device below /dev"));
        }
        Ok(Self(text))
    }

    /// The same path for `std::fs`.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// `name` inside this directory.
    pub fn join(&self, name: &str) -> Result<Self, InvalidValue> {
        Self::parse(format!("{}/{name}", self.0.trim_end_matches('/')))
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

fn check_shape(text: &str) -> Result<(), InvalidValue> {
    if !text.starts_with('/') {
        return Err(InvalidValue::new("must be an absolute path"));
    }
    if text.len() > 4095 {
        return Err(InvalidValue::new("must have at most 4095 bytes"));
    }
    if text.chars().any(|c| c.is_control() || c == ',') {
        return Err(InvalidValue::new("must not hold ',' or control characters"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(InvalidValue::new("must not hold '..'"));
    }
    Ok(())
}

fn check_path(text: &str) -> Result<(), InvalidValue> {
    check_shape(text)?;
    let mut parts = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    match parts.next() {
        None => Err(InvalidValue::new("must name a file, not /")),
        Some(top @ ("proc" | "sys" | "dev")) => {
            Err(InvalidValue::new(format!("must not be inside /{top}")))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b3_refuses_option_separators_and_protocols() {
        for bad in [
            "",
            "disk.qcow2",
            "-x",
            "json:{}",
            "nbd:host:1",
            "fd:3",
            "/a,b",
            "/a\nb",
            "/a/../b",
            "/dev/sda",
            "/proc/1/mem",
            "//sys/x",
            "/./dev/x",
            "/",
        ] {
            assert!(HostPath::parse(bad).is_err(), "{bad:?} was taken");
        }
        assert!(HostPath::parse("/srv/vm disks/ä.qcow2").is_ok());
        assert!(HostPath::parse_device("/dev/vg0/lv0").is_ok());
    }
}
