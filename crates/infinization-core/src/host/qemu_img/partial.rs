//! An image that is not finished yet: a temporary file beside its target, which takes the target's
//! name when it is whole and on disk, and goes away when anything fails.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;

use super::ImageError;
use super::in_use;
use super::job::blocking;
use crate::types::HostPath;

/// The temporary file of a target. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Partial {
    /// Where the bytes are now.
    at: PathBuf,
    target: HostPath,
    /// Held open: it is marked as being made.
    file: File,
    kept: bool,
}

impl Partial {
    /// Makes the file, empty and for its owner only. `IMAGE_ALREADY_EXISTS` if the target does. What a killed
    /// process has left of the same target goes: where nobody sweeps, nobody else would come by.
    pub(super) fn beside(target: &HostPath) -> Result<Self, ImageError> {
        match fs::symlink_metadata(target.as_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ImageError::io(target, source)),
            Ok(_) => {
                let path = target.clone();
                return Err(ImageError::AlreadyExists { path });
            }
        }
        Self::made(target)
    }

    /// The same of what will take the place of a target that there is.
    pub(super) fn in_place_of(target: &HostPath) -> Result<Self, ImageError> {
        Self::made(target)
    }

    fn made(target: &HostPath) -> Result<Self, ImageError> {
        remove_abandoned(target);
        loop {
            let made = Self::begun(target)?;
            // Between the file and its mark, another attempt may take it for abandoned.
            if in_use::mark_as_making(&made.file) && made.is_there()? {
                return Ok(made);
            }
        }
    }

    fn begun(target: &HostPath) -> Result<Self, ImageError> {
        let at = temporary_name(target);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&at)
            .map_err(|source| match ImageError::io(target, source) {
                ImageError::NotFound { path } => ImageError::NoDirectory { path },
                error => error,
            })?;
        let target = target.clone();
        Ok(Self {
            at,
            target,
            file,
            kept: false,
        })
    }

    fn is_there(&self) -> Result<bool, ImageError> {
        match fs::symlink_metadata(&self.at) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ImageError::io(&self.target, source)),
        }
    }

    /// The temporary file's path.
    pub(super) fn path(&self) -> &Path {
        &self.at
    }

    /// The same for verbs on images.
    pub(super) fn place(&self) -> Result<HostPath, ImageError> {
        HostPath::parse(self.at.to_string_lossy()).map_err(|why| {
            let source = io::Error::new(io::ErrorKind::InvalidFilename, why);
            ImageError::io(&self.target, source)
        })
    }

    /// The temporary file, for whoever writes into it himself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The target's name.
    pub(super) fn target(&self) -> &HostPath {
        &self.target
    }

    /// Gives the file to `owner`, makes it durable, and gives it the target's name unless that is
    /// taken by now. qemu-img writes without flushing, so this is where the bytes reach the disk.
    pub(super) fn publish(mut self, owner: Option<(u32, u32)>) -> Result<(), ImageError> {
        self.finish(owner)
            .map_err(|source| ImageError::io(&self.target, source))?;
        self.kept = true;
        Ok(())
    }

    /// The same over the target that there is, whose owner it has from then on.
    pub(super) fn replace(mut self) -> Result<(), ImageError> {
        self.take_place()
            .map_err(|source| ImageError::io(&self.target, source))
    }

    fn finish(&mut self, owner: Option<(u32, u32)>) -> io::Result<()> {
        self.make_durable(owner)?;
        rename_exclusive(&self.at, self.target.as_path())?;
        // From here on the target is this attempt's, and what a failure removes.
        self.at = self.target.as_path().to_owned();
        flush_directory_of(&self.at)
    }

    fn take_place(&mut self) -> io::Result<()> {
        let old = fs::metadata(self.target.as_path())?;
        self.make_durable(Some((old.uid(), old.gid())))?;
        fs::rename(&self.at, self.target.as_path())?;
        self.kept = true;
        flush_directory_of(self.target.as_path())
    }

    fn make_durable(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        if !self.is_what_we_made()? {
            return Err(io::Error::other(
                "another file took its place while it was made",
            ));
        }
        if let Some((uid, gid)) = owner {
            fchown(&self.file, Some(uid), Some(gid))?;
        }
        self.file.sync_all()
    }

    /// A program that makes the file anew gives it an owner and a mode of its own choice.
    fn is_what_we_made(&self) -> io::Result<bool> {
        let (there, ours) = (fs::symlink_metadata(&self.at)?, self.file.metadata()?);
        Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
    }
}

fn flush_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = fs::remove_file(&self.at)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.at.display(), %error, "a partial image could not be removed");
        }
    }
}

/// Removes what a process that was killed left in `dir` half made, and says what that was. A file
/// that qemu-img still works on, or that another process is making, is left alone; on a file system without locks,
/// every one that was written to within a day.
pub async fn sweep_partials(dir: &HostPath) -> Result<Vec<HostPath>, ImageError> {
    let mut swept = Vec::new();
    for path in partials_in(dir).await? {
        let name = path.clone();
        if blocking(&path, move || remove_if_abandoned(&name)).await? {
            swept.push(path);
        }
    }
    Ok(swept)
}

/// Removes what is left of attempts to make `target`, which nobody makes now; a dying qemu-img may still
/// have it open.
pub async fn sweep_partials_of(target: &HostPath) -> Result<(), ImageError> {
    let of = target.clone();
    blocking(target, move || {
        for path in partials_of(&of)? {
            fs::remove_file(path.as_path()).map_err(|source| ImageError::io(&path, source))?;
        }
        Ok(())
    })
    .await
}

/// The same while others may be making it. What cannot be removed is left: it is in nobody's way.
fn remove_abandoned(target: &HostPath) {
    for path in partials_of(target).unwrap_or_default() {
        let _left = remove_if_abandoned(&path);
    }
}

/// What cannot be looked at is left.
fn remove_if_abandoned(path: &HostPath) -> Result<bool, ImageError> {
    let Ok(Some(_abandoned)) = in_use::abandoned_now(path) else {
        return Ok(false);
    };
    match fs::remove_file(path.as_path()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ImageError::io(path, source)),
    }
}

fn partials_of(target: &HostPath) -> Result<Vec<HostPath>, ImageError> {
    let file = target.as_path().file_name().unwrap_or_default();
    let prefix = format!(".{}.", shortened(&file.to_string_lossy()));
    let parent = target.as_path().parent().unwrap_or(Path::new("/"));
    let Ok(dir) = HostPath::parse(parent.to_string_lossy()) else {
        return Ok(Vec::new());
    };
    let mut found = partials_in_now(&dir)?;
    // What follows is random, and has no dot: `a` is not the target of what will be `a.b`.
    found.retain(|path| {
        let name = path.as_path().file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        let rest = name.strip_prefix(&prefix);
        rest.is_some_and(|rest| rest.matches('.').count() == 1)
    });
    Ok(found)
}

async fn partials_in(dir: &HostPath) -> Result<Vec<HostPath>, ImageError> {
    let place = dir.clone();
    blocking(dir, move || partials_in_now(&place)).await
}

fn partials_in_now(dir: &HostPath) -> Result<Vec<HostPath>, ImageError> {
    let entries = fs::read_dir(dir.as_path()).map_err(|source| ImageError::io(dir, source))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| is_temporary(name))
        .filter_map(|name| dir.join(&name).ok())
        .collect())
}

fn is_temporary(name: &str) -> bool {
    let parts = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".partial"))
        .and_then(|name| name.rsplit_once('.'));
    parts.is_some_and(|(_, random)| random.len() == 32 && Uuid::try_parse(random).is_ok())
}

/// `.<file>.<random>.partial`, within the 255 bytes a file name may have.
fn temporary_name(target: &HostPath) -> PathBuf {
    let path = target.as_path();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = shortened(&name);
    path.with_file_name(format!(".{name}.{}.partial", Uuid::new_v4().simple()))
}

fn shortened(name: &str) -> String {
    const LONGEST: usize = 200;
    name.char_indices()
        .take_while(|(at, char)| at + char.len_utf8() <= LONGEST)
        .map(|(_, char)| char)
        .collect()
}

/// Renames only if nothing has the new name. File systems that cannot (NFS) are asked for a second
/// link, which cannot replace either.
fn rename_exclusive(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        outcome => Ok(outcome?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    fn target(dir: &tempfile::TempDir) -> HostPath {
        HostPath::parse(dir.path().join("disk.qcow2").to_str().unwrap()).unwrap()
    }

    #[test]
    fn is_removed_unless_published() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::beside(&target(&dir)).unwrap();
        assert!(files(dir.path())[0].starts_with(".disk.qcow2."));
        drop(partial);
        assert!(files(dir.path()).is_empty());
        Partial::beside(&target(&dir))
            .unwrap()
            .publish(None)
            .unwrap();
        assert_eq!(files(dir.path()), ["disk.qcow2"]);
    }

    #[test]
    fn takes_the_place_of_a_target_that_there_is_and_sweeps_its_own_leftovers_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (target, other) = (target(&dir), dir.path().join("disk"));
        fs::write(target.as_path(), "old").unwrap();
        let left = temporary_name(&target);
        fs::write(&left, "left").unwrap();
        let other = HostPath::parse(other.to_str().unwrap()).unwrap();
        assert!(partials_of(&other).unwrap().is_empty());
        assert_eq!(partials_of(&target).unwrap().len(), 1);
        drop(Partial::in_place_of(&target).unwrap());
        assert_eq!(files(dir.path()), ["disk.qcow2"]);
        let partial = Partial::in_place_of(&target).unwrap();
        fs::write(partial.path(), "new").unwrap();
        assert_eq!(fs::read(target.as_path()).unwrap(), b"old");
        partial.replace().unwrap();
        assert_eq!(fs::read(target.as_path()).unwrap(), b"new");
        assert_eq!(files(dir.path()), ["disk.qcow2"]);
    }

    #[test]
    fn s4_of_attempts_at_once_none_removes_what_another_has_just_begun() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(&dir);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let partial = Partial::beside(&target).unwrap();
                        std::thread::yield_now();
                        assert!(partial.is_there().unwrap());
                    }
                });
            }
        });
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn s4_never_replaces_a_file_that_came_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::beside(&target(&dir)).unwrap();
        fs::write(target(&dir).as_path(), "theirs").unwrap();
        let error = partial.publish(None).unwrap_err();
        assert!(matches!(error, ImageError::AlreadyExists { .. }));
        assert_eq!(fs::read(target(&dir).as_path()).unwrap(), b"theirs");
        assert_eq!(files(dir.path()), ["disk.qcow2"]);
    }

    #[test]
    fn a_file_that_took_its_place_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Partial::beside(&target(&dir)).unwrap();
        fs::remove_file(partial.path()).unwrap();
        fs::write(partial.path(), "anew").unwrap();
        let error = partial.publish(None).unwrap_err();
        assert!(format!("{error:?}").contains("another file"), "{error:?}");
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn only_names_of_ours_are_taken_for_leftovers() {
        let ours = temporary_name(&HostPath::parse("/srv/a.qcow2").unwrap());
        assert!(is_temporary(ours.file_name().unwrap().to_str().unwrap()));
        for theirs in [
            ".x.partial",
            "a.partial",
            ".a.b.partial",
            "a.qcow2",
            ".partial",
        ] {
            assert!(!is_temporary(theirs), "{theirs}");
        }
    }

    #[test]
    fn long_names_still_fit() {
        let long = HostPath::parse(format!("/srv/{}", "ä".repeat(125))).unwrap();
        assert!(temporary_name(&long).file_name().unwrap().len() <= 255);
    }
}
