//! What the kernel tells the nftables multicast group, as far as we ask: which commit touched a
//! table of ours, and whose it was.
//!
//! A commit is told as one message per object, each naming its table in its first attribute, and a
//! last one (`NFT_MSG_NEWGEN`). All carry the port of the socket the commit came from. The bytes are
//! those of `linux/netfilter/nfnetlink.h` and `nf_tables.h`. Pure; [`super::journal`] listens.

use std::collections::BTreeSet;

use super::wire::{
    FAMILY_BRIDGE, GENERIC_HEADER, SUBSYS_NFTABLES, find_text, generation, kind, u16_at, u32_at,
};
use crate::firewall::{NAT_TABLE, TABLE};

/// `NFT_MSG_NEWGEN`: the end of a commit.
const NEW_GENERATION: u16 = (SUBSYS_NFTABLES << 8) + kind::NEW_GENERATION;
const FAMILY_IPV4: u8 = 2;
/// `NFT_MSG_NEWTABLE`, and `NFT_MSG_DELTABLE`.
const TABLE_MADE: u16 = (SUBSYS_NFTABLES << 8) + kind::NEW_TABLE;
const TABLE_GONE: u16 = (SUBSYS_NFTABLES << 8) + kind::DELETE_TABLE;
/// `NFT_MSG_NEWRULE`, which also is a replacement, and `NFT_MSG_DELRULE`.
const RULES: [u16; 2] = [(SUBSYS_NFTABLES << 8) + 6, (SUBSYS_NFTABLES << 8) + 8];
/// The attribute that names the table, in every message.
const NAME_OF_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`.
const CHAIN_OF_RULE: u16 = 2;

/// The tables that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OurTable {
    /// `bridge infinization`.
    Filter,
    /// `ip infinibay_nat`.
    Nat,
}

impl OurTable {
    pub(super) const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    fn of(family: u8, name: &[u8]) -> Option<Self> {
        match family {
            FAMILY_BRIDGE if name == TABLE.as_bytes() => Some(Self::Filter),
            FAMILY_IPV4 if name == NAT_TABLE.as_bytes() => Some(Self::Nat),
            _ => None,
        }
    }
}

/// A commit that is over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Commit {
    /// The port of the netlink socket it came from.
    pub(super) sender: u32,
    /// The number of the state that it made (`NFTA_GEN_ID`).
    pub(super) generation: Option<u32>,
    /// What of ours it changed.
    pub(super) touched: Touched,
}

/// What of ours somebody changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Touched {
    /// The tables, in which anything was.
    pub(super) tables: Vec<OurTable>,
    /// The filter's chains, in which rules were.
    pub(super) chains: BTreeSet<String>,
    /// Whether it left the filter without its table; none if it neither made nor deleted that.
    pub(super) gone: Option<bool>,
}

/// Puts messages together to commits; one may spread over several datagrams.
#[derive(Debug, Default)]
pub(super) struct Reader {
    touched: Touched,
}

/// Bytes that are no netlink messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Torn;

impl Reader {
    /// Takes a datagram in; answers the commits that ended in it.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<Vec<Commit>, Torn> {
        let mut ended = Vec::new();
        while !bytes.is_empty() {
            let length = usize::try_from(u32_at(bytes, 0).ok_or(Torn)?).map_err(|_| Torn)?;
            let message = bytes.get(..length).ok_or(Torn)?;
            ended.extend(self.take_in(message)?);
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(ended)
    }

    /// Forgets the beginning of a commit whose end was lost.
    pub(super) fn restart(&mut self) {
        self.touched = Touched::default();
    }

    fn take_in(&mut self, message: &[u8]) -> Result<Option<Commit>, Torn> {
        let kind = u16_at(message, 4).ok_or(Torn)?;
        let sender = u32_at(message, 12).ok_or(Torn)?;
        let attributes = message.get(GENERIC_HEADER..).ok_or(Torn)?;
        if kind == NEW_GENERATION {
            return Ok(Some(Commit {
                sender,
                generation: generation(attributes),
                touched: std::mem::take(&mut self.touched),
            }));
        }
        if kind >> 8 == SUBSYS_NFTABLES {
            self.touched.note(kind, message[16], attributes);
        }
        Ok(None)
    }
}

impl Touched {
    fn note(&mut self, kind: u16, family: u8, attributes: &[u8]) {
        let name = find_text(attributes, NAME_OF_TABLE).unwrap_or_default();
        let Some(table) = OurTable::of(family, name) else {
            return;
        };
        if !self.tables.contains(&table) {
            self.tables.push(table);
        }
        if table != OurTable::Filter {
            return;
        }
        if [TABLE_MADE, TABLE_GONE].contains(&kind) {
            self.gone = Some(kind == TABLE_GONE);
        }
        if RULES.contains(&kind) {
            let chain = find_text(attributes, CHAIN_OF_RULE).unwrap_or_default();
            self.chains
                .insert(String::from_utf8_lossy(chain).into_owned());
        }
    }
}

/// Whether a message of the datagram is about this table, or the datagram makes no sense.
pub(super) fn names_table(mut bytes: &[u8], family: u8, table: &str) -> bool {
    while !bytes.is_empty() {
        let length = u32_at(bytes, 0).and_then(|length| usize::try_from(length).ok());
        let Some(message) = length.and_then(|length| bytes.get(..length)) else {
            return true;
        };
        let Some(attributes) = message.get(GENERIC_HEADER..) else {
            return true;
        };
        let kind = u16_at(message, 4).unwrap_or_default();
        let is_object = kind >> 8 == SUBSYS_NFTABLES && kind != NEW_GENERATION;
        let name = find_text(attributes, NAME_OF_TABLE).unwrap_or_default();
        if is_object && message[16] == family && name == table.as_bytes() {
            return true;
        }
        bytes = bytes
            .get(message.len().next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_RULE: u16 = (SUBSYS_NFTABLES << 8) + 6;

    fn attribute(kind: u16, text: &str) -> Vec<u8> {
        let text = [text.as_bytes(), &[0]].concat();
        let mut bytes = u16::try_from(4 + text.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, sender: u32, family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let attributes = attributes.concat();
        let length = u32::try_from(GENERIC_HEADER + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(sender.to_ne_bytes());
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn rule(family: u8, table: &str, chain: &str) -> Vec<u8> {
        message(
            NEW_RULE,
            5,
            family,
            &[attribute(1, table), attribute(2, chain)],
        )
    }

    fn end(sender: u32) -> Vec<u8> {
        message(NEW_GENERATION, sender, 0, &[])
    }

    #[test]
    fn only_our_tables_in_their_own_families_count() {
        let cases: [(u8, &str, &[OurTable], &[&str]); 6] = [
            (7, "infinization", &[OurTable::Filter], &["vm_x"]),
            (2, "infinibay_nat", &[OurTable::Nat], &[]),
            (1, "infinization", &[], &[]),
            (10, "infinibay_nat", &[], &[]),
            (7, "infinization2", &[], &[]),
            (7, "infinizatio", &[], &[]),
        ];
        for (family, table, tables, chains) in cases {
            let mut reader = Reader::default();
            let bytes = [rule(family, table, "vm_x"), end(5)].concat();
            let touched = Touched {
                tables: tables.to_vec(),
                chains: chains.iter().map(ToString::to_string).collect(),
                gone: None,
            };
            let commit = Commit {
                sender: 5,
                touched,
                ..Commit::default()
            };
            assert_eq!(reader.read(&bytes), Ok(vec![commit]), "{family} {table}");
        }
    }

    #[test]
    fn f28_the_last_word_about_the_table_counts() {
        let made = |name| message(TABLE_MADE, 5, 7, &[attribute(1, name)]);
        let gone = |name| message(TABLE_GONE, 5, 7, &[attribute(1, name)]);
        let (ours, other) = ("infinization", "other");
        for (bytes, expected) in [
            (vec![rule(7, ours, "vm_x")], None),
            (vec![gone(other)], None),
            (vec![rule(7, ours, "vm_x"), gone(ours)], Some(true)),
            (
                vec![gone(ours), made(ours), rule(7, ours, "vm_x")],
                Some(false),
            ),
            (vec![made(ours), gone(ours)], Some(true)),
        ] {
            let bytes = [bytes.concat(), end(5)].concat();
            let commits = Reader::default().read(&bytes).unwrap();
            assert_eq!(commits[0].touched.gone, expected);
        }
    }

    #[test]
    fn a_commit_may_spread_over_datagrams_and_several_may_share_one() {
        let mut reader = Reader::default();
        let ours = rule(7, "infinization", "vm_x");
        assert_eq!(reader.read(&[ours.clone(), ours].concat()), Ok(vec![]));
        let senders = |commits: Vec<Commit>| -> Vec<(u32, usize)> {
            let each = commits.iter();
            each.map(|it| (it.sender, it.touched.tables.len()))
                .collect()
        };
        let rest = reader.read(&[end(5), end(6)].concat()).unwrap();
        assert_eq!(senders(rest), [(5, 1), (6, 0)]);
    }

    #[test]
    fn a_table_is_told_by_family_and_name_wherever_it_is_in_the_datagram() {
        let other = rule(7, "infinization2", "x");
        let ours = rule(1, "guard", "forward");
        for (bytes, heard) in [
            ([other.clone(), ours.clone(), end(5)].concat(), true),
            ([other.clone(), end(5)].concat(), false),
            (rule(7, "guard", "forward"), false),
            (ours[..ours.len() - 1].to_vec(), true),
            (Vec::new(), false),
        ] {
            assert_eq!(names_table(&bytes, 1, "guard"), heard);
        }
    }

    #[test]
    fn what_is_torn_is_told() {
        let whole = rule(7, "infinization", "vm_x");
        for cut in [1, 5, 19, whole.len() - 1] {
            assert_eq!(Reader::default().read(&whole[..cut]), Err(Torn), "{cut}");
        }
        assert_eq!(Reader::default().read(&[0; 20]), Err(Torn));
        // Attributes that make no sense name no table.
        let odd = message(NEW_RULE, 5, 7, &[vec![0; 8]]);
        let bytes = [odd, end(5)].concat();
        let commits = Reader::default().read(&bytes).unwrap();
        assert_eq!(commits[0].touched, Touched::default());
    }
}
