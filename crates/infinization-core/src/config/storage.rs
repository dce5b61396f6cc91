//! What the verbs on storage pools and volumes take.

use serde_json::Value;

use super::fields::{Fields, Report, parsed};
use super::{ConfigError, DiskFormat, Parsed, words};
use crate::types::{ByteSize, DiskKey, HostPath, InvalidValue};

/// The longest name of a pool.
const LONGEST_POOL: usize = 64;
/// Leaves room for what temporary names add within the 255 bytes of a file name.
const LONGEST_VOLUME: usize = 200;

words! {
    /// What of a volume is given its space when it is made.
    pub enum VolumePreallocation {
        /// Nothing. The default.
        Off = "off",
        /// The tables that find the data; qcow2 only.
        Metadata = "metadata",
        /// Everything, by `fallocate`.
        Falloc = "falloc",
        /// Everything, by writing zeros.
        Full = "full",
    }
}

/// What `definePool` takes beside the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// The directory.
    pub path: HostPath,
    /// Makes the directory if it is not there. Default false.
    pub create: bool,
}

/// What `createVolume` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOptions {
    /// A file name that ends in its format.
    pub name: VolumeName,
    /// The disk's size.
    pub capacity: ByteSize,
    /// Default: off.
    pub preallocation: VolumePreallocation,
    /// Encrypts it.
    pub key: Option<DiskKey>,
}

/// What `cloneVolume` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneOptions {
    /// The volume that is cloned.
    pub source: VolumeName,
    /// The clone.
    pub name: VolumeName,
    /// The clone is an overlay on its source. Default false: a copy of all its data.
    pub linked: bool,
    /// The source's key if it is encrypted, and the copy's.
    pub key: Option<DiskKey>,
    /// The copy of an encrypted volume is not. Default false.
    pub decrypt: bool,
}

/// What `resizeVolume` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeResizeOptions {
    /// The new size.
    pub capacity: ByteSize,
    /// What lies beyond it may be lost. Default false.
    pub shrink: bool,
    /// Of an encrypted volume that no running machine has.
    pub key: Option<DiskKey>,
}

/// A pool's name: 1 to 64 letters, digits, `-` and `_`, and no `-` in front.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(String);

impl PoolName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PoolName {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if text.is_empty() || text.len() > LONGEST_POOL || text.starts_with('-') {
            return Err(InvalidValue::new(
                "must have 1 to 64 bytes and no '-' in front",
            ));
        }
        if !text.bytes().all(known) {
            return Err(InvalidValue::new("must be of letters, digits, '-' and '_'"));
        }
        Ok(Self(text))
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

/// A volume's file name. Its ending says its format, which is never read from the content: a guest can
/// write any header into a raw disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeName(String, DiskFormat);

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What its ending says.
    pub fn format(&self) -> DiskFormat {
        self.1
    }
}

impl TryFrom<String> for VolumeName {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > LONGEST_VOLUME || text.starts_with(['.', '-']) {
            let why = "must have 1 to 200 bytes and neither '.' nor '-' in front";
            return Err(InvalidValue::new(why));
        }
        if !text.bytes().all(known) {
            let why = "must be of letters, digits, '-', '_' and '.'";
            return Err(InvalidValue::new(why));
        }
        match text.rsplit_once('.') {
            Some((_, "qcow2")) => Ok(Self(text, DiskFormat::Qcow2)),
            Some((_, "raw" | "img")) => Ok(Self(text, DiskFormat::Raw)),
            _ => Err(InvalidValue::new("must end in .qcow2, .raw or .img")),
        }
    }
}

impl PoolOptions {
    /// Reads `StoragePoolOptions`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            Some(Self {
                path: fields.required("path", parsed)?,
                create: fields.flag("create", false),
            })
        })
    }
}

impl VolumeOptions {
    /// Reads `VolumeOptions`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let (name, capacity) = (
                fields.required("name", parsed),
                fields.required("capacity", capacity),
            );
            let preallocation = fields.optional("preallocation", parsed);
            let key = fields.optional("encryptionKey", parsed);
            Some(Self {
                name: name?,
                capacity: capacity?,
                preallocation: preallocation.unwrap_or(VolumePreallocation::Off),
                key,
            })
        })
    }
}

impl CloneOptions {
    /// Reads `VolumeCloneOptions`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let (source, name) = (
                fields.required("source", parsed),
                fields.required("name", parsed),
            );
            Some(Self {
                linked: fields.flag("linked", false),
                key: fields.optional("encryptionKey", parsed),
                decrypt: fields.flag("decrypt", false),
                source: source?,
                name: name?,
            })
        })
    }
}

impl VolumeResizeOptions {
    /// Reads `VolumeResizeOptions`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            Some(Self {
                shrink: fields.flag("shrink", false),
                key: fields.optional("encryptionKey", parsed),
                capacity: fields.required("capacity", capacity)?,
            })
        })
    }
}

fn read<T>(
    value: &Value,
    build: impl FnOnce(&Fields<'_>) -> Option<T>,
) -> Result<Parsed<T>, ConfigError> {
    let report = Report::default();
    let options = Fields::of("options", value, &report).and_then(|fields| {
        let options = build(&fields);
        // An AbortSignal travels in the same object; whoever called us has taken it.
        fields.skip(&["signal"]);
        fields.refuse_strangers();
        options
    });
    report.conclude(options)
}

/// Bytes: whole sectors, as disks have them.
fn capacity(value: &Value) -> Result<ByteSize, InvalidValue> {
    const SECTOR: u64 = 512;
    let bytes = value
        .as_u64()
        .filter(|bytes| *bytes > 0 && bytes % SECTOR == 0);
    bytes
        .map(ByteSize::bytes)
        .ok_or_else(|| InvalidValue::new("must be a positive number of bytes, a multiple of 512"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn b7_names_lead_nowhere_else() {
        let long = format!("{}.qcow2", "x".repeat(200));
        for bad in [
            "",
            ".qcow2",
            "../a.qcow2",
            "a/b.qcow2",
            "-a.raw",
            "a.vmdk",
            "a",
            "a\n.raw",
            &long,
        ] {
            assert!(VolumeName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a b", "ä", &long] {
            assert!(PoolName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        let raw = VolumeName::try_from("a.b.img".to_owned()).unwrap();
        assert_eq!(raw.format(), DiskFormat::Raw);
    }

    #[test]
    fn b10_a_capacity_is_whole_sectors() {
        for bad in [
            json!(0),
            json!(-512),
            json!(513),
            json!(512.5),
            json!("512"),
            json!(null),
        ] {
            let options = json!({ "name": "a.raw", "capacity": bad });
            let refused = VolumeOptions::parse(&options).unwrap_err();
            assert_eq!(refused.issues[0].path, "capacity", "{bad}");
        }
        let options = json!({ "name": "a.raw", "capacity": 1024, "preallocation": "falloc" });
        let options = VolumeOptions::parse(&options).unwrap().config;
        assert_eq!(options.capacity, ByteSize::bytes(1024));
    }

    #[test]
    fn b20_strangers_are_refused() {
        let options = json!({ "source": "a.raw", "name": "b.raw", "link": true });
        assert!(CloneOptions::parse(&options).is_err());
        assert!(PoolOptions::parse(&json!({ "path": "relative" })).is_err());
        assert!(VolumeResizeOptions::parse(&Value::Null).is_err());
    }
}
