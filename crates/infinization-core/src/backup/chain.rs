//! Which backups a backup needs to be read, and which need it.

use std::collections::HashSet;

use super::BackupError;
use super::kinds::{BackupType, Compression};
use super::manifest::Manifest;
use super::names::BackupId;

/// More links than this are refused: restoring opens them all at once.
pub(super) const LONGEST_CHAIN: usize = 256;

/// Follows `tip` to its full backup, nearest first. `find` looks a parent up among the machine's.
pub(super) fn links<F>(tip: Manifest, mut find: F) -> Result<Vec<Manifest>, BackupError>
where
    F: FnMut(&BackupId) -> Option<Manifest>,
{
    let mut seen = HashSet::from([tip.id.clone()]);
    let mut links = vec![tip];
    loop {
        let last = &links[links.len() - 1];
        let Some(parent) = last.parent_backup_id.clone() else {
            return Ok(links);
        };
        if !seen.insert(parent.clone()) || links.len() == LONGEST_CHAIN {
            return Err(BackupError::corrupt(&parent, "its chain has no end"));
        }
        let found = find(&parent).ok_or_else(|| BackupError::Parent {
            id: parent.clone(),
            why: "does not exist",
        })?;
        fits(&found, last)?;
        links.push(found);
    }
}

/// Refuses a link that `child` cannot be read with.
fn fits(parent: &Manifest, child: &Manifest) -> Result<(), BackupError> {
    may_be_parent(parent, &child.vm_id, child.disks.len())
}

/// Refuses what nothing of `disks` disks of this machine can build on.
pub(super) fn may_be_parent(
    parent: &Manifest,
    vm_id: &crate::types::VmId,
    disks: usize,
) -> Result<(), BackupError> {
    let id = &parent.id;
    if parent.vm_id != *vm_id {
        let id = id.clone();
        return Err(BackupError::Parent {
            id,
            why: "is another machine's",
        });
    }
    if !parent.is_complete() {
        let id = id.clone();
        return Err(BackupError::Parent {
            id,
            why: "is not complete",
        });
    }
    if parent.kind == BackupType::Snapshot {
        return Err(BackupError::unfit(
            id,
            "is a SNAPSHOT: nothing can build on it",
        ));
    }
    if parent.compression == Compression::Gzip {
        let why = "is compressed with GZIP: nothing can build on it";
        return Err(BackupError::unfit(id, why));
    }
    if parent.disks.len() != disks {
        let why = format!("has {} disks, not {disks}", parent.disks.len());
        return Err(BackupError::unfit(id, why));
    }
    Ok(())
}

/// The backups that name `id` as their parent and hold something, or are being made.
pub(super) fn children(id: &BackupId, all: &[Manifest]) -> Vec<BackupId> {
    use super::kinds::BackupStatus::{Completed, InProgress};
    all.iter()
        .filter(|other| other.parent_backup_id.as_ref() == Some(id))
        .filter(|other| matches!(other.status, Completed | InProgress))
        .map(|other| other.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::kinds::BackupStatus;
    use super::super::manifest::tests::complete;
    use super::*;
    use crate::error::{Coded, ErrorCode};

    fn chain(length: u32) -> Vec<Manifest> {
        let mut chain = vec![complete(0, None)];
        for minute in 1..length {
            chain.push(complete(minute, chain.last()));
        }
        chain
    }

    fn follow(all: &[Manifest]) -> Result<Vec<Manifest>, BackupError> {
        let tip = all.last().unwrap().clone();
        links(tip, |id| all.iter().find(|one| one.id == *id).cloned())
    }

    #[test]
    fn a_chain_is_followed_to_its_full_backup() {
        let all = chain(10);
        let found = follow(&all).unwrap();
        assert!(found.iter().rev().eq(all.iter()));
        assert_eq!(children(&all[3].id, &all), [all[4].id.clone()]);
        assert!(children(&all[9].id, &all).is_empty());
    }

    #[test]
    fn every_broken_link_is_refused() {
        let spoiled = |spoil: fn(&mut Manifest)| {
            let mut all = chain(4);
            spoil(&mut all[1]);
            follow(&all).unwrap_err().code()
        };
        let not_found = ErrorCode::ParentNotFound;
        assert_eq!(spoiled(|link| link.id = BackupId::random()), not_found);
        assert_eq!(
            spoiled(|link| link.status = BackupStatus::Failed),
            not_found
        );
        let invalid = ErrorCode::BackupInvalidConfig;
        assert_eq!(
            spoiled(|link| link.compression = Compression::Gzip),
            invalid
        );
        assert_eq!(spoiled(|link| link.disks.clear()), invalid);
    }

    #[test]
    fn a_circle_and_an_endless_chain_are_refused() {
        let mut circle = chain(3);
        circle[0].parent_backup_id = Some(circle[2].id.clone());
        assert_eq!(
            follow(&circle).unwrap_err().code(),
            ErrorCode::CorruptBackup
        );
        assert!(follow(&chain(256)).is_ok());
        assert_eq!(
            follow(&chain(257)).unwrap_err().code(),
            ErrorCode::CorruptBackup
        );
    }
}
