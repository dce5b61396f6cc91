//! Masquerading: what leaves a subnet by any other way than its bridge, or another's, takes the host's address.
//!
//! ```text
//! table ip infinibay_nat {
//!   set departments { type ifname; elements = { "br-a", "br-b" } }
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat; policy accept;
//!     iifname "br-a" ip saddr 10.0.3.0/24 oifname @departments accept comment "between-br-a"
//!     ip saddr 10.0.3.0/24 oifname != "br-a" masquerade comment "dept-br-a"
//!   }
//! }
//! ```
//!
//! Two rules per bridge, known by their exact comments: the names, the order and the comment of the second are a
//! contract with those who read `nft list chain ip infinibay_nat postrouting`. The first leaves what goes to another
//! bridge its address, so that the receiver's rules can tell it by that: what comes in by its own bridge, that is. What
//! comes in by another pretends to be its subnet's, and is masqueraded; so is everything where the kernel does not say
//! there by what it came (before 5.7). Invariant: a transaction names no rule of another bridge, and none without such
//! a comment.
//! Neighbour: [`crate::host::nft`] runs the transactions.

use std::collections::BTreeSet;
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
const BETWEEN: &str = "between-";
/// Its one set: the bridges that have rules there.
pub const NAT_DEPARTMENTS: &str = "departments";
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

    /// What the rule before it is known by.
    fn comment_between(bridge: &LinkName) -> String {
        format!("{BETWEEN}{bridge}")
    }

    /// The bridge that a rule with this comment is for.
    pub fn bridge_of(comment: &str) -> Option<LinkName> {
        LinkName::parse(comment.strip_prefix(COMMENT)?).ok()
    }

    /// The rule's statements in the words of libnftables-json(5), as the kernel lists them too.
    pub fn statements(&self) -> Value {
        json!([
            self.comes_from(),
            meta("oifname", "!=", self.bridge.as_str()),
            { "masquerade": null },
        ])
    }

    /// As [`Masquerade::statements`], of the rule before it.
    fn statements_between(&self) -> Value {
        json!([
            meta("iifname", "==", self.bridge.as_str()),
            self.comes_from(),
            meta("oifname", "==", &format!("@{NAT_DEPARTMENTS}")),
            { "accept": null },
        ])
    }

    fn comes_from(&self) -> Value {
        let Subnet { network, prefix } = self.subnet;
        let source = match prefix {
            32 => json!(network),
            _ => json!({ "prefix": { "addr": network, "len": prefix } }),
        };
        let from = json!({ "payload": { "protocol": "ip", "field": "saddr" } });
        json!({ "match": { "op": "==", "left": from, "right": source } })
    }

    /// Its rules in order: comment and statements.
    fn rules(&self) -> [(String, Value); 2] {
        let bridge = &self.bridge;
        [
            (Self::comment_between(bridge), self.statements_between()),
            (Self::comment(bridge), self.statements()),
        ]
    }
}

fn meta(key: &str, op: &str, right: &str) -> Value {
    json!({ "match": { "op": op, "left": { "meta": { "key": key } }, "right": right } })
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
    /// The bridges that keep their addresses towards each other.
    pub departments: BTreeSet<String>,
    /// The chain's rules, in order.
    pub rules: Vec<NatRule>,
}

impl NatListing {
    /// The rules of this bridge; two, unless somebody meddled.
    pub fn of<'a>(&'a self, bridge: &LinkName) -> impl Iterator<Item = &'a NatRule> + use<'a> {
        let comments = [
            Masquerade::comment_between(bridge),
            Masquerade::comment(bridge),
        ];
        let ours = move |rule: &&NatRule| {
            let comment = rule.comment.as_ref();
            comment.is_some_and(|comment| comments.contains(comment))
        };
        self.rules.iter().filter(ours)
    }

    /// Whether exactly this is in force for its bridge.
    pub fn holds(&self, wanted: &Masquerade) -> bool {
        let found = self.of(&wanted.bridge);
        let found = found.map(|rule| (rule.comment.clone().unwrap_or_default(), &rule.statements));
        let rules = wanted.rules();
        let wanted_rules = rules
            .iter()
            .map(|(comment, statements)| (comment.clone(), statements));
        self.hooked && self.departments.contains(wanted.bridge.as_str()) && wanted_rules.eq(found)
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
    AddDepartments,
    AddChain,
    DeleteRule(u64),
    AddRules(Masquerade),
    AddDepartment(LinkName),
    DeleteDepartment(LinkName),
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
            commands: vec![
                Command::AddTable,
                Command::AddDepartments,
                Command::AddChain,
            ],
        }
    }

    /// Makes each of these its bridge's only one, whatever there is; nothing if all of them are.
    pub fn ensure<'a>(
        wanted: impl IntoIterator<Item = &'a Masquerade>,
        loaded: &NatListing,
    ) -> Option<Self> {
        let mut all = Self::table();
        for masquerade in wanted.into_iter().filter(|it| !loaded.holds(it)) {
            all.delete(&masquerade.bridge, loaded);
            let department = Command::AddDepartment(masquerade.bridge.clone());
            all.commands
                .extend([department, Command::AddRules(masquerade.clone())]);
        }
        (all.commands.len() > Self::table().commands.len()).then_some(all)
    }

    /// Takes the bridge's rules out; nothing if there are none.
    pub fn remove(bridge: &LinkName, loaded: &NatListing) -> Option<Self> {
        let mut all = Self::default();
        all.delete(bridge, loaded);
        if loaded.departments.contains(bridge.as_str()) {
            all.commands.push(Command::DeleteDepartment(bridge.clone()));
        }
        (!all.commands.is_empty()).then_some(all)
    }

    fn delete(&mut self, bridge: &LinkName, loaded: &NatListing) {
        let handles = loaded.of(bridge).map(|rule| rule.handle);
        self.commands.extend(handles.map(Command::DeleteRule));
    }

    /// The comments of the rules it adds, in order.
    pub fn added(&self) -> impl Iterator<Item = String> {
        let rules = self.commands.iter().filter_map(|command| match command {
            Command::AddRules(masquerade) => Some(masquerade.rules()),
            _ => None,
        });
        rules.flatten().map(|(comment, _)| comment)
    }

    /// The transaction as one document for `nft -j -f -`.
    pub fn document(&self) -> Value {
        let commands: Vec<_> = self.commands.iter().flat_map(Command::documents).collect();
        json!({ "nftables": commands })
    }
}

impl Command {
    fn documents(&self) -> Vec<Value> {
        let one = match self {
            Self::AddTable => json!({ "add": { "table": { "family": "ip", "name": NAT_TABLE } } }),
            Self::AddDepartments => json!({ "add": { "set": {
                "family": "ip", "table": NAT_TABLE, "name": NAT_DEPARTMENTS, "type": "ifname",
            } } }),
            Self::AddChain => json!({ "add": { "chain": {
                "family": "ip", "table": NAT_TABLE, "name": NAT_CHAIN,
                "type": "nat", "hook": "postrouting", "prio": PRIORITY, "policy": "accept",
            } } }),
            Self::DeleteRule(handle) => json!({ "delete": { "rule": {
                "family": "ip", "table": NAT_TABLE, "chain": NAT_CHAIN, "handle": handle,
            } } }),
            Self::AddDepartment(bridge) => json!({ "add": { "element": department(bridge) } }),
            Self::DeleteDepartment(bridge) => {
                json!({ "delete": { "element": department(bridge) } })
            }
            Self::AddRules(masquerade) => return masquerade.rules().map(added).into(),
        };
        vec![one]
    }
}

fn added((comment, statements): (String, Value)) -> Value {
    json!({ "add": { "rule": {
        "family": "ip", "table": NAT_TABLE, "chain": NAT_CHAIN,
        "expr": statements, "comment": comment,
    } } })
}

fn department(bridge: &LinkName) -> Value {
    json!({ "family": "ip", "table": NAT_TABLE, "name": NAT_DEPARTMENTS, "elem": [bridge] })
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

    fn loaded(all: &[Masquerade]) -> NatListing {
        let rule = |((comment, statements), handle): ((String, Value), u64)| NatRule {
            handle,
            comment: Some(comment),
            statements,
        };
        NatListing {
            hooked: true,
            departments: all.iter().map(|it| it.bridge.to_string()).collect(),
            rules: all
                .iter()
                .flat_map(Masquerade::rules)
                .zip(1..)
                .map(rule)
                .collect(),
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
        let without = |part: &dyn Fn(&mut NatListing)| {
            let mut there = loaded(std::slice::from_ref(&rule));
            part(&mut there);
            NatTransaction::ensure([&rule], &there)
        };
        assert!(without(&|it| it.departments.clear()).is_some());
        assert!(without(&|it| it.rules.swap(0, 1)).is_some());
        for gone in [0, 1] {
            assert!(without(&|it| drop(it.rules.remove(gone))).is_some());
        }
    }

    #[test]
    fn n2_only_the_exact_bridge_is_meant() {
        let there = loaded(&[wanted("10.1.0.0/16", "x12"), wanted("10.2.0.0/16", "x1")]);
        let remove = NatTransaction::remove(&bridge("x1"), &there).unwrap();
        let commands = [
            Command::DeleteRule(3),
            Command::DeleteRule(4),
            Command::DeleteDepartment(bridge("x1")),
        ];
        assert_eq!(remove.commands, commands);
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
            Command::AddDepartments,
            Command::AddChain,
            Command::DeleteRule(1),
            Command::DeleteRule(2),
            Command::DeleteRule(5),
            Command::DeleteRule(6),
            Command::AddDepartment(bridge("br-a")),
            Command::AddRules(new),
        ];
        assert_eq!(change.commands, commands);
        let added: Vec<_> = change.added().collect();
        assert_eq!(added, ["between-br-a", "dept-br-a"]);
    }
}
