//! Transactions in the kernel's own words. Pure; [`super::netlink`] sends them.
//!
//! Expressions are put together as `nft` does, so that it lists the result like its own. What has no
//! word here is `None`, and left to `nft`, which says what is wrong with it.

use super::value::{data_type, masked, port_name, value};
use super::wire::{Request, attribute, flags, kind, nested, number, text};
use crate::firewall::{
    Command, DISPATCH, Field, GUEST_MARK, Hook, IP4_MORE_FRAGMENTS, Item, Match, NftRule, Op, Side,
    TABLE, Transaction, Verdict, VerdictMap,
};
use crate::types::LinkName;

/// The name of every anonymous set until the kernel gives it a number.
const ANONYMOUS: &str = "__set%d";
/// `NFT_REG_1`; `NFT_REG_VERDICT` is 0.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
/// `NFT_META_MARK`.
const MARK: u32 = 3;

/// The transaction as requests, in order.
pub(super) fn encode(transaction: &Transaction) -> Option<Encoded> {
    let mut all = Encoder::default();
    for command in &transaction.commands {
        all.command(command)?;
    }
    all.encoded.generation = transaction.generation;
    Some(all.encoded)
}

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub(super) requests: Vec<Request>,
    /// Chains that get another name afterwards: that needs their handles, which have to be asked for.
    pub(super) renames: Vec<(String, String)>,
    /// The only state that it is for.
    pub(super) generation: Option<u32>,
}

impl Encoded {
    /// Deletes these elements.
    pub(super) fn deleting(ports: &[(VerdictMap, LinkName)]) -> Self {
        let requests = ports.iter().map(|(map, tap)| delete_element(*map, tap));
        Self {
            requests: requests.collect(),
            ..Self::default()
        }
    }
}

/// Gives the chain with this handle another name.
pub(super) fn rename(handle: &[u8], to: &str) -> Request {
    let attributes = [text(1, TABLE), attribute(2, handle), text(3, to)].concat();
    Request::new(kind::NEW_CHAIN, 0, attributes)
}

fn delete_element(map: VerdictMap, tap: &LinkName) -> Request {
    let key = data(&port_name(tap.as_str()));
    let list = nested(1, &nested(1, &key));
    Request::new(kind::DELETE_ELEMENTS, 0, elements(map.as_str(), &list))
}

/// Asks for a chain, of which the handle is wanted.
pub(super) fn get_chain(name: &str) -> Request {
    Request::new(kind::GET_CHAIN, flags::ACK, chain(name))
}

#[derive(Default)]
struct Encoder {
    encoded: Encoded,
    /// How many sets there are.
    sets: u32,
}

impl Encoder {
    fn command(&mut self, command: &Command) -> Option<()> {
        match command {
            Command::AddTable => {
                // Flags of nobody's: a dormant table wakes up.
                let attributes = [text(1, TABLE), number(2, 0)].concat();
                self.push(kind::NEW_TABLE, flags::CREATE, attributes);
            }
            Command::AddMap(map) => self.map(*map),
            Command::AddBaseChain(hook) => {
                self.push(kind::NEW_CHAIN, flags::CREATE, base_chain(*hook));
            }
            Command::AddDispatch(hook) => self.dispatch(*hook),
            Command::AddChain(name) => self.push(kind::NEW_CHAIN, flags::CREATE, chain(name)),
            Command::CreateChain(name) => {
                self.push(kind::NEW_CHAIN, flags::CREATE | flags::EXCL, chain(name));
            }
            Command::FlushChain(name) => {
                let attributes = [text(1, TABLE), text(2, name)].concat();
                self.push(kind::DELETE_RULE, 0, attributes);
            }
            Command::DeleteChain(name) => self.push(kind::DELETE_CHAIN, 0, chain(name)),
            Command::RenameChain { chain, to } => {
                self.encoded.renames.push((chain.clone(), to.clone()));
            }
            Command::AddRule { chain, rule } => self.rule(chain, rule)?,
            Command::AddElement { map, tap, chain } => {
                let key = data(&port_name(tap.as_str()));
                let verdict = nested(2, &verdict(&Verdict::Jump(chain.clone()))?);
                let element = [nested(1, &key), verdict].concat();
                let list = elements(map.as_str(), &nested(1, &element));
                self.push(kind::NEW_ELEMENTS, flags::CREATE, list);
            }
            Command::DeleteElement { map, tap } => {
                self.encoded.requests.push(delete_element(*map, tap));
            }
        }
        Some(())
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: Vec<u8>) {
        self.encoded
            .requests
            .push(Request::new(kind, flags, attributes));
    }

    fn map(&mut self, map: VerdictMap) {
        const MAP: u32 = 8;
        const VERDICT: u32 = 0xffff_ff00;
        self.sets += 1;
        let attributes = [
            text(1, TABLE),
            text(2, map.as_str()),
            number(3, MAP),
            number(4, data_type(map.key())),
            number(5, 16),
            number(6, VERDICT),
            number(7, 0),
            number(10, self.sets),
            attribute(13, &byte_order(map.key())),
        ];
        self.push(kind::NEW_SET, flags::CREATE, attributes.concat());
    }

    fn dispatch(&mut self, hook: Hook) {
        let map = hook.map();
        let lookup = [
            text(1, map.as_str()),
            number(2, REGISTER),
            number(3, VERDICT_REGISTER),
        ];
        let expressions = [load(map.key()), expression("lookup", &lookup.concat())].concat();
        self.new_rule(hook.as_str(), &expressions, DISPATCH);
    }

    fn rule(&mut self, chain: &str, rule: &NftRule) -> Option<()> {
        let mut expressions = Vec::new();
        for condition in &rule.matches {
            expressions.extend(self.condition(condition)?);
        }
        expressions.extend(statement(&rule.verdict)?);
        self.new_rule(chain, &expressions, &rule.comment);
        Some(())
    }

    fn new_rule(&mut self, chain: &str, expressions: &[u8], comment: &str) {
        let attributes = [
            text(1, TABLE),
            text(2, chain),
            nested(4, expressions),
            attribute(7, &user_data(comment)),
        ];
        let flags = flags::CREATE | flags::APPEND | flags::ECHO;
        self.push(kind::NEW_RULE, flags, attributes.concat());
    }

    fn condition(&mut self, condition: &Match) -> Option<Vec<u8>> {
        let Match { field, op, items } = condition;
        let compared = match (items.as_slice(), op) {
            ([Item::Range(first, last)], Op::Is) => {
                let [first, last] = [first, last].map(|port| port.to_be_bytes());
                [
                    compare(Comparison::AtLeast, &first),
                    compare(Comparison::AtMost, &last),
                ]
                .concat()
            }
            ([Item::Prefix(network, length)], Op::Is) => {
                let (network, mask) = masked(*network, *length);
                [mask_with(&mask), compare(Comparison::Equal, &network)].concat()
            }
            ([item], Op::Is) if *field == Field::CtState => {
                let state = value(*field, item)?;
                [mask_with(&state), compare(Comparison::NotEqual, &[0; 4])].concat()
            }
            ([item], op) => {
                let comparison = match op {
                    Op::Is => Comparison::Equal,
                    Op::IsNot => Comparison::NotEqual,
                };
                compare(comparison, &value(*field, item)?)
            }
            (items, op) => self.lookup(*field, *op, items)?,
        };
        Some([load(*field), compared].concat())
    }

    /// Makes a set of the values.
    fn lookup(&mut self, field: Field, op: Op, items: &[Item]) -> Option<Vec<u8>> {
        self.sets += 1;
        let id = self.sets;
        let values = items.iter().map(|item| value(field, item));
        let values: Vec<Vec<u8>> = values.collect::<Option<_>>()?;
        self.push(
            kind::NEW_SET,
            flags::CREATE,
            set(field, values.first()?.len(), id),
        );
        let list: Vec<u8> = values
            .iter()
            .flat_map(|value| nested(1, &nested(1, &data(value))))
            .collect();
        let attributes = [elements(ANONYMOUS, &list), number(4, id)].concat();
        self.push(kind::NEW_ELEMENTS, flags::CREATE, attributes);
        let inverted = u32::from(op == Op::IsNot);
        let lookup = [
            text(1, ANONYMOUS),
            number(2, REGISTER),
            number(4, id),
            number(5, inverted),
        ];
        Some(expression("lookup", &lookup.concat()))
    }
}

/// `NFTA_CHAIN_*`.
fn chain(name: &str) -> Vec<u8> {
    [text(1, TABLE), text(3, name)].concat()
}

fn base_chain(hook: Hook) -> Vec<u8> {
    const ACCEPT: u32 = 1;
    let number_of = match hook {
        Hook::Prerouting => 0,
        Hook::Postrouting => 4,
    };
    let hooked = [number(1, number_of), number(2, 0)].concat();
    let rest = [nested(4, &hooked), number(5, ACCEPT), text(7, "filter")].concat();
    [chain(hook.as_str()), rest].concat()
}

/// `NFTA_SET_ELEM_LIST_*`.
fn elements(set: &str, list: &[u8]) -> Vec<u8> {
    [text(1, TABLE), text(2, set), nested(3, list)].concat()
}

/// An anonymous set that never changes.
fn set(field: Field, length: usize, id: u32) -> Vec<u8> {
    const ANONYMOUS_CONSTANT: u32 = 3;
    [
        text(1, TABLE),
        text(2, ANONYMOUS),
        number(3, ANONYMOUS_CONSTANT),
        number(4, data_type(field)),
        number(5, u32::try_from(length).unwrap_or(u32::MAX)),
        number(10, id),
        attribute(13, &byte_order(field)),
    ]
    .concat()
}

/// `NFTNL_UDATA_SET_KEYBYTEORDER`, by which `nft` knows how to read the values: the host's order, or the
/// network's.
fn byte_order(field: Field) -> Vec<u8> {
    let order: u32 = match field {
        Field::CtState | Field::GuestMark | Field::Iifname | Field::Oifname => 1,
        _ => 2,
    };
    [&[0, 4], &order.to_ne_bytes()[..]].concat()
}

/// A comment, as `nft` keeps it (`NFTNL_UDATA_RULE_COMMENT`).
fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], comment.as_bytes(), &[0]].concat()
}

fn expression(name: &str, content: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, content)].concat())
}

/// `NFTA_DATA_VALUE`.
fn data(value: &[u8]) -> Vec<u8> {
    attribute(1, value)
}

/// Puts the field into the register.
fn load(field: Field) -> Vec<u8> {
    const LINK: u32 = 0;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match field {
        Field::Iifname => load_key("meta", 6),
        Field::Oifname => load_key("meta", 7),
        Field::Protocol => load_key("meta", 1),
        Field::L4Proto => load_key("meta", 16),
        Field::CtState => load_key("ct", 0),
        Field::EtherSource => load_bytes(LINK, 6, 6),
        Field::Ip(side) => load_bytes(NETWORK, at(side, 12, 16), 4),
        Field::Ip6(side) => load_bytes(NETWORK, at(side, 8, 24), 16),
        Field::DhcpClient => load_bytes(TRANSPORT, 36, 6),
        Field::ArpSenderEther => load_bytes(NETWORK, 8, 6),
        Field::ArpSenderIp => load_bytes(NETWORK, 14, 4),
        Field::GuestMark => [load_key("meta", MARK), mask_with(&bits(GUEST_MARK))].concat(),
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

fn mask_with(mask: &[u8]) -> Vec<u8> {
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
enum Comparison {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

fn compare(how: Comparison, with: &[u8]) -> Vec<u8> {
    let comparison = [
        number(1, REGISTER),
        number(2, how as u32),
        nested(3, &data(with)),
    ];
    expression("cmp", &comparison.concat())
}

fn statement(how: &Verdict) -> Option<Vec<u8>> {
    Some(match how {
        Verdict::RejectWithTcpReset => expression("reject", &number(1, 1)),
        Verdict::RejectAsUnreachable => {
            expression("reject", &[number(1, 2), attribute(2, &[1])].concat())
        }
        Verdict::MarkAsGuests => set_mark(GUEST_MARK),
        how => {
            let immediate = [number(1, VERDICT_REGISTER), nested(2, &verdict(how)?)];
            expression("immediate", &immediate.concat())
        }
    })
}

/// `NFTA_DATA_VERDICT`.
fn verdict(verdict: &Verdict) -> Option<Vec<u8>> {
    let code = |code: i32| attribute(1, &code.to_be_bytes());
    let content = match verdict {
        Verdict::Drop => code(0),
        Verdict::Accept => code(1),
        Verdict::Return => code(-5),
        Verdict::Jump(chain) => [code(-3), text(2, chain)].concat(),
        Verdict::RejectWithTcpReset | Verdict::RejectAsUnreachable | Verdict::MarkAsGuests => {
            return None;
        }
    };
    Some(nested(2, &content))
}
