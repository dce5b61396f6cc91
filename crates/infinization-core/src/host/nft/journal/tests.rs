use nix::errno::Errno;

use super::super::notice::Touched;
use super::super::tests::compiled;
use super::super::wire::{FAMILY_BRIDGE, SUBSYS_NFTABLES, kind, message, text};
use super::*;
use crate::firewall::TABLE;

fn commit(sender: u32, chain: &str) -> Commit {
    let touched = Touched {
        tables: vec![OurTable::Filter],
        chains: [chain.to_owned()].into(),
        gone: None,
    };
    Commit {
        sender,
        generation: None,
        touched,
    }
}

#[test]
fn what_others_did_before_a_commit_of_ours_is_told_from_what_they_did_since() {
    let (own, none) = (Some(1), Vec::<u32>::new());
    let split = |senders: &[u32], own, lost| {
        let of =
            |commits: Vec<Commit>| -> Vec<u32> { commits.iter().map(|it| it.sender).collect() };
        let mut before: Vec<_> = senders.iter().map(|it| commit(*it, "a")).collect();
        let since = since_ours(&mut before, own, lost);
        (of(before), of(since))
    };
    assert_eq!(split(&[2, 1, 3], own, false), (vec![2], vec![3]));
    assert_eq!(split(&[2, 3], None, false), (vec![2, 3], none.clone()));
    assert_eq!(
        split(&[2, 3], own, false),
        (none.clone(), vec![2, 3]),
        "ours is missing"
    );
    assert_eq!(
        split(&[2, 1, 3], own, true),
        (none.clone(), vec![2, 3]),
        "so may others be, but ours is ours"
    );
    assert_eq!(split(&[], own, false), (none.clone(), none));
}

#[test]
fn what_is_heard_while_a_commit_of_ours_is_under_way_is_attributed_when_it_has_ended() {
    let journal = Journal::default();
    let hear = |sender, chain| journal.state().gathered.push(commit(sender, chain));
    let doubts = || journal.state().doubts();
    journal.catch_up();
    let before = doubts();
    let committing = journal.begin_commit(OurTable::Filter);
    hear(7, "ours");
    // Somebody who waits looks before the committer does.
    journal.catch_up();
    committing.ended(Some(7), |_| ());
    assert_eq!(doubts(), before);

    let committing = journal.begin_commit(OurTable::Filter);
    hear(7, "ours");
    hear(8, "theirs");
    journal.catch_up();
    assert_eq!(doubts(), before);
    committing.ended(Some(7), |_| ());
    assert_eq!(doubts(), before + 1);

    let committing = journal.begin_commit(OurTable::Filter);
    hear(7, "whose");
    drop(committing);
    assert_eq!(doubts(), before + 2, "nobody knows how it ended");
}

#[test]
fn what_others_do_to_a_chain_after_we_have_loaded_it_is_not_forgotten_with_the_load() {
    let compiled = Arc::new(compiled());
    let chain = compiled.ruleset.names.vm.clone();
    let journal = Journal::default();
    journal.catch_up();
    for (commits, is_as_loaded) in [([8, 7], true), ([7, 8], false)] {
        let committing = journal.begin_commit(OurTable::Filter);
        for sender in commits {
            journal.state().gathered.push(commit(sender, &chain));
        }
        committing.ended(Some(7), |known| known.loaded(&compiled, false));
        assert_eq!(journal.known.change(&compiled).is_some(), is_as_loaded);
    }
}

#[test]
fn f28_that_the_filter_is_gone_is_forgotten_only_when_a_commit_of_ours_to_it_was_taken() {
    use OurTable::{Filter, Nat};
    for (table, own, is_gone) in [
        (Filter, Some(7), false),
        (Filter, None, true),
        (Nat, Some(7), true),
        (Nat, None, true),
    ] {
        let journal = Journal::default();
        journal.catch_up();
        let gone = Touched {
            gone: Some(true),
            ..Touched::default()
        };
        journal.state().gathered.push(Commit {
            sender: 8,
            generation: Some(4),
            touched: gone,
        });
        journal.catch_up();
        assert_eq!(journal.gone_in(), Some(4));
        let committing = journal.begin_commit(table);
        journal.state().gathered.push(Commit {
            sender: 7,
            generation: Some(5),
            ..Commit::default()
        });
        committing.ended(own, |_| ());
        assert_eq!(journal.gone_in(), is_gone.then_some(5), "{table:?} {own:?}");
    }
}

#[test]
fn f28_whether_there_is_a_filter_is_asked_for_after_a_loss_and_not_after_the_answer() {
    let journal = Journal::default();
    journal.catch_up();
    assert!(
        journal.may_have_missed_table(),
        "nobody has listened before"
    );
    journal.saw_table(journal.mark(OurTable::Filter));
    assert!(!journal.may_have_missed_table());
    let mark = journal.mark(OurTable::Filter);
    journal.state().lost();
    journal.catch_up();
    assert!(journal.may_have_missed_table());
    journal.saw_table(mark);
    assert!(journal.may_have_missed_table(), "what was lost is newer");
    assert_eq!(journal.gone_in(), None);
}

/// What the kernel tells of a rule in this chain, and of the end of a commit.
fn told(chain: &str) -> [Vec<u8>; 2] {
    let rule = [text(1, TABLE), text(2, chain)].concat();
    let nft = |kind| (SUBSYS_NFTABLES << 8) + kind;
    [
        message(nft(kind::NEW_RULE), 0, FAMILY_BRIDGE, 0, &rule),
        message(nft(15), 0, 0, 0, &[]),
    ]
}

#[test]
fn the_beginning_of_a_commit_whose_end_was_lost_is_not_the_next_one_s() {
    let mut state = State::default();
    let [ours, _lost] = told("ours");
    let [theirs, end] = told("theirs");
    // The kernel says that there was no room before it gives what there was room for.
    let mut heard = [
        Err(Errno::ENOBUFS),
        Ok(ours),
        Err(Errno::EAGAIN),
        Ok(theirs),
        Ok(end),
        Err(Errno::EAGAIN),
    ]
    .into_iter();
    for _ in 0..2 {
        let gathered = state.gather_from(|datagram| {
            let bytes = heard.next().unwrap()?;
            datagram[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        });
        gathered.unwrap();
        assert!(state.lost);
    }
    let commits = state.gathered;
    assert_eq!(commits.len(), 1);
    assert_eq!(commits[0].touched.chains, ["theirs".to_owned()].into());
}

#[test]
fn a_doubt_that_comes_while_reading_is_not_settled_by_it() {
    let journal = Journal::default();
    journal.doubt(OurTable::Filter);
    let mark = journal.mark(OurTable::Filter);
    journal.doubt(OurTable::Filter);
    journal.settle(OurTable::Filter, mark);
    assert!(!journal.trusts(OurTable::Filter));
    journal.settle(OurTable::Filter, journal.mark(OurTable::Filter));
    assert!(journal.trusts(OurTable::Filter));
    assert!(
        journal.trusts(OurTable::Nat),
        "another table's doubts are its own"
    );
}

#[test]
fn the_state_s_number_is_learnt_by_reading_unless_a_newer_one_was_told() {
    let journal = Journal::default();
    journal.catch_up();
    assert_eq!(journal.generation(), None, "nobody has listened before");
    journal.saw_generation(Some(4));
    assert_eq!(journal.generation(), None, "what was read is in doubt");
    journal.settle(OurTable::Filter, journal.mark(OurTable::Filter));
    journal.saw_generation(Some(4));
    assert_eq!(journal.generation(), Some(4));
    journal.state().gathered.push(Commit {
        generation: Some(5),
        ..Commit::default()
    });
    journal.catch_up();
    journal.saw_generation(Some(4));
    assert_eq!(journal.generation(), Some(5));
    journal.state().lost();
    journal.catch_up();
    assert_eq!(journal.generation(), None);
}

#[test]
fn what_was_lost_while_nobody_else_has_committed_was_ours() {
    // The state's number before, after, and whether more is lost when it was asked for.
    for (before, after, again, was_ours) in [
        (Some(4), Some(5), false, true),
        (Some(u32::MAX), Some(1), false, true),
        (Some(4), Some(6), false, false),
        (Some(4), None, false, false),
        (None, Some(5), false, false),
        (None, None, false, false),
        (Some(4), Some(5), true, false),
    ] {
        let journal = Journal::default();
        journal.catch_up();
        journal.state().generation = before;
        let doubts = journal.state().doubts();
        let mut committing = journal.begin_commit(OurTable::Filter);
        journal.state().lost();
        // Somebody who waits looks before the committer does.
        journal.catch_up();
        assert!(committing.has_overflowed());
        committing.made(after);
        if again {
            journal.state().lost();
        }
        committing.ended(Some(7), |_| ());
        assert_eq!(journal.state().doubts() == doubts, was_ours);
        assert_eq!(journal.generation(), after.filter(|_| was_ours));
    }
}
