//! What names the contents of chains: a digest of what their rules say.
//!
//! It is compared with digests of the same release only. To another release's it may be strange: then a chain
//! is loaded anew, or machines share one chain less. Neighbours: [`super::compile`], [`super::run`].

use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};

use super::expr::{NftRule, Verdict};
use super::run::SharedChain;

/// A digest that is being made.
#[derive(Default)]
pub(super) struct Digest(Sha256);

impl Digest {
    pub(super) fn add(&mut self, said: &(impl Hash + ?Sized)) {
        said.hash(self);
    }

    /// The rule, with a jump to a department's rules saying no more than their direction.
    pub(super) fn add_without_contents(&mut self, rule: &NftRule) {
        let kind = match &rule.verdict {
            Verdict::Jump(chain) => SharedChain::kind(chain),
            _ => None,
        };
        match kind {
            Some(kind) => self.add(&(&rule.matches, kind, &rule.comment)),
            None => self.add(rule),
        }
    }

    /// Its first octets.
    pub(super) fn head<const N: usize>(self) -> [u8; N] {
        let digest = self.0.finalize();
        std::array::from_fn(|octet| digest[octet])
    }
}

impl Hasher for Digest {
    fn write(&mut self, octets: &[u8]) {
        self.0.update(octets);
    }

    /// Nobody asks: the digest is longer.
    fn finish(&self) -> u64 {
        0
    }
}
