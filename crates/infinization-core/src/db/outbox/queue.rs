//! What is kept of one VM, in order. Pure.
//!
//! Equal neighbours are one write. A queue that is full loses no truth: writes that a later one
//! makes invisible go first ([`Queue::compact`]), and only if there are none, the oldest.

use std::collections::VecDeque;

use crate::db::ConfigurationUpdate;

/// How many writes of one VM are kept. A machine writes about four of them in a life of one start and
/// one stop.
pub(super) const MOST_KEPT: usize = 64;

/// Which words of the column a status is written over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Guard {
    /// All but these.
    NotIn(Vec<String>),
    /// These alone.
    Over(Vec<String>),
}

impl Guard {
    fn stops(&self, word: &String) -> bool {
        match self {
            Self::NotIn(words) => words.contains(word),
            Self::Over(words) => !words.contains(word),
        }
    }

    /// Whether it stops every word that `other` stops.
    fn stops_all_of(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::NotIn(stopped)) => stopped.iter().all(|word| self.stops(word)),
            // All words there are, but so many.
            (Self::NotIn(_), Self::Over(_)) => false,
            (Self::Over(let_by), Self::Over(_)) => let_by.iter().all(|word| !other.stops(word)),
        }
    }
}

/// A write that records what already happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    /// `update_machine_status`, `write_status_over`.
    Status { status: String, guard: Guard },
    /// `update_machine_configuration`.
    Configuration(Box<ConfigurationUpdate>),
    /// `clear_machine_configuration`.
    Clear,
    /// `clear_volatile_machine_configuration`.
    ClearVolatile,
}

impl Write {
    pub(super) fn status(status: &str, only_if_not_in: &[&str]) -> Self {
        Self::Status {
            status: status.to_owned(),
            guard: Guard::NotIn(owned(only_if_not_in)),
        }
    }

    pub(super) fn status_over(status: &str, over: &[&str]) -> Self {
        Self::Status {
            status: status.to_owned(),
            guard: Guard::Over(owned(over)),
        }
    }

    /// What it is called when it is told: the status, or the operation.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Status { status, .. } => status,
            Self::Configuration(_) => "updateMachineConfiguration",
            Self::Clear => "clearMachineConfiguration",
            Self::ClearVolatile => "clearVolatileMachineConfiguration",
        }
    }

    /// Whether the row is the same after `self` and `later` as after `later` alone, whatever it was.
    fn is_covered_by(&self, later: &Self) -> bool {
        match (self, later) {
            (Self::Status { status, guard }, Self::Status { guard: later, .. }) => {
                !later.stops(status) && guard.stops_all_of(later)
            }
            (Self::ClearVolatile, Self::Clear) => true,
            (one, other) => one == other && !matches!(one, Self::Status { .. }),
        }
    }

    /// The two as one write of the configuration, if both are of it.
    fn merged_with(&self, later: &Self) -> Option<Self> {
        if self.is_covered_by(later) {
            return Some(later.clone());
        }
        let merged = merge(self.columns()?, later.columns()?);
        Some(Self::Configuration(Box::new(merged)))
    }

    /// The columns it writes; `None` if it writes the status.
    fn columns(&self) -> Option<ConfigurationUpdate> {
        let volatile = ConfigurationUpdate {
            qemu_pid: Some(None),
            qmp_socket_path: Some(None),
            ..ConfigurationUpdate::default()
        };
        match self {
            Self::Status { .. } => None,
            Self::Configuration(update) => Some((**update).clone()),
            Self::Clear => Some(ConfigurationUpdate {
                tap_device_name: Some(None),
                ..volatile
            }),
            Self::ClearVolatile => Some(volatile),
        }
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

macro_rules! merge {
    ($($column:ident)*) => {
        /// Column by column, what the later one says, else what the earlier one did.
        fn merge(earlier: ConfigurationUpdate, later: ConfigurationUpdate) -> ConfigurationUpdate {
            let ConfigurationUpdate { $($column,)* } = later;
            ConfigurationUpdate { $($column: $column.or(earlier.$column),)* }
        }
    };
}

merge! {
    qemu_pid tap_device_name qmp_socket_path guest_agent_socket_path infini_service_socket_path
    graphic_protocol graphic_port graphic_password graphic_host assigned_gpu_bus bridge
    machine_type cpu_model disk_bus disk_cache_mode network_model network_queues memory_balloon
    disk_paths uefi_firmware hugepages cpu_pinning enable_numa_ctl_pinning cpu_pinning_strategy
    tpm_socket_path virtio_drivers_iso enable_audio enable_usb_tablet
}

/// What became of a write that was put in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is the last one now.
    Last,
    /// The last one says the same.
    Same,
}

/// Writes of one VM, oldest first, each with what its owner wants kept beside it.
#[derive(Debug)]
pub(super) struct Queue<T> {
    writes: VecDeque<(Write, T)>,
    /// The first one is under way: it is neither changed nor taken out.
    under_way: bool,
}

impl<T: Default> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            writes: VecDeque::new(),
            under_way: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    /// Puts a write behind all others.
    pub(super) fn put(&mut self, write: Write) -> Put {
        let first_free = usize::from(self.under_way);
        if self.writes.len() > first_free
            && self.writes.back().is_some_and(|(last, _)| *last == write)
        {
            return Put::Same;
        }
        self.writes.push_back((write, T::default()));
        Put::Last
    }

    /// Makes room when the queue is full. Answers the writes that no row will ever show, and whether
    /// their loss changes what the rows come to.
    pub(super) fn make_room(&mut self) -> Option<Dropped> {
        if self.writes.len() <= MOST_KEPT {
            return None;
        }
        let before = self.writes.len();
        self.compact();
        if self.writes.len() < before {
            return Some(Dropped::Covered(before - self.writes.len()));
        }
        let oldest = self.writes.remove(usize::from(self.under_way))?;
        Some(Dropped::Truth(oldest.0))
    }

    /// Drops what later writes make invisible: the rows come to the same.
    fn compact(&mut self) {
        let first_free = usize::from(self.under_way).min(self.writes.len());
        let mut rest: Vec<(Write, T)> = self.writes.drain(first_free..).collect();
        let mut kept: VecDeque<(Write, T)> = VecDeque::new();
        // From the newest on: what is kept is all that comes later.
        while let Some((write, beside)) = rest.pop() {
            let is_status = |it: &Write| matches!(it, Write::Status { .. });
            let same_row = |it: &&mut (Write, T)| is_status(&it.0) == is_status(&write);
            match kept.iter_mut().find(same_row) {
                Some((next, _)) if is_status(&write) && write.is_covered_by(next) => {}
                Some((next, _)) if !is_status(&write) => {
                    if let Some(merged) = write.merged_with(next) {
                        *next = merged;
                    }
                }
                _ => kept.push_front((write, beside)),
            }
        }
        self.writes.extend(kept);
    }

    /// The first write, which is under way from here on until [`Queue::done`] or [`Queue::back`].
    pub(super) fn begin(&mut self) -> Option<Write> {
        let first = self.writes.front()?.0.clone();
        self.under_way = true;
        Some(first)
    }

    /// The write that was under way is done with.
    pub(super) fn done(&mut self) -> Option<T> {
        self.under_way = false;
        self.writes.pop_front().map(|(_, beside)| beside)
    }

    /// The write that was under way stays the first.
    pub(super) fn back(&mut self) {
        self.under_way = false;
    }

    /// What is kept beside each write.
    pub(super) fn beside(&mut self) -> impl DoubleEndedIterator<Item = &mut T> {
        self.writes.iter_mut().map(|(_, beside)| beside)
    }

    /// Their names, oldest first.
    pub(super) fn names(&self) -> Vec<&str> {
        self.writes.iter().map(|(write, _)| write.name()).collect()
    }

    /// Drops all that is not under way.
    pub(super) fn clear(&mut self) {
        self.writes.truncate(usize::from(self.under_way));
    }
}

/// What a full queue let go of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// So many writes that later ones make invisible.
    Covered(usize),
    /// A write that nothing covers.
    Truth(Write),
}

#[cfg(test)]
mod tests;
