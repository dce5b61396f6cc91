//! A random address for a guest. Addresses of machines are derived from their ids instead
//! ([`crate::types::VmNames`]).

use uuid::Uuid;

use crate::types::MacAddr;

/// `52:54:` and four random octets.
pub fn random() -> MacAddr {
    // The first six octets of a version 4 UUID are random.
    let [c, d, e, f, ..] = *Uuid::new_v4().as_bytes();
    MacAddr::of_guest([c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_are_not_the_same_and_both_are_qemu_s() {
        let (one, other) = (random(), random());
        assert_ne!(one, other);
        assert!(one.to_string().starts_with("52:54:"));
    }
}
