//! What the table and a VM's chains are called.

use crate::types::{LinkName, VmId, VmNames};

/// The table all of this lives in, in the bridge family.
pub const TABLE: &str = "infinization";

/// The three chains of one VM.
///
/// Only `vm` starts with `vm_`: the library's users list the chains and remove, by name, every
/// `vm_*` they do not know, so helpers must not look like one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainNames {
    /// `vm_` and 24 hex digits: the user's rules and the terminal verdict.
    pub vm: String,
    /// What prerouting dispatches the VM's own packets to.
    pub from: String,
    /// What postrouting dispatches packets for the VM to.
    pub to: String,
}

impl ChainNames {
    /// The chains of `vm_id`.
    pub fn of(vm_id: &VmId) -> Self {
        Self::with_vm_chain(VmNames::of(vm_id).chain)
    }

    /// The chains that belong to the visible chain `name`, if it is one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let hash = name.strip_prefix("vm_")?;
        let hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        (hash.len() == 24 && hash.chars().all(hex)).then(|| Self::with_vm_chain(name.to_owned()))
    }

    /// The TAP a VM with these chains has unless its row says otherwise: its name is cut from the
    /// same digest.
    pub fn default_tap(&self) -> Option<LinkName> {
        LinkName::parse(format!("vnet-{}", self.hash().get(..10)?)).ok()
    }

    /// All three, in an order in which they can be deleted: nothing jumps to a later one's absence.
    pub fn all(&self) -> [&str; 3] {
        [&self.from, &self.to, &self.vm]
    }

    fn with_vm_chain(vm: String) -> Self {
        let hash = vm.trim_start_matches("vm_");
        let (from, to) = (format!("from_{hash}"), format!("to_{hash}"));
        Self { vm, from, to }
    }

    fn hash(&self) -> &str {
        self.vm.trim_start_matches("vm_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_share_the_digest_and_do_not_look_like_vm_chains() {
        let id = VmId::parse("vm-1").unwrap();
        let names = ChainNames::of(&id);
        assert_eq!(names.vm, "vm_2d62b0035f348790d3b99c33");
        assert_eq!(names.from, "from_2d62b0035f348790d3b99c33");
        assert_eq!(names.to, "to_2d62b0035f348790d3b99c33");
        assert_eq!(names.default_tap(), Some(VmNames::of(&id).tap));
        assert_eq!(ChainNames::parse(&names.vm), Some(names));
    }

    #[test]
    fn only_vm_chains_can_be_named() {
        for other in [
            "prerouting",
            "from_2d62b0035f348790d3b99c33",
            "vm_",
            "vm_2d62",
            "vm_2D62B0035F348790D3B99C33",
            "vm_2d62b0035f348790d3b99c3;",
            "vm_2d62b0035f348790d3b99c333",
        ] {
            assert_eq!(ChainNames::parse(other), None, "{other} was taken");
        }
    }
}
