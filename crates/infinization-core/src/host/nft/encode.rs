//! Transactions in the kernel's own words. Pure; [`super::netlink`] sends them.
//!
//! What has no word here is `None`, and left to `nft`, which says what is wrong with it. Neighbours:
//! [`super::expressions`] and [`super::value`], of which rules are made.

use super::expressions::{
    Comparison, REGISTER, VERDICT_REGISTER, compare, data, expression, load, mask_with, statement,
    verdict,
};
use super::value::{data_type, masked, port_name, value};
use super::wire::{Request, attribute, flags, kind, nested, number, text};
use crate::firewall::{
    Command, DISPATCH, Field, Hook, Item, Match, NftRule, Op, TABLE, Transaction, Verdict,
    VerdictMap,
};
use crate::types::LinkName;

/// The name of every anonymous set until the kernel gives it a number.
const ANONYMOUS: &str = "__set%d";

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

/// Asks for the table.
pub(super) fn get_table() -> Request {
    Request::new(kind::GET_TABLE, flags::ACK, text(1, TABLE))
}

/// Asks for the number of nftables' state.
pub(super) fn get_generation() -> Request {
    Request::new(kind::GET_GENERATION, flags::ACK, Vec::new())
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
            Command::AddDispatch(map) => self.dispatch(*map),
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
            Command::AddRule { chain, rule } => self.rule(chain, rule, None)?,
            Command::InsertRule {
                chain,
                rule,
                before,
            } => self.rule(chain, rule, Some(*before))?,
            Command::DeleteRule { chain, handle } => {
                let handle = attribute(3, &handle.to_be_bytes());
                let attributes = [text(1, TABLE), text(2, chain), handle].concat();
                self.push(kind::DELETE_RULE, 0, attributes);
            }
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

    fn dispatch(&mut self, map: VerdictMap) {
        let lookup = [
            text(1, map.as_str()),
            number(2, REGISTER),
            number(3, VERDICT_REGISTER),
        ];
        let expressions = [load(map.key()), expression("lookup", &lookup.concat())].concat();
        self.new_rule(map.hook().as_str(), &expressions, DISPATCH, None);
    }

    fn rule(&mut self, chain: &str, rule: &NftRule, before: Option<u64>) -> Option<()> {
        let mut expressions = Vec::new();
        for condition in &*rule.matches {
            expressions.extend(self.condition(condition)?);
        }
        expressions.extend(statement(&rule.verdict)?);
        self.new_rule(chain, &expressions, &rule.comment, before);
        Some(())
    }

    /// At the end, or before the rule with that handle.
    fn new_rule(&mut self, chain: &str, expressions: &[u8], comment: &str, before: Option<u64>) {
        let attributes = [
            text(1, TABLE),
            text(2, chain),
            nested(4, expressions),
            before.map_or(Vec::new(), |handle| attribute(6, &handle.to_be_bytes())),
            attribute(7, &user_data(comment)),
        ];
        let place = match before {
            None => flags::APPEND,
            Some(_) => 0,
        };
        let flags = flags::CREATE | flags::ECHO | place;
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
        Hook::Output => 3,
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
        Field::CtState
        | Field::Mark(_)
        | Field::Iifname
        | Field::Oifname
        | Field::Iif
        | Field::Oif => 1,
        _ => 2,
    };
    [&[0, 4], &order.to_ne_bytes()[..]].concat()
}

/// A comment, as `nft` keeps it (`NFTNL_UDATA_RULE_COMMENT`).
fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], comment.as_bytes(), &[0]].concat()
}
