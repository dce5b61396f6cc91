//! nftables' expressions as bytes, put together as `nft` does, so that it lists them like its own. Pure;
//! [`super::encode`] makes rules of them.

use super::wire::{attribute, nested, number, text};
use crate::firewall::{Field, IP4_MORE_FRAGMENTS, Side, Verdict};

/// `NFT_REG_1`; `NFT_REG_VERDICT` is 0.
pub(super) const REGISTER: u32 = 1;
pub(super) const VERDICT_REGISTER: u32 = 0;
/// `NFT_META_MARK`.
const MARK: u32 = 3;

pub(super) fn expression(name: &str, content: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, content)].concat())
}

/// `NFTA_DATA_VALUE`.
pub(super) fn data(value: &[u8]) -> Vec<u8> {
    attribute(1, value)
}

/// Puts the field into the register.
pub(super) fn load(field: Field) -> Vec<u8> {
    const LINK: u32 = 0;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match field {
        Field::Iifname => load_key("meta", 6),
        Field::Oifname => load_key("meta", 7),
        Field::Iif => load_key("meta", 4),
        Field::Oif => load_key("meta", 5),
        Field::Protocol => load_key("meta", 1),
        Field::L4Proto => load_key("meta", 16),
        Field::CtState => load_key("ct", 0),
        Field::EtherSource => load_bytes(LINK, 6, 6),
        Field::Ip(side) => load_bytes(NETWORK, at(side, 12, 16), 4),
        Field::Ip6(side) => load_bytes(NETWORK, at(side, 8, 24), 16),
        Field::DhcpClient => load_bytes(TRANSPORT, 36, 6),
        Field::ArpSenderEther => load_bytes(NETWORK, 8, 6),
        Field::ArpSenderIp => load_bytes(NETWORK, 14, 4),
        Field::Mark(origin) => [load_key("meta", MARK), mask_with(&bits(origin.mark()))].concat(),
        Field::Ip4FragmentMore => {
            let flag = IP4_MORE_FRAGMENTS.to_be_bytes();
            [load_bytes(NETWORK, 6, 2), mask_with(&flag)].concat()
        }
        Field::FragmentNext => load_fragment(0),
        Field::FragmentMore => [load_fragment(3), mask_with(&[0x01])].concat(),
        Field::Port(_, side) => load_bytes(TRANSPORT, at(side, 0, 2), 2),
        Field::TcpSynAck => [load_bytes(TRANSPORT, 13, 1), mask_with(&[0x12])].concat(),
        Field::TcpRst => [load_bytes(TRANSPORT, 13, 1), mask_with(&[0x04])].concat(),
        Field::IcmpType | Field::Icmpv6Type => load_bytes(TRANSPORT, 0, 1),
        Field::NdTarget => load_bytes(TRANSPORT, 8, 16),
        Field::NdTargetNetwork => load_bytes(TRANSPORT, 8, 8),
    }
}

fn at(side: Side, source: u32, destination: u32) -> u32 {
    match side {
        Side::Source => source,
        Side::Destination => destination,
    }
}

fn load_key(name: &str, key: u32) -> Vec<u8> {
    expression(name, &[number(1, REGISTER), number(2, key)].concat())
}

fn load_bytes(base: u32, offset: u32, length: u32) -> Vec<u8> {
    let bytes = [
        number(1, REGISTER),
        number(2, base),
        number(3, offset),
        number(4, length),
    ];
    expression("payload", &bytes.concat())
}

/// A byte of IPv6's fragment header (`NFTA_EXTHDR_*`).
fn load_fragment(offset: u32) -> Vec<u8> {
    const FRAGMENT_HEADER: u8 = 44;
    let bytes = [
        number(1, REGISTER),
        attribute(2, &[FRAGMENT_HEADER]),
        number(3, offset),
        number(4, 1),
    ];
    expression("exthdr", &bytes.concat())
}

pub(super) fn mask_with(mask: &[u8]) -> Vec<u8> {
    bitwise(mask, &vec![0; mask.len()])
}

fn bitwise(mask: &[u8], xor: &[u8]) -> Vec<u8> {
    let bitwise = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX)),
        nested(4, &data(mask)),
        nested(5, &data(xor)),
    ];
    expression("bitwise", &bitwise.concat())
}

/// A packet's mark is in the host's order.
fn bits(mark: u32) -> [u8; 4] {
    mark.to_ne_bytes()
}

fn set_mark(mark: u32) -> Vec<u8> {
    let write = [number(2, MARK), number(3, REGISTER)].concat();
    [
        load_key("meta", MARK),
        bitwise(&bits(!mark), &bits(mark)),
        expression("meta", &write),
    ]
    .concat()
}

/// `NFT_CMP_*`.
#[derive(Clone, Copy)]
pub(super) enum Comparison {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

pub(super) fn compare(how: Comparison, with: &[u8]) -> Vec<u8> {
    let comparison = [
        number(1, REGISTER),
        number(2, how as u32),
        nested(3, &data(with)),
    ];
    expression("cmp", &comparison.concat())
}

pub(super) fn statement(how: &Verdict) -> Option<Vec<u8>> {
    Some(match how {
        Verdict::RejectWithTcpReset => expression("reject", &number(1, 1)),
        Verdict::RejectAsUnreachable => {
            expression("reject", &[number(1, 2), attribute(2, &[1])].concat())
        }
        Verdict::MarkAs(origin) => set_mark(origin.mark()),
        how => {
            let immediate = [number(1, VERDICT_REGISTER), nested(2, &verdict(how)?)];
            expression("immediate", &immediate.concat())
        }
    })
}

/// `NFTA_DATA_VERDICT`.
pub(super) fn verdict(verdict: &Verdict) -> Option<Vec<u8>> {
    let code = |code: i32| attribute(1, &code.to_be_bytes());
    let content = match verdict {
        Verdict::Drop => code(0),
        Verdict::Accept => code(1),
        Verdict::Return => code(-5),
        Verdict::Jump(chain) => [code(-3), text(2, chain)].concat(),
        Verdict::RejectWithTcpReset | Verdict::RejectAsUnreachable | Verdict::MarkAs(_) => {
            return None;
        }
    };
    Some(nested(2, &content))
}
