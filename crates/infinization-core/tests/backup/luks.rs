//! An encrypted disk, what it must hold, and who looks for that in files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use infinization_core::host::qemu_img::{
    CreateImage, Encryption, Job, Resize, create, make_overlay, resize_with_key,
};
use infinization_core::types::{ByteSize, DiskKey};
use tempfile::NamedTempFile;

use super::*;

/// What is written; nobody may find it in a file.
pub(super) const PATTERN: &[u8; 16] = b"INFZ-PLAIN-TEXT!";
pub(super) const QUICK: Option<Duration> = Some(Duration::from_millis(10));

pub(super) fn key(text: &str) -> DiskKey {
    DiskKey::try_from(text.to_owned()).unwrap()
}

/// An encrypted qcow2, with a model of its content. The key is in a file elsewhere.
pub(super) struct Luks {
    pub(super) path: PathBuf,
    pub(super) key: String,
    pub(super) holds: Vec<u8>,
    key_file: NamedTempFile,
    pattern_file: NamedTempFile,
    /// Its own layers, the uppermost first.
    layers: Vec<PathBuf>,
}

impl Luks {
    pub(super) async fn new(path: &Path, mib: usize, text: &str) -> Self {
        let image = CreateImage {
            encryption: Some(Encryption {
                key: key(text),
                iter_time: QUICK,
            }),
            ..CreateImage::new(super::path(path), ByteSize::mib(mib as u64))
        };
        create(&image, &Job::default()).await.unwrap();
        Self::at(path, mib, text)
    }

    /// One that is there.
    pub(super) fn at(path: &Path, mib: usize, text: &str) -> Self {
        let [key_file, pattern_file] = [text.as_bytes(), PATTERN].map(|bytes| {
            let file = NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            file
        });
        Self {
            path: path.to_owned(),
            key: text.to_owned(),
            holds: vec![0; mib << 20],
            key_file,
            pattern_file,
            layers: vec![path.to_owned()],
        }
    }

    /// Goes on in an overlay.
    pub(super) async fn go_on_in(&mut self, path: &Path) {
        let size = ByteSize::bytes(self.holds.len() as u64);
        let (over, below) = (super::path(path), super::path(&self.path));
        make_overlay(&over, &below, size).await.unwrap();
        path.clone_into(&mut self.path);
        self.layers.insert(0, path.to_owned());
    }

    pub(super) async fn grow(&mut self, mib: usize) {
        let (path, size) = (super::path(&self.path), ByteSize::mib(mib as u64));
        let key = key(&self.key);
        let format = infinization_core::host::qemu_img::ImageFormat::Qcow2;
        resize_with_key(&path, format, size, Resize::Grow, Some(&key))
            .await
            .unwrap();
        self.holds.resize(mib << 20, 0);
    }

    /// Writes the pattern, shifted by `shift`, which no two writes have alike.
    pub(super) fn write(&mut self, at: usize, length: usize, shift: usize) {
        self.io(&self.line(at, length, shift));
        self.model(at, length, shift);
    }

    /// The command that writes, for whoever has the disk open.
    pub(super) fn line(&self, at: usize, length: usize, shift: usize) -> String {
        fs::write(self.pattern_file.path(), shifted(shift)).unwrap();
        format!(
            "write -s {} {at} {length}",
            self.pattern_file.path().display()
        )
    }

    pub(super) fn model(&mut self, at: usize, length: usize, shift: usize) {
        let bytes = shifted(shift).into_iter().cycle().take(length);
        self.holds.splice(at..at + length, bytes);
    }

    fn io(&self, command: &str) {
        let (object, image) = (self.object(), self.image());
        disk::run("qemu-io", &["--object", &object, "-c", command, &image]);
    }

    pub(super) fn object(&self) -> String {
        format!("secret,id=k,file={}", self.key_file.path().display())
    }

    /// Its layers, by their names.
    pub(super) fn image(&self) -> String {
        let layer = |below: Value, file: &PathBuf| {
            json!({
                "driver": "qcow2", "backing": below,
                "encrypt": { "format": "luks", "key-secret": "k" },
                "file": { "driver": "file", "filename": file },
            })
        };
        format!("json:{}", self.layers.iter().rev().fold(Value::Null, layer))
    }

    /// Sound, and as the model says; what is read is on no disk.
    #[track_caller]
    pub(super) fn is_intact(&self) {
        let (object, image) = (self.object(), self.image());
        disk::run("qemu-img", &["check", "-q", "--object", &object, &image]);
        let raw = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let args = ["convert", "--object", &object, "-O", "raw", &image];
        disk::run("qemu-img", &[&args[..], &[disk::text(raw.path())]].concat());
        let found = fs::read(raw.path()).unwrap();
        assert_eq!(found.len(), self.holds.len(), "the length of the disk");
        let differs = found.iter().zip(&self.holds).position(|(a, b)| a != b);
        assert_eq!(
            differs,
            None,
            "{} differs at this byte",
            self.path.display()
        );
    }

    /// The same content under another name.
    pub(super) fn like(&self, path: &Path) -> Self {
        Self {
            holds: self.holds.clone(),
            ..Self::at(path, 0, &self.key)
        }
    }
}

fn shifted(shift: usize) -> Vec<u8> {
    let mut pattern = PATTERN.to_vec();
    pattern.rotate_left(shift % PATTERN.len());
    pattern
}

/// Reads every file below a directory again and again, until it is asked what it found.
pub(super) struct Spy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Option<PathBuf>)>,
}

impl Spy {
    pub(super) fn on(dir: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, dir) = (Arc::clone(&stop), dir.to_owned());
        let thread = std::thread::spawn(move || {
            for rounds in 1.. {
                let last = asked.load(Ordering::Relaxed);
                let found = plain_text_below(&dir);
                if last || found.is_some() {
                    return (rounds, found);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            (0, None)
        });
        Self { stop, thread }
    }

    /// Fails if it has seen plain text in any file.
    #[track_caller]
    pub(super) fn has_seen_nothing(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (rounds, found) = self.thread.join().unwrap();
        assert!(rounds > 0);
        assert_eq!(found, None, "it was in plain text there");
    }
}

/// A file that has the pattern in it, however shifted.
pub(super) fn plain_text_below(dir: &Path) -> Option<PathBuf> {
    // Files come and go while they are looked at.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().ok()?;
        let found = if kind.is_dir() {
            plain_text_below(&path)
        } else {
            let bytes = fs::read(&path).unwrap_or_default();
            let twice = PATTERN.repeat(2);
            let mut windows = bytes.chunks(4096).filter_map(|chunk| chunk.get(..16));
            windows
                .any(|start| twice.windows(16).any(|shifted| shifted == start))
                .then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
