//! Undoes launches that failed or were interrupted before their guest ran.
//!
//! What appeared before the launch began is another's, and stays. What cannot be given back stays in
//! the ledger, and the launch an operation under way: it is tried again by the next verb, by
//! `retryCleanup`, or when the library starts.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::action::Release;
use super::bench::Bench;
use super::cleanup::Cleanup;
use super::ledger::{Contents, Entry};
use super::machine::Machine;
use super::plan::Operation;
use super::recover::{Found, Recovered};
use super::run::undo_attempt;
use crate::error::Failure;
use crate::host::process::ProcessHandle;

impl Machine {
    /// Whether a launch was interrupted before its guest ran. After a power cut the ledger may be
    /// older than the row, which says `running` only when the guest did; so without the row nothing
    /// is undone.
    pub(super) async fn is_undecided(
        &self,
        contents: &Contents,
        process_is_gone: bool,
    ) -> Result<bool, Failure> {
        let launching = contents.operation.is_some_and(Operation::is_launch);
        if !launching || contents.guest_may_run {
            return Ok(false);
        }
        if !process_is_gone {
            return Ok(true);
        }
        let row = self.context.row_status().await?;
        Ok(!row.is_some_and(|status| status.expects_process()))
    }

    /// Undoes a create or start that was interrupted.
    pub(super) async fn undo(
        &mut self,
        contents: &Contents,
        process: Option<ProcessHandle>,
    ) -> Result<Recovered, Failure> {
        self.undo_once(contents, process).await?;
        if self.context.ledger.contents().lived.is_some() {
            return Ok(Recovered::Skipped("QEMU could not be ended".to_owned()));
        }
        match contents.operation {
            Some(Operation::Create) => Ok(Recovered::Undone),
            _ => Ok(Recovered::Off),
        }
    }

    async fn undo_once(
        &self,
        contents: &Contents,
        process: Option<ProcessHandle>,
    ) -> Result<Cleanup, Failure> {
        self.disown_strangers(contents)?;
        if !self.context.owns_row().await {
            self.disown_row(contents)?;
        }
        let bench = Bench::of_process(process);
        let context = &self.context;
        let cleanup = undo_attempt(context.desk(&bench)).await;
        self.alert(&cleanup);
        context.end_attempt(&cleanup).await?;
        if contents.operation == Some(Operation::Create) {
            self.forget_if_empty().await;
        }
        Ok(cleanup)
    }

    /// What a launch that failed has left, tried again; `None` if there is no such launch.
    pub(super) async fn undo_again(&mut self) -> Result<Option<Cleanup>, Failure> {
        let contents = self.context.ledger.contents();
        if !contents.operation.is_some_and(Operation::is_launch) {
            return Ok(None);
        }
        let gone = matches!(self.find_process(&contents).await?, Found::None);
        if gone && self.is_undecided(&contents, gone).await? {
            return Ok(Some(self.undo_once(&contents, None).await?));
        }
        Ok(None)
    }

    /// Another node's row is not given back.
    fn disown_row(&self, contents: &Contents) -> Result<(), Failure> {
        let of_row = |entry: &&Entry| matches!(entry.undo.release, Release::RestoreStatus { .. });
        let entries = contents.entries.iter().filter(of_row);
        let numbers: Vec<u64> = entries.map(|entry| entry.number).collect();
        Ok(self.context.ledger.forget(&numbers)?)
    }

    /// A file that was about to be made may be another's by now: only one that appeared after the
    /// operation began is ours.
    fn disown_strangers(&self, contents: &Contents) -> Result<(), Failure> {
        let began = UNIX_EPOCH + Duration::from_millis(contents.began_at_ms);
        let mut strangers = Vec::new();
        for entry in contents
            .entries
            .iter()
            .filter(|entry| entry.number >= contents.attempt)
        {
            let Entry {
                held: false,
                number,
                ..
            } = entry
            else {
                continue;
            };
            if let Some(path) = entry.undo.release.file()
                && appeared_before(path.as_path(), began)
            {
                strangers.push(*number);
            }
        }
        Ok(self.context.ledger.forget(&strangers)?)
    }
}

fn appeared_before(path: &Path, moment: std::time::SystemTime) -> bool {
    let Ok(metadata) = path.symlink_metadata() else {
        return false;
    };
    let appeared = metadata
        .created()
        .or_else(|_unsupported| metadata.modified());
    // File times are as coarse as a kernel tick: what appeared in the same one counts as ours.
    appeared.is_ok_and(|appeared| appeared + Duration::from_millis(20) < moment)
}
