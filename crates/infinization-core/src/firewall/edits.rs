//! The shortest way from one list of rules to another: Myers' greedy search, bounded.
//!
//! Invariant: whoever takes the edits in order has the new list. What is inserted is placed by what stays, so
//! edits of one list do not depend on each other but for those that are inserted at the same place.
//! Neighbour: [`super::Transaction::change_chain`] makes commands of them.

/// One change of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// The old list's item at this index goes.
    Delete(usize),
    /// The new list's `item` comes before the old list's item that is named, which stays, or at the end.
    Insert {
        /// Its index in the new list.
        item: usize,
        /// What it comes before: an index in the old list.
        before: Option<usize>,
    },
}

/// As few edits as make `new` of `old`; none if that takes more than `most`.
pub fn edits<T: PartialEq>(old: &[T], new: &[T], most: usize) -> Option<Vec<Edit>> {
    if old.len().abs_diff(new.len()) > most {
        return None;
    }
    let search = Search { old, new };
    let mut rows = vec![vec![Some(search.slide(0, 0))]];
    for count in 0..=most {
        if let Some(deleted) = search.arrived(&rows[count]) {
            return Some(search.way_back(&rows, deleted));
        }
        if count < most {
            rows.push(search.next_row(&rows[count]));
        }
    }
    None
}

/// How much of the old list is behind us, for each number of deletions among a number of edits; none where
/// so many cannot be.
type Row = Vec<Option<usize>>;

struct Search<'a, T> {
    old: &'a [T],
    new: &'a [T],
}

/// The last edit of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    deletes: bool,
    /// How much of the old list is behind us after it, before what the lists have in common there.
    old: usize,
}

impl<T: PartialEq> Search<'_, T> {
    /// Past what both lists have in common from here.
    fn slide(&self, old: usize, new: usize) -> usize {
        let (ours, theirs) = (&self.old[old..], &self.new[new..]);
        let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b);
        old + common.count()
    }

    fn next_row(&self, row: &Row) -> Row {
        let count = row.len();
        let reached = |deleted| {
            let step = self.step(row, count, deleted)?;
            Some(self.slide(step.old, in_new(step.old, count, deleted)))
        };
        (0..=count).map(reached).collect()
    }

    /// The better of the two ways to have made `count` edits with this many deletions.
    fn step(&self, row: &Row, count: usize, deleted: usize) -> Option<Step> {
        let deleting = deleted.checked_sub(1).and_then(|before| row[before]);
        let deleting = deleting.filter(|old| *old < self.old.len());
        let inserting = row.get(deleted).copied().flatten();
        let inserting = inserting.filter(|old| in_new(*old, count, deleted) <= self.new.len());
        let deleting = deleting.map(|old| Step {
            deletes: true,
            old: old + 1,
        });
        let inserting = inserting.map(|old| Step {
            deletes: false,
            old,
        });
        match (deleting, inserting) {
            (Some(deleting), Some(inserting)) if deleting.old < inserting.old => Some(inserting),
            (deleting, inserting) => deleting.or(inserting),
        }
    }

    /// With how many deletions the end of both lists was reached, if it was.
    fn arrived(&self, row: &Row) -> Option<usize> {
        let count = row.len() - 1;
        let (old, new) = (self.old.len(), self.new.len());
        let is_end = |(deleted, reached): (usize, &Option<usize>)| {
            *reached == Some(old) && in_new(old, count, deleted) == new
        };
        row.iter().enumerate().position(is_end)
    }

    fn way_back(&self, rows: &[Row], mut deleted: usize) -> Vec<Edit> {
        let (mut edits, mut stays) = (Vec::new(), None);
        let mut reached = self.old.len();
        for (count, row) in (1..rows.len()).zip(rows).rev() {
            let Some(step) = self.step(row, count, deleted) else {
                break;
            };
            if step.old < reached {
                stays = Some(step.old);
            }
            if step.deletes {
                edits.push(Edit::Delete(step.old - 1));
                deleted -= 1;
            } else {
                let item = in_new(step.old, count, deleted) - 1;
                edits.push(Edit::Insert {
                    item,
                    before: stays,
                });
            }
            reached = row[deleted].unwrap_or_default();
        }
        edits.reverse();
        edits
    }
}

/// How much of the new list is behind us: all that stays, and what was inserted.
fn in_new(old: usize, count: usize, deleted: usize) -> usize {
    old + count - 2 * deleted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Does as the kernel does: an item is found by its number.
    fn applied(old: &[u8], new: &[u8], edits: &[Edit]) -> Vec<u8> {
        let mut list: Vec<(Option<usize>, u8)> = old
            .iter()
            .enumerate()
            .map(|(n, it)| (Some(n), *it))
            .collect();
        let place = |list: &[(Option<usize>, u8)], number: usize| {
            list.iter().position(|it| it.0 == Some(number)).unwrap()
        };
        for edit in edits {
            match *edit {
                Edit::Delete(number) => drop(list.remove(place(&list, number))),
                Edit::Insert { item, before } => {
                    let at = before.map_or(list.len(), |number| place(&list, number));
                    list.insert(at, (None, new[item]));
                }
            }
        }
        list.into_iter().map(|it| it.1).collect()
    }

    /// The length of the longest common subsequence, the slow and certain way.
    fn in_common(old: &[u8], new: &[u8]) -> usize {
        let mut best = vec![vec![0; new.len() + 1]; old.len() + 1];
        for (i, a) in old.iter().enumerate() {
            for (j, b) in new.iter().enumerate() {
                best[i + 1][j + 1] = if a == b {
                    best[i][j] + 1
                } else {
                    best[i][j + 1].max(best[i + 1][j])
                };
            }
        }
        best[old.len()][new.len()]
    }

    #[test]
    fn lists_are_edited_where_they_differ() {
        let insert = |item, before| Edit::Insert { item, before };
        let table: [(&str, &str, &[Edit]); 8] = [
            ("", "", &[]),
            ("abc", "abc", &[]),
            ("", "ab", &[insert(0, None), insert(1, None)]),
            ("ab", "", &[Edit::Delete(0), Edit::Delete(1)]),
            ("abc", "axc", &[insert(1, Some(2)), Edit::Delete(1)]),
            ("abc", "abcd", &[insert(3, None)]),
            ("abc", "xabc", &[insert(0, Some(0))]),
            ("abcd", "bcda", &[Edit::Delete(0), insert(3, None)]),
        ];
        for (old, new, wanted) in table {
            let found = edits(old.as_bytes(), new.as_bytes(), 10).unwrap();
            assert_eq!(found, wanted, "{old} {new}");
        }
    }

    #[test]
    fn one_of_a_thousand_is_two_edits_and_all_of_them_are_too_many() {
        let old: Vec<u32> = (0..1000).collect();
        let mut new = old.clone();
        new[500] = 5000;
        assert_eq!(edits(&old, &new, 2).unwrap().len(), 2);
        assert_eq!(edits(&old, &new, 1), None);
        let other: Vec<u32> = (5000..6000).collect();
        assert_eq!(edits(&old, &other, 256), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_edits_make_the_new_list_are_as_few_as_can_be_and_stay_within_the_bound(
            old in prop::collection::vec(0_u8..5, 0..24),
            new in prop::collection::vec(0_u8..5, 0..24),
            most in 0_usize..50,
        ) {
            let fewest = old.len() + new.len() - 2 * in_common(&old, &new);
            match edits(&old, &new, most) {
                Some(found) => {
                    prop_assert_eq!(found.len(), fewest);
                    prop_assert_eq!(applied(&old, &new, &found), new);
                }
                None => prop_assert!(fewest > most),
            }
        }
    }
}
