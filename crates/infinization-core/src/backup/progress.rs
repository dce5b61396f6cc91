//! How far a backup or restore is.
//!
//! One [`Reporter`] owns that. What is done to a disk is a [`Course`] of steps, each a part of it by what a byte of it
//! costs; within a step its own bytes count. Whoever does a step says how far it is ([`Step`]), from any thread: what is
//! told never goes back. It is told with every half percent, and every second that brought anything. That all is done
//! is told by [`Reporter::all_done`] alone, so whoever hears 100 finds it on the disk.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::names::BackupId;
use super::service::{Audience, Told};
use crate::host::qemu_img::Teller;
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

/// More than this is told at once.
const NEWS: f64 = 0.005;
/// Less than that is told after so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// The most of it that is told before it is done, whatever it would be rounded to.
const ALMOST: f64 = 0.9999;

/// What is done to a disk, or to its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// It is copied.
    Copy,
    /// It is compared with its parent, and what differs is written.
    Compare,
    /// The copy is packed with gzip.
    Pack,
    /// The copy's checksum is made.
    Sum,
    /// The checksums of all its links are compared.
    Check,
    /// The copy is unpacked.
    Unpack,
    /// The disk is written.
    Write,
    /// What was written is flushed and noted.
    Settle,
}

impl Work {
    /// What a byte of it costs beside others. What it really does depends on the host, and on how much is zeros.
    fn weight(self) -> u32 {
        match self {
            Self::Copy | Self::Unpack | Self::Write => 10,
            Self::Compare | Self::Pack => 20,
            Self::Sum | Self::Check => 3,
            Self::Settle => 1,
        }
    }
}

/// A disk, and what is done to it.
#[derive(Debug, Clone)]
pub(super) struct Course {
    /// How large it is, in bytes.
    pub(super) size: u64,
    /// In this order.
    pub(super) works: Vec<Work>,
}

impl Course {
    /// The part that `work` is of the whole; nothing of it, if it is not done.
    fn part(&self, work: Work) -> Range<f64> {
        let weigh = |works: &[Work]| f64::from(works.iter().map(|one| one.weight()).sum::<u32>());
        let before = self.works.iter().take_while(|one| **one != work).count();
        let through = (before + 1).min(self.works.len());
        let whole = weigh(&self.works);
        weigh(&self.works[..before]) / whole..weigh(&self.works[..through]) / whole
    }
}

/// Tells of one operation.
#[derive(Clone)]
pub(super) struct Reporter(Arc<Operation>);

struct Operation {
    audience: Audience,
    id: BackupId,
    vm_id: VmId,
    courses: Vec<Course>,
    began: Instant,
    far: Mutex<Far>,
}

/// How far it is, and what was told last.
struct Far {
    /// Of each disk.
    parts: Vec<f64>,
    /// Nothing is left to do.
    complete: bool,
    last: Option<Last>,
}

struct Last {
    disk: usize,
    overall: f64,
    at: Instant,
}

impl Reporter {
    /// For these disks.
    pub(super) fn new(audience: Audience, id: BackupId, vm_id: VmId, courses: Vec<Course>) -> Self {
        let far = Far {
            parts: vec![0.0; courses.len()],
            complete: false,
            last: None,
        };
        Self(Arc::new(Operation {
            audience,
            id,
            vm_id,
            courses,
            began: Instant::now(),
            far: Mutex::new(far),
        }))
    }

    /// `work` is done to all disks at once, and begins.
    pub(super) fn begin(&self, work: Work) {
        self.all_at(work, &vec![0.0; self.0.courses.len()]);
    }

    /// What is done to disk `n` next.
    pub(super) fn step(&self, n: usize, work: Work) -> Step {
        Step {
            reporter: self.clone(),
            disk: n,
            part: self.0.courses[n].part(work),
        }
    }

    /// Says which part of `work` is done on each disk, where that is done to all at once.
    pub(super) fn all_at(&self, work: Work, parts: &[f64]) {
        let steps = parts.iter().enumerate();
        let reached = steps.map(|(n, part)| (n, self.step(n, work).reached(*part)));
        self.0.reach(&reached.collect::<Vec<_>>());
    }

    /// Nothing is left to do with disk `n` alone. Not told of the last one: what is done to all is left.
    pub(super) fn done(&self, n: usize) {
        self.0.reach(&[(n, 1.0)]);
    }

    /// Nothing is left to do, and nothing can undo it.
    pub(super) fn all_done(&self) {
        self.0.far().complete = true;
        let all = (0..self.0.courses.len()).map(|n| (n, 1.0));
        self.0.reach(&all.collect::<Vec<_>>());
    }
}

impl Operation {
    fn far(&self) -> MutexGuard<'_, Far> {
        self.far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how far these disks are, of which the first that is not done is the one that is told. It is told before
    /// anybody else can say more, so that the order is right.
    fn reach(&self, reached: &[(usize, f64)]) {
        let mut far = self.far();
        for (n, part) in reached {
            far.parts[*n] = far.parts[*n].max(part.clamp(0.0, 1.0));
        }
        let open = reached.iter().find(|(n, _)| far.parts[*n] < 1.0);
        let Some((disk, _)) = open.or(reached.last()) else {
            return;
        };
        let now = Last {
            disk: *disk,
            overall: self.overall(&far),
            at: Instant::now(),
        };
        let ended = open.is_none();
        let is_news = |last: &Last| now.is_news(last, ended);
        if far.may_be_told() && far.last.as_ref().is_none_or(is_news) {
            (self.audience)(Told::Progress(self.progress(&now, far.parts[*disk])));
            far.last = Some(now);
        }
    }

    fn progress(&self, now: &Last, part: f64) -> Progress {
        Progress {
            backup_id: self.id.clone(),
            vm_id: self.vm_id.clone(),
            current_disk: now.disk,
            total_disks: self.courses.len(),
            disk_progress: percent(part),
            overall_progress: percent(now.overall),
            estimated_time_remaining_ms: remaining(self.began.elapsed(), now.overall),
        }
    }

    /// The part of all disks that is done, by their sizes.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a fraction needs no 53 bits of it"
    )]
    fn overall(&self, far: &Far) -> f64 {
        if far.complete {
            return 1.0;
        }
        let total: u64 = self.courses.iter().map(|course| course.size).sum();
        if total == 0 {
            return 0.0;
        }
        let each = self.courses.iter().zip(&far.parts);
        let done: f64 = each.map(|(course, part)| course.size as f64 * part).sum();
        (done / total as f64).clamp(0.0, ALMOST)
    }
}

impl Far {
    /// That every disk is done is not all.
    fn may_be_told(&self) -> bool {
        self.complete || self.parts.iter().any(|part| *part < 1.0)
    }
}

impl Last {
    fn is_news(&self, last: &Self, ended: bool) -> bool {
        let more = self.overall - last.overall;
        let late = self.at.duration_since(last.at) >= PATIENCE;
        self.disk != last.disk || more >= NEWS || more > 0.0 && (ended || late)
    }
}

/// One step of the work on one disk.
#[derive(Clone)]
pub(super) struct Step {
    reporter: Reporter,
    disk: usize,
    part: Range<f64>,
}

impl Step {
    /// Says that this part of it is done, 0 to 1.
    pub(super) fn is_at(&self, part: f64) {
        let reached = self.reached(part);
        self.reporter.0.reach(&[(self.disk, reached)]);
    }

    /// For a job that does it, and that begins.
    pub(super) fn teller(&self) -> Teller {
        self.is_at(0.0);
        let step = self.clone();
        Teller::new(move |part| step.is_at(part))
    }

    /// The part of the disk's whole work that is done then.
    fn reached(&self, part: f64) -> f64 {
        let Range { start, end } = self.part;
        if part >= 1.0 {
            return end;
        }
        start + part * (end - start)
    }
}

/// In percent, to two places; 100 is all of it.
fn percent(fraction: f64) -> f64 {
    if fraction >= 1.0 {
        return 100.0;
    }
    (fraction.min(ALMOST) * 10_000.0).round() / 100.0
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

    /// The disk, its part and that of all.
    type Heard = Arc<Mutex<Vec<(usize, f64, f64)>>>;

    /// A reporter, and what it tells.
    fn reporter(courses: Vec<Course>) -> (Reporter, Heard) {
        let told = Heard::default();
        let heard = Arc::clone(&told);
        let audience: Audience = Arc::new(move |told| {
            if let Told::Progress(at) = told {
                let at = (at.current_disk, at.disk_progress, at.overall_progress);
                heard.lock().unwrap().push(at);
            }
        });
        let vm_id = VmId::parse("vm-1").unwrap();
        let reporter = Reporter::new(audience, BackupId::random(), vm_id, courses);
        (reporter, told)
    }

    fn course(size: u64, works: &[Work]) -> Course {
        Course {
            size,
            works: works.to_vec(),
        }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are exact")]
    fn the_steps_of_a_disk_follow_each_other_to_its_end() {
        let works = [Work::Copy, Work::Pack, Work::Sum, Work::Settle];
        let course = course(1, &works);
        let parts = works.map(|work| course.part(work));
        assert_eq!((parts[0].start, parts[3].end), (0.0, 1.0));
        for pair in parts.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert!(pair[0].start < pair[0].end, "{pair:?}");
        }
        assert_eq!(course.part(Work::Compare), 1.0..1.0, "it is not done");
    }

    #[test]
    fn large_disks_weigh_more_and_nothing_goes_back() {
        let (reporter, told) = reporter(vec![
            course(300, &[Work::Write]),
            course(100, &[Work::Write]),
        ]);
        let step = reporter.step(0, Work::Write);
        for part in [0.0, 0.5, 0.4, 0.502, 1.0] {
            step.is_at(part);
        }
        reporter.done(0);
        reporter.step(1, Work::Write).is_at(0.5);
        reporter.all_done();
        reporter.all_done();
        let expected = [
            (0, 0.0, 0.0),
            (0, 50.0, 37.5),
            (0, 100.0, 75.0),
            (1, 50.0, 87.5),
            (1, 100.0, 100.0),
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[test]
    fn disks_that_are_copied_at_once_are_told_as_the_first_that_is_not_done() {
        let (reporter, told) = reporter(vec![course(1, &[Work::Copy]), course(1, &[Work::Copy])]);
        for parts in [[0.2, 0.4], [0.1, 0.4], [1.0, 0.8], [1.0, 1.0]] {
            reporter.all_at(Work::Copy, &parts);
        }
        reporter.all_done();
        let expected = [(0, 20.0, 30.0), (1, 80.0, 90.0), (1, 100.0, 100.0)];
        assert_eq!(*told.lock().unwrap(), expected);
    }

    #[test]
    fn nothing_is_whole_before_all_is_done() {
        let (reporter, told) = reporter(vec![
            course(1 << 40, &[Work::Write]),
            course(1, &[Work::Write]),
        ]);
        reporter.step(0, Work::Write).is_at(0.999_999);
        reporter.done(0);
        reporter.step(1, Work::Write).is_at(0.5);
        reporter.done(1);
        let before = [(0, 99.99, 99.99), (1, 50.0, 99.99)];
        assert_eq!(*told.lock().unwrap(), before);
        reporter.all_done();
        assert_eq!(told.lock().unwrap()[2..], [(1, 100.0, 100.0)]);

        let (reporter, told) = self::reporter(vec![course(0, &[Work::Settle])]);
        reporter.step(0, Work::Settle).is_at(0.0);
        reporter.done(0);
        reporter.all_done();
        let expected = [(0, 0.0, 0.0), (0, 100.0, 100.0)];
        assert_eq!(*told.lock().unwrap(), expected, "of no size");
    }

    #[test]
    fn the_rest_is_guessed_once_something_is_known() {
        let minute = Duration::from_secs(60);
        assert_eq!(remaining(minute, 0.0), None);
        assert_eq!(remaining(minute, 0.75), Some(20_000));
        assert_eq!(remaining(minute, 1.0), Some(0));
    }
}
