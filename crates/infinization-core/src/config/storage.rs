//! What the verbs on storage pools and volumes take.

use serde_json::Value;

use super::fields::{Fields, Report, parsed, string};
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

/// What `convertVolume` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeConvertOptions {
    /// The volume that is converted.
    pub source: VolumeName,
    /// The new one, and its format.
    pub name: VolumeName,
    /// Its clusters are compressed; qcow2 only. Default false.
    pub compress: bool,
    /// The source's key if it is encrypted, and the new volume's.
    pub key: Option<DiskKey>,
    /// What is made of an encrypted volume is not. Default false.
    pub decrypt: bool,
}

/// What `uploadVolume` takes beside the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOptions {
    /// What the bytes are said to be.
    pub format: Option<DiskFormat>,
    /// How many there are.
    pub size: Option<ByteSize>,
    /// Their SHA-256, in lower-case hexadecimal.
    pub sha256: Option<String>,
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
    /// Reads `StorageVolumeCloneOptions`.
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

impl VolumeConvertOptions {
    /// Reads `StorageVolumeConvertOptions`.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            let (source, name) = (
                fields.required("source", parsed),
                fields.required("name", parsed),
            );
            Some(Self {
                compress: fields.flag("compress", false),
                key: fields.optional("encryptionKey", parsed),
                decrypt: fields.flag("decrypt", false),
                source: source?,
                name: name?,
            })
        })
    }
}

impl UploadOptions {
    /// Reads `VolumeUploadOptions` for a volume of this name, whose ending is its format.
    pub fn parse(value: &Value, name: &VolumeName) -> Result<Parsed<Self>, ConfigError> {
        read(value, |fields| {
            Some(Self {
                format: fields.optional("format", |value| {
                    let format: DiskFormat = parsed(value)?;
                    if format != name.format() {
                        let why = "must be what the ending of the volume's name says";
                        return Err(InvalidValue::new(why));
                    }
                    Ok(format)
                }),
                size: fields.optional("size", length),
                sha256: fields.optional("sha256", sha256),
            })
        })
    }
}

/// Reads options that only hold what the façade has taken out already.
pub fn parse_no_options(value: &Value) -> Result<Parsed<()>, ConfigError> {
    read(value, |_fields| Some(()))
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

fn length(value: &Value) -> Result<ByteSize, InvalidValue> {
    let bytes = value.as_u64().filter(|bytes| *bytes > 0);
    bytes
        .map(ByteSize::bytes)
        .ok_or_else(|| InvalidValue::new("must be a positive number of bytes"))
}

fn sha256(value: &Value) -> Result<String, InvalidValue> {
    let text = string(value)?.to_ascii_lowercase();
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(InvalidValue::new("must be 64 hexadecimal digits"));
    }
    Ok(text)
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
    fn what_is_uploaded_is_what_its_name_says() {
        let name = VolumeName::try_from("a.qcow2".to_owned()).unwrap();
        for (options, path) in [
            (json!({ "format": "raw" }), "format"),
            (json!({ "size": 0 }), "size"),
            (json!({ "size": 1.5 }), "size"),
            (json!({ "sha256": "abc" }), "sha256"),
            (json!({ "sha256": "g".repeat(64) }), "sha256"),
            (json!({ "checksum": "a" }), "checksum"),
        ] {
            let refused = UploadOptions::parse(&options, &name).unwrap_err();
            assert_eq!(refused.issues[0].path, path, "{options}");
        }
        let options = json!({ "format": "qcow2", "size": 513, "sha256": "AB".repeat(32) });
        let options = UploadOptions::parse(&options, &name).unwrap().config;
        assert_eq!(options.sha256.unwrap(), "ab".repeat(32));
    }

    #[test]
    fn b20_strangers_are_refused() {
        let options = json!({ "source": "a.raw", "name": "b.raw", "link": true });
        assert!(CloneOptions::parse(&options).is_err());
        assert!(PoolOptions::parse(&json!({ "path": "relative" })).is_err());
        assert!(VolumeResizeOptions::parse(&Value::Null).is_err());
    }
}
