//! The one place that knows how nftables is talked to.
//!
//! Invariant: nothing leaves here but our own words; nft's JSON stays inside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use nix::errno::Errno;
use serde_json::{Value, json};

use super::answer::{committed_rule, nat_listing, reading, text};
use super::encode::{Encoded, encode};
use super::error::NftError;
use super::netlink::Batches;
use super::printed::Printed;
use crate::firewall::{
    ChainNames, Hook, NAT_TABLE, NatListing, NatTransaction, TABLE, Transaction, VerdictMap,
    document,
};
use crate::host::blocking::blocking;
use crate::host::program::{Program, ProgramError};
use crate::types::LinkName;

/// How the kernel's nftables is talked to.
#[async_trait]
pub trait NftTransport: std::fmt::Debug + Send + Sync {
    /// Commits the transaction.
    async fn commit(&self, transaction: &Transaction) -> Result<Committed, NftError>;

    /// Deletes elements of the maps in one transaction; fails if one is absent.
    async fn delete_elements(
        &self,
        ports: Vec<(VerdictMap, LinkName)>,
    ) -> Result<Committed, NftError>;

    /// Asks the kernel whether it would take the transaction, and changes nothing.
    async fn check(&self, transaction: &Transaction) -> Result<(), NftError>;

    /// The names of the table's chains; none if there is no table.
    async fn chains(&self) -> Result<Vec<String>, NftError>;

    /// Everything in the table; nothing if there is no table.
    async fn read(&self) -> Result<Reading, NftError>;

    /// The number of the state that nftables is in, which each commit counts on; none if that cannot be asked.
    async fn generation(&self) -> Option<u32>;

    /// Whether there is the filter's table; asked without a program.
    async fn has_table(&self) -> Result<bool, NftError>;

    /// Commits a change of the NAT table.
    async fn commit_nat(&self, transaction: &NatTransaction) -> Result<Committed, NftError>;

    /// The NAT table's chain and set; nothing if there are none.
    async fn read_nat(&self) -> Result<NatListing, NftError>;
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// The port of the netlink socket it was sent from, if that is known.
    pub sender: Option<u32>,
    /// The rules the kernel confirmed, in order.
    pub rules: Vec<CommittedRule>,
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

/// What the kernel holds, with what it says of chains and hooks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Rules and elements, by what they mean.
    pub listing: Listing,
    /// Whether there is a table.
    pub table: bool,
    /// The kernel's number for it: one that is made anew has another.
    pub handle: Option<u64>,
    /// The number of nftables' state that this is, if nobody has committed anything while it was read.
    pub generation: Option<u32>,
    /// Whether it sees no packets: it has flags, and we give it none.
    pub dormant: bool,
    /// The chains there are.
    pub chains: BTreeSet<String>,
    /// Each hook's chain and all its rules, in nft's own words, without handles.
    pub hooks: BTreeMap<&'static str, String>,
    /// As much of each chain that machines share.
    pub shared: BTreeMap<String, String>,
    /// Who jumps to one of those: the chain, and what it jumps to, in order.
    pub jumps: BTreeMap<String, Vec<String>>,
    /// The kernel's numbers of each chain's rules, in order.
    pub handles: BTreeMap<String, Vec<u64>>,
    /// A digest of each chain's rules in nft's own words, without handles and the names of chains that
    /// machines share: those are in [`Reading::jumps`]. It means nothing to another process.
    pub said: BTreeMap<String, u64>,
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
    pub(super) fn leads_to(&self, names: &ChainNames) -> bool {
        self.chain == names.from || self.chain == names.to
    }
}

/// Sends messages to the kernel for changes, and runs `nft -j -f -` for everything else. What cannot be
/// said in messages, and what the kernel refused, is left to `nft` as well: it finds the words for what is
/// wrong.
#[derive(Debug, Clone, Default)]
pub struct NftProgram {
    batches: Arc<Batches>,
}

#[async_trait]
impl NftTransport for NftProgram {
    async fn commit(&self, transaction: &Transaction) -> Result<Committed, NftError> {
        // `nft` cannot be told what state a transaction is for.
        let is_for_one_state = transaction.generation.is_some();
        let Some(encoded) = encode(transaction) else {
            if is_for_one_state {
                return Err(NftError::Rejected(Errno::ERESTART));
            }
            return commit(&document(transaction)).await;
        };
        let refused = match self.batches.commit(encoded).await {
            Ok(committed) => return Ok(committed),
            Err(_) if is_for_one_state => return Err(NftError::Rejected(Errno::ERESTART)),
            Err(refused) => refused,
        };
        tracing::debug!(%refused, "left to nft");
        match commit(&document(transaction)).await {
            Err(NftError::Program(ProgramError::NotFound { .. })) => Err(refused),
            outcome => outcome,
        }
    }

    async fn delete_elements(
        &self,
        ports: Vec<(VerdictMap, LinkName)>,
    ) -> Result<Committed, NftError> {
        match self.batches.commit(Encoded::deleting(&ports)).await {
            Err(NftError::Netlink(error)) => {
                tracing::debug!(%error, "left to nft");
                commit(&document(&Transaction::close(ports))).await
            }
            outcome => outcome,
        }
    }

    async fn check(&self, transaction: &Transaction) -> Result<(), NftError> {
        nft(&["-c"], &document(transaction)).await.map(drop)
    }

    async fn chains(&self) -> Result<Vec<String>, NftError> {
        let printed = list(&json!({ "chains": { "family": "bridge" } })).await?;
        let mut chains = Vec::new();
        printed.each(|object| {
            let ours = object.get("chain").filter(|chain| chain["table"] == TABLE);
            chains.extend(ours.and_then(|chain| text(chain, "name")));
        })?;
        Ok(chains)
    }

    async fn read(&self) -> Result<Reading, NftError> {
        let before = self.generation().await;
        // The whole table, as nft 1.0.6 finds only the last of several chains listed in one go.
        let table = json!({ "table": { "family": "bridge", "name": TABLE } });
        let reading = match list(&table).await {
            // That takes a while.
            Ok(printed) => blocking(move || reading(&printed))
                .await
                .map_err(|error| NftError::Netlink(error.into()))??,
            Err(error) if error.is_absent() => Reading::default(),
            Err(error) => return Err(error),
        };
        let after = self.generation().await;
        Ok(Reading {
            generation: before.filter(|_| before == after),
            ..reading
        })
    }

    async fn generation(&self) -> Option<u32> {
        let asked = self.batches.generation().await;
        asked
            .inspect_err(|error| tracing::debug!(%error, "the state's number cannot be asked"))
            .ok()
    }

    async fn has_table(&self) -> Result<bool, NftError> {
        self.batches.has_table().await
    }

    async fn commit_nat(&self, transaction: &NatTransaction) -> Result<Committed, NftError> {
        commit(&transaction.document()).await
    }

    async fn read_nat(&self) -> Result<NatListing, NftError> {
        let table = json!({ "family": "ip", "name": NAT_TABLE });
        match list(&json!({ "table": table })).await {
            Ok(printed) => nat_listing(&printed),
            Err(error) if error.is_absent() => Ok(NatListing::default()),
            Err(error) => Err(error),
        }
    }
}

async fn commit(document: &Value) -> Result<Committed, NftError> {
    // -e echoes what was committed, -a adds the kernel's handles.
    let (pid, printed) = nft(&["-e", "-a"], document).await?;
    let mut rules = Vec::new();
    printed.each(|object| rules.extend(committed_rule(&object["add"]["rule"])))?;
    Ok(Committed {
        // libmnl has the kernel choose the port, and that is the process' number unless it is taken.
        sender: pid,
        rules,
    })
}

async fn list(what: &Value) -> Result<Printed, NftError> {
    let question = json!({ "nftables": [{ "list": what }] });
    Ok(nft(&[], &question).await?.1)
}

/// Runs `nft`; answers its process number and what it printed.
async fn nft(options: &[&str], document: &Value) -> Result<(Option<u32>, Printed), NftError> {
    let (printed, writer) = Printed::new().map_err(|source| ProgramError::Pipe {
        program: "nft".to_owned(),
        source,
    })?;
    let finished = Program::new("nft")
        .args(["-j"])
        .args(options)
        .args(["-f", "-"])
        .stdin(document.to_string().into_bytes())
        .stdout(writer)
        .run()
        .await?;
    if !finished.status.success() {
        return Err(NftError::refused(&finished));
    }
    Ok((finished.pid, printed))
}
