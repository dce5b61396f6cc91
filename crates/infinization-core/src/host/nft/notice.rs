//! What the kernel tells the nftables multicast group, as far as we ask: which commit touched a
//! table of ours, and whose it was.
//!
//! A commit is told as one message per object, each naming its table in its first attribute, and a
//! last one (`NFT_MSG_NEWGEN`). All carry the port of the socket the commit came from. The bytes are
//! those of `linux/netfilter/nfnetlink.h` and `nf_tables.h`. Pure; [`super::journal`] listens.

use crate::firewall::{NAT_TABLE, TABLE};

const SUBSYS_NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: the end of a commit.
const NEW_GENERATION: u16 = (SUBSYS_NFTABLES << 8) + 15;
/// `nlmsghdr` and `nfgenmsg`.
const HEADER: usize = 20;
const FAMILY_IPV4: u8 = 2;
const FAMILY_BRIDGE: u8 = 7;
/// The attribute that names the table, in every message.
const NAME_OF_TABLE: u16 = 1;

/// The tables that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OurTable {
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
    /// What of ours it changed.
    pub(super) touched: Vec<OurTable>,
}

/// Puts messages together to commits; one may spread over several datagrams.
#[derive(Debug, Default)]
pub(super) struct Reader {
    touched: Vec<OurTable>,
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
        self.touched.clear();
    }

    fn take_in(&mut self, message: &[u8]) -> Result<Option<Commit>, Torn> {
        let kind = u16_at(message, 4).ok_or(Torn)?;
        let sender = u32_at(message, 12).ok_or(Torn)?;
        let attributes = message.get(HEADER..).ok_or(Torn)?;
        if kind == NEW_GENERATION {
            let touched = std::mem::take(&mut self.touched);
            return Ok(Some(Commit { sender, touched }));
        }
        if kind >> 8 == SUBSYS_NFTABLES {
            let table = table_in(attributes).and_then(|name| OurTable::of(message[16], name));
            self.touched
                .extend(table.filter(|table| !self.touched.contains(table)));
        }
        Ok(None)
    }
}

/// The table's name; it is the first attribute, whatever the message.
fn table_in(attributes: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16_at(attributes, 0)?);
    let kind = u16_at(attributes, 2)?;
    let name = attributes.get(4..length)?;
    (kind == NAME_OF_TABLE).then(|| name.strip_suffix(&[0]).unwrap_or(name))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_RULE: u16 = (SUBSYS_NFTABLES << 8) + 6;

    fn message(kind: u16, sender: u32, family: u8, table: &str) -> Vec<u8> {
        let name = [table.as_bytes(), &[0]].concat();
        let mut attribute = u16::try_from(4 + name.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        attribute.extend(1u16.to_ne_bytes());
        attribute.extend(name);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let length = u32::try_from(HEADER + attribute.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(sender.to_ne_bytes());
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attribute);
        bytes
    }

    fn end(sender: u32) -> Vec<u8> {
        message(NEW_GENERATION, sender, 0, "")
    }

    #[test]
    fn only_our_tables_in_their_own_families_count() {
        let cases: [(u8, &str, &[OurTable]); 6] = [
            (7, "infinization", &[OurTable::Filter]),
            (2, "infinibay_nat", &[OurTable::Nat]),
            (1, "infinization", &[]),
            (10, "infinibay_nat", &[]),
            (7, "infinization2", &[]),
            (7, "infinizatio", &[]),
        ];
        for (family, table, touched) in cases {
            let mut reader = Reader::default();
            let bytes = [message(NEW_RULE, 5, family, table), end(5)].concat();
            let touched = touched.to_vec();
            let commit = Commit { sender: 5, touched };
            assert_eq!(reader.read(&bytes), Ok(vec![commit]), "{family} {table}");
        }
    }

    #[test]
    fn a_commit_may_spread_over_datagrams_and_several_may_share_one() {
        let mut reader = Reader::default();
        let ours = message(NEW_RULE, 5, 7, "infinization");
        assert_eq!(reader.read(&[ours.clone(), ours].concat()), Ok(vec![]));
        let senders = |commits: Vec<Commit>| -> Vec<(u32, usize)> {
            let each = commits.iter();
            each.map(|it| (it.sender, it.touched.len())).collect()
        };
        let rest = reader.read(&[end(5), end(6)].concat()).unwrap();
        assert_eq!(senders(rest), [(5, 1), (6, 0)]);
    }

    #[test]
    fn what_is_torn_is_told() {
        let whole = message(NEW_RULE, 5, 7, "infinization");
        for cut in [1, 5, 19, whole.len() - 1] {
            assert_eq!(Reader::default().read(&whole[..cut]), Err(Torn), "{cut}");
        }
        assert_eq!(Reader::default().read(&[0; 20]), Err(Torn));
        // A message without attributes names no table.
        let mut bare = end(1)[..HEADER].to_vec();
        bare[..4].copy_from_slice(&20u32.to_ne_bytes());
        assert_eq!(Reader::default().read(&bare).unwrap().len(), 1);
    }
}
