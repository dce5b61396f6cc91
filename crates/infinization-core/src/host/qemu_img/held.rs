//! Images held from before the first change to after the last, several at once: what is done to all disks of a
//! machine has no moment in between in which it could be started on some of them.
//!
//! We hold the locks that a QEMU would hold which writes to the image, and `qemu-img` is told to take none. It
//! has ours as well, for as long as it runs, so that killing this process does not let anybody at an image
//! that is being changed.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::OwnedRwLockWriteGuard;

use super::in_use::{Claim, claim_now};
use super::{ImageError, lock};
use crate::types::HostPath;

/// An image that nobody else can open, until this and every change begun with it is over.
#[derive(Debug, Clone)]
pub struct Held(Arc<Holding>);

#[derive(Debug)]
struct Holding {
    path: HostPath,
    // Dropped in this order: the next verb of this process finds the locks free.
    claim: Claim,
    _alone: OwnedRwLockWriteGuard<()>,
}

impl Held {
    /// Where it is.
    pub fn path(&self) -> &HostPath {
        &self.0.path
    }

    /// Our locks, for a program that is to have them too, until it has ended ([`Self::take_back`]).
    pub(super) fn lend(&self) -> io::Result<OwnedFd> {
        self.0.claim.lend()
    }

    /// No child is left of the program that had them.
    pub(super) fn take_back(&self) {
        self.0.claim.take_back();
    }
}

/// Waits for the verbs of this process, and holds the image. `IMAGE_IN_USE` if another process has it open.
pub(super) async fn hold(path: &HostPath) -> Result<Held, ImageError> {
    let image = path.clone();
    let (alone, claim) = lock::exclusive(path, move || claim_now(&image)).await?;
    Ok(Held(Arc::new(Holding {
        path: path.clone(),
        claim,
        _alone: alone,
    })))
}

/// Holds all of the images, in the order of `paths`, or none. The same image twice is in use.
pub async fn hold_all(paths: &[HostPath]) -> Result<Vec<Held>, ImageError> {
    let mut places = Vec::new();
    let mut seen = HashSet::new();
    for (place, path) in paths.iter().enumerate() {
        let name = lock::canonical(path).await?;
        if !seen.insert(name.clone()) {
            let (path, holder) = (path.clone(), None);
            return Err(ImageError::InUse { path, holder });
        }
        places.push((name, place));
    }
    // Whoever wants some of the same waits for the first of them, and not crosswise.
    places.sort();
    let mut held = Vec::new();
    for (_, place) in places {
        held.push((place, hold(&paths[place]).await?));
    }
    held.sort_by_key(|(place, _)| *place);
    Ok(held.into_iter().map(|(_, held)| held).collect())
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::host::program::Program;
    use crate::host::qemu_img::{ensure_unused, ensure_unused_now, keep_unchanged_now};

    fn images(names: &[&str]) -> (tempfile::TempDir, Vec<HostPath>) {
        let dir = tempfile::tempdir().unwrap();
        let paths = names.iter().map(|name| {
            let path = dir.path().join(name);
            std::fs::write(&path, []).unwrap();
            HostPath::parse(path.to_str().unwrap()).unwrap()
        });
        let paths = paths.collect();
        (dir, paths)
    }

    #[tokio::test]
    async fn all_are_held_or_none() {
        let (_dir, paths) = images(&["b", "a", "c"]);
        let [b, a, c] = &paths[..] else { panic!() };
        let held = hold_all(&paths).await.unwrap();
        assert!(held.iter().map(Held::path).eq(&paths));
        for path in &paths {
            assert!(matches!(
                ensure_unused_now(path),
                Err(ImageError::InUse { .. })
            ));
        }
        drop(held);
        let _another_process = claim_now(c).unwrap();
        let refused = hold_all(&paths).await.unwrap_err();
        assert!(
            matches!(&refused, ImageError::InUse { path, .. } if path == c),
            "{refused}"
        );
        for path in [a, b] {
            ensure_unused_now(path).unwrap();
        }
        let twice = hold_all(&[a.clone(), a.clone()]).await.unwrap_err();
        assert!(matches!(twice, ImageError::InUse { .. }), "{twice}");
    }

    #[tokio::test]
    async fn a_program_keeps_the_locks_when_we_lose_them() {
        let (_dir, paths) = images(&["a"]);
        let held = hold(&paths[0]).await.unwrap();
        let end = CancellationToken::new();
        let program = Program::new("sleep").args(["60"]).cancel(end.clone());
        let program = tokio::spawn(program.stdout(held.lend().unwrap()).run());
        drop(held);
        let holder = loop {
            // Until it runs our own duplicate is the holder.
            match ensure_unused(&paths[0]).await {
                Err(ImageError::InUse { holder, .. }) => match holder {
                    Some(holder) if holder.name == "sleep" => break holder,
                    // Or it was found at neither, while it went from one to the other.
                    _ => {}
                },
                other => panic!("{other:?}"),
            }
            tokio::task::yield_now().await;
        };
        assert_ne!(holder.pid, std::process::id());
        end.cancel();
        program.await.unwrap().unwrap_err();
        ensure_unused(&paths[0]).await.unwrap();
    }

    #[test]
    fn what_was_given_back_is_free_although_a_child_has_a_copy() {
        let (_dir, paths) = images(&["a"]);
        let claim = claim_now(&paths[0]).unwrap();
        let unchanged = keep_unchanged_now(&paths[0]).unwrap_err();
        assert!(matches!(unchanged, ImageError::InUse { .. }));
        let _copy_of_a_child = claim.lend().unwrap();
        claim.take_back();
        drop(claim);
        drop(keep_unchanged_now(&paths[0]).unwrap());
        ensure_unused_now(&paths[0]).unwrap();
    }
}
