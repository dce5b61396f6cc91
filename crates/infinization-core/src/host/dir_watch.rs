//! Hearing that something was written in a directory (inotify).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::readable::readable;

/// What is written in one directory from now on.
#[derive(Debug)]
pub struct DirWatch(AsyncFd<Arc<OwnedFd>>);

impl DirWatch {
    /// Needs a runtime.
    pub fn on(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let written = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, written)?;
        Ok(Self(readable(Arc::new(fd))?))
    }

    /// Resolves when something was. Several that nobody waited for count once.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        drain(ready.get_inner())?;
        ready.clear_ready();
        Ok(())
    }
}

/// Takes in all that an inotify descriptor, which does not block, has to tell.
pub(super) fn drain(inotify: &OwnedFd) -> Result<(), Errno> {
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify, &mut room);
    loop {
        match events.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_is_heard_also_into_a_file_that_stays_open() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(dir.path().join("f")).unwrap();
        let mut watch = DirWatch::on(dir.path()).unwrap();
        for _ in 0..3 {
            file.write_all(b"x").unwrap();
            watch.changed().await.unwrap();
        }
        assert!(DirWatch::on(&dir.path().join("none")).is_err());
    }
}
