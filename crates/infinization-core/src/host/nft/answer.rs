//! What `nft -j` prints, in our own words.
//!
//! Neighbour: [`super::transport`] runs it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::transport::{CommittedRule, Element, Listing, Reading};
use crate::firewall::{Hook, NatListing, NatRule, SharedChain, VerdictMap};

const MAPS: [VerdictMap; 2] = [VerdictMap::FromVm, VerdictMap::ToVm];

pub(super) fn committed_rule(rule: &Value) -> Option<CommittedRule> {
    Some(CommittedRule {
        chain: text(rule, "chain")?,
        comment: text(rule, "comment")?,
        handle: rule.get("handle")?.as_u64()?,
    })
}

pub(super) fn reading(objects: &[Value]) -> Reading {
    let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    Reading {
        listing: Listing {
            rules: rules_in(objects),
            elements: elements_in(objects),
        },
        table: true,
        // nft 1.0.6 garbles which flags they are.
        dormant: of("table").any(|table| table.get("flags").is_some()),
        chains: of("chain")
            .filter_map(|chain| text(chain, "name"))
            .collect(),
        hooks: words_of(objects, |chain| {
            Hook::ALL
                .into_iter()
                .map(Hook::as_str)
                .find(|hook| *hook == chain)
        }),
        shared: words_of(objects, |chain| {
            SharedChain::is_name(chain).then(|| chain.to_owned())
        }),
        jumps: jumps_in(objects),
        handle: of("table").find_map(|table| table.get("handle")?.as_u64()),
        handles: handles_in(objects),
        said: said_in(objects),
    }
}

fn said_in(objects: &[Value]) -> BTreeMap<String, u64> {
    let mut all: BTreeMap<_, DefaultHasher> = BTreeMap::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let chain = text(rule, "chain").unwrap_or_default();
        let digest = all.entry(chain).or_default();
        for part in ["comment", "expr"] {
            digest_of(&rule[part], digest);
        }
    }
    let finished = all.into_iter();
    finished
        .map(|(chain, digest)| (chain, digest.finish()))
        .collect()
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

fn handles_in(objects: &[Value]) -> BTreeMap<String, Vec<u64>> {
    let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let chains = of("chain").filter_map(|chain| text(chain, "name"));
    let mut all: BTreeMap<_, Vec<_>> = chains.map(|chain| (chain, Vec::new())).collect();
    for rule in of("rule") {
        let chain = rule["chain"].as_str().and_then(|chain| all.get_mut(chain));
        if let (Some(handles), Some(handle)) = (chain, rule["handle"].as_u64()) {
            handles.push(handle);
        }
    }
    all
}

/// Each of these chains with its rules, as text to compare.
fn words_of<K: Ord>(objects: &[Value], key_of: impl Fn(&str) -> Option<K>) -> BTreeMap<K, String> {
    let mut all = BTreeMap::new();
    for object in objects {
        let chain = object["chain"]["name"].as_str();
        let chain = chain.or_else(|| object["rule"]["chain"].as_str());
        if let Some(key) = chain.and_then(&key_of) {
            let words: &mut String = all.entry(key).or_default();
            words.push_str(&without_handle(object));
            words.push('\n');
        }
    }
    all
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

fn jumps_in(objects: &[Value]) -> BTreeMap<String, Vec<String>> {
    let mut jumps: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        for word in ["jump", "goto"] {
            let targets = statements
                .iter()
                .filter_map(|it| it[word]["target"].as_str());
            for target in targets.filter(|target| SharedChain::is_name(target)) {
                let chain = text(rule, "chain").unwrap_or_default();
                jumps.entry(chain).or_default().push(target.to_owned());
            }
        }
    }
    jumps
}

pub(super) fn nat_listing(objects: Vec<Value>) -> NatListing {
    let mut listing = NatListing::default();
    for mut object in objects {
        let chain = &object["chain"];
        listing.hooked |= chain["type"] == "nat" && chain["hook"] == "postrouting";
        if let Some(rule) = object.get_mut("rule") {
            listing.rules.push(NatRule {
                handle: rule["handle"].as_u64().unwrap_or_default(),
                comment: text(rule, "comment"),
                statements: rule["expr"].take(),
            });
        }
    }
    listing
}

fn rules_in(objects: &[Value]) -> Vec<(String, Option<String>)> {
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    rules
        .filter_map(|rule| Some((text(rule, "chain")?, text(rule, "comment"))))
        .collect()
}

fn elements_in(objects: &[Value]) -> Vec<Element> {
    let maps = objects.iter().filter_map(|object| object.get("map"));
    maps.flat_map(|object| {
        let map = MAPS.into_iter().find(|map| object["name"] == map.as_str());
        let entries = object["elem"].as_array().map_or(&[][..], Vec::as_slice);
        entries.iter().filter_map(move |entry| {
            Some(Element {
                map: map?,
                tap: entry.get(0)?.as_str()?.to_owned(),
                chain: text(entry.get(1)?.get("jump")?, "target")?,
            })
        })
    })
    .collect()
}

pub(super) fn text(object: &Value, key: &str) -> Option<String> {
    object.get(key)?.as_str().map(str::to_owned)
}
