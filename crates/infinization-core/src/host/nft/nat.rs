//! Masquerading for bridges: the kernel's NAT table, and forwarding, without which nothing would
//! reach it.
//!
//! Invariant: a change is one transaction, decided on what the kernel holds and confirmed by it; what
//! is in force already costs nothing. Rules of others in the table are left alone.

use std::io;

use super::notice::OurTable;
use super::{Nft, NftError, sender_of};
use crate::firewall::{Masquerade, NAT_CHAIN, NatListing, NatTransaction};
use crate::host::blocking::file_call;
use crate::types::LinkName;

/// The kernel's switch for routing IPv4, of the network namespace that asks.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// How often a change is decided anew because somebody else changed the same rules meanwhile.
const TRIES: usize = 3;

impl Nft {
    /// Switches IPv4 forwarding on, and sets the NAT table up. Idempotent.
    pub async fn prepare_nat(&self) -> Result<(), NftError> {
        switch_forwarding_on().await?;
        let hook = |loaded: &NatListing| (!loaded.hooked).then(NatTransaction::table);
        self.in_turn(move |nft| async move { nft.change_nat(hook).await })
            .await
    }

    /// Switches IPv4 forwarding on.
    pub async fn forward(&self) -> Result<(), NftError> {
        switch_forwarding_on().await
    }

    /// Makes this the bridge's masquerading, in place of any other it had.
    pub async fn masquerade(&self, wanted: Masquerade) -> Result<(), NftError> {
        switch_forwarding_on().await?;
        self.in_turn(move |nft| async move {
            let known = &nft.journal.known;
            nft.journal.catch_up();
            if nft.journal.trusts(OurTable::Nat) && known.all_masquerades().contains(&wanted) {
                return Ok(());
            }
            let ensure = |loaded: &NatListing| NatTransaction::ensure([&wanted], loaded);
            nft.change_nat(ensure).await?;
            known.masquerades(wanted);
            Ok(())
        })
        .await
    }

    /// Takes the bridge's masquerading away; fine if it has none.
    pub async fn stop_masquerading(&self, bridge: &LinkName) -> Result<(), NftError> {
        let bridge = bridge.clone();
        self.in_turn(move |nft| async move {
            nft.journal.known.forget_masquerade(&bridge);
            nft.change_nat(|loaded| NatTransaction::remove(&bridge, loaded))
                .await
        })
        .await
    }

    /// What the NAT table holds.
    pub async fn read_nat(&self) -> Result<NatListing, NftError> {
        self.transport.read_nat().await
    }

    /// Puts back what somebody took of the masquerading this process has set up. Answers the bridges.
    pub async fn repair_nat(&self) -> Result<Vec<LinkName>, NftError> {
        self.in_turn(|nft| async move {
            nft.journal.catch_up();
            let wanted = nft.journal.known.all_masquerades();
            if wanted.is_empty() || nft.journal.trusts(OurTable::Nat) {
                return Ok(Vec::new());
            }
            let mut gone = Vec::new();
            nft.change_nat(|loaded| {
                let missing = wanted.iter().filter(|wanted| !loaded.holds(wanted));
                gone = missing.map(|missing| missing.bridge.clone()).collect();
                NatTransaction::ensure(&wanted, loaded)
            })
            .await?;
            Ok(gone)
        })
        .await
    }

    /// Commits what `decide` makes of what there is. Afterwards all that is known is in force, or
    /// the table stays in doubt.
    async fn change_nat(
        &self,
        mut decide: impl FnMut(&NatListing) -> Option<NatTransaction>,
    ) -> Result<(), NftError> {
        let mut tries = 1..TRIES;
        loop {
            self.journal.catch_up();
            // A flush takes both tables, and without the filter's every port is open.
            self.close_now().await?;
            let mark = self.journal.mark(OurTable::Nat);
            let loaded = self.transport.read_nat().await?;
            let change = decide(&loaded);
            let added: Vec<String> = change.iter().flat_map(NatTransaction::added).collect();
            match self.commit_nat(change).await {
                // Between reading and writing somebody else took a rule out.
                Err(error) if error.is_absent() && tries.next().is_some() => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.journal.catch_up();
                    let all = self.journal.known.all_masquerades();
                    let sound = |it: &Masquerade| {
                        loaded.holds(it) || added.contains(&Masquerade::comment(&it.bridge))
                    };
                    if all.iter().all(sound) {
                        self.journal.settle(OurTable::Nat, mark);
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn commit_nat(&self, change: Option<NatTransaction>) -> Result<(), NftError> {
        let Some(change) = change else { return Ok(()) };
        let committing = self.journal.begin_commit(OurTable::Nat);
        let committed = self.transport.commit_nat(&change).await;
        committing.ended(sender_of(&committed), |_| ());
        let committed = committed?;
        let found = committed.rules.iter().map(|rule| rule.comment.as_str());
        let asked: Vec<String> = change.added().collect();
        if asked.iter().map(String::as_str).eq(found) {
            return Ok(());
        }
        self.journal.doubt(OurTable::Nat);
        Err(NftError::Mismatch {
            chain: NAT_CHAIN.to_owned(),
            asked: format!("{asked:?}"),
            found: format!("{} rules", committed.rules.len()),
        })
    }
}

/// Leaves the file alone where forwarding is on, as that may be all a container may do.
async fn switch_forwarding_on() -> Result<(), NftError> {
    let switched = file_call(|| -> io::Result<()> {
        if std::fs::read_to_string(FORWARDING)?.trim() == "1" {
            return Ok(());
        }
        std::fs::write(FORWARDING, "1")?;
        tracing::info!("switched IPv4 forwarding on: this host now routes between its networks");
        Ok(())
    });
    switched.await.map_err(NftError::Forwarding)
}
