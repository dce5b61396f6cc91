//! How far a backup or restore is, by bytes.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::names::BackupId;
use super::service::{Audience, Told};
use crate::types::VmId;

/// The public `BackupProgress`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Which backup.
    pub backup_id: BackupId,
    /// Whose.
    pub vm_id: VmId,
    /// The disk that is being worked on, from 0.
    pub current_disk: usize,
    /// How many there are.
    pub total_disks: usize,
    /// Of that disk, 0 to 100.
    pub disk_progress: f64,
    /// Of all disks by their size, 0 to 100.
    pub overall_progress: f64,
    /// A guess from the time so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_time_remaining_ms: Option<u64>,
}

/// Tells of one operation.
#[derive(Clone)]
pub(super) struct Reporter {
    audience: Audience,
    id: BackupId,
    vm_id: VmId,
    sizes: Vec<u64>,
    began: Instant,
}

impl Reporter {
    /// For disks of these sizes.
    pub(super) fn new(audience: Audience, id: BackupId, vm_id: VmId, sizes: Vec<u64>) -> Self {
        Self {
            audience,
            id,
            vm_id,
            sizes,
            began: Instant::now(),
        }
    }

    /// Says that `fraction` of disk `n` is done, and everything of those before it.
    pub(super) fn tell(&self, n: usize, fraction: f64) {
        let mut parts = vec![1.0; n];
        parts.push(fraction);
        self.tell_parts(&parts);
    }

    /// Says which part of each disk is done; nothing of those that are not named.
    pub(super) fn tell_parts(&self, parts: &[f64]) {
        let current = parts.iter().position(|part| *part < 1.0);
        let current = current.unwrap_or(parts.len().saturating_sub(1));
        let overall = overall(&self.sizes, parts);
        let progress = Progress {
            backup_id: self.id.clone(),
            vm_id: self.vm_id.clone(),
            current_disk: current,
            total_disks: self.sizes.len(),
            disk_progress: percent(parts[current].clamp(0.0, 1.0)),
            overall_progress: percent(overall),
            estimated_time_remaining_ms: remaining(self.began.elapsed(), overall),
        };
        (self.audience)(Told::Progress(progress));
    }

    /// Runs `work` on disk `n`; what it reports is told as the part of the disk up to `most`.
    pub(super) async fn follow<T, F: Future<Output = T>>(
        &self,
        n: usize,
        most: f64,
        work: impl FnOnce(watch::Sender<f64>) -> F + Send,
    ) -> T {
        let (report, mut reported) = watch::channel(0.0);
        self.tell(n, 0.0);
        let work = work(report);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Ok(()) = reported.changed() => {
                    let fraction = *reported.borrow_and_update();
                    self.tell(n, fraction * most);
                }
            }
        }
    }
}

/// The part of all disks that is done, by their sizes.
#[expect(
    clippy::cast_precision_loss,
    reason = "a fraction needs no 53 bits of it"
)]
fn overall(sizes: &[u64], parts: &[f64]) -> f64 {
    let total: u64 = sizes.iter().sum();
    if total == 0 {
        return 1.0;
    }
    let done = sizes
        .iter()
        .zip(parts)
        .map(|(size, part)| *size as f64 * part);
    (done.sum::<f64>() / total as f64).clamp(0.0, 1.0)
}

/// In percent, to two places.
fn percent(fraction: f64) -> f64 {
    (fraction * 10_000.0).round() / 100.0
}

fn remaining(elapsed: Duration, done: f64) -> Option<u64> {
    if done <= 0.01 {
        return None;
    }
    let left = Duration::try_from_secs_f64(elapsed.as_secs_f64() * (1.0 - done) / done).ok()?;
    u64::try_from(left.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are exact")]
    fn large_disks_weigh_more() {
        let sizes = [300, 100];
        assert_eq!(overall(&sizes, &[0.5]), 0.375);
        assert_eq!(overall(&sizes, &[1.0, 0.0]), 0.75);
        assert_eq!(overall(&sizes, &[1.0, 1.0]), 1.0);
        assert_eq!(overall(&sizes, &[0.5, 0.5]), 0.5);
        assert_eq!(overall(&[0], &[0.0]), 1.0);
        assert_eq!(percent(0.123_456), 12.35);
    }

    #[test]
    fn the_rest_is_guessed_once_something_is_known() {
        let minute = Duration::from_secs(60);
        assert_eq!(remaining(minute, 0.0), None);
        assert_eq!(remaining(minute, 0.75), Some(20_000));
        assert_eq!(remaining(minute, 1.0), Some(0));
    }
}
