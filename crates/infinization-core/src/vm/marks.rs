//! What is known of machines beside their tasks: which are being installed, whose events the user does
//! not want, and whose row a claim of ours may come to late.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use crate::types::VmId;

/// A set of machines that anybody may change at any time.
#[derive(Debug, Default)]
pub struct Marked(Mutex<HashSet<VmId>>);

impl Marked {
    /// From now on the machine is one of them.
    pub fn insert(&self, vm_id: &VmId) {
        self.with(|vms| vms.insert(vm_id.clone()));
    }

    /// From now on it is not; whether it was.
    pub fn remove(&self, vm_id: &VmId) -> bool {
        self.with(|vms| vms.remove(vm_id))
    }

    /// Whether it is.
    pub fn contains(&self, vm_id: &VmId) -> bool {
        self.with(|vms| vms.contains(vm_id))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.with(|vms| vms.is_empty())
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashSet<VmId>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long a mark of an installation outlives the process that made it: no installation takes so long,
/// and whoever should have cleared the mark may be gone.
const LONGEST_INSTALLATION: Duration = Duration::from_secs(24 * 60 * 60);

/// How often each machine is marked in this process. A health monitor of the user's own knows no other
/// way of what his event handler was told.
static INSTALLING: LazyLock<Mutex<HashMap<VmId, usize>>> = LazyLock::new(Mutex::default);

/// Whether anybody in this process has marked the machine as being installed.
pub fn is_installed_by_anybody(vm_id: &VmId) -> bool {
    locked(&INSTALLING).contains_key(vm_id)
}

/// The machines that are being installed.
#[derive(Debug, Default)]
pub struct Installing(Mutex<HashSet<VmId>>);

impl Installing {
    /// From now on the machine is one of them.
    pub fn insert(&self, vm_id: &VmId) {
        if locked(&self.0).insert(vm_id.clone()) {
            *locked(&INSTALLING).entry(vm_id.clone()).or_default() += 1;
        }
    }

    /// From now on it is not.
    pub fn remove(&self, vm_id: &VmId) {
        if locked(&self.0).remove(vm_id) {
            unmark(vm_id);
        }
    }

    /// Whether it is.
    pub fn contains(&self, vm_id: &VmId) -> bool {
        locked(&self.0).contains(vm_id)
    }
}

impl Drop for Installing {
    fn drop(&mut self) {
        locked(&self.0).iter().for_each(unmark);
    }
}

fn unmark(vm_id: &VmId) {
    if let Entry::Occupied(mut count) = locked(&INSTALLING).entry(vm_id.clone()) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// The marks of installations on disk, a file each, so that the next process knows of them.
#[derive(Debug)]
pub struct InstallationFiles {
    directory: PathBuf,
    turn: Mutex<()>,
}

impl InstallationFiles {
    /// Those in `{state_dir}/installing`.
    pub fn under(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("installing"),
            turn: Mutex::default(),
        }
    }

    /// The machines an earlier process has marked, but not of days ago. Blocks.
    pub fn marked(&self) -> io::Result<Vec<VmId>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut marked = Vec::new();
        for entry in entries.flatten() {
            let made = entry.metadata()?.modified()?;
            // A clock that was set back makes it younger than it is, at the worst.
            if made.elapsed().unwrap_or_default() > LONGEST_INSTALLATION {
                fs::remove_file(entry.path())?;
            } else if let Ok(name) = entry.file_name().into_string() {
                marked.extend(VmId::parse(name).ok());
            }
        }
        Ok(marked)
    }

    /// Brings the machine's file to what `marks` say. Blocks.
    pub fn follow(&self, marks: &Installing, vm_id: &VmId) -> io::Result<()> {
        let _one_at_a_time = locked(&self.turn);
        if marks.contains(vm_id) {
            fs::create_dir_all(&self.directory)?;
            fs::write(self.file_of(vm_id), "")
        } else {
            self.remove_file(vm_id)
        }
    }

    /// The machine is gone. Blocks.
    pub fn remove(&self, vm_id: &VmId) -> io::Result<()> {
        let _one_at_a_time = locked(&self.turn);
        self.remove_file(vm_id)
    }

    fn remove_file(&self, vm_id: &VmId) -> io::Result<()> {
        match fs::remove_file(self.file_of(vm_id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file_of(&self, vm_id: &VmId) -> PathBuf {
        self.directory.join(vm_id.as_str())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The marks of all machines.
#[derive(Debug, Default)]
pub struct Marks {
    /// Their SHUTDOWN is a step of the installation: it is told, and neither is the row changed nor
    /// anything given back until this ends.
    pub installing: Installing,
    /// Their `vm:*` events are not told.
    pub unheard: Marked,
    /// A claim of their row whose answer was lost may still be made: `starting` may come to it late.
    pub claimed: Marked,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(id: &str) -> VmId {
        VmId::parse(id).unwrap()
    }

    #[test]
    fn a_mark_is_everybodys_for_as_long_as_somebody_has_it() {
        let id = vm("marks-1");
        let (one, other) = (Installing::default(), Installing::default());
        for marks in [&one, &one, &other] {
            marks.insert(&id);
        }
        one.remove(&id);
        assert!(!one.contains(&id) && is_installed_by_anybody(&id));
        drop(other);
        assert!(!is_installed_by_anybody(&id));
    }

    #[test]
    fn i33_marks_are_on_disk_and_not_for_ever() {
        let state_dir = tempfile::tempdir().unwrap();
        let files = InstallationFiles::under(state_dir.path());
        let marks = Installing::default();
        assert_eq!(files.marked().unwrap(), []);
        for id in ["marks-2", "marks-3"] {
            marks.insert(&vm(id));
            files.follow(&marks, &vm(id)).unwrap();
        }
        marks.remove(&vm("marks-2"));
        files.follow(&marks, &vm("marks-2")).unwrap();
        assert_eq!(files.marked().unwrap(), [vm("marks-3")]);
        let old = std::time::SystemTime::now() - LONGEST_INSTALLATION - Duration::from_secs(60);
        let file = fs::File::open(files.file_of(&vm("marks-3"))).unwrap();
        file.set_modified(old).unwrap();
        assert_eq!(files.marked().unwrap(), []);
        files.remove(&vm("marks-3")).unwrap();
    }
}
