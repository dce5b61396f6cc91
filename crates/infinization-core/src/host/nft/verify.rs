//! Finding out whether another program has meddled with what is ours.

use std::io;

use super::journal::Mark;
use super::known::{Damage, Known, holds};
use super::notice::OurTable;
use super::transport::Reading;
use super::{Nft, NftError};
use crate::firewall::{ChainNames, Compiled, Transaction};
use crate::types::LinkName;

/// What was found, and put back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repair {
    /// All that was missing.
    pub damages: Vec<Damage>,
    /// Machines of an earlier process: closed now, as their rules are not known here.
    pub unknown: Vec<ChainNames>,
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

    /// Another process has loaded the machine's rules; from here on they are looked after.
    pub fn adopt_vm(&self, names: &ChainNames, tap: &LinkName) {
        self.journal.known.adopted(names, tap);
        self.journal.doubt(OurTable::Filter);
    }

    /// Resolves when somebody may have meddled with what is ours; at once as long as that is not
    /// found out. An error where the kernel cannot be listened to.
    pub async fn meddled(&self) -> io::Result<()> {
        self.journal.in_doubt().await
    }

    /// Finds out what of the filter is not as it was loaded, and loads all of it again in one
    /// transaction. Costs nothing if nobody has meddled, and one program if it made no difference.
    pub async fn repair(&self) -> Result<Repair, NftError> {
        self.in_turn(|nft| async move {
            nft.journal.catch_up();
            if nft.journal.trusts(OurTable::Filter) {
                return Ok(Repair::default());
            }
            let mark = nft.journal.mark(OurTable::Filter);
            let reading = nft.transport.read().await?;
            let damages = nft.conclude(&reading, mark);
            nft.put_back(damages).await
        })
        .await
    }

    /// What is known now is what is wanted now: whoever changes it does so in a turn of his own.
    async fn put_back(&self, damages: Vec<Damage>) -> Result<Repair, NftError> {
        let known = &self.journal.known;
        // Machine by machine, so the same one follows itself.
        let mut damaged: Vec<&ChainNames> = damages.iter().flat_map(|it| &it.machine).collect();
        damaged.dedup();
        let (mut again, mut unknown) = (Vec::new(), Vec::new());
        for names in damaged {
            match known.compiled(names) {
                Some(compiled) => again.push(compiled),
                None => unknown.push(names.clone()),
            }
        }
        if !damages.is_empty() {
            let all = Transaction::ensure_vms(again.iter().map(AsRef::as_ref));
            self.commit_now(&all).await?;
            for again in &again {
                known.loaded(again);
            }
        }
        Ok(Repair { damages, unknown })
    }

    /// Nobody looks after the machine's chains any more.
    pub fn abandon_vm(&self, names: &ChainNames) {
        self.journal.known.forget(names);
    }

    /// Whether the kernel holds exactly this.
    pub(super) async fn is_in_force(&self, compiled: &Compiled) -> Result<bool, NftError> {
        let compiled = compiled.clone();
        self.in_turn(move |nft| async move {
            nft.journal.catch_up();
            if nft.journal.trusts(OurTable::Filter) && nft.journal.known.has(&compiled) {
                return Ok(true);
            }
            let mark = nft.journal.mark(OurTable::Filter);
            let reading = nft.transport.read().await?;
            let names = compiled.ruleset.names.clone();
            let damages = nft.conclude(&reading, mark);
            let damaged = damages.iter().any(|damage| damage.concerns(&names));
            Ok(!damaged && holds(&reading.listing.of_vm(&names), &compiled))
        })
        .await
    }

    /// Compares; if nothing is missing, the doubts there were are settled.
    fn conclude(&self, reading: &Reading, mark: Mark) -> Vec<Damage> {
        let damages = self.journal.known.compare(reading);
        if damages.is_empty() {
            self.journal.settle(OurTable::Filter, mark);
        }
        damages
    }
}

impl Damage {
    /// Whether it is the machine's, or everybody's.
    fn concerns(&self, names: &ChainNames) -> bool {
        self.machine.as_ref().is_none_or(|machine| machine == names)
    }
}
