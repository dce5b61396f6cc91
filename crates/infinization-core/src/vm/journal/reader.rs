//! Entries in order: one machine's by their numbers, all machines' by time. It reads the files, so
//! it holds little whatever their size and their number, and goes on where it was when there is more.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use super::entry::{JournalEntry, number_of};
use super::writer::machines_of;
use crate::config::{JournalBound, JournalOptions};
use crate::host::line_log::{LineLog, LineReader};
use crate::types::VmId;

/// How much of all journals is read ahead, and of each at least.
const AHEAD: usize = 4 * 1024 * 1024;
const LEAST_AHEAD: usize = 4 * 1024;
/// How many journals are kept open between two reads.
const MOST_OPEN: usize = 64;

/// Reads what is asked for, page by page. Blocks.
#[derive(Debug)]
pub struct JournalReader {
    directory: PathBuf,
    options: JournalOptions,
    left: usize,
    machines: HashMap<VmId, Cursor>,
    /// The entry that comes next of each machine that has one.
    heads: BinaryHeap<Reverse<Head>>,
}

/// What entries of several machines are ordered by.
type Head = (u64, VmId, u64);

#[derive(Debug)]
struct Cursor {
    lines: LineReader,
    ahead: VecDeque<JournalEntry>,
    over: bool,
    /// There are too many to keep this one's file open.
    frugal: bool,
}

impl JournalReader {
    /// A reader from the beginning of what is asked for.
    pub fn new(directory: PathBuf, options: JournalOptions) -> Self {
        Self {
            directory,
            left: options.limit.unwrap_or(usize::MAX),
            options,
            machines: HashMap::new(),
            heads: BinaryHeap::new(),
        }
    }

    /// The numbers of a machine's oldest and newest entry. Blocks.
    pub fn range(directory: &Path, vm_id: &VmId) -> std::io::Result<Option<(u64, u64)>> {
        let mut lines = LineLog::of(directory, vm_id.as_str()).read();
        let mut range = None;
        loop {
            let next = lines.next_lines()?;
            if next.is_empty() {
                return Ok(range);
            }
            for seq in next.iter().filter_map(|line| number_of(line)) {
                let (first, last) = range.unwrap_or((seq, seq));
                range = Some((first, last.max(seq)));
            }
        }
    }

    /// Whether nothing more will ever come: the limit, or the end of what was asked for, is reached.
    pub fn is_over(&self) -> bool {
        let one = self.options.vm_id.as_ref();
        let past = one.and_then(|vm_id| self.machines.get(vm_id));
        self.left == 0 || past.is_some_and(|cursor| cursor.over && cursor.ahead.is_empty())
    }

    /// The next entries, at most so many; none when all there is now has been read.
    pub fn page(&mut self, most: usize) -> std::io::Result<Vec<JournalEntry>> {
        self.find_machines();
        self.look_for_more()?;
        let mut page = Vec::new();
        while page.len() < most.min(self.left) {
            match self.next() {
                Some(entry) => page.push(entry),
                None => break,
            }
        }
        self.left -= page.len();
        Ok(page)
    }

    /// Looks whether the machines that had no next entry have one now.
    fn look_for_more(&mut self) -> std::io::Result<()> {
        let frugal = self.machines.len() > MOST_OPEN;
        let at_once = (AHEAD / self.machines.len().max(1)).max(LEAST_AHEAD);
        for (vm_id, cursor) in &mut self.machines {
            cursor.frugal = frugal;
            cursor.lines.read_at_once(at_once);
            if cursor.ahead.is_empty() {
                cursor.look_ahead(&self.options)?;
                self.heads.extend(cursor.head(vm_id));
            }
        }
        Ok(())
    }

    fn find_machines(&mut self) {
        let known = match &self.options.vm_id {
            Some(vm_id) => vec![vm_id.clone()],
            None => machines_of(&self.directory),
        };
        for vm_id in known {
            let log = LineLog::of(&self.directory, vm_id.as_str());
            let cursor = self.machines.entry(vm_id);
            cursor.or_insert_with(|| Cursor {
                lines: log.read(),
                ahead: VecDeque::new(),
                over: false,
                frugal: false,
            });
        }
    }

    /// The oldest entry of those that come next in each machine's journal.
    fn next(&mut self) -> Option<JournalEntry> {
        let Reverse((_, vm_id, _)) = self.heads.pop()?;
        let cursor = self.machines.get_mut(&vm_id)?;
        let entry = cursor.ahead.pop_front();
        // One that cannot be read now is looked at again for the next page, which tells.
        if cursor.look_ahead(&self.options).is_ok() {
            self.heads.extend(cursor.head(&vm_id));
        }
        entry
    }
}

impl Cursor {
    fn head(&self, vm_id: &VmId) -> Option<Reverse<Head>> {
        let entry = self.ahead.front()?;
        Some(Reverse((entry.timestamp, vm_id.clone(), entry.seq)))
    }

    /// Reads until there is a next entry, or nothing more.
    fn look_ahead(&mut self, options: &JournalOptions) -> std::io::Result<()> {
        let read = self.read_ahead(options);
        if self.frugal {
            self.lines.close();
        }
        read
    }

    fn read_ahead(&mut self, options: &JournalOptions) -> std::io::Result<()> {
        while self.ahead.is_empty() && !self.over {
            let lines = self.lines.next_lines()?;
            if lines.is_empty() {
                return Ok(());
            }
            // A line that a host crash has damaged, or with words of a newer version, is passed over.
            let entries = lines
                .iter()
                .filter_map(|line| serde_json::from_slice(line).ok());
            for entry in entries {
                self.take(entry, options);
            }
        }
        Ok(())
    }

    fn take(&mut self, entry: JournalEntry, options: &JournalOptions) {
        let (seq, time) = (entry.seq, entry.timestamp);
        let early = match options.since {
            Some(JournalBound::Seq(since)) => seq < since,
            Some(JournalBound::Time(since)) => time < since,
            None => false,
        };
        let late = match options.until {
            Some(JournalBound::Seq(until)) => seq > until,
            Some(JournalBound::Time(until)) => time > until,
            None => false,
        };
        self.over |= late || options.until == Some(JournalBound::Seq(seq));
        if !early && !late && is_wanted(&entry, options) {
            self.ahead.push_back(entry);
        }
    }
}

fn is_wanted(entry: &JournalEntry, options: &JournalOptions) -> bool {
    let kind = options.kinds.is_empty() || options.kinds.contains(&entry.kind);
    let named = |step: &str| options.steps.iter().any(|wanted| wanted == step);
    kind && (options.steps.is_empty() || entry.step.as_deref().is_some_and(named))
}
