//! Finding out whether another program has meddled with what is ours.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use nix::errno::Errno;

use super::journal::Mark;
use super::known::Known;
use super::machine::{Damage, Part};
use super::notice::OurTable;
use super::transport::Reading;
use super::{Nft, NftError};
use crate::firewall::{ChainNames, Compiled, SharedChain, TABLE, Transaction};
use crate::types::LinkName;

/// How often a lost table is closed anew because somebody else committed meanwhile.
const TRIES: usize = 3;

/// What was found, and put back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repair {
    /// All that was missing.
    pub damages: Vec<Damage>,
    /// Machines that are closed now, as their rules are not known here or the kernel refused them.
    pub unknown: Vec<ChainNames>,
    /// Machines of an earlier process that nobody has damaged. Whether their rules are those that
    /// should be in force has yet to be found out.
    pub unconfirmed: Vec<ChainNames>,
}

impl Nft {
    /// Sets up the table and both hooks: from here on a managed port is closed until its VM's rules
    /// are loaded. Takes over a table of the earlier implementation. Costs nothing when it is done and
    /// nobody has meddled.
    pub async fn prepare(&self) -> Result<(), NftError> {
        self.journal.catch_up();
        let known = &self.journal.known;
        if self.journal.trusts(OurTable::Filter) && known.knows_hooks() {
            return Ok(());
        }
        let mark = self.journal.mark(OurTable::Filter);
        let table = Transaction::table().without_forward();
        self.commit(table, Known::hooked).await?;
        if !known.knows_hooks() {
            self.in_turn(move |nft| async move { nft.see_hooks(mark).await })
                .await?;
        }
        Ok(())
    }

    /// Learns what the hooks look like to nft, unless somebody may have changed them since `mark`.
    async fn see_hooks(&self, mark: Mark) -> Result<(), NftError> {
        let reading = self.transport.read().await?;
        self.journal.catch_up();
        if self.journal.mark(OurTable::Filter) == mark {
            self.journal.known.saw_hooks(&reading);
            self.conclude(&reading, mark);
        }
        Ok(())
    }

    /// Another process has loaded the machine's rules; from here on they are looked after, and the next
    /// repair names the machine as unconfirmed.
    pub fn adopt_vm(&self, names: &ChainNames, tap: &LinkName) {
        // What was done to its chains until now, that process may have done.
        self.journal.catch_up();
        self.journal.known.adopted(names, tap);
        self.journal.doubt(OurTable::Filter);
    }

    /// Resolves when somebody may have meddled with what is ours in the table; at once as long as that
    /// is not found out. An error where the kernel cannot be listened to.
    pub async fn meddled(&self, table: OurTable) -> io::Result<()> {
        self.journal.in_doubt(table, None).await
    }

    /// As [`Nft::meddled`], but what was in doubt when `mark` was taken does not count.
    pub async fn meddled_since(&self, table: OurTable, mark: Mark) -> io::Result<()> {
        self.journal.in_doubt(table, Some(mark)).await
    }

    /// The doubts there are about the table now.
    pub fn doubts(&self, table: OurTable) -> Mark {
        self.journal.mark(table)
    }

    /// Finds out what of the filter is not as it was loaded, and loads all of it again in one
    /// transaction; machines whose rules are not known it closes in the same. What the kernel refuses
    /// as a whole is done machine by machine. Costs nothing if nobody has meddled, and one program if it
    /// made no difference.
    pub async fn repair(&self) -> Result<Repair, NftError> {
        self.in_turn(|nft| async move {
            nft.journal.catch_up();
            if nft.journal.trusts(OurTable::Filter) {
                return Ok(Repair::default());
            }
            let (reading, mut damages) = nft.close_and_read().await?;
            if nft.journal.known.was_remade() {
                damages.insert(0, Damage::of_table());
            }
            nft.put_back(&damages, &reading).await?;
            if let Err(error) = nft.sweep_after(&reading).await {
                tracing::warn!(%error, "chains that nobody uses are left");
            }
            // Those of an earlier repair that failed half-way, too.
            let unknown = nft.journal.known.all_closed();
            let mut unconfirmed = nft.journal.known.unconfirmed();
            unconfirmed.retain(|names| !unknown.contains(names));
            Ok(Repair {
                damages,
                unknown,
                unconfirmed,
            })
        })
        .await
    }

    /// Where another has deleted the whole table every port is open: closes them, which takes one batch of
    /// messages and no program. [`Nft::repair`] does so first, and then opens what was open.
    pub async fn close_if_gone(&self) -> Result<(), NftError> {
        self.in_turn(|nft| async move {
            nft.journal.catch_up();
            nft.close_now().await
        })
        .await
    }

    /// In a turn.
    pub(super) async fn close_now(&self) -> Result<(), NftError> {
        for _ in 0..TRIES {
            let Some(generation) = self.gone_in().await else {
                return Ok(());
            };
            let table = Transaction {
                generation: Some(generation),
                ..Transaction::table()
            };
            match self.commit_now(&table, Known::remade).await {
                // Somebody was here in between, as whoever loads the host's own firewall after a flush.
                Err(NftError::Rejected(Errno::ERESTART)) => self.journal.catch_up(),
                outcome => return outcome,
            }
        }
        // What there is has to be read.
        Ok(())
    }

    /// The number of the state in which the table that we made is gone. Where more was told than there was room
    /// for, nobody was heard to take it, and the kernel is asked.
    async fn gone_in(&self) -> Option<u32> {
        if !self.journal.may_have_missed_table() || !self.journal.known.has_hooked() {
            return self.journal.gone_in();
        }
        let mark = self.journal.mark(OurTable::Filter);
        // First the number: where the table is made in between, closing is refused.
        let generation = self.transport.generation().await;
        match self.transport.has_table().await {
            Ok(false) => return generation,
            Ok(true) => {
                self.journal.catch_up();
                self.journal.saw_table(mark);
            }
            Err(error) => tracing::warn!(%error, "it is not known whether there is a firewall"),
        }
        None
    }

    /// What is known now is what is wanted now: whoever changes it does so in a turn of his own. Answers
    /// the machines that are closed now.
    async fn put_back(
        &self,
        damages: &[Damage],
        reading: &Reading,
    ) -> Result<Vec<ChainNames>, NftError> {
        if damages.is_empty() {
            return Ok(Vec::new());
        }
        // Machine by machine, so the same one follows itself.
        let mut damaged: Vec<ChainNames> =
            damages.iter().filter_map(|it| it.machine.clone()).collect();
        damaged.dedup();
        let shared = damages.iter().filter(|it| it.machine.is_none());
        let shared = shared.filter_map(|it| self.journal.known.shared(&it.name));
        let shared: Vec<_> = shared.collect();
        match self.load_again(&damaged, &shared, reading).await {
            Err(error @ (NftError::Refused { .. } | NftError::Rejected(_))) => {
                tracing::warn!(%error, "the firewall is put back machine by machine");
                self.put_back_one_by_one(&damaged, &shared).await
            }
            outcome => outcome,
        }
    }

    /// Deletes the shared chains that nothing jumps to: those of machines of an earlier process.
    pub(super) async fn sweep(&self) -> Result<(), NftError> {
        self.in_turn(|nft| async move {
            let reading = nft.transport.read().await?;
            nft.sweep_after(&reading).await
        })
        .await
    }

    async fn sweep_after(&self, reading: &Reading) -> Result<(), NftError> {
        let used: HashSet<_> = reading.jumps.values().flatten().collect();
        let known = &self.journal.known;
        let unused = reading.shared.keys().filter(|chain| !used.contains(chain));
        let unused = unused.filter(|chain| known.shared(chain).is_none());
        self.delete_unused(&unused.cloned().collect::<Vec<_>>())
            .await
    }

    /// In a turn. Somebody may have begun to jump there meanwhile.
    pub(super) async fn delete_unused(&self, chains: &[String]) -> Result<(), NftError> {
        if chains.is_empty() {
            return Ok(());
        }
        let mut delete = Transaction::default();
        delete.delete_shared(chains);
        match self.commit_now(&delete, |_| ()).await {
            Err(error) if error.is(Errno::EBUSY) || error.is_absent() => Ok(()),
            outcome => outcome,
        }
    }

    /// The hooks first, which close every port that nothing leads on from. One machine's failure leaves
    /// the others alone; the first one is answered when all are done.
    async fn put_back_one_by_one(
        &self,
        damaged: &[ChainNames],
        shared: &[Arc<SharedChain>],
    ) -> Result<Vec<ChainNames>, NftError> {
        let shared = shared.iter().map(AsRef::as_ref);
        let hooks = Transaction::put_back(&[], shared, []);
        self.commit_now(&hooks, |_| ()).await?;
        let reading = self.transport.read().await?;
        let (mut closed, mut failed) = (Vec::new(), None);
        for names in damaged {
            let one = std::slice::from_ref(names);
            let outcome = match self.load_again(one, &[], &reading).await {
                Err(error @ (NftError::Refused { .. } | NftError::Rejected(_))) => {
                    tracing::error!(chain = names.vm, %error, "a machine's rules were refused");
                    self.journal.known.closed(names);
                    self.load_again(one, &[], &reading).await
                }
                outcome => outcome,
            };
            match outcome {
                Ok(unknown) => closed.extend(unknown),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(closed), Err)
    }

    /// Loads what is known of these machines, and closes those of which nothing is: in one transaction,
    /// with the hooks. Answers the latter.
    async fn load_again(
        &self,
        machines: &[ChainNames],
        shared: &[Arc<SharedChain>],
        reading: &Reading,
    ) -> Result<Vec<ChainNames>, NftError> {
        let known = &self.journal.known;
        let (mut again, mut unknown, mut in_the_way) = (Vec::new(), Vec::new(), Vec::new());
        for names in machines {
            match known.compiled(names) {
                Some(compiled) => again.push(compiled),
                None => unknown.push(names.clone()),
            }
            for port in known.in_the_way(names, reading) {
                if !in_the_way.contains(&port) {
                    in_the_way.push(port);
                }
            }
        }
        let shared = shared
            .iter()
            .chain(again.iter().flat_map(|it| &it.ruleset.shared));
        let shared: BTreeMap<_, _> = shared
            .map(|chain| (chain.name.as_str(), &**chain))
            .collect();
        let machines = again.iter().map(AsRef::as_ref);
        let mut all = Transaction::put_back(&in_the_way, shared.values().copied(), machines);
        for names in again.iter().map(|it| &it.ruleset.names) {
            for tap in known.other_ports(names) {
                all.commands
                    .extend(Transaction::attach(names, &tap).commands);
            }
        }
        let learn = |known: &Known| {
            known.loaded_shared(shared.into_keys());
            for again in &again {
                known.put_back(again);
            }
            for names in &unknown {
                known.closed(names);
            }
        };
        self.commit_now(&all, learn).await?;
        Ok(unknown)
    }

    /// What this process has loaded for the machine, if its port is open.
    pub fn loaded(&self, names: &ChainNames) -> Option<Arc<Compiled>> {
        self.journal.known.compiled(names)
    }

    /// Whether a repair has closed the machine and its rules were not loaded since.
    pub fn is_closed(&self, names: &ChainNames) -> bool {
        self.journal.known.is_closed(names)
    }

    /// Nobody looks after the machine's chains any more.
    pub fn abandon_vm(&self, names: &ChainNames) {
        self.journal.known.forget(names);
    }

    /// Whether this process has loaded exactly this, and the kernel still holds it. What another process has loaded
    /// is told by comments alone, which say nothing of what a rule was made since: that is not believed.
    pub(super) async fn is_in_force(&self, compiled: &Compiled) -> Result<bool, NftError> {
        let compiled = compiled.clone();
        self.in_turn(move |nft| async move {
            nft.journal.catch_up();
            let known = &nft.journal.known;
            if !known.has(&compiled) {
                return Ok(false);
            }
            if !nft.journal.trusts(OurTable::Filter) {
                let (_, damages) = nft.read_now().await?;
                if damages.iter().any(|damage| damage.concerns(&compiled)) || !known.has(&compiled)
                {
                    return Ok(false);
                }
            }
            known.loaded(&Arc::new(compiled), true);
            Ok(true)
        })
        .await
    }

    /// As [`Nft::read_now`], with every port closed if the table is gone. What was read while somebody else committed
    /// is of no one state, and shows damage that nobody did: it is read once more.
    async fn close_and_read(&self) -> Result<(Reading, Vec<Damage>), NftError> {
        self.close_now().await?;
        let (reading, damages) = self.read_now().await?;
        if damages.is_empty() || reading.generation.is_some() {
            return Ok((reading, damages));
        }
        self.close_now().await?;
        self.read_now().await
    }

    /// What the kernel holds, and what is missing of what it should.
    async fn read_now(&self) -> Result<(Reading, Vec<Damage>), NftError> {
        let mark = self.journal.mark(OurTable::Filter);
        let reading = self.transport.read().await?;
        // What it shows may have been told meanwhile.
        self.journal.catch_up();
        let damages = self.conclude(&reading, mark);
        Ok((reading, damages))
    }

    /// Compares; if nothing is missing, the doubts there were are settled.
    fn conclude(&self, reading: &Reading, mark: Mark) -> Vec<Damage> {
        let damages = self.journal.known.compare(reading);
        if damages.is_empty() {
            self.journal.settle(OurTable::Filter, mark);
            self.journal.saw_generation(reading.generation);
        }
        damages
    }
}

impl Damage {
    fn of_table() -> Self {
        Self {
            machine: None,
            part: Part::Table,
            name: TABLE.to_owned(),
        }
    }

    /// Whether it is the machine's, or of something the machine needs.
    fn concerns(&self, compiled: &Compiled) -> bool {
        match &self.machine {
            Some(machine) => *machine == compiled.ruleset.names,
            None if SharedChain::is_name(&self.name) => compiled
                .ruleset
                .shared_names()
                .any(|name| name == self.name),
            None => true,
        }
    }
}
