//! The one place that knows how nftables is talked to.
//!
//! Invariant: nothing leaves here but our own words; nft's JSON stays inside.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::error::NftError;
use super::netlink::Elements;
use crate::firewall::{ChainNames, Hook, TABLE, Transaction, VerdictMap, document};
use crate::host::program::{Finished, Program};
use crate::types::LinkName;

/// How the kernel's nftables is talked to.
///
/// That is one `nft` process per call, but for closing ports, which is one netlink message.
#[async_trait]
pub trait NftTransport: std::fmt::Debug + Send + Sync {
    /// Commits the transaction, and answers with the rules the kernel confirmed, in order.
    async fn commit(&self, transaction: &Transaction) -> Result<Vec<CommittedRule>, NftError>;

    /// Deletes elements of the maps in one transaction; fails if one is absent.
    async fn delete_elements(&self, ports: Vec<(VerdictMap, LinkName)>) -> Result<(), NftError>;

    /// Asks the kernel whether it would take the transaction, and changes nothing.
    async fn check(&self, transaction: &Transaction) -> Result<(), NftError>;

    /// The names of the table's chains; none if there is no table.
    async fn chains(&self) -> Result<Vec<String>, NftError>;

    /// Everything in the table; nothing if there is no table.
    async fn read(&self) -> Result<Listing, NftError>;
}

/// A rule the kernel gave a handle to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedRule {
    /// Its chain.
    pub chain: String,
    /// Its comment.
    pub comment: String,
    /// The kernel's number for it, unique in the table.
    pub handle: u64,
}

/// One entry of a verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The map.
    pub map: VerdictMap,
    /// The port.
    pub tap: String,
    /// Where its frames go.
    pub chain: String,
}

/// What the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The rules, in order: chain and comment.
    pub rules: Vec<(String, Option<String>)>,
    /// The elements of both maps.
    pub elements: Vec<Element>,
}

impl Listing {
    /// The part that concerns one VM: its chains, the hooks, and what leads from them to it.
    #[must_use]
    pub fn of_vm(mut self, names: &ChainNames) -> Self {
        let mut chains = Vec::from(names.all());
        chains.extend(Hook::ALL.map(Hook::as_str));
        self.rules.retain(|(chain, _)| chains.contains(&&**chain));
        self.elements.retain(|element| element.leads_to(names));
        self
    }
}

impl Element {
    fn leads_to(&self, names: &ChainNames) -> bool {
        self.chain == names.from || self.chain == names.to
    }
}

/// Runs `nft -j -f -`; closes ports by itself, over netlink.
#[derive(Debug, Clone, Default)]
pub struct NftProgram {
    elements: Arc<Elements>,
}

const MAPS: [VerdictMap; 2] = [VerdictMap::FromVm, VerdictMap::ToVm];

#[async_trait]
impl NftTransport for NftProgram {
    async fn commit(&self, transaction: &Transaction) -> Result<Vec<CommittedRule>, NftError> {
        // -e echoes what was committed, -a adds the kernel's handles.
        let objects = nft(&["-e", "-a"], &document(transaction)).await?;
        let added = objects
            .iter()
            .filter_map(|object| object.get("add")?.get("rule"));
        Ok(added.filter_map(committed_rule).collect())
    }

    async fn delete_elements(&self, ports: Vec<(VerdictMap, LinkName)>) -> Result<(), NftError> {
        self.elements.delete(ports).await
    }

    async fn check(&self, transaction: &Transaction) -> Result<(), NftError> {
        nft(&["-c"], &document(transaction)).await.map(drop)
    }

    async fn chains(&self) -> Result<Vec<String>, NftError> {
        let all = json!([{ "list": { "chains": { "family": "bridge" } } }]);
        let objects = nft(&[], &json!({ "nftables": all })).await?;
        let chains = objects.iter().filter_map(|object| object.get("chain"));
        let ours = chains.filter(|chain| chain["table"] == TABLE);
        Ok(ours.filter_map(|chain| text(chain, "name")).collect())
    }

    async fn read(&self) -> Result<Listing, NftError> {
        // The whole table, as nft 1.0.6 finds only the last of several chains listed in one go.
        let table = json!([{ "list": { "table": { "family": "bridge", "name": TABLE } } }]);
        match nft(&[], &json!({ "nftables": table })).await {
            Ok(objects) => Ok(Listing {
                rules: rules_in(&objects),
                elements: elements_in(&objects),
            }),
            Err(error) if error.is_absent() => Ok(Listing::default()),
            Err(error) => Err(error),
        }
    }
}

async fn nft(options: &[&str], document: &Value) -> Result<Vec<Value>, NftError> {
    let finished = Program::new("nft")
        .args(["-j"])
        .args(options)
        .args(["-f", "-"])
        .stdin(document.to_string().into_bytes())
        .run()
        .await?;
    if !finished.status.success() {
        return Err(NftError::refused(&finished));
    }
    objects_in(&finished)
}

/// The objects of all the documents `nft` printed; a change without echo prints none.
fn objects_in(finished: &Finished) -> Result<Vec<Value>, NftError> {
    let mut objects = Vec::new();
    for document in serde_json::Deserializer::from_slice(&finished.stdout).into_iter::<Value>() {
        let mut document = document.map_err(NftError::Answer)?;
        if let Some(Value::Array(more)) = document.get_mut("nftables").map(Value::take) {
            objects.extend(more);
        }
    }
    Ok(objects)
}

fn committed_rule(rule: &Value) -> Option<CommittedRule> {
    Some(CommittedRule {
        chain: text(rule, "chain")?,
        comment: text(rule, "comment")?,
        handle: rule.get("handle")?.as_u64()?,
    })
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

fn text(object: &Value, key: &str) -> Option<String> {
    object.get(key)?.as_str().map(str::to_owned)
}
