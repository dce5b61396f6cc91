//! Two neighbours of the tree become one, disk by disk, by `qemu-img` or by the running QEMU.
//!
//! At every moment each file reads as it did, but for a lower that is being committed to: that is marked
//! as spoiled before its first byte changes. A disk that is done is recognised by its header, so that
//! doing it all again finishes what was cut short.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::change::{Merge, Method, method};
use super::layers::Layers;
use super::record::Pending;
use super::tree::Dependent;
use crate::error::{ErrorCode, Failure};
use crate::host::qemu_img::{
    ImageError, Rebase, Terms, commit_layer, layer, outwait_orphan, rebase, reclaim,
    sweep_partials_of,
};
use crate::types::HostPath;

/// For a program that a killed process has left at work.
const ORPHAN: Duration = Duration::from_secs(60);

impl Layers<'_> {
    /// Merges, or leaves all snapshots but a spoiled one as they were.
    pub(super) async fn merge(
        &mut self,
        merge: Merge,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        if cancel.is_cancelled() {
            return Err(super::aborted());
        }
        let method = self.choose(&merge).await?;
        self.refuse_lost_snapshots(&merge, method).await?;
        self.refuse_used(&merge).await?;
        self.refuse_keyless(&merge).await?;
        self.begin_merge(merge, method).await?;
        let done = self.go_on_merging(cancel).await;
        if let Err(failure) = &done {
            tracing::info!(vm = %self.context.vm_id, %failure, "a merge of snapshots was cut short");
            let _given_up = self.try_to_give_up().await;
        }
        match done {
            Err(failure) if cancel.is_cancelled() => Err(Failure::caused_by(
                ErrorCode::Aborted,
                super::aborted().to_string(),
                failure,
            )),
            done => done,
        }
    }

    async fn begin_merge(&mut self, merge: Merge, method: Method) -> Result<(), Failure> {
        if method == Method::Commit
            && let Some(lower) = self.record.tree.find_mut(&merge.lower)
        {
            lower.spoiled = true;
        }
        self.record.pending = Some(Pending::Merge {
            merge,
            method,
            pivoted: vec![false; self.record.tree.active.len()],
            paused: false,
            pivoting: None,
        });
        self.save().await
    }

    /// Does what is left of the pending merge.
    pub(super) async fn go_on_merging(
        &mut self,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let Some(Pending::Merge { merge, method, .. }) = self.record.pending.clone() else {
            return Ok(());
        };
        if let Some(live) = self.live.clone() {
            live.qmp.cancel_old_jobs().await?;
        }
        let (after, remove) = self.record.tree.merged(&merge, method)?;
        match method {
            Method::Pull => self.pull(&merge, cancel).await?,
            Method::Commit => self.commit(&merge, cancel).await?,
        }
        self.turn(after, remove).await
    }

    /// Whether the merge is given up. If it is not known how far QEMU came, it stays pending.
    pub(super) async fn try_to_give_up(&mut self) -> bool {
        if let Err(failure) = self.give_up_merging().await {
            let vm = &self.context.vm_id;
            tracing::warn!(%vm, %failure, "a merge of snapshots was cut short and stays pending");
            return false;
        }
        self.record.pending.is_none()
    }

    /// Ends a merge that cannot be finished now. What QEMU writes into already cannot be given up.
    async fn give_up_merging(&mut self) -> Result<(), Failure> {
        if self.live.is_some() {
            self.catch_up().await?;
        }
        let Some(Pending::Merge { merge, pivoted, .. }) = self.record.pending.clone() else {
            return Ok(());
        };
        if pivoted.contains(&true) {
            return Ok(());
        }
        match self.live {
            None => self.reclaim(&merge).await,
            Some(_) => self.sweep(&merge).await,
        }
        self.record.pending = None;
        self.save().await
    }

    /// What an interrupted command has left in the files is lost space alone.
    pub(super) async fn reclaim(&self, merge: &Merge) {
        self.sweep(merge).await;
        let tree = &self.record.tree;
        let lower = Dependent::Node(merge.lower.clone());
        let all = merge.uppers.iter().chain([&lower]);
        let files = all.flat_map(|one| tree.layers(one).iter().enumerate());
        for (disk, path) in files {
            outwait_orphan(path, ORPHAN).await;
            if let Err(error) = self.reclaim_one(disk, path).await {
                tracing::warn!(%path, %error, "unused clusters were not freed");
            }
        }
    }

    /// What was to take an upper's place is of no use any more.
    async fn sweep(&self, merge: &Merge) {
        let uppers = merge.uppers.iter().filter(|upper| !self.runs_on(upper));
        for path in uppers.flat_map(|upper| self.record.tree.layers(upper)) {
            if let Err(error) = sweep_partials_of(path).await {
                tracing::warn!(%path, %error, "half-made layers were not removed");
            }
        }
    }

    async fn reclaim_one(&self, disk: usize, path: &HostPath) -> Result<(), Failure> {
        Ok(reclaim(path, self.key(disk).await?.as_ref()).await?)
    }

    /// What QEMU does not do, `qemu-img` does, which needs the keys.
    async fn refuse_keyless(&self, merge: &Merge) -> Result<(), Failure> {
        if merge.uppers.iter().all(|upper| self.runs_on(upper)) {
            return Ok(());
        }
        self.all_keys().await.map(drop)
    }

    /// The cheaper way that leads there.
    async fn choose(&self, merge: &Merge) -> Result<Method, Failure> {
        let tree = &self.record.tree;
        let (mut below, mut above) = (0, vec![0; merge.uppers.len()]);
        let mut may_commit = true;
        for (disk, lower) in tree.find(&merge.lower)?.layers.iter().enumerate() {
            let under = layer(lower).await?;
            below += under.allocated.as_bytes();
            for (upper, sum) in merge.uppers.iter().zip(&mut above) {
                let over = layer(&tree.layers(upper)[disk]).await?;
                *sum += over.allocated.as_bytes();
                // A smaller disk would become as large as the one it is written into.
                may_commit &=
                    over.backing.as_ref() == Some(lower) && over.virtual_size >= under.virtual_size;
            }
        }
        Ok(match method(below, &above) {
            Method::Commit if may_commit => Method::Commit,
            _ => Method::Pull,
        })
    }

    /// An internal snapshot is of its file's own content and of what that lies on.
    async fn refuse_lost_snapshots(&self, merge: &Merge, method: Method) -> Result<(), Failure> {
        let tree = &self.record.tree;
        let lower = Dependent::Node(merge.lower.clone());
        let ending = (method == Method::Pull).then_some(&lower);
        for path in merge
            .uppers
            .iter()
            .chain(ending)
            .flat_map(|one| tree.layers(one))
        {
            if layer(path).await?.snapshots > 0 {
                let message = format!("{path} has internal snapshots, which would be lost");
                return Err(Failure::new(ErrorCode::InvalidState, message)
                    .with("path", path.as_str())
                    .of_vm(&self.context.vm_id));
            }
        }
        Ok(())
    }

    /// Somebody else may have a file of ours, as a backing file say.
    async fn refuse_used(&self, merge: &Merge) -> Result<(), Failure> {
        let lower = self.record.tree.find(&merge.lower)?;
        if self.runs_on(&Dependent::Node(lower.name.clone())) {
            return Ok(());
        }
        self.refuse_busy(&lower.layers).await
    }

    /// Whether the running QEMU has its files.
    pub(super) fn runs_on(&self, one: &Dependent) -> bool {
        let tree = &self.record.tree;
        self.live.is_some()
            && match one {
                Dependent::Active => true,
                Dependent::Node(name) => tree.line().iter().any(|node| node.name == *name),
            }
    }

    /// Takes each upper off the lower.
    async fn pull(&mut self, merge: &Merge, cancel: &CancellationToken) -> Result<(), Failure> {
        let allowed = self.allowed();
        let lowers = self.record.tree.find(&merge.lower)?.layers.clone();
        for upper in &merge.uppers {
            let files = self.record.tree.layers(upper).to_vec();
            for (disk, (lower, file)) in lowers.iter().zip(&files).enumerate() {
                if layer(file).await?.backing.as_ref() != Some(lower) {
                    continue;
                }
                let onto = layer(lower).await?.backing;
                if self.runs_on(upper) {
                    self.stream(file, onto.as_ref(), cancel).await?;
                } else {
                    let (job, key) = (Self::job(cancel), self.key(disk).await?);
                    let terms = Terms {
                        allowed: &allowed,
                        key: key.as_ref(),
                    };
                    rebase(file, onto.as_ref(), Rebase::Safe, &terms, &job).await?;
                }
            }
        }
        Ok(())
    }

    /// Writes the one upper into the lower, and puts what lies on it there.
    async fn commit(&mut self, merge: &Merge, cancel: &CancellationToken) -> Result<(), Failure> {
        let lowers = self.record.tree.find(&merge.lower)?.layers.clone();
        for upper in &merge.uppers {
            let files = self.record.tree.layers(upper).to_vec();
            match upper {
                Dependent::Active if self.live.is_some() => {
                    self.commit_active_live(&lowers, cancel).await?;
                }
                _ => {
                    for (disk, (lower, file)) in lowers.iter().zip(&files).enumerate() {
                        self.commit_one(upper, disk, (file, lower), cancel).await?;
                    }
                }
            }
            if let Dependent::Node(name) = upper {
                self.move_on(&name.clone(), &files, &lowers).await?;
            }
        }
        Ok(())
    }

    async fn commit_one(
        &self,
        upper: &Dependent,
        disk: usize,
        (file, lower): (&HostPath, &HostPath),
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        // QEMU has written into the lower since.
        if *upper == Dependent::Active && self.has_pivoted(disk) {
            return Ok(());
        }
        if self.runs_on(upper) {
            return self.commit_live(file, lower, disk, cancel).await;
        }
        let (job, key, allowed) = (Self::job(cancel), self.key(disk).await?, self.allowed());
        let terms = Terms {
            allowed: &allowed,
            key: key.as_ref(),
        };
        Ok(commit_layer(file, lower, &terms, &job).await?)
    }

    fn has_pivoted(&self, disk: usize) -> bool {
        match &self.record.pending {
            Some(Pending::Merge { pivoted, .. }) => pivoted.get(disk) == Some(&true),
            _ => false,
        }
    }

    /// What lies on `files` is put on `lowers`, which hold the same by now.
    async fn move_on(
        &self,
        name: &str,
        files: &[HostPath],
        lowers: &[HostPath],
    ) -> Result<(), Failure> {
        let allowed = self.allowed();
        let tree = &self.record.tree;
        for above in tree.dependents(name) {
            let moved = files.iter().zip(lowers).zip(tree.layers(&above));
            for (disk, ((file, lower), on)) in moved.enumerate() {
                if layer(on).await?.backing.as_ref() == Some(file) {
                    if self.runs_on(&above) {
                        return Err(not_moved(on));
                    }
                    let key = self.key(disk).await?;
                    let terms = Terms {
                        allowed: &allowed,
                        key: key.as_ref(),
                    };
                    let job = Self::job(&CancellationToken::new());
                    rebase(on, Some(lower), Rebase::NameOnly, &terms, &job).await?;
                }
            }
        }
        Ok(())
    }
}

/// QEMU itself changes the header of what it runs on.
fn not_moved(path: &HostPath) -> Failure {
    let why = "does not lie where QEMU was to put it".to_owned();
    let path = path.clone();
    ImageError::Format { path, why }.into()
}
