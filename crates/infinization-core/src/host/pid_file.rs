//! Pidfiles: files that have a machine's name and its process' number. A number proves nothing; whose process
//! it is [`super::process`] finds out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::blocking::file_call;
use crate::types::InternalName;

/// A pidfile whose name can be a machine's.
#[derive(Debug, PartialEq)]
pub(crate) struct PidFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The machine it is named after.
    pub(crate) name: InternalName,
    /// `None` if it holds no number.
    pub(crate) pid: Option<i32>,
}

impl PidFile {
    /// Those of a directory; none if it cannot be read. Blocks.
    pub(crate) fn all_in(directory: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(directory) else {
            return Vec::new();
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter_map(Self::read).collect()
    }

    /// Removes the file unless somebody has written it since; whether that was done.
    pub(crate) async fn removed_as_read(self) -> bool {
        let removed = file_call(move || {
            if Self::read(self.path.clone()).as_ref() == Some(&self) {
                fs::remove_file(&self.path)
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        });
        removed.await.is_ok()
    }

    fn read(path: PathBuf) -> Option<Self> {
        if path.extension()? != "pid" {
            return None;
        }
        let name = InternalName::parse(path.file_stem()?.to_str()?).ok()?;
        let pid = pid_of_text(&fs::read_to_string(&path).ok()?);
        Some(Self { path, name, pid })
    }
}

/// The pid in a pidfile that can be read.
pub(crate) async fn pid_in(path: PathBuf) -> Option<i32> {
    let text = file_call(move || fs::read_to_string(path)).await;
    pid_of_text(&text.ok()?)
}

/// Removes a file; whether that was done.
pub(crate) async fn removed(path: &Path) -> bool {
    let path = path.to_owned();
    file_call(move || fs::remove_file(path)).await.is_ok()
}

fn pid_of_text(text: &str) -> Option<i32> {
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pidfiles_of_possible_names_are_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("vm-1.pid", "17\n"),
            ("vm-2.pid", "garbage"),
            ("vm-3.pid", "-1"),
            ("vm-4.sock", "1"),
            ("vm,5.pid", "1"),
            ("pid", "1"),
            (".pid", "1"),
        ] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let mut found: Vec<(String, Option<i32>)> = PidFile::all_in(directory.path())
            .into_iter()
            .map(|file| (file.name.to_string(), file.pid))
            .collect();
        found.sort();
        let wanted = [("vm-1", Some(17)), ("vm-2", None), ("vm-3", None)];
        assert_eq!(found, wanted.map(|(name, pid)| (name.to_owned(), pid)));
        assert!(PidFile::all_in(&directory.path().join("absent")).is_empty());
    }
}
