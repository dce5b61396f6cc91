//! Backends of disks, CDs and flash: `-blockdev`.
//!
//! The format is always said, so that nothing is probed. Node names are the ids of the devices that
//! use them, which is what block jobs and `queryBlockDevices` speak of.

use serde::Serialize;
use serde_json::Value;

use super::args::{ToArgs, json};
use super::network_disk::{Nbd, Rbd};
use super::secret::key_of;
use crate::config::{CacheMode, DiskConfig, DiskLocation, NetworkLocation};
use crate::types::HostPath;

/// The options of `blockdev-add` for disk `index`, whose backing file's node is put behind it later. If it is
/// encrypted, so is that, and the object that opened that one opens it.
pub fn overlay_options(node_name: &str, index: usize, disk: &DiskConfig, encrypted: bool) -> Value {
    let encrypted = encrypted.then(|| Encrypted {
        key_secret: key_of(index),
        below: &[],
    });
    let mut options = serde_json::to_value(Blockdev::disk(node_name.to_owned(), disk, encrypted));
    if let Ok(Value::Object(options)) = &mut options {
        options.insert("backing".to_owned(), Value::Null);
    }
    options.unwrap_or_default()
}

/// What `-blockdev` of disk `index` says on the command line.
pub fn blockdev_argument(index: usize, disk: &DiskConfig) -> String {
    let args = Blockdev::disk(node_of(index), disk, None).to_args();
    args.into_iter().next_back().unwrap_or_default()
}

/// A disk's node has its device's name.
pub(super) fn node_of(index: usize) -> String {
    format!("disk{index}")
}

/// `-blockdev` of a format on a protocol.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Blockdev<'a> {
    /// `qcow2` or `raw`.
    driver: &'static str,
    node_name: String,
    read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    discard: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Cache>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encrypt: Option<Encrypt>,
    file: Protocol<'a>,
    /// Only where the header alone does not open it.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing: Option<Box<Layer<'a>>>,
}

/// An encrypted disk as it is to be opened.
#[derive(Debug)]
pub(super) struct Encrypted<'a> {
    /// The id of the `secret` object that opens it.
    pub(super) key_secret: String,
    /// The encrypted files below it, nearest first.
    pub(super) below: &'a [HostPath],
}

/// An encrypted backing file. What lies below the last one is opened as its header says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Layer<'a> {
    driver: &'static str,
    encrypt: Encrypt,
    file: File<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing: Option<Box<Self>>,
}

/// How what is in the image is encrypted, and the id of the `secret` object that opens it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Encrypt {
    format: &'static str,
    key_secret: String,
}

/// The layer below the format.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Protocol<'a> {
    File(File<'a>),
    Nbd(Nbd<'a>),
    Rbd(Rbd<'a>),
}

/// A file of the host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct File<'a> {
    driver: &'static str,
    filename: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    aio: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locking: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    discard: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Cache>,
}

/// The two halves of a cache mode the backend knows; the third, whether the guest sees a write
/// cache, is the device's `write-cache`.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Cache {
    direct: bool,
    no_flush: bool,
}

impl From<CacheMode> for Cache {
    fn from(mode: CacheMode) -> Self {
        Self {
            direct: mode.is_direct(),
            no_flush: mode.ignores_flushes(),
        }
    }
}

impl<'a> Blockdev<'a> {
    /// A disk.
    pub(super) fn disk(
        node_name: String,
        disk: &'a DiskConfig,
        encrypted: Option<Encrypted<'a>>,
    ) -> Self {
        let cache = Cache::from(disk.cache);
        let discard = Some(if disk.discard { "unmap" } else { "ignore" });
        let file = match &disk.location {
            DiskLocation::File(path) => {
                Protocol::File(File::of_disk(path.as_str(), discard, cache))
            }
            DiskLocation::Network(NetworkLocation::Nbd(nbd)) => {
                Protocol::Nbd(Nbd::new(&node_name, nbd, discard, cache))
            }
            DiskLocation::Network(NetworkLocation::Rbd(rbd)) => {
                Protocol::Rbd(Rbd::new(rbd, discard, cache))
            }
        };
        Self {
            driver: disk.format.as_str(),
            node_name,
            read_only: false,
            discard,
            cache: Some(cache),
            encrypt: encrypted.as_ref().map(Encrypted::luks),
            file,
            backing: encrypted.and_then(|disk| disk.layers()),
        }
    }

    /// Bytes that are what they are: a CD image, a flash chip.
    pub(super) fn raw(node_name: String, filename: &'a str, read_only: bool) -> Self {
        Self {
            driver: "raw",
            node_name,
            read_only,
            discard: None,
            cache: None,
            encrypt: None,
            file: Protocol::File(File::plain(filename)),
            backing: None,
        }
    }
}

impl<'a> Encrypted<'a> {
    fn luks(&self) -> Encrypt {
        Encrypt {
            format: "luks",
            key_secret: self.key_secret.clone(),
        }
    }

    fn layers(&self) -> Option<Box<Layer<'a>>> {
        let files = self.below.iter().rev();
        files.fold(None, |backing, file| {
            Some(Box::new(Layer {
                driver: "qcow2",
                encrypt: self.luks(),
                file: File::plain(file.as_str()),
                backing,
            }))
        })
    }
}

impl<'a> File<'a> {
    /// As QEMU opens it by itself.
    fn plain(filename: &'a str) -> Self {
        Self {
            driver: "file",
            filename,
            aio: None,
            locking: None,
            discard: None,
            cache: None,
        }
    }

    /// `locking` is on: two QEMUs on one image end it.
    fn of_disk(filename: &'a str, discard: Option<&'static str>, cache: Cache) -> Self {
        Self {
            driver: "file",
            filename,
            // Linux AIO wants O_DIRECT; everything else goes through QEMU's threads.
            aio: Some(if cache.direct { "native" } else { "threads" }),
            locking: Some("on"),
            discard,
            cache: Some(cache),
        }
    }
}

impl ToArgs for Blockdev<'_> {
    fn to_args(&self) -> Vec<String> {
        json("-blockdev", self)
    }
}
