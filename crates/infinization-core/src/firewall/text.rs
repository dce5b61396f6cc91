//! The ruleset in nft's own syntax, for people. What is loaded is [`super::json`]; a test loads both
//! and compares.

use serde::Serialize;

use super::command::{Command, Hook, VerdictMap};
use super::compile::Compiled;
use super::expr::{Field, IP4_MORE_FRAGMENTS, Item, Match, NftRule, Op, Verdict};
use super::names::TABLE;
use super::rule::Side;
use super::transaction::{DISPATCH, Transaction};

/// One chain as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainText {
    /// Its name.
    pub name: String,
    /// The hook, for a base chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<&'static str>,
    /// Its rules, in order.
    pub rules: Vec<String>,
}

/// Every chain a machine's packets pass, the hooks first.
pub fn chain_texts(compiled: &Compiled) -> Vec<ChainText> {
    let names = &compiled.ruleset.names;
    let hooks = Hook::ALL
        .iter()
        .map(|hook| (hook.as_str(), Some(hook.as_str())));
    let mut shared: Vec<_> = compiled.ruleset.shared_names().collect();
    shared.sort_unstable();
    shared.dedup();
    let shared = shared.into_iter().map(|name| (name, None));
    let chains = [&names.from, &names.to, &names.vm].map(|name| (name.as_str(), None));
    let loaded = Transaction::ensure_vm(compiled);
    let texts = hooks
        .chain(shared)
        .chain(chains)
        .map(|(name, hook)| ChainText {
            name: name.to_owned(),
            hook,
            rules: rules_of(&loaded, name).collect(),
        });
    texts.collect()
}

/// The table with this one machine in it, as `nft -f` reads and `nft list table` prints it.
pub fn table_text(compiled: &Compiled) -> String {
    let ruleset = &compiled.ruleset;
    let maps = [
        (VerdictMap::FromVm, &ruleset.names.from),
        (VerdictMap::ToVm, &ruleset.names.to),
    ];
    let maps = maps.map(|(map, chain)| {
        let element = format!("\"{}\" : jump {chain}", ruleset.tap);
        let lines = format!("\t\ttype ifname : verdict\n\t\telements = {{ {element} }}\n");
        format!("\tmap {} {{\n{lines}\t}}\n", map.as_str())
    });
    let chains = chain_texts(compiled);
    let chains = chains.iter().map(ChainText::block);
    let blocks: Vec<String> = maps.into_iter().chain(chains).collect();
    format!("table bridge {TABLE} {{\n{}}}\n", blocks.join("\n"))
}

/// The table with nobody in it.
pub(super) fn empty_table_text() -> String {
    let loaded = Transaction::table();
    let maps = [VerdictMap::FromVm, VerdictMap::ToVm];
    let maps = maps.map(|map| {
        format!(
            "\tmap {} {{\n\t\ttype ifname : verdict\n\t}}\n",
            map.as_str()
        )
    });
    let chains = Hook::ALL.map(|hook| {
        let rules = rules_of(&loaded, hook.as_str()).collect();
        let (name, hook) = (hook.as_str().to_owned(), Some(hook.as_str()));
        ChainText { name, hook, rules }.block()
    });
    let blocks: Vec<String> = maps.into_iter().chain(chains).collect();
    format!("table bridge {TABLE} {{\n{}}}\n", blocks.join("\n"))
}

impl ChainText {
    fn block(&self) -> String {
        let head = self
            .hook
            .map(|hook| format!("type filter hook {hook} priority 0; policy accept;"));
        let lines: Vec<&str> = head.iter().chain(&self.rules).map(String::as_str).collect();
        format!(
            "\tchain {} {{\n\t\t{}\n\t}}\n",
            self.name,
            lines.join("\n\t\t")
        )
    }
}

fn rules_of<'a>(loaded: &'a Transaction, wanted: &'a str) -> impl Iterator<Item = String> + 'a {
    loaded
        .commands
        .iter()
        .filter_map(move |command| match command {
            Command::AddRule { chain, rule } if chain == wanted => Some(rule_text(rule)),
            Command::AddDispatch(map) if map.hook().as_str() == wanted => Some(dispatch(*map)),
            _ => None,
        })
}

fn dispatch(map: VerdictMap) -> String {
    let key = field(map.key());
    format!("{key} vmap @{} comment \"{DISPATCH}\"", map.as_str())
}

/// One rule.
fn rule_text(rule: &NftRule) -> String {
    let conditions = rule.matches.iter().map(condition);
    let comment = format!("comment \"{}\"", rule.comment);
    let words: Vec<String> = conditions
        .chain([verdict(&rule.verdict), comment])
        .collect();
    words.join(" ")
}

fn condition(condition: &Match) -> String {
    let items: Vec<String> = condition
        .items
        .iter()
        .map(|it| item(condition.field, it))
        .collect();
    let right = match items.as_slice() {
        [one] => one.clone(),
        several => format!("{{ {} }}", several.join(", ")),
    };
    let masked = matches!(
        condition.field,
        Field::TcpSynAck | Field::TcpRst | Field::Mark(_) | Field::Ip4FragmentMore
    );
    let op = match condition.op {
        Op::IsNot => "!= ",
        Op::Is if masked => "== ",
        Op::Is => "",
    };
    format!("{} {op}{right}", field(condition.field))
}

fn item(field: Field, item: &Item) -> String {
    match item {
        Item::Word(word) if matches!(field, Field::Iifname | Field::Oifname) => {
            format!("\"{word}\"")
        }
        Item::Word(word) => word.clone(),
        Item::Number(number) => number.to_string(),
        Item::Range(first, last) => format!("{first}-{last}"),
        Item::Prefix(address, length) => format!("{address}/{length}"),
    }
}

fn field(field: Field) -> String {
    let address = |side| match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    };
    match field {
        Field::Iifname => "iifname".to_owned(),
        Field::Oifname => "oifname".to_owned(),
        Field::Iif => "iif".to_owned(),
        Field::Oif => "oif".to_owned(),
        Field::EtherSource => "ether saddr".to_owned(),
        Field::Protocol => "meta protocol".to_owned(),
        Field::L4Proto => "meta l4proto".to_owned(),
        Field::Ip(side) => format!("ip {}", address(side)),
        Field::Ip6(side) => format!("ip6 {}", address(side)),
        Field::Ip4FragmentMore => format!("ip frag-off & {IP4_MORE_FRAGMENTS}"),
        Field::FragmentNext => "frag nexthdr".to_owned(),
        Field::FragmentMore => "frag more-fragments".to_owned(),
        Field::Port(transport, Side::Source) => format!("{} sport", transport.as_str()),
        Field::Port(transport, Side::Destination) => format!("{} dport", transport.as_str()),
        Field::TcpSynAck => "tcp flags & (syn | ack)".to_owned(),
        Field::TcpRst => "tcp flags & rst".to_owned(),
        Field::DhcpClient => "@th,288,48".to_owned(),
        Field::ArpSenderEther => "arp saddr ether".to_owned(),
        Field::ArpSenderIp => "arp saddr ip".to_owned(),
        Field::IcmpType => "icmp type".to_owned(),
        Field::Icmpv6Type => "icmpv6 type".to_owned(),
        Field::NdTarget => "@th,64,128".to_owned(),
        Field::NdTargetNetwork => "@th,64,64".to_owned(),
        Field::CtState => "ct state".to_owned(),
        Field::Mark(origin) => format!("meta mark & {:#010x}", origin.mark()),
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::MarkAs(origin) => format!("meta mark set meta mark | {:#010x}", origin.mark()),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::RejectWithTcpReset => "reject with tcp reset".to_owned(),
        Verdict::RejectAsUnreachable => "reject with icmpx type port-unreachable".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Transport;

    #[test]
    fn a_rule_reads_as_nft_prints_it() {
        let port =
            |items: [Item; 2]| Match::among(Field::Port(Transport::Tcp, Side::Destination), items);
        let table = [
            (NftRule::new(Verdict::Drop, "all"), "drop comment \"all\""),
            (
                NftRule::new(Verdict::Accept, "web").when([
                    Match::is(Field::Protocol, "ip"),
                    port([Item::Number(80), Item::Range(8000, 8080)]),
                    Match::is_not(Field::TcpSynAck, "syn"),
                ]),
                "meta protocol ip tcp dport { 80, 8000-8080 } tcp flags & (syn | ack) != syn \
                 accept comment \"web\"",
            ),
            (
                NftRule::new(Verdict::RejectWithTcpReset, "no").when([
                    Match::among(Field::CtState, ["new", "invalid"].map(Item::from)),
                    Match::is(Field::TcpRst, "rst"),
                    Match::is(Field::Iifname, "vnet-*"),
                ]),
                "ct state { new, invalid } tcp flags & rst == rst iifname \"vnet-*\" \
                 reject with tcp reset comment \"no\"",
            ),
        ];
        for (rule, text) in table {
            assert_eq!(rule_text(&rule), text);
        }
    }
}
