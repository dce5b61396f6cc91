//! One run of `qemu-img`, and what its failure means.
//!
//! Most refusals never get here: existence, locks, sizes, snapshots and headers are looked at
//! first. What is left is read from the exit code and, where that says nothing, from qemu-img's
//! words once every path is cut out of them (`LC_ALL=C` is set by [`Program`]).

use std::ffi::OsString;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::encryption::pipe_of;
use super::in_use::in_use;
use super::job::Teller;
use super::{Encryption, Held, ImageError, ImageFormat, Inspection, Job, opened};
use crate::host::program::{Finished, Program, ProgramError};
use crate::types::{DiskKey, HostPath};

/// The id of the `secret` object that holds an image's key.
pub(super) const KEY: &str = "key";
/// The same of another key: the one to add, or to erase.
pub(super) const OTHER_KEY: &str = "other-key";

/// What QEMU says when the kernel's clock of used CPU time stood still while it measured how slow a new
/// key can be made: it only goes on where a timer tick meets the thread in user mode. Nothing was written
/// then, and it is a matter of luck; more than every second time is lost on a busy host.
pub const UNMEASURED: &str = "Unable to get accurate CPU usage";
/// How often that is tried; a try that is lost takes some 20 ms.
pub const MEASUREMENTS: u64 = 60;

/// A `qemu-img` command line about one image.
///
/// A key travels through a pipe: the first one is its standard input. The second one, which only `amend`
/// needs, is its standard output, where that writes nothing.
#[derive(Debug)]
pub(super) struct QemuImg<'a> {
    image: &'a HostPath,
    args: Vec<OsString>,
    /// Every path on the command line, to be cut out of qemu-img's words.
    paths: Vec<String>,
    accepted: &'static [i32],
    key: Option<DiskKey>,
    other_key: Option<DiskKey>,
    /// The image whose locks it is to have.
    held: Option<Held>,
    /// Which part of its job it is.
    part: Range<f64>,
}

impl<'a> QemuImg<'a> {
    /// `qemu-img <verb>`; failures will speak of `image`.
    pub(super) fn new(verb: &str, image: &'a HostPath) -> Self {
        Self {
            image,
            args: vec![verb.into()],
            paths: vec![image.to_string()],
            accepted: &[0],
            key: None,
            other_key: None,
            held: None,
            part: 0.0..1.0,
        }
    }

    /// Reports its progress as that of a part of its job, which is 0 to 1.
    pub(super) fn part(mut self, part: Range<f64>) -> Self {
        self.part = part;
        self
    }

    /// Makes the key known as [`KEY`].
    pub(super) fn with_key(mut self, key: &DiskKey) -> Self {
        self.key = Some(key.clone());
        self.args(["--object", &secret(KEY, 0)])
    }

    /// Has the new image be encrypted; what is read of others has the same key.
    pub(super) fn encrypting(self, encryption: &Encryption) -> Self {
        self.with_key(&encryption.key)
            .args(["-o".to_owned(), encryption.options().join(",")])
    }

    /// Makes a second key known as [`OTHER_KEY`].
    pub(super) fn with_other_key(mut self, key: &DiskKey) -> Self {
        self.other_key = Some(key.clone());
        self.args(["--object", &secret(OTHER_KEY, 1)])
    }

    /// Ends the options and names the image as what it is; with its key, if it is encrypted.
    pub(super) fn on_image_as(self, format: ImageFormat, key: Option<&DiskKey>) -> Self {
        match key {
            None => self.args(["-f", format.as_str()]).on_image(),
            Some(key) => {
                let image = opened::alone(self.image);
                self.with_key(key).on_node(&image)
            }
        }
    }

    /// Ends the options and names a qcow2 image that we hold: it takes no locks there, but has ours for as long as
    /// it runs, as its standard output, where such verbs write nothing.
    pub(super) fn on_held(mut self, held: &Held, key: Option<&DiskKey>) -> Self {
        self.held = Some(held.clone());
        match key {
            None => {
                let image = format!("{},file.locking=off", plain(self.image));
                self.args(["--image-opts", "--", &image])
            }
            Some(key) => {
                let image = opened::held(self.image);
                self.with_key(key).on_node(&image)
            }
        }
    }

    /// The same with what lies below the image; `found` is what was found out about that.
    pub(super) fn on_chain_as(
        self,
        format: ImageFormat,
        found: &Inspection,
        key: Option<&DiskKey>,
    ) -> Self {
        match key {
            None => self.on_image_as(format, None),
            Some(key) => {
                let layers = opened::layers(&found.encrypted_layers(self.image));
                self.with_key(key).on_node(&layers)
            }
        }
    }

    /// Ends the options and names the image by how it is opened.
    pub(super) fn on_node(self, node: &Value) -> Self {
        let name = opened::name(node);
        self.files([Path::new(&name)])
    }

    pub(super) fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// An option whose value is a path.
    pub(super) fn path_option(self, option: &str, path: &HostPath) -> Self {
        self.also_about(path.as_path())
            .args([option, path.as_str()])
    }

    /// Ends the options and names the files the verb works on.
    pub(super) fn files<'p>(mut self, files: impl IntoIterator<Item = &'p Path>) -> Self {
        self.args.push("--".into());
        for file in files {
            self = self.also_about(file);
            self.args.push(file.into());
        }
        self
    }

    /// Ends the options and names the image.
    pub(super) fn on_image(self) -> Self {
        let image = self.image.as_path();
        self.files([image])
    }

    /// Exit codes besides 0 that are an answer.
    pub(super) fn accept(mut self, codes: &'static [i32]) -> Self {
        self.accepted = codes;
        self
    }

    /// A path that may be in its words without being an argument by itself.
    pub(super) fn also_about(mut self, path: &Path) -> Self {
        self.paths.push(path.to_string_lossy().into_owned());
        self
    }

    /// Runs a verb on the caller's terms and reads the JSON it prints.
    pub(super) async fn json<T: DeserializeOwned>(self, job: &Job) -> Result<T, ImageError> {
        let image = self.image;
        let finished = self.run_as(job).await?;
        serde_json::from_slice(&finished.stdout).map_err(|source| ImageError::Answer {
            path: image.clone(),
            source,
        })
    }

    /// Runs a verb on the caller's terms.
    pub(super) async fn run_as(self, job: &Job) -> Result<Finished, ImageError> {
        let mut measuring = Measuring::default();
        loop {
            let outcome = self.run_once(job).await;
            if measuring.is_over(&outcome).await {
                return outcome;
            }
        }
    }

    /// The same of a verb that makes an image: once, as another try needs another file ([`Measuring`]).
    pub(super) async fn run_once(&self, job: &Job) -> Result<Finished, ImageError> {
        let program = Program::new("qemu-img")
            .args(self.args.iter().cloned())
            .deadline(job.deadline)
            .cancel(job.cancel.clone());
        let program = match &self.key {
            Some(key) => program.stdin(key.reveal().as_bytes().to_vec()),
            None => program,
        };
        let program = match (&self.other_key, &self.held) {
            (Some(key), _) => program.stdout(self.pipe_of(key)?),
            (None, Some(held)) => program.stdout(self.locks_of(held)?),
            (None, None) => program,
        };
        let finished = match &job.progress {
            Some(progress) => watched(program, &self.part, progress).await,
            None => program.run().await,
        };
        if let (None, Some(held)) = (&self.other_key, &self.held) {
            held.take_back();
        }
        let finished = finished.map_err(|error| self.ended_early(error))?;
        match finished.status.code() {
            Some(code) if code == 0 || self.accepted.contains(&code) => Ok(finished),
            exit => Err(self.failed(exit, &finished).await),
        }
    }

    fn pipe_of(&self, key: &DiskKey) -> Result<OwnedFd, ImageError> {
        pipe_of(key, None).map_err(|error| ImageError::io(self.image, error))
    }

    fn locks_of(&self, held: &Held) -> Result<OwnedFd, ImageError> {
        held.lend()
            .map_err(|error| ImageError::io(self.image, error))
    }

    fn ended_early(&self, error: ProgramError) -> ImageError {
        let path = self.image.clone();
        match error {
            ProgramError::Cancelled { .. } => ImageError::Cancelled { path },
            ProgramError::Timeout { deadline, .. } => ImageError::TimedOut { path, deadline },
            error => ImageError::Program(error),
        }
    }

    async fn failed(&self, exit: Option<i32>, finished: &Finished) -> ImageError {
        let stderr = finished.stderr_tail();
        let path = self.image.clone();
        match meaning(&without(&self.paths, &stderr)) {
            Meaning::Locked => in_use(self.image).await,
            Meaning::NoSpace => ImageError::NoSpace { path },
            Meaning::PermissionDenied => ImageError::PermissionDenied { path },
            Meaning::TooLarge => {
                ImageError::size(&path, "is more than its format or file system can hold")
            }
            Meaning::Unsupported => ImageError::format(&path, format!("cannot do this: {stderr}")),
            Meaning::WrongKey => ImageError::AuthFailed { path },
            Meaning::Corrupt => ImageError::corrupt(&path, "is corrupt"),
            Meaning::Unknown => ImageError::Failed { path, exit, stderr },
        }
    }
}

/// The tries of a verb that needs to know how slow a new key can be made.
///
/// One that makes an image begins with a new file each time. QEMU removes the file that it could not make a LUKS
/// image of (since 6.0); where it finds none it makes one itself, which others may read, which belongs to us and
/// not to whom it is for, and which is not the one that we have open.
#[derive(Debug, Default)]
pub(super) struct Measuring {
    lost: u64,
}

impl Measuring {
    /// Whether `outcome` is the last one. If not it has waited for a good moment to try again.
    pub(super) async fn is_over<T>(&mut self, outcome: &Result<T, ImageError>) -> bool {
        let unmeasured = matches!(outcome, Err(ImageError::Failed { stderr, .. }) if stderr.contains(UNMEASURED));
        self.lost += 1;
        if !unmeasured || self.lost == MEASUREMENTS {
            return true;
        }
        // Ever another distance to the ticks: tries of one length would meet them alike.
        sleep(Duration::from_millis(self.lost % 16)).await;
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Locked,
    NoSpace,
    PermissionDenied,
    TooLarge,
    Unsupported,
    WrongKey,
    Corrupt,
    Unknown,
}

/// qemu-img's phrases, the kernel's included (QEMU 7.2, unchanged since 2.10). The first that
/// occurs decides: a lock failure is never taken for anything else.
const PHRASES: &[(&str, Meaning)] = &[
    ("Is another process using the image", Meaning::Locked),
    ("No space left on device", Meaning::NoSpace),
    ("Disk quota exceeded", Meaning::NoSpace),
    ("Permission denied", Meaning::PermissionDenied),
    ("Operation not permitted", Meaning::PermissionDenied),
    ("Read-only file system", Meaning::PermissionDenied),
    ("File too large", Meaning::TooLarge),
    ("too large for file format", Meaning::TooLarge),
    ("Invalid image size specified", Meaning::TooLarge),
    ("does not support", Meaning::Unsupported),
    ("not supported", Meaning::Unsupported),
    ("Unsupported", Meaning::Unsupported),
    ("Invalid password, cannot unlock", Meaning::WrongKey),
    ("Image is corrupt", Meaning::Corrupt),
];

/// An object that is read of a descriptor.
fn secret(id: &str, descriptor: u8) -> String {
    format!("secret,id={id},file=/proc/self/fd/{descriptor}")
}

/// A qcow2 image for `--image-opts`. A [`HostPath`] holds no `,` that would end the file name there.
fn plain(path: &HostPath) -> String {
    format!("driver=qcow2,file.driver=file,file.filename={path}")
}

fn meaning(words: &str) -> Meaning {
    PHRASES
        .iter()
        .find(|(phrase, _)| words.contains(phrase))
        .map_or(Meaning::Unknown, |&(_, meaning)| meaning)
}

/// The words with every path cut out, longest first, so that one that starts another leaves no rest.
fn without(paths: &[String], words: &str) -> String {
    let mut paths: Vec<_> = paths.iter().collect();
    paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
    paths.into_iter().fold(words.to_owned(), |words, path| {
        words.replace(path.as_str(), "")
    })
}

/// Runs `program` with `-p` output going to `progress`.
async fn watched(
    program: Program,
    part: &Range<f64>,
    progress: &Teller,
) -> Result<Finished, ProgramError> {
    let (sink, mut output) = mpsc::unbounded_channel::<Vec<u8>>();
    let report = async {
        while let Some(bytes) = output.recv().await {
            for fraction in fractions(&bytes) {
                progress.tell(part.start + fraction * (part.end - part.start));
            }
        }
    };
    tokio::join!(program.on_stdout(sink).run(), report).0
}

/// Every `(12.34/100%)` in a piece of output. A report that two pieces share is skipped: the next one
/// supersedes it.
fn fractions(output: &[u8]) -> impl Iterator<Item = f64> {
    let text = std::str::from_utf8(output).unwrap_or_default();
    let whole = text.rsplit_once("/100%)").map(|(whole, _)| whole);
    let told = whole.into_iter().flat_map(|whole| whole.split("/100%)"));
    told.filter_map(|before| {
        let (_, percent) = before.rsplit_once('(')?;
        let percent: f64 = percent.trim().parse().ok()?;
        Some((percent / 100.0).clamp(0.0, 1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_progress() {
        let table: [(&[u8], &[f64]); 5] = [
            (b"    (0.00/100%)\r    (12.50/100%)\r    (13", &[0.0, 0.125]),
            (b"    (100.00/100%)\r\n", &[1.0]),
            (b"    (12.5", &[]),
            (b"0/100%)\r    (25.00/100%)\r", &[0.25]),
            (b"\xff", &[]),
        ];
        for (output, expected) in table {
            assert_eq!(
                fractions(output).collect::<Vec<_>>(),
                expected,
                "{output:?}"
            );
        }
    }

    #[test]
    fn s8_words_in_a_path_mean_nothing() {
        let path = "/srv/No space left on device/Permission denied.qcow2".to_owned();
        let words =
            format!("qemu-img: Could not open '{path}': Image is corrupt; cannot be opened");
        assert_eq!(meaning(&without(&[path], &words)), Meaning::Corrupt);
        let nested = ["/srv/a".to_owned(), "/srv/a not supported".to_owned()];
        let words = "qemu-img: /srv/a not supported: broken";
        assert_eq!(meaning(&without(&nested, words)), Meaning::Unknown);
    }

    #[test]
    fn s1_a_lock_failure_wins() {
        let words = "qemu-img: Could not open '': Failed to get shared \"write\" lock\n\
                     Is another process using the image []?";
        assert_eq!(meaning(words), Meaning::Locked);
    }
}
