//! The pages of this library's file that are in memory.
#![expect(
    unsafe_code,
    reason = "which bytes of a mapping may be let go is for us to know"
)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::ptr;

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// Of an entry of `/proc/[pid]/pagemap` (proc(5)): the page is in memory, is swapped out, is of a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// Lets go of the code and constants that are in memory. What runs next comes back from the page cache, 16 pages
/// at a time (the kernel's fault-around); what ran once, to start, does not.
pub(super) fn let_go() -> io::Result<()> {
    let page_map = File::open("/proc/self/pagemap")?;
    for mapping in mappings(&fs::read_to_string("/proc/self/maps")?) {
        if mapping.is_untouched(&page_map)? {
            // SAFETY: the mapping is of this library's own file, which stays loaded while this function runs. It
            // is not writable, and all its pages are the file's: they are read again as they are.
            unsafe {
                madvise(
                    ptr::with_exposed_provenance_mut(mapping.start),
                    mapping.length,
                    Advice::LinuxDontNeed,
                )?;
            }
        }
    }
    Ok(())
}

/// A part of the file, as it lies in memory.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
}

impl Mapping {
    /// Whether nobody wrote to it: the loader did, where addresses are, and a debugger does for its breakpoints.
    fn is_untouched(&self, page_map: &File) -> io::Result<bool> {
        Ok(self.pages(page_map)?.into_iter().all(is_the_files))
    }

    /// What the kernel tells of each page.
    fn pages(&self, page_map: &File) -> io::Result<Vec<u64>> {
        let mut entries = vec![0; self.length / page_size() * size_of::<u64>()];
        let at = self.start / page_size() * size_of::<u64>();
        page_map.read_exact_at(&mut entries, at as u64)?;
        let (entries, _) = entries.as_chunks();
        Ok(entries.iter().copied().map(u64::from_ne_bytes).collect())
    }
}

fn is_the_files(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) == 0 || entry & OF_A_FILE != 0
}

/// The parts of the file that this function is in, as far as they are not written to.
fn mappings(maps: &str) -> Vec<Mapping> {
    let here = let_go as fn() -> io::Result<()> as usize;
    let lines: Vec<_> = maps.lines().filter_map(Line::parse).collect();
    let Some(own) = lines.iter().find(|line| line.holds(here)) else {
        return Vec::new();
    };
    let parts = lines.iter().filter(|line| line.file == own.file);
    let constant = parts.filter(|line| line.mode.ends_with('p') && !line.mode.contains('w'));
    constant.map(Line::mapping).collect()
}

/// A line of `/proc/[pid]/maps` (proc(5)).
struct Line<'a> {
    start: usize,
    end: usize,
    mode: &'a str,
    /// Its device and inode.
    file: (&'a str, &'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (mode, _offset) = (words.next()?, words.next()?);
        Some(Self {
            start: usize::from_str_radix(start, 16).ok()?,
            end: usize::from_str_radix(end, 16).ok()?,
            mode,
            file: (words.next()?, words.next()?),
        })
    }

    fn holds(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    fn mapping(&self) -> Mapping {
        Mapping {
            start: self.start,
            length: self.end - self.start,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn in_memory() -> usize {
        let page_map = File::open("/proc/self/pagemap").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let all = mappings(&maps).into_iter();
        let pages = all.flat_map(|mapping| mapping.pages(&page_map).unwrap());
        pages.filter(|entry| entry & PRESENT != 0).count()
    }

    #[test]
    fn code_that_was_let_go_comes_back_as_it_is_needed() {
        let before = in_memory();
        let_go().unwrap();
        let after = in_memory();
        assert!(after < before, "{before} pages, {after} after");
    }

    #[test]
    fn a_page_that_a_debugger_wrote_to_is_not_the_files() {
        assert!(is_the_files(0), "not in memory");
        assert!(is_the_files(PRESENT | OF_A_FILE));
        assert!(!is_the_files(PRESENT));
        assert!(!is_the_files(SWAPPED));
    }

    #[test]
    fn only_constant_parts_of_the_own_file_are_found() {
        let here = let_go as fn() -> io::Result<()> as usize;
        let (start, end) = (here & !0xfff, (here & !0xfff) + 0x1000);
        let maps = format!(
            "1000-3000 r--p 00000000 fe:00 7 /addon.node\n\
             {start:x}-{end:x} r-xp 00002000 fe:00 7 /addon.node\n\
             5000-6000 rw-p 00003000 fe:00 7 /addon.node\n\
             6000-7000 r--s 00003000 fe:00 7 /addon.node\n\
             7000-8000 r-xp 00000000 fe:00 8 /usr/bin/node\n\
             8000-9000 r--p 00000000 00:00 0 \n"
        );
        let constant = [(0x1000, 0x2000), (start, 0x1000)];
        let constant = constant.map(|(start, length)| Mapping { start, length });
        assert_eq!(mappings(&maps), constant);
        assert_eq!(mappings("8000-9000 r-xp 00000000 00:00 0 \n"), []);
    }
}
