//! Masquerading: what leaves a subnet by any other way than its bridge takes the host's address.
//!
//! ```text
//! table ip infinibay_nat {
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat; policy accept;
//!     ip saddr 10.0.3.0/24 oifname != "br-a" masquerade comment "dept-br-a"
//!   }
//! }
//! ```
//!
//! One rule per bridge, known by its exact comment: the names, the order and the comment are a
//! contract with those who read `nft list chain ip infinibay_nat postrouting`. By that form what goes to another
//! bridge is masqueraded, too: there it comes from the host's address, and no rule of the receiver's can tell it
//! by its own. Hence what comes from there is not trusted for its address ([`super::guard`]). Invariant: a
//! transaction names no rule of another bridge, and none without such a comment.
//! Neighbour: [`crate::host::nft`] runs the transactions.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::types::{InvalidValue, LinkName};

/// The table, in the `ip` family.
pub const NAT_TABLE: &str = "infinibay_nat";
/// Its one chain.
pub const NAT_CHAIN: &str = "postrouting";
const COMMENT: &str = "dept-";
/// `srcnat`.
const PRIORITY: i32 = 100;

/// An IPv4 network: `10.0.3.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// Reads `a.b.c.d/n`: octets 0 to 255 without leading zeros (nft would read those as octal),
    /// prefix 1 to 32. Host bits are cut off, as the kernel does; `/0` would be all there is.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let malformed = || InvalidValue::new("must be an IPv4 network like 10.0.3.0/24");
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let prefix: u8 = length.parse().map_err(|_| malformed())?;
        if prefix.to_string() != length || !(1..=32).contains(&prefix) {
            return Err(malformed());
        }
        let mask = u32::MAX << (32 - prefix);
        let network = Ipv4Addr::from(u32::from(address) & mask);
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        Self::parse(text)
    }
}

/// One bridge's rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// Whose traffic.
    pub subnet: Subnet,
    /// Traffic that stays on it keeps its address.
    pub bridge: LinkName,
}

impl Masquerade {
    /// What the rule is known by.
    pub fn comment(bridge: &LinkName) -> String {
        format!("{COMMENT}{bridge}")
    }

    /// The bridge that a rule with this comment is for.
    pub fn bridge_of(comment: &str) -> Option<LinkName> {
        LinkName::parse(comment.strip_prefix(COMMENT)?).ok()
    }

    /// The rule's statements in the words of libnftables-json(5), as the kernel lists them too.
    pub fn statements(&self) -> Value {
        let Subnet { network, prefix } = self.subnet;
        let source = match prefix {
            32 => json!(network),
            _ => json!({ "prefix": { "addr": network, "len": prefix } }),
        };
        let from = json!({ "payload": { "protocol": "ip", "field": "saddr" } });
        let by = json!({ "meta": { "key": "oifname" } });
        json!([
            { "match": { "op": "==", "left": from, "right": source } },
            { "match": { "op": "!=", "left": by, "right": self.bridge } },
            { "masquerade": null },
        ])
    }
}

/// A rule of the chain, as the kernel holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct NatRule {
    /// The kernel's number for it.
    pub handle: u64,
    /// Its comment; others' rules may have none.
    pub comment: Option<String>,
    /// What it does, in the words of libnftables-json(5).
    pub statements: Value,
}

/// What the kernel holds of the table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NatListing {
    /// Whether the chain is there and hooked.
    pub hooked: bool,
    /// The chain's rules, in order.
    pub rules: Vec<NatRule>,
}

impl NatListing {
    /// The rules of this bridge; one, unless somebody meddled.
    pub fn of<'a>(&'a self, bridge: &LinkName) -> impl Iterator<Item = &'a NatRule> + use<'a> {
        let comment = Masquerade::comment(bridge);
        let ours = move |rule: &&NatRule| rule.comment.as_deref() == Some(comment.as_str());
        self.rules.iter().filter(ours)
    }

    /// Whether exactly this rule is in force for its bridge.
    pub fn holds(&self, wanted: &Masquerade) -> bool {
        let mut found = self.of(&wanted.bridge);
        let sound = |rule: &NatRule| rule.statements == wanted.statements();
        self.hooked && found.next().is_some_and(sound) && found.next().is_none()
    }

    /// The bridges that have a rule, in order.
    pub fn bridges(&self) -> Vec<LinkName> {
        let comments = self.rules.iter().filter_map(|rule| rule.comment.as_deref());
        comments.filter_map(Masquerade::bridge_of).collect()
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
enum Command {
    AddTable,
    AddChain,
    DeleteRule(u64),
    AddRule(Masquerade),
}

/// Steps that are taken together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NatTransaction {
    commands: Vec<Command>,
}

impl NatTransaction {
    /// The table and its chain, and nobody's rule.
    pub fn table() -> Self {
        Self {
            commands: vec![Command::AddTable, Command::AddChain],
        }
    }

    /// Makes each of these its bridge's only rule, whatever there is; nothing if all of them are.
    pub fn ensure<'a>(
        wanted: impl IntoIterator<Item = &'a Masquerade>,
        loaded: &NatListing,
    ) -> Option<Self> {
        let mut all = Self::table();
        for masquerade in wanted.into_iter().filter(|it| !loaded.holds(it)) {
            all.delete(&masquerade.bridge, loaded);
            all.commands.push(Command::AddRule(masquerade.clone()));
        }
        (all.commands.len() > Self::table().commands.len()).then_some(all)
    }

    /// Takes the bridge's rules out; nothing if there are none.
    pub fn remove(bridge: &LinkName, loaded: &NatListing) -> Option<Self> {
        let mut all = Self::default();
        all.delete(bridge, loaded);
        (!all.commands.is_empty()).then_some(all)
    }

    fn delete(&mut self, bridge: &LinkName, loaded: &NatListing) {
        let handles = loaded.of(bridge).map(|rule| rule.handle);
        self.commands.extend(handles.map(Command::DeleteRule));
    }

    /// The comments of the rules it adds, in order.
    pub fn added(&self) -> impl Iterator<Item = String> {
        self.commands.iter().filter_map(|command| match command {
            Command::AddRule(masquerade) => Some(Masquerade::comment(&masquerade.bridge)),
            _ => None,
        })
    }

    /// The transaction as one document for `nft -j -f -`.
    pub fn document(&self) -> Value {
        let commands: Vec<_> = self.commands.iter().map(Command::document).collect();
        json!({ "nftables": commands })
    }
}

impl Command {
    fn document(&self) -> Value {
        match self {
            Self::AddTable => json!({ "add": { "table": { "family": "ip", "name": NAT_TABLE } } }),
            Self::AddChain => json!({ "add": { "chain": {
                "family": "ip", "table": NAT_TABLE, "name": NAT_CHAIN,
                "type": "nat", "hook": "postrouting", "prio": PRIORITY, "policy": "accept",
            } } }),
            Self::DeleteRule(handle) => json!({ "delete": { "rule": {
                "family": "ip", "table": NAT_TABLE, "chain": NAT_CHAIN, "handle": handle,
            } } }),
            Self::AddRule(masquerade) => json!({ "add": { "rule": {
                "family": "ip", "table": NAT_TABLE, "chain": NAT_CHAIN,
                "expr": masquerade.statements(),
                "comment": Masquerade::comment(&masquerade.bridge),
            } } }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(name: &str) -> LinkName {
        LinkName::parse(name).unwrap()
    }

    fn wanted(subnet: &str, name: &str) -> Masquerade {
        Masquerade {
            subnet: Subnet::parse(subnet).unwrap(),
            bridge: bridge(name),
        }
    }

    fn loaded(rules: &[Masquerade]) -> NatListing {
        let rule = |(rule, handle): (&Masquerade, u64)| NatRule {
            handle,
            comment: Some(Masquerade::comment(&rule.bridge)),
            statements: rule.statements(),
        };
        NatListing {
            hooked: true,
            rules: rules.iter().zip(1..).map(rule).collect(),
        }
    }

    #[test]
    fn a_subnet_is_read_strictly_and_its_host_bits_are_cut_off() {
        for (text, subnet) in [
            ("10.0.3.0/24", "10.0.3.0/24"),
            ("10.0.3.77/24", "10.0.3.0/24"),
            ("10.0.3.7/32", "10.0.3.7/32"),
            ("255.255.255.255/1", "128.0.0.0/1"),
        ] {
            assert_eq!(Subnet::parse(text).unwrap().to_string(), subnet);
        }
        for bad in [
            "10.0.3.0",
            "10.0.3.0/",
            "10.0.3.0/33",
            "10.0.3.0/0",
            "10.0.3.0/024",
            "10.0.3.0/+8",
            "010.0.3.0/24",
            "10.0.3.08/24",
            "256.0.0.0/8",
            "10.0.3/24",
            " 10.0.3.0/24",
            "10.0.3.0/24\n",
            "10.0.3.0/24 accept",
            "10.0.3.0/255.255.255.0",
            "fd00::/64",
            "",
        ] {
            assert!(Subnet::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn n1_what_is_in_force_asks_for_nothing() {
        let rule = wanted("10.0.3.0/24", "br-a");
        assert_eq!(
            NatTransaction::ensure([&rule], &loaded(std::slice::from_ref(&rule))),
            None
        );
        let unhooked = NatListing {
            hooked: false,
            ..loaded(std::slice::from_ref(&rule))
        };
        assert!(NatTransaction::ensure([&rule], &unhooked).is_some());
    }

    #[test]
    fn n2_only_the_exact_bridge_is_meant() {
        let there = loaded(&[wanted("10.1.0.0/16", "x12"), wanted("10.2.0.0/16", "x1")]);
        let remove = NatTransaction::remove(&bridge("x1"), &there).unwrap();
        assert_eq!(remove.commands, [Command::DeleteRule(2)]);
        assert_eq!(NatTransaction::remove(&bridge("x"), &there), None);
        assert_eq!(there.bridges(), [bridge("x12"), bridge("x1")]);
    }

    #[test]
    fn n3_another_subnet_takes_the_place_of_all_there_were() {
        let old = wanted("10.1.0.0/16", "br-a");
        let there = loaded(&[old.clone(), wanted("10.9.0.0/16", "br-b"), old]);
        let new = wanted("10.2.0.0/16", "br-a");
        let change = NatTransaction::ensure([&new], &there).unwrap();
        let commands = [
            Command::AddTable,
            Command::AddChain,
            Command::DeleteRule(1),
            Command::DeleteRule(3),
            Command::AddRule(new),
        ];
        assert_eq!(change.commands, commands);
        assert_eq!(change.added().collect::<Vec<_>>(), ["dept-br-a"]);
    }
}
