//! The ruleset in the words of libnftables-json(5).
//!
//! Every string a user wrote is a JSON string here, and nothing else: nft parses a comment as a
//! comment whatever is in it.

use serde_json::{Value, json};

use super::command::{Command, VerdictMap};
use super::expr::{Field, IP4_MORE_FRAGMENTS, Item, Match, NftRule, Op, Verdict};
use super::names::TABLE;
use super::rule::Side;
use super::transaction::{DISPATCH, Transaction};

/// The transaction as one document for `nft -j -f -`.
pub fn document(transaction: &Transaction) -> Value {
    let commands: Vec<_> = transaction.commands.iter().map(command).collect();
    json!({ "nftables": commands })
}

fn command(command: &Command) -> Value {
    match command {
        Command::AddTable => json!({ "add": { "table": { "family": "bridge", "name": TABLE } } }),
        Command::AddMap(map) => json!({ "add": { "map": {
            "family": "bridge", "table": TABLE, "name": map.as_str(),
            "type": "ifname", "map": "verdict",
        } } }),
        Command::AddBaseChain(hook) => json!({ "add": { "chain": {
            "family": "bridge", "table": TABLE, "name": hook.as_str(),
            "type": "filter", "hook": hook.as_str(), "prio": 0, "policy": "accept",
        } } }),
        Command::AddDispatch(map) => json!({ "add": { "rule": dispatch(*map) } }),
        Command::AddChain(name) => json!({ "add": chain(name) }),
        Command::CreateChain(name) => json!({ "create": chain(name) }),
        Command::FlushChain(name) => json!({ "flush": chain(name) }),
        Command::DeleteChain(name) => json!({ "delete": chain(name) }),
        Command::RenameChain { chain, to } => json!({ "rename": { "chain": {
            "family": "bridge", "table": TABLE, "name": chain, "newname": to,
        } } }),
        Command::AddRule { chain, rule: added } => json!({ "add": { "rule": rule(chain, added) } }),
        Command::InsertRule {
            chain,
            rule: inserted,
            before,
        } => {
            let mut inserted = rule(chain, inserted);
            inserted["handle"] = json!(before);
            json!({ "insert": { "rule": inserted } })
        }
        Command::DeleteRule { chain, handle } => json!({ "delete": { "rule": {
            "family": "bridge", "table": TABLE, "chain": chain, "handle": handle,
        } } }),
        Command::AddElement { map, tap, chain } => {
            let verdict = verdict(&Verdict::Jump(chain.clone()));
            json!({ "add": { "element": element(*map, &json!([tap, verdict])) } })
        }
        Command::DeleteElement { map, tap } => {
            json!({ "delete": { "element": element(*map, &json!(tap)) } })
        }
    }
}

fn chain(name: &str) -> Value {
    json!({ "chain": { "family": "bridge", "table": TABLE, "name": name } })
}

fn element(map: VerdictMap, element: &Value) -> Value {
    json!({ "family": "bridge", "table": TABLE, "name": map.as_str(), "elem": [element] })
}

fn dispatch(map: VerdictMap) -> Value {
    let lookup =
        json!({ "vmap": { "key": field(map.key()), "data": format!("@{}", map.as_str()) } });
    rule_object(map.hook().as_str(), &[lookup], DISPATCH)
}

/// One rule as it stands in `chain`.
fn rule(chain: &str, rule: &NftRule) -> Value {
    let matches = rule.matches.iter().map(condition);
    let statements: Vec<_> = matches.chain([verdict(&rule.verdict)]).collect();
    rule_object(chain, &statements, &rule.comment)
}

fn rule_object(chain: &str, statements: &[Value], comment: &str) -> Value {
    json!({
        "family": "bridge", "table": TABLE, "chain": chain,
        "expr": statements, "comment": comment,
    })
}

fn condition(condition: &Match) -> Value {
    let op = match condition.op {
        Op::Is => "==",
        Op::IsNot => "!=",
    };
    let mut items: Vec<_> = condition.items.iter().map(item).collect();
    let right = match items.len() {
        1 => items.remove(0),
        _ => json!({ "set": items }),
    };
    json!({ "match": { "op": op, "left": field(condition.field), "right": right } })
}

fn item(item: &Item) -> Value {
    match item {
        Item::Word(word) => json!(word),
        Item::Number(number) => json!(number),
        Item::Range(first, last) => json!({ "range": [first, last] }),
        Item::Prefix(address, length) => json!({ "prefix": { "addr": address, "len": length } }),
    }
}

fn field(field: Field) -> Value {
    match field {
        Field::Iifname => meta("iifname"),
        Field::Oifname => meta("oifname"),
        Field::Iif => meta("iif"),
        Field::Oif => meta("oif"),
        Field::Protocol => meta("protocol"),
        Field::L4Proto => meta("l4proto"),
        Field::EtherSource => payload("ether", "saddr"),
        Field::Ip(side) => payload("ip", address(side)),
        Field::Ip6(side) => payload("ip6", address(side)),
        Field::Ip4FragmentMore => json!({ "&": [payload("ip", "frag-off"), IP4_MORE_FRAGMENTS] }),
        Field::FragmentNext => fragment("nexthdr"),
        Field::FragmentMore => fragment("more-fragments"),
        Field::Port(transport, Side::Source) => payload(transport.as_str(), "sport"),
        Field::Port(transport, Side::Destination) => payload(transport.as_str(), "dport"),
        Field::TcpSynAck => json!({ "&": [payload("tcp", "flags"), ["syn", "ack"]] }),
        Field::TcpRst => json!({ "&": [payload("tcp", "flags"), "rst"] }),
        Field::DhcpClient => json!({ "payload": { "base": "th", "offset": 288, "len": 48 } }),
        Field::ArpSenderEther => payload("arp", "saddr ether"),
        Field::ArpSenderIp => payload("arp", "saddr ip"),
        Field::IcmpType => payload("icmp", "type"),
        Field::Icmpv6Type => payload("icmpv6", "type"),
        Field::NdTarget => json!({ "payload": { "base": "th", "offset": 64, "len": 128 } }),
        Field::NdTargetNetwork => json!({ "payload": { "base": "th", "offset": 64, "len": 64 } }),
        Field::Mark(origin) => json!({ "&": [meta("mark"), origin.mark()] }),
        Field::CtState => json!({ "ct": { "key": "state" } }),
    }
}

fn address(side: Side) -> &'static str {
    match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    }
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn fragment(field: &str) -> Value {
    json!({ "exthdr": { "name": "frag", "field": field } })
}

fn verdict(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Accept => json!({ "accept": null }),
        Verdict::Drop => json!({ "drop": null }),
        Verdict::MarkAs(origin) => {
            let marked = json!({ "|": [meta("mark"), origin.mark()] });
            json!({ "mangle": { "key": meta("mark"), "value": marked } })
        }
        Verdict::Return => json!({ "return": null }),
        Verdict::Jump(chain) => json!({ "jump": { "target": chain } }),
        Verdict::RejectWithTcpReset => json!({ "reject": { "type": "tcp reset" } }),
        Verdict::RejectAsUnreachable => {
            json!({ "reject": { "type": "icmpx", "expr": "port-unreachable" } })
        }
    }
}
