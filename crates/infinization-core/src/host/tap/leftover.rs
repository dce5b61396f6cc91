//! TAPs that a user of the library makes and keeps beside the machines' own, and those that nobody
//! will use again.
//!
//! A stopped machine's TAP looks like an orphan: it is persistent and has no carrier. What tells
//! them apart is the firewall: every machine's chain exists from before its TAP until it is
//! destroyed, and both names are cut from one digest.

use rustix::time::{ClockId, clock_gettime};

use super::{Queues, TapError, TapOptions, create, delete};
use crate::host::link::{Link, LinkError, Links};
use crate::host::nft::Nft;
use crate::types::{LinkName, VmId, VmNames};

/// All TAPs of machines are called so.
const PREFIX: &str = "vnet-";
/// A TAP of fewer seconds may still be on its way to its machine.
const YOUNG: i64 = 60;

/// What the alias of such a TAP says before the second of the host's uptime in which it was made: so any
/// process knows its age, and the kernel forgets it with the TAP.
const MADE_AT: &str = "infinization, made at ";

/// What [`remove_orphans`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Orphans found.
    pub total: usize,
    /// Orphans deleted.
    pub cleaned: usize,
    /// Orphans that could not be deleted.
    pub failed: usize,
}

/// Makes the machine's TAP anew: one that was left from earlier goes, one that a process has open
/// is [`TapError::InUse`]. It is down, and a port of no bridge.
pub async fn create_anew(links: &Links, vm_id: &VmId) -> Result<LinkName, TapError> {
    let name = VmNames::of(vm_id).tap;
    match links.find(&name).await? {
        None => {}
        Some(link) if !link.is_tap() || is_idle(&link) => delete(links, &name).await?,
        Some(_) => return Err(TapError::InUse { name }),
    }
    let options = TapOptions {
        queues: Queues::ONE,
        owner: None,
    };
    // It is persistent: nothing is lost with its descriptors.
    drop(create(&name, options).await?);
    let made_at = format!("{MADE_AT}{}", uptime());
    if let Err(error) = links.set_alias(&name, &made_at).await {
        delete(links, &name).await?;
        return Err(error.into());
    }
    Ok(name)
}

/// For how many seconds the host runs, suspended or not.
fn uptime() -> i64 {
    clock_gettime(ClockId::Boottime).tv_sec
}

/// All TAPs with a machine's name, by ascending link index.
pub async fn list(links: &Links) -> Result<Vec<Link>, LinkError> {
    let all = links.list().await?.into_iter();
    let ours = |link: &Link| link.is_tap() && link.name.starts_with(PREFIX);
    Ok(all.filter(ours).collect())
}

/// Whether it is a TAP that stays although no process has it open.
pub fn is_idle(link: &Link) -> bool {
    let Some(tun) = link.tun.as_ref().filter(|tun| tun.tap) else {
        return false;
    };
    // Of multi-queue TAPs the kernel tells the descriptors, of others there is a carrier with one.
    tun.persist && !link.carrier && tun.queues.is_none_or(|attached| attached == 0)
}

/// Deletes the idle TAPs of no machine that were not made in the last minute.
pub async fn remove_orphans(links: &Links, nft: &Nft) -> Result<Removed, crate::Failure> {
    // Chains first: whoever makes a machine now makes its chain before its TAP.
    let found = list(links).await?;
    let chains = nft.list_chains().await?;
    let mut removed = Removed::default();
    for link in found.iter().filter(|link| is_idle(link)) {
        let Ok(name) = LinkName::parse(link.name.as_str()) else {
            continue;
        };
        if is_young(link) || chains.iter().any(|chain| belongs_to(&name, chain)) {
            continue;
        }
        removed.total += 1;
        match links.delete_exactly(&name, link.index).await {
            Ok(()) => removed.cleaned += 1,
            Err(error) => {
                tracing::warn!(tap = %name, %error, "an orphan could not be deleted");
                removed.failed += 1;
            }
        }
    }
    Ok(removed)
}

fn is_young(link: &Link) -> bool {
    let alias = link.alias.as_deref();
    let made_at = alias.and_then(|alias| alias.strip_prefix(MADE_AT)?.parse::<i64>().ok());
    made_at.is_some_and(|at| uptime().saturating_sub(at) < YOUNG)
}

/// Whether the TAP and the chain are of one machine.
fn belongs_to(tap: &LinkName, chain: &str) -> bool {
    let digits = tap.as_str().strip_prefix(PREFIX);
    let digest = chain.strip_prefix("vm_");
    digits
        .zip(digest)
        .is_some_and(|(digits, digest)| !digits.is_empty() && digest.starts_with(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_and_chain_of_one_machine_are_told_by_their_digest() {
        let names = VmNames::of(&VmId::parse("vm-1").unwrap());
        assert!(belongs_to(&names.tap, &names.chain));
        for other in [
            "vm_65b147d4b8bc001d0688e813",
            "prerouting",
            "to_2d62b0035f348790d3b99c33",
        ] {
            assert!(!belongs_to(&names.tap, other), "{other}");
        }
        let bare = LinkName::parse("vnet-").unwrap();
        assert!(!belongs_to(&bare, &names.chain));
    }
}
