//! Sizes, exact to the byte. Callers write GB and mean GiB.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// A size in bytes. Gigabytes in the public API mean GiB (2^30 bytes), as QEMU's suffix `G` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl ByteSize {
    /// Exactly `bytes`.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Exactly `mib` · 2^20 bytes.
    pub const fn mib(mib: u64) -> Self {
        Self(mib * MIB)
    }

    /// Reads a number of GiB that may have a fraction, rounded to whole MiB.
    pub fn from_gib(gib: f64) -> Result<Self, InvalidValue> {
        // Above 2^33 GiB the product no longer fits a qcow2's 63-bit offsets.
        const MOST_GIB: f64 = 8_589_934_591.0;
        if !gib.is_finite() || gib <= 0.0 || gib > MOST_GIB {
            return Err(InvalidValue::new("must be a positive number of GiB"));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was checked above"
        )]
        let mib = (gib * 1024.0).round() as u64;
        if mib == 0 {
            return Err(InvalidValue::new("must be at least 1 MiB"));
        }
        Ok(Self::mib(mib))
    }

    /// The size in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The size in whole MiB, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 / MIB
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n % GIB == 0 => write!(f, "{}G", n / GIB),
            n if n % MIB == 0 => write!(f, "{}M", n / MIB),
            n => write!(f, "{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_largest_whole_suffix() {
        assert_eq!(ByteSize::from_gib(20.0).unwrap().to_string(), "20G");
        assert_eq!(ByteSize::from_gib(0.5).unwrap().to_string(), "512M");
        assert_eq!(ByteSize::bytes(1000).to_string(), "1000");
    }

    #[test]
    fn b10_refuses_sizes_that_are_none() {
        for bad in [
            0.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            1e308,
            9_223_372_036_854_775_808.0,
            0.000_1,
        ] {
            assert!(ByteSize::from_gib(bad).is_err(), "{bad} was taken");
        }
    }
}
