//! What a schedule's retention may delete, and what its next backup builds on.

use std::collections::HashSet;

use super::kinds::{BackupStatus, BackupType};
use super::manifest::Manifest;
use super::names::BackupId;

/// How many complete backups stay; 0 keeps all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep(pub u32);

/// Whether this schedule made the backup: its tags are those that a run gives, and no others. What somebody
/// else made stays theirs, whatever they tagged it with.
pub fn made_by(schedule: &str, one: &Manifest) -> bool {
    one.tags == ["scheduled", schedule]
}

/// The backups to delete, in an order in which none is deleted before what builds on it.
///
/// `ours` says which backups the retention is about: a schedule deletes only what it made, but what
/// somebody else built on that stays. Only complete ones count. Of those beyond the number the oldest
/// go, unless one that stays needs them: so a chain is kept or goes as a whole from its end. Failed and
/// cancelled ones go once they are older than everything that stays.
pub fn expired(all: &[Manifest], ours: impl Fn(&Manifest) -> bool, keep: Keep) -> Vec<BackupId> {
    if keep.0 == 0 {
        return Vec::new();
    }
    let mut mine: Vec<&Manifest> = all.iter().filter(|one| ours(one)).collect();
    mine.sort_by(|a, b| b.order().cmp(&a.order()));
    let complete: Vec<&Manifest> = mine
        .iter()
        .copied()
        .filter(|one| one.is_complete())
        .collect();
    let wanted = usize::try_from(keep.0).unwrap_or(usize::MAX);
    let surplus: HashSet<&BackupId> = complete.iter().skip(wanted).map(|one| &one.id).collect();
    let needed = needed(all, &surplus);
    let old = complete
        .iter()
        .take(wanted)
        .next_back()
        .map(|oldest| oldest.order());
    // Newest first: a child is younger than its parent.
    mine.iter()
        .filter(|one| match one.status {
            BackupStatus::Completed => surplus.contains(&one.id) && !needed.contains(&one.id),
            BackupStatus::Failed | BackupStatus::Cancelled => {
                old.is_some_and(|oldest| one.order() < oldest)
            }
            BackupStatus::Pending | BackupStatus::InProgress => false,
        })
        .map(|one| one.id.clone())
        .collect()
}

/// Everything that something which stays builds on.
fn needed<'a>(all: &'a [Manifest], surplus: &HashSet<&BackupId>) -> HashSet<&'a BackupId> {
    let holds = |one: &&Manifest| one.is_complete() || one.status == BackupStatus::InProgress;
    let mut needed = HashSet::new();
    for stays in all
        .iter()
        .filter(holds)
        .filter(|one| !surplus.contains(&one.id))
    {
        let mut parent = stays.parent_backup_id.as_ref();
        while let Some(id) = parent.filter(|id| needed.insert(*id)) {
            let found = all.iter().find(|one| one.id == *id);
            parent = found.and_then(|one| one.parent_backup_id.as_ref());
        }
    }
    needed
}

/// What the next incremental backup of a schedule builds on: its newest complete one, unless that
/// chain has `longest` links already; then, and at first, a full one is due.
pub fn next_parent(
    all: &[Manifest],
    ours: impl Fn(&Manifest) -> bool,
    disks: usize,
    longest: usize,
) -> Option<BackupId> {
    let newest = all
        .iter()
        .filter(|one| ours(one) && one.is_complete() && one.kind != BackupType::Snapshot)
        .max_by(|a, b| a.order().cmp(&b.order()))?;
    super::chain::may_be_parent(newest, &newest.vm_id, disks).ok()?;
    let find = |id: &BackupId| all.iter().find(|one| one.id == *id).cloned();
    let links = super::chain::links(newest.clone(), find).ok()?;
    (links.len() < longest).then(|| newest.id.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::manifest::tests::complete;
    use super::*;

    /// Two chains of three, oldest first.
    fn two_chains() -> Vec<Manifest> {
        let mut all: Vec<Manifest> = Vec::new();
        for minute in 0..6 {
            let parent = (minute % 3 != 0).then(|| all.last().unwrap().clone());
            all.push(complete(minute, parent.as_ref()));
        }
        all
    }

    fn gone(all: &[Manifest], keep: u32) -> Vec<usize> {
        let position = |id: &BackupId| all.iter().position(|one| one.id == *id).unwrap();
        let expired = expired(all, |_| true, Keep(keep));
        expired.iter().map(position).collect()
    }

    #[test]
    fn c1_a_chain_goes_as_a_whole_and_from_its_end() {
        let all = two_chains();
        for (keep, expected) in [
            (0, vec![]),
            (1, vec![2, 1, 0]),
            (3, vec![2, 1, 0]),
            (4, vec![]),
            (6, vec![]),
        ] {
            assert_eq!(gone(&all, keep), expected, "keep {keep}");
        }
    }

    #[test]
    fn c1_failures_push_nothing_out() {
        let mut all = two_chains();
        for minute in 6..20 {
            let mut failed = complete(minute, None);
            failed.status = BackupStatus::Failed;
            all.push(failed);
        }
        assert_eq!(gone(&all, 6), Vec::<usize>::new());
        let mut old = complete(0, None);
        old.status = BackupStatus::Failed;
        old.sequence = 0;
        all.push(old);
        assert_eq!(gone(&all, 6), [20]);
    }

    #[test]
    fn what_others_built_on_stays() {
        let all = two_chains();
        let by_hand = complete(7, Some(&all[1]));
        let mut with = all.clone();
        with.push(by_hand.clone());
        let expired = expired(&with, |one| one.id != by_hand.id, Keep(3));
        assert_eq!(expired, [all[2].id.clone()]);
    }

    #[test]
    fn c1_a_backup_is_of_the_schedule_that_made_it_alone() {
        for (tags, schedule, expected) in [
            (vec!["scheduled", "nightly"], "nightly", true),
            (vec!["scheduled", "scheduled"], "scheduled", true),
            (vec!["scheduled", "nightly"], "scheduled", false),
            (vec!["nightly"], "nightly", false),
            (vec!["nightly", "scheduled"], "nightly", false),
            (vec!["scheduled", "nightly", "keep"], "nightly", false),
            (vec![], "", false),
        ] {
            let mut one = complete(0, None);
            one.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            assert_eq!(made_by(schedule, &one), expected, "{tags:?} of {schedule}");
        }
    }

    #[test]
    fn c2_a_new_full_one_is_due_when_the_chain_is_long() {
        let all = two_chains();
        let next = |longest| next_parent(&all, |_| true, 1, longest);
        assert_eq!(next(4), Some(all[5].id.clone()));
        assert_eq!(next(3), None);
        assert_eq!(next_parent(&all, |_| true, 2, 9), None, "a disk was added");
        assert_eq!(next_parent(&[], |_| true, 1, 9), None);
    }

    /// A dead clock battery: what is newest says it is oldest.
    #[test]
    fn c1_a_clock_that_was_set_back_has_nothing_new_deleted() {
        let mut all: Vec<Manifest> = (0..4).map(|minute| complete(minute, None)).collect();
        all[3].created_at.replace_range(..4, "1970");
        assert_eq!(gone(&all, 2), [1, 0]);
        let next = next_parent(&all, |_| true, 1, 9);
        assert_eq!(next, Some(all[3].id.clone()));
    }

    /// What was made one after the other, at any time, by the schedule or by somebody else.
    #[derive(Debug, Clone)]
    struct Made {
        builds_on: Option<prop::sample::Index>,
        status: BackupStatus,
        ours: bool,
        minute: u32,
    }

    fn made() -> impl Strategy<Value = Made> {
        use BackupStatus::{Cancelled, Completed, Failed, InProgress};
        let status = prop_oneof![
            6 => Just(Completed), 2 => Just(Failed), 1 => Just(Cancelled), 1 => Just(InProgress),
        ];
        let parent = prop::option::weighted(0.7, any::<prop::sample::Index>());
        let all = (parent, status, prop::bool::weighted(0.8), 0..1000_u32);
        all.prop_map(|(builds_on, status, ours, minute)| Made {
            builds_on,
            status,
            ours,
            minute,
        })
    }

    fn history(made: &[Made]) -> Vec<Manifest> {
        let mut all: Vec<Manifest> = Vec::new();
        for (sequence, one) in (1..).zip(made) {
            let parents: Vec<_> = all.iter().filter(|one| one.is_complete()).collect();
            let parent = one.builds_on.filter(|_| !parents.is_empty());
            let parent = parent.map(|index| parents[index.index(parents.len())]);
            let mut manifest = complete(one.minute, parent);
            manifest.sequence = sequence;
            manifest.status = one.status;
            manifest.tags = one.ours.then(|| "ours".to_owned()).into_iter().collect();
            all.push(manifest);
        }
        all
    }

    fn is_ours(one: &Manifest) -> bool {
        one.tags == ["ours"]
    }

    proptest! {
        #[test]
        fn c1_whatever_was_made_no_chain_breaks(
            made in prop::collection::vec(made(), 0..24),
            keep in 0..6_u32,
        ) {
            let mut left = history(&made);
            let before: Vec<BackupId> = counted(&left);
            for id in expired(&left, is_ours, Keep(keep)) {
                let children = crate::backup::chain::children(&id, &left);
                prop_assert!(children.is_empty(), "{children:?} build on {id}");
                let at = left.iter().position(|one| one.id == id).unwrap();
                let gone = left.remove(at);
                prop_assert!(is_ours(&gone) && gone.status != BackupStatus::InProgress);
            }
            for one in left.iter().filter(|one| one.is_complete()) {
                let find = |id: &BackupId| left.iter().find(|one| one.id == *id).cloned();
                prop_assert!(crate::backup::chain::links(one.clone(), find).is_ok());
            }
            let wanted = if keep == 0 { before.len() } else { keep as usize };
            let newest = &before[before.len().saturating_sub(wanted)..];
            prop_assert!(counted(&left).ends_with(newest), "the newest {wanted} stay");
        }
    }

    /// Of the complete ones of ours, in the order they were made.
    fn counted(all: &[Manifest]) -> Vec<BackupId> {
        let ours = all.iter().filter(|one| is_ours(one) && one.is_complete());
        ours.map(|one| one.id.clone()).collect()
    }
}
