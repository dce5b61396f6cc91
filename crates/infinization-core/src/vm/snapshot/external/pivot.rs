//! QEMU moves from the active layers into what they lie on: the record has to know of every disk where the
//! newest data is, and from no file can it be told.
//!
//! Nothing in two layers says which was written last: times of the files change by the copying too, their
//! contents differ either way, and QEMU may end at any moment. So the order is what decides. That
//! QEMU is about to move is on disk before it is asked to, and until it is on disk how far it came, the
//! guest stands still ([`Guest::Still`]): no disk has data that its upper layer lacks, and whoever comes
//! next may commit the upper one. A guest that could run meanwhile makes it undecidable
//! ([`Guest::MayRun`]). While QEMU lives it is asked; after that, nothing is written and the user is told both files.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::change::{Merge, Method};
use super::layers::Layers;
use super::record::{Pending, Record};
use super::tree::Dependent;
use crate::config::DiskKeys;
use crate::error::{ErrorCode, Failure};
use crate::qmp::QmpError;
use crate::types::HostPath;
use crate::vm::machine::Machine;

/// For a job of ours to end: QEMU may have to drain its disks first.
const END: Duration = Duration::from_secs(60);

/// What the guest does from the first `job-complete` until the record says what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Guest {
    /// It writes nothing.
    Still,
    /// It sleeps and may wake, or was let go on by somebody else.
    MayRun,
}

impl Pending {
    /// The merge, if it is one in which QEMU may move to other files.
    fn moving(&self) -> Option<&Merge> {
        match self {
            Self::Merge { merge, method, .. } => {
                let active = merge.uppers.contains(&Dependent::Active);
                (*method == Method::Commit && active).then_some(merge)
            }
            _ => None,
        }
    }

    /// Whether the newest data of some disk is not, or may not be, in its upper layer.
    fn is_split(&self) -> bool {
        matches!(self, Self::Merge { pivoted, .. } if pivoted.contains(&true))
            || !self.unknown().is_empty()
    }

    /// Of these disks nobody knows which layer has the newest data.
    fn unknown(&self) -> Vec<usize> {
        match self {
            Self::Merge {
                pivoted,
                pivoting: Some(Guest::MayRun),
                ..
            } => {
                let disks = pivoted.iter().enumerate();
                disks
                    .filter(|(_, known)| !**known)
                    .map(|(at, _)| at)
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Machine {
    /// Has the record say where QEMU's disks are, which has to be before the guest goes on.
    pub(in crate::vm) async fn settle_pivots(&self) -> Result<(), Failure> {
        self.catch_up_with(false).await.map_err(|failure| {
            let message = format!(
                "the guest cannot go on yet, as it is not known which files its disks are: {failure}"
            );
            Failure::caused_by(ErrorCode::InvalidState, message, failure).of_vm(&self.context.vm_id)
        })
    }

    /// The same when nobody asked; of a guest that runs it is written down if it fails.
    pub(in crate::vm) async fn try_to_settle_pivots(&self, runs: bool) {
        if let Err(failure) = self.catch_up_with(runs).await {
            let vm = &self.context.vm_id;
            tracing::warn!(%vm, %failure, "it is not known which files the disks are");
        }
    }

    /// Of a VM whose QEMU has ended, before its tree is forgotten: brings together what lies in two layers,
    /// of which nobody would know any more.
    pub(in crate::vm) async fn finish_pivots(&self) -> Result<(), Failure> {
        let pending = Record::read(&self.context).await?;
        let pending = pending.and_then(|record| record.pending);
        if !pending.is_some_and(|pending| pending.is_split()) {
            return Ok(());
        }
        let Some(mut layers) =
            Layers::open_known(&self.context, None, self.keys_at_hand(&DiskKeys::new())).await?
        else {
            return Ok(());
        };
        let closing = &self.context.services.closing;
        layers.settle(true, closing).await
    }

    async fn catch_up_with(&self, runs: bool) -> Result<(), Failure> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let view = Some(Arc::clone(&live.view));
        let Some(mut layers) = Layers::open_known(&self.context, view, DiskKeys::new()).await?
        else {
            return Ok(());
        };
        if !layers.may_have_moved() {
            return Ok(());
        }
        let done = layers.catch_up().await;
        if done.is_err() && runs {
            layers.let_loose().await?;
        }
        done
    }
}

impl Layers<'_> {
    /// Whether QEMU may be on other files than the record says.
    pub(super) fn may_have_moved(&self) -> bool {
        let pending = self.record.pending.as_ref();
        pending.is_some_and(|pending| pending.moving().is_some())
    }

    /// Ends what QEMU still does for a pending merge, writes down where its disks are, and only then lets
    /// a guest go on that waits for it.
    pub(super) async fn catch_up(&mut self) -> Result<(), Failure> {
        let (merge, waits) = match &self.record.pending {
            Some(Pending::Merge { merge, paused, .. }) => (merge.clone(), *paused),
            _ => return Ok(()),
        };
        let qmp = self.qmp()?;
        timeout(END, qmp.cancel_old_jobs())
            .await
            .unwrap_or_else(|_elapsed| {
                let what = "block-job-cancel".to_owned();
                Err(QmpError::Timeout {
                    what,
                    deadline: END,
                })
            })?;
        if !self.may_have_moved() {
            return Ok(());
        }
        let lowers = self.lowers(&merge);
        self.note_pivots(&lowers, waits).await?;
        if waits {
            self.qmp()?.cont().await?;
            self.note_pivots(&lowers, false).await?;
        }
        Ok(())
    }

    /// The guest runs, and it is not known where it writes.
    pub(super) async fn let_loose(&mut self) -> Result<(), Failure> {
        match &mut self.record.pending {
            Some(Pending::Merge { pivoting, .. }) if *pivoting == Some(Guest::Still) => {
                *pivoting = Some(Guest::MayRun);
            }
            _ => return Ok(()),
        }
        self.save().await
    }

    /// A stale layer written over a newer one would be data lost.
    pub(super) fn refuse_unknown(&self) -> Result<(), Failure> {
        let Some(pending @ Pending::Merge { merge, .. }) = &self.record.pending else {
            return Ok(());
        };
        let lowers = self.lowers(merge);
        let Some(disk) = pending.unknown().into_iter().next() else {
            return Ok(());
        };
        let (upper, lower) = (&self.record.tree.active[disk], &lowers[disk]);
        let message = format!(
            "QEMU ended while it moved a disk from {upper} to {lower}, and which of them has the newest \
             data is not known: neither is changed"
        );
        Err(Failure::new(ErrorCode::InvalidState, message)
            .with("files", vec![upper.to_string(), lower.to_string()])
            .of_vm(&self.context.vm_id))
    }

    fn lowers(&self, merge: &Merge) -> Vec<HostPath> {
        let lower = Dependent::Node(merge.lower.clone());
        self.record.tree.layers(&lower).to_vec()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn merging(method: Method, upper: Dependent, pivoting: Option<Guest>) -> Pending {
        Pending::Merge {
            merge: Merge {
                lower: "a".to_owned(),
                uppers: vec![upper],
                keep_name: false,
            },
            method,
            pivoted: vec![true, false],
            paused: false,
            pivoting,
        }
    }

    #[test]
    fn f9_what_cannot_be_known_is_told_from_what_is_whole_above() {
        let active = |pivoting| merging(Method::Commit, Dependent::Active, pivoting);
        assert_eq!(active(None).unknown(), [0_usize; 0]);
        assert_eq!(active(Some(Guest::Still)).unknown(), [0_usize; 0]);
        assert_eq!(active(Some(Guest::MayRun)).unknown(), [1]);
        assert!(active(None).is_split());
    }

    #[test]
    fn a_tree_is_forgotten_only_if_the_upper_layers_have_everything() {
        let split = |first, pivoting| {
            let mut pending = merging(Method::Commit, Dependent::Active, pivoting);
            if let Pending::Merge { pivoted, .. } = &mut pending {
                pivoted[0] = first;
            }
            pending.is_split()
        };
        assert!(!split(false, None));
        assert!(!split(false, Some(Guest::Still)));
        assert!(split(false, Some(Guest::MayRun)));
        assert!(split(true, Some(Guest::Still)));
    }

    #[test]
    fn only_a_commit_of_the_active_layers_moves_qemu() {
        let moves = |method, upper| merging(method, upper, None).moving().is_some();
        assert!(moves(Method::Commit, Dependent::Active));
        assert!(!moves(Method::Pull, Dependent::Active));
        assert!(!moves(Method::Commit, Dependent::Node("b".to_owned())));
    }

    #[test]
    fn a_record_written_before_still_reads() {
        let pending = merging(Method::Commit, Dependent::Active, None);
        let text = serde_json::to_string(&pending).unwrap();
        assert!(!text.contains("pivoting"), "{text}");
        assert_eq!(serde_json::from_str::<Pending>(&text).unwrap(), pending);
        let about_to = merging(Method::Commit, Dependent::Active, Some(Guest::Still));
        let text = serde_json::to_string(&about_to).unwrap();
        assert_eq!(serde_json::from_str::<Pending>(&text).unwrap(), about_to);
    }
}
