//! What `nft -j` prints, in our own words.
//!
//! Neighbours: [`super::transport`] runs it, [`super::printed`] keeps what it printed.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::NftError;
use super::printed::Printed;
use super::transport::{CommittedRule, Element, Reading};
use crate::firewall::{
    Hook, NAT_CHAIN, NAT_DEPARTMENTS, NatListing, NatRule, SharedChain, VerdictMap,
};

const MAPS: [VerdictMap; 2] = [VerdictMap::FromVm, VerdictMap::ToVm];

pub(super) fn committed_rule(rule: &Value) -> Option<CommittedRule> {
    Some(CommittedRule {
        chain: text(rule, "chain")?,
        comment: text(rule, "comment")?,
        handle: rule.get("handle")?.as_u64()?,
    })
}

pub(super) fn reading(printed: &Printed) -> Result<Reading, NftError> {
    let mut reader = Reader::default();
    printed.each(|object| reader.take(&object))?;
    Ok(reader.reading())
}

/// Reads a table's objects, one at a time.
#[derive(Default)]
struct Reader {
    reading: Reading,
    said: BTreeMap<String, DefaultHasher>,
}

impl Reader {
    fn take(&mut self, object: &Value) {
        if let Some(table) = object.get("table") {
            // nft 1.0.6 garbles which flags they are.
            self.reading.dormant |= table.get("flags").is_some();
            self.reading.handle = table["handle"].as_u64();
        }
        if let Some(chain) = object.get("chain").and_then(|chain| text(chain, "name")) {
            self.word(&chain, object);
            self.reading.handles.entry(chain.clone()).or_default();
            self.reading.chains.insert(chain);
        }
        if let Some(map) = object.get("map") {
            self.reading.listing.elements.extend(elements_in(map));
        }
        if let Some((chain, rule)) = rule_in(object) {
            self.word(&chain, object);
            self.rule(chain, rule);
        }
    }

    fn rule(&mut self, chain: String, rule: &Value) {
        let digest = self.said.entry(chain.clone()).or_default();
        for part in ["comment", "expr"] {
            digest_of(&rule[part], digest);
        }
        let reading = &mut self.reading;
        let handles = reading.handles.entry(chain.clone()).or_default();
        handles.extend(rule["handle"].as_u64());
        let jumps = jumps_in(rule);
        if !jumps.is_empty() {
            reading
                .jumps
                .entry(chain.clone())
                .or_default()
                .extend(jumps);
        }
        reading.listing.rules.push((chain, text(rule, "comment")));
    }

    /// A hook's chain, and one that machines share, are kept with their rules as text to compare.
    fn word(&mut self, chain: &str, object: &Value) {
        let mut hooks = Hook::ALL.into_iter().map(Hook::as_str);
        let words = if let Some(hook) = hooks.find(|hook| *hook == chain) {
            self.reading.hooks.entry(hook).or_default()
        } else if SharedChain::is_name(chain) {
            self.reading.shared.entry(chain.to_owned()).or_default()
        } else {
            return;
        };
        words.push_str(&without_handle(object));
        words.push('\n');
    }

    fn reading(self) -> Reading {
        let said = self.said.into_iter();
        Reading {
            table: true,
            said: said
                .map(|(chain, digest)| (chain, digest.finish()))
                .collect(),
            ..self.reading
        }
    }
}

fn rule_in(object: &Value) -> Option<(String, &Value)> {
    let rule = object.get("rule")?;
    Some((text(rule, "chain")?, rule))
}

fn digest_of(said: &Value, digest: &mut DefaultHasher) {
    match said {
        Value::Null => 0_u8.hash(digest),
        Value::Bool(it) => (1_u8, it).hash(digest),
        Value::Number(it) => (2_u8, it).hash(digest),
        Value::String(it) if SharedChain::is_name(it) => 3_u8.hash(digest),
        Value::String(it) => (4_u8, it).hash(digest),
        Value::Array(list) => {
            (5_u8, list.len()).hash(digest);
            for it in list {
                digest_of(it, digest);
            }
        }
        Value::Object(members) => {
            (6_u8, members.len()).hash(digest);
            for (name, it) in members {
                name.hash(digest);
                digest_of(it, digest);
            }
        }
    }
}

fn without_handle(object: &Value) -> String {
    let mut object = object.clone();
    for kind in ["chain", "rule"] {
        if let Some(Value::Object(members)) = object.get_mut(kind) {
            members.remove("handle");
        }
    }
    object.to_string()
}

/// The chains that machines share to which a rule jumps, in order.
fn jumps_in(rule: &Value) -> Vec<String> {
    let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
    let mut jumps = Vec::new();
    for word in ["jump", "goto"] {
        let targets = statements
            .iter()
            .filter_map(|it| it[word]["target"].as_str());
        let shared = targets.filter(|target| SharedChain::is_name(target));
        jumps.extend(shared.map(str::to_owned));
    }
    jumps
}

pub(super) fn nat_listing(printed: &Printed) -> Result<NatListing, NftError> {
    let mut listing = NatListing::default();
    printed.each(|mut object| {
        let chain = &object["chain"];
        listing.hooked |=
            chain["name"] == NAT_CHAIN && chain["type"] == "nat" && chain["hook"] == "postrouting";
        let set = &object["set"];
        if set["name"] == NAT_DEPARTMENTS {
            let bridges = set["elem"].as_array().into_iter().flatten();
            let bridges = bridges.filter_map(Value::as_str);
            listing.departments.extend(bridges.map(str::to_owned));
        }
        if let Some(rule) = object.get_mut("rule").filter(|it| it["chain"] == NAT_CHAIN) {
            listing.rules.push(NatRule {
                handle: rule["handle"].as_u64().unwrap_or_default(),
                comment: text(rule, "comment"),
                statements: rule["expr"].take(),
            });
        }
    })?;
    Ok(listing)
}

fn elements_in(object: &Value) -> Vec<Element> {
    let map = MAPS.into_iter().find(|map| object["name"] == map.as_str());
    let entries = object["elem"].as_array().map_or(&[][..], Vec::as_slice);
    let element = |entry: &Value| {
        Some(Element {
            map: map?,
            tap: entry.get(0)?.as_str()?.to_owned(),
            chain: text(entry.get(1)?.get("jump")?, "target")?,
        })
    };
    entries.iter().filter_map(element).collect()
}

pub(super) fn text(object: &Value, key: &str) -> Option<String> {
    object.get(key)?.as_str().map(str::to_owned)
}
