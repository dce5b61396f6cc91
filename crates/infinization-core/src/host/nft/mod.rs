//! The kernel's nftables. Transactions come ready-made from [`crate::firewall`]; this module runs
//! them, checks that the kernel confirmed them, and reads back.
//!
//! Invariants: a change is one kernel transaction, by one netlink batch or one `nft` process; changes are made one after
//! the other in this process; one that has started is finished even if nobody waits for it any
//! more, so that a later one cannot overtake it. Reads and probes need no turn.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `transport`, `answer`, `netlink`, `encode`, `expressions`, `value`, `wire` | how the kernel is talked to |
//! | `journal`, `notice` | whether others have changed what is ours |
//! | `known`, `beliefs`, `machine`, `shared`, `conditions`, `handles`, `verify` | what was loaded, comparing it with the kernel, putting it back |
//! | `batch` | loading many machines at once |
//! | `line` | one machine's changes in the order they were asked for |
//! | `nat` | masquerading |
//! | `commits` | hearing of every commit to one table |
//! | `saved` | the filter's table as text |
//! | `probe` | what the kernel can do |

mod answer;
mod batch;
mod beliefs;
mod commits;
mod conditions;
mod encode;
mod error;
mod expressions;
mod handles;
mod journal;
mod known;
mod line;
mod machine;
mod nat;
mod netlink;
mod notice;
mod printed;
mod probe;
mod saved;
mod shared;
mod transport;
mod value;
mod verify;
mod wire;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use nix::errno::Errno;
use tokio::sync::Mutex;

pub use commits::Commits;
pub use error::NftError;
pub use journal::Mark;
pub use line::{Moment, Place};
pub use machine::{Damage, Part};
pub use notice::OurTable;
pub use transport::{
    Committed, CommittedRule, Element, Listing, NftProgram, NftTransport, Reading,
};
pub use verify::Repair;

use crate::firewall::{
    BridgeConntrackMode, Capabilities, ChainNames, Compiled, Conntrack, Transaction, VerdictMap,
};
use crate::types::{FirewallDefaultAction, LinkName};
use journal::Journal;
use known::Known;
use probe::Probe;

static TURN: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);
static PROBE: LazyLock<Probe> = LazyLock::new(Probe::default);

/// The firewall of this host. Handles are cheap and share what was probed.
#[derive(Debug, Clone)]
pub struct Nft {
    transport: Arc<dyn NftTransport>,
    probe: Probe,
    journal: Arc<Journal>,
}

impl Default for Nft {
    fn default() -> Self {
        Self::new()
    }
}

impl Nft {
    /// Through the `nft` program, in the calling thread's network.
    pub fn new() -> Self {
        Self {
            transport: Arc::new(NftProgram::default()),
            probe: PROBE.clone(),
            journal: Journal::of_this_network(),
        }
    }

    /// Through another transport, with a probe of its own. It is never believed unasked.
    pub fn with_transport(transport: Arc<dyn NftTransport>) -> Self {
        Self {
            transport,
            probe: Probe::default(),
            journal: Journal::blind(),
        }
    }

    /// What this kernel's bridge family can do. Probed once per process; at most three programs.
    pub async fn capabilities(&self) -> Result<Capabilities, NftError> {
        self.probe.capabilities(&*self.transport).await
    }

    /// As [`Nft::capabilities`], but what was missing is looked for again: the module may have been loaded.
    pub async fn capabilities_now(&self) -> Result<Capabilities, NftError> {
        self.probe.again_if_missing(&*self.transport).await
    }

    /// How VMs are filtered here in this mode; an error if the mode does not allow it. A refusal is never one
    /// of the past.
    pub async fn conntrack(&self, mode: BridgeConntrackMode) -> Result<Conntrack, NftError> {
        let capabilities = match mode {
            BridgeConntrackMode::Fail => self.capabilities_unless_refused().await?,
            BridgeConntrackMode::Degrade => self.capabilities().await?,
        };
        match (capabilities.conntrack, mode) {
            (true, _) => Ok(Conntrack::Stateful),
            (false, BridgeConntrackMode::Fail) => Err(NftError::ConntrackUnavailable),
            (false, BridgeConntrackMode::Degrade) => {
                self.probe.warn_stateless();
                Ok(Conntrack::Stateless)
            }
        }
    }

    async fn capabilities_unless_refused(&self) -> Result<Capabilities, NftError> {
        match self.capabilities().await? {
            known if known.conntrack => Ok(known),
            _ => self.capabilities_now().await,
        }
    }

    /// Loads a VM's rules unless this process has, and the kernel still holds them; says whether it had to. Costs nothing
    /// if nobody else has committed anything to the table since.
    pub async fn ensure_vm_if_changed(&self, compiled: &Compiled) -> Result<bool, NftError> {
        if self.is_in_force(compiled).await? {
            return Ok(false);
        }
        self.ensure_vm(compiled).await.map(|()| true)
    }

    /// Makes the VM's chains, closed, if it has none; existing ones are left as they are.
    pub async fn create_chains(&self, names: &ChainNames) -> Result<(), NftError> {
        let closed = Transaction::create_chains(names);
        match self.commit(closed, Known::hooked).await {
            Err(error) if error.is(Errno::EEXIST) => Ok(()),
            outcome => outcome,
        }
    }

    /// Sends the port's frames through the VM's chains, which must exist, unless this process has loaded
    /// them for this port: then they are loaded as they were.
    pub async fn attach(&self, names: &ChainNames, tap: &LinkName) -> Result<(), NftError> {
        if let Some(compiled) = self.journal.known.compiled_for(names, tap) {
            return self.ensure_vm(&compiled).await;
        }
        let attach = Transaction::attach(names, tap);
        let (names, tap) = (names.clone(), tap.clone());
        self.commit(attach, move |known| known.attached(&names, &tap))
            .await
    }

    /// Closes the port; the chains stay. Fine if it was not attached.
    pub async fn detach(&self, tap: &LinkName) -> Result<(), NftError> {
        let both = [VerdictMap::FromVm, VerdictMap::ToVm];
        match self.delete_elements(&both, tap).await {
            Err(error) if error.is_absent() => {}
            outcome => return outcome,
        }
        // Somebody may have taken one element out: the other must not keep the port open.
        for map in both {
            match self.delete_elements(&[map], tap).await {
                Err(error) if error.is_absent() => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Removes the VM's chains and what leads to them, in one transaction, with what only it has jumped
    /// to. Fine if there is nothing.
    pub async fn remove_vm(&self, names: &ChainNames) -> Result<(), NftError> {
        let is_known = self.journal.known.knows(names);
        let taps = Vec::from_iter(names.default_tap());
        match self.remove(names, &taps).await {
            Err(error) if error.is_absent() => {
                self.journal.known.forget(names);
                return Ok(());
            }
            // Another port leads to its chains, or its usual port to another VM's.
            Err(error) if error.is(Errno::EBUSY) || error.is(Errno::EEXIST) => {
                self.remove_dispatched_vm(names).await?;
            }
            outcome => outcome?,
        }
        if is_known {
            return Ok(());
        }
        if let Err(error) = self.sweep().await {
            tracing::warn!(%error, "chains that nobody uses are left");
        }
        Ok(())
    }

    async fn remove_dispatched_vm(&self, names: &ChainNames) -> Result<(), NftError> {
        let loaded = self.read_vm(names).await?;
        let taps = loaded.elements.iter();
        let taps: HashSet<_> = taps.filter_map(|e| LinkName::parse(&*e.tap).ok()).collect();
        let taps: Vec<_> = taps.into_iter().collect();
        self.remove(names, &taps).await
    }

    async fn remove(&self, names: &ChainNames, taps: &[LinkName]) -> Result<(), NftError> {
        let (remove, names) = (Transaction::remove_vm(names, taps), names.clone());
        self.in_turn(move |nft| async move {
            let known = &nft.journal.known;
            let unused = known.unused_without(&[&names].into());
            let mut thorough = remove.clone();
            thorough.delete_shared(&unused);
            let forget = |known: &Known| known.forget(&names);
            match nft.commit_now(&thorough, forget).await {
                // Somebody else may jump there.
                Err(error) if error.is(Errno::EBUSY) && !unused.is_empty() => {
                    nft.commit_now(&remove, forget).await
                }
                outcome => outcome,
            }
        })
        .await
    }

    /// Removes the VM chain of this name, with its helpers and dispatch.
    pub async fn remove_chain_by_name(&self, chain: &str) -> Result<(), NftError> {
        let names = ChainNames::parse(chain);
        let names = names.ok_or_else(|| NftError::NotAVmChain(chain.to_owned()))?;
        self.remove_vm(&names).await
    }

    /// Removes the user's rules; what remains is the terminal verdict. Fine if there is no chain.
    pub async fn flush_vm(
        &self,
        names: &ChainNames,
        default_action: FirewallDefaultAction,
    ) -> Result<(), NftError> {
        let flush = Transaction::flush_vm(names, default_action);
        let names = names.clone();
        self.in_turn(move |nft| async move {
            let known = &nft.journal.known;
            let unused = known.unused_without(&[&names].into());
            let flushed = |known: &Known| known.flushed(&names, default_action);
            match nft.commit_now(&flush, flushed).await {
                // Somebody has taken it: what is put back has no rules of the user's either.
                Err(error) if error.is_absent() => flushed(known),
                outcome => outcome?,
            }
            if let Err(error) = nft.delete_unused(&unused).await {
                tracing::warn!(%error, "chains that nobody uses are left");
            }
            Ok(())
        })
        .await
    }

    /// The names of all chains in the table; none if there is no table.
    pub async fn list_chains(&self) -> Result<Vec<String>, NftError> {
        self.transport.chains().await
    }

    /// Whether the table has a chain of this name.
    pub async fn chain_exists(&self, chain: &str) -> Result<bool, NftError> {
        Ok(self.list_chains().await?.iter().any(|name| name == chain))
    }

    /// What the kernel holds of a VM, the hooks included.
    pub async fn read_vm(&self, names: &ChainNames) -> Result<Listing, NftError> {
        Ok(self.transport.read().await?.listing.of_vm(names))
    }

    async fn delete_elements(&self, maps: &[VerdictMap], tap: &LinkName) -> Result<(), NftError> {
        let ports = maps.iter().map(|map| (*map, tap.clone())).collect();
        let tap = tap.clone();
        self.in_turn(move |nft| async move {
            // Before it is closed: nobody is to open it again.
            nft.journal.known.detached(&tap);
            let committing = nft.journal.begin_commit(OurTable::Filter);
            let committed = nft.transport.delete_elements(ports).await;
            committing.ended(sender_of(&committed), |_| ());
            committed.map(drop)
        })
        .await
    }

    /// Commits when its turn has come; then `learn` is told.
    async fn commit(
        &self,
        transaction: Transaction,
        learn: impl FnOnce(&Known) + Send + 'static,
    ) -> Result<(), NftError> {
        self.in_turn(move |nft| async move { nft.commit_now(&transaction, learn).await })
            .await
    }

    /// In a turn: commits, and checks that the kernel has confirmed what was asked for; then `learn` is told,
    /// before what others have done since.
    async fn commit_now(
        &self,
        transaction: &Transaction,
        learn: impl FnOnce(&Known) + Send,
    ) -> Result<(), NftError> {
        let mut committing = self.journal.begin_commit(OurTable::Filter);
        let committed = self.transport.commit(transaction).await;
        if committed.is_ok() && committing.has_overflowed() {
            committing.made(self.transport.generation().await);
        }
        let sender = sender_of(&committed);
        let confirmed = committed.and_then(|committed| confirmed(transaction, committed.rules));
        committing.ended(sender, |known| match &confirmed {
            Ok(rules) => {
                known.committed(transaction, rules);
                learn(known);
            }
            // Whatever these chains hold now, it is not what is known of them.
            Err(NftError::Mismatch { .. }) => {
                let chains = transaction.added_rules();
                chains.for_each(|(chain, _)| known.lost(chain));
            }
            Err(_) => {}
        });
        // A program may have been ended after it had committed.
        if let Err(NftError::Program(_) | NftError::Mismatch { .. }) = &confirmed {
            self.journal.doubt_all();
        }
        confirmed.map(drop)
    }

    /// Waits for its turn, then works; not waiting any longer does not stop what has begun.
    async fn in_turn<T: Send + 'static, W>(
        &self,
        work: impl FnOnce(Self) -> W,
    ) -> Result<T, NftError>
    where
        W: Future<Output = Result<T, NftError>> + Send + 'static,
    {
        let turn = Arc::clone(&TURN).lock_owned().await;
        let work = work(self.clone());
        let running = tokio::spawn(async move {
            let _turn = turn;
            work.await
        });
        running.await.unwrap_or(Err(NftError::Interrupted))
    }
}

fn sender_of(committed: &Result<Committed, NftError>) -> Option<u32> {
    committed.as_ref().ok()?.sender
}

/// Compares what was asked with what the kernel gave handles to, each its own. Answers those.
fn confirmed(
    transaction: &Transaction,
    mut committed: Vec<CommittedRule>,
) -> Result<Vec<CommittedRule>, NftError> {
    let mut handles = HashSet::new();
    committed.retain(|rule| handles.insert(rule.handle));
    let found = || committed.iter().map(|rule| (&*rule.chain, &*rule.comment));
    if transaction.added_rules().eq(found()) {
        return Ok(committed);
    }
    Err(first_difference(transaction.added_rules(), found()))
}

fn first_difference<'a>(
    asked: impl Iterator<Item = (&'a str, &'a str)>,
    found: impl Iterator<Item = (&'a str, &'a str)>,
) -> NftError {
    let (mut found, mut asked) = (found.fuse(), asked.fuse());
    loop {
        let (asked, found) = (asked.next(), found.next());
        if asked != found || asked.is_none() {
            let words = |rule: Option<(&str, &str)>| match rule {
                Some((_, comment)) => format!("{comment:?}"),
                None => "no rule".to_owned(),
            };
            let chain = asked.or(found).map_or("the table", |(chain, _)| chain);
            return NftError::Mismatch {
                chain: chain.to_owned(),
                asked: words(asked),
                found: words(found),
            };
        }
    }
}

#[cfg(test)]
mod tests;
