//! Where a disk's bytes are: in a file of this host, or behind an NBD server or a Ceph cluster.
//!
//! A location is always given by its parts, each of which is checked; no text is ever taken apart. The text of
//! a location on the network ([`fmt::Display`]) is for rows and people, and to find the disk again.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::LONGEST_SOCKET_PATH;
use super::fields::{Fields, Report, elements, integer_in, parsed, string};
use crate::types::{HostPath, InvalidValue, checked_string};

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskLocation {
    /// An image file of this host.
    #[serde(rename = "path")]
    File(HostPath),
    /// Elsewhere: nothing of this host is made or removed for it.
    #[serde(rename = "location")]
    Network(NetworkLocation),
}

/// A disk that a server keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum NetworkLocation {
    /// An export of an NBD server.
    Nbd(NbdLocation),
    /// An image of a Ceph cluster.
    Rbd(RbdLocation),
}

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NbdLocation {
    /// Where it listens.
    pub server: NbdServer,
    /// The export's name; the empty one is the server's default.
    pub export: ExportName,
    /// Whether and how it is spoken to by TLS.
    pub tls: Option<NbdTls>,
    /// For how many seconds requests wait for a new connection after one was lost.
    pub reconnect_delay: u32,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NbdServer {
    /// TCP.
    Inet(ServerAddress),
    /// A socket of this host.
    Unix(HostPath),
}

/// X.509, as QEMU's `tls-creds-x509` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NbdTls {
    /// The directory of `ca-cert.pem` and the client's own certificate.
    pub credentials: HostPath,
    /// Whom the server's certificate must name, if not the host.
    pub hostname: Option<ServerHost>,
}

/// An image of a Ceph cluster. Its user's key is in librados' own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RbdLocation {
    /// The pool.
    pub pool: RbdName,
    /// The pool's namespace.
    pub namespace: Option<RbdName>,
    /// The image.
    pub image: RbdName,
    /// Without `client.`; librados' own default is `admin`.
    pub user: Option<RbdUser>,
    /// librados' configuration file; its own default is `/etc/ceph/ceph.conf`.
    pub conf: Option<HostPath>,
    /// The monitors, instead of those the configuration names.
    pub monitors: Vec<ServerAddress>,
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerAddress {
    /// A name or an address.
    pub host: ServerHost,
    /// TCP.
    pub port: u16,
}

/// A DNS name, or an IPv4 or IPv6 address without brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerHost(String);
checked_string!(ServerHost, check_host);

/// The name of an NBD export; the protocol allows 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExportName(String);
checked_string!(ExportName, check_export);

/// The name of a pool, a namespace or an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RbdName(String);
checked_string!(RbdName, check_rbd_name);

/// A cephx user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RbdUser(String);
checked_string!(RbdUser, check_user);

/// NBD's port (IANA).
const NBD_PORT: u16 = 10809;
/// The port of Ceph's monitors (messenger v1, which every librados speaks).
const MONITOR_PORT: u16 = 6789;
const MOST_MONITORS: usize = 16;

impl DiskLocation {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&HostPath> {
        match self {
            Self::File(path) => Some(path),
            Self::Network(_) => None,
        }
    }

    /// Where it is on the network, if there.
    pub fn network(&self) -> Option<&NetworkLocation> {
        match self {
            Self::File(_) => None,
            Self::Network(location) => Some(location),
        }
    }

    /// Whether a row's text is that of a location on the network: no file's name begins so.
    pub fn is_network_text(text: &str) -> bool {
        ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "rbd:"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }
}

impl NetworkLocation {
    /// Whether both are one disk, as far as their names tell: by which user, by which monitors and whether by TLS
    /// makes no difference to what is written. One server by two names is not found out; two clusters whose pools
    /// and images have the same names are taken for one.
    pub fn is_same_disk(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nbd(one), Self::Nbd(other)) => {
                (&one.server, &one.export) == (&other.server, &other.export)
            }
            (Self::Rbd(one), Self::Rbd(other)) => {
                (&one.pool, &one.namespace, &one.image)
                    == (&other.pool, &other.namespace, &other.image)
            }
            _ => false,
        }
    }
}

impl fmt::Display for DiskLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Network(location) => location.fmt(f),
        }
    }
}

/// As QEMU's documentation writes such locations.
impl fmt::Display for NetworkLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd(nbd) => nbd.fmt(f),
            Self::Rbd(rbd) => {
                write!(f, "rbd:{}/", rbd.pool)?;
                if let Some(namespace) = &rbd.namespace {
                    write!(f, "{namespace}/")?;
                }
                write!(f, "{}", rbd.image)
            }
        }
    }
}

impl fmt::Display for NbdLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        match &self.server {
            NbdServer::Inet(server) => write!(f, "{scheme}://{server}/{}", self.export),
            NbdServer::Unix(path) => write!(f, "{scheme}+unix:///{}?socket={path}", self.export),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.as_str().contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// Reads a disk's `location`, which `field` names in a refusal. A key that is none is refused: a server
/// without the option that was meant may be another.
pub(super) fn read(field: &str, value: &Value, report: &Report) -> Option<NetworkLocation> {
    let fields = Fields::member(field, value, report)?;
    let read = match fields.required("type", kind)? {
        Kind::Nbd => nbd(field, &fields, report).map(NetworkLocation::Nbd),
        Kind::Rbd => rbd(field, &fields, report).map(NetworkLocation::Rbd),
    };
    fields.refuse_strangers();
    read
}

enum Kind {
    Nbd,
    Rbd,
}

fn kind(value: &Value) -> Result<Kind, InvalidValue> {
    match string(value)? {
        "nbd" => Ok(Kind::Nbd),
        "rbd" => Ok(Kind::Rbd),
        _ => Err(InvalidValue::new("must be one of nbd rbd")),
    }
}

fn nbd(field: &str, fields: &Fields<'_>, report: &Report) -> Option<NbdLocation> {
    let (host, path) = (
        fields.optional("host", parsed),
        fields.optional("path", socket),
    );
    let port = fields.optional("port", integer_in(1..=65_535));
    let export = fields.optional("export", parsed).unwrap_or_default();
    let reconnect_delay = fields.optional("reconnectDelay", integer_in(0..=3600));
    let tls = fields.optional("tls", Ok);
    let tls = tls.map(|value| nbd_tls(&format!("{field}.tls"), value, report));
    let server = match (fields.has("host"), fields.has("path")) {
        (true, false) => host.map(|host| {
            let port = port.unwrap_or(NBD_PORT);
            NbdServer::Inet(ServerAddress { host, port })
        }),
        (false, true) => path.map(NbdServer::Unix),
        _ => {
            report.refuse(field, "must have either host or path");
            None
        }
    };
    if fields.has("path") && fields.has("port") {
        report.refuse(format!("{field}.port"), "belongs to host");
    }
    if let (Some(NbdServer::Unix(_)), Some(Some(NbdTls { hostname: None, .. }))) = (&server, &tls) {
        let message = "is required, as a socket has no host whose name could be looked for";
        report.refuse(format!("{field}.tls.hostname"), message);
    }
    Some(NbdLocation {
        server: server?,
        export,
        tls: match tls {
            Some(tls) => Some(tls?),
            None => None,
        },
        reconnect_delay: reconnect_delay.unwrap_or_default(),
    })
}

fn nbd_tls(field: &str, value: &Value, report: &Report) -> Option<NbdTls> {
    let fields = Fields::member(field, value, report)?;
    let (credentials, hostname) = (
        fields.required("credentials", parsed),
        fields.optional("hostname", parsed),
    );
    fields.refuse_strangers();
    Some(NbdTls {
        credentials: credentials?,
        hostname,
    })
}

fn rbd(field: &str, fields: &Fields<'_>, report: &Report) -> Option<RbdLocation> {
    let (pool, image) = (
        fields.required("pool", parsed),
        fields.required("image", parsed),
    );
    let namespace = fields.optional("namespace", parsed);
    let (user, conf) = (
        fields.optional("user", parsed),
        fields.optional("conf", parsed),
    );
    let monitors = fields.optional("monitors", |value| match elements(value)? {
        [] => Err(InvalidValue::new("must name at least one")),
        many if many.len() > MOST_MONITORS => Err(InvalidValue::new("must name at most 16")),
        monitors => Ok(monitors),
    });
    let monitors = monitors.unwrap_or_default().iter().enumerate();
    let monitors = monitors
        .filter_map(|(at, value)| monitor(&format!("{field}.monitors[{at}]"), value, report))
        .collect();
    Some(RbdLocation {
        pool: pool?,
        namespace,
        image: image?,
        user,
        conf,
        monitors,
    })
}

fn monitor(field: &str, value: &Value, report: &Report) -> Option<ServerAddress> {
    let fields = Fields::member(field, value, report)?;
    let host = fields.required("host", parsed);
    let port = fields.optional("port", integer_in(1..=65_535));
    fields.refuse_strangers();
    Some(ServerAddress {
        host: host?,
        port: port.unwrap_or(MONITOR_PORT),
    })
}

fn socket(value: &Value) -> Result<HostPath, InvalidValue> {
    let path: HostPath = parsed(value)?;
    if path.as_str().len() > LONGEST_SOCKET_PATH {
        let why = format!("must have at most {LONGEST_SOCKET_PATH} bytes");
        return Err(InvalidValue::new(why));
    }
    Ok(path)
}

fn check_host(text: &str) -> Result<(), InvalidValue> {
    let label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(known)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label)) {
        return Ok(());
    }
    Err(InvalidValue::new(
        "must be a host's name or address, without brackets and port",
    ))
}

fn check_export(text: &str) -> Result<(), InvalidValue> {
    const LONGEST: usize = 4096;
    if text.len() > LONGEST || text.chars().any(char::is_control) {
        let why = "must have at most 4096 bytes and no control characters";
        return Err(InvalidValue::new(why));
    }
    Ok(())
}

/// `/` and `@` separate the parts of a location in Ceph's own words.
fn check_rbd_name(text: &str) -> Result<(), InvalidValue> {
    let foreign = |c: char| c.is_control() || c == '/' || c == '@';
    if text.is_empty() || text.len() > 255 || text.chars().any(foreign) {
        let why = "must have 1 to 255 bytes, without '/', '@' and control characters";
        return Err(InvalidValue::new(why));
    }
    Ok(())
}

fn check_user(text: &str) -> Result<(), InvalidValue> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(known) {
        let why = "must have 1 to 255 letters, digits, '-', '_' and '.'";
        return Err(InvalidValue::new(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given(value: &Value) -> Result<NetworkLocation, Vec<String>> {
        let report = Report::default();
        let location = read("location", value, &report);
        let parsed = report.conclude(location);
        parsed.map(|parsed| parsed.config).map_err(|error| {
            let issues = error.issues.into_iter();
            issues.map(|issue| issue.path).collect()
        })
    }

    #[test]
    fn each_location_has_one_text_and_one_serde_form() {
        let table = [
            (
                json!({ "type": "nbd", "host": "10.0.0.1" }),
                "nbd://10.0.0.1:10809/",
            ),
            (
                json!({ "type": "nbd", "host": "fe80::1", "port": 1, "export": "a" }),
                "nbd://[fe80::1]:1/a",
            ),
            (
                json!({ "type": "nbd", "host": "n", "tls": { "credentials": "/etc/pki" } }),
                "nbds://n:10809/",
            ),
            (
                json!({ "type": "nbd", "path": "/run/x.sock", "export": "a" }),
                "nbd+unix:///a?socket=/run/x.sock",
            ),
            (
                json!({ "type": "rbd", "pool": "p", "namespace": "n", "image": "i" }),
                "rbd:p/n/i",
            ),
        ];
        for (value, text) in table {
            let location = DiskLocation::Network(given(&value).unwrap());
            assert_eq!(location.to_string(), text);
            assert!(DiskLocation::is_network_text(text) && HostPath::parse(text).is_err());
            let kept = serde_json::to_value(&location).unwrap();
            let read: DiskLocation = serde_json::from_value(kept).unwrap();
            assert_eq!(read, location);
        }
        let file = DiskLocation::File(HostPath::parse("/a").unwrap());
        assert_eq!(
            serde_json::to_value(&file).unwrap(),
            json!({ "path": "/a" })
        );
    }

    #[test]
    fn one_disk_is_one_however_it_is_reached() {
        let nbd = json!({ "type": "nbd", "host": "h", "export": "e" });
        let rbd = json!({ "type": "rbd", "pool": "p", "image": "i" });
        for (location, member, value, same) in [
            (&nbd, "port", json!(10809), true),
            (&nbd, "reconnectDelay", json!(9), true),
            (&nbd, "tls", json!({ "credentials": "/c" }), true),
            (&nbd, "port", json!(1), false),
            (&nbd, "export", json!("f"), false),
            (&rbd, "user", json!("u"), true),
            (&rbd, "conf", json!("/c"), true),
            (&rbd, "namespace", json!("n"), false),
            (&rbd, "image", json!("j"), false),
        ] {
            let mut other = location.clone();
            other[member] = value;
            let (one, two) = (given(location).unwrap(), given(&other).unwrap());
            assert_eq!(one.is_same_disk(&two), same, "{other}");
        }
        let (nbd, rbd) = (given(&nbd).unwrap(), given(&rbd).unwrap());
        assert!(!nbd.is_same_disk(&rbd));
    }

    #[test]
    fn b2_b3_b20_what_makes_no_location_is_refused_by_its_field() {
        let table = [
            (json!("nbd://host/export"), "location"),
            (json!({}), "location.type"),
            (json!({ "type": "iscsi" }), "location.type"),
            (json!({ "type": "nbd" }), "location"),
            (
                json!({ "type": "nbd", "host": "a", "path": "/run/s" }),
                "location",
            ),
            (json!({ "type": "nbd", "host": "a,b" }), "location.host"),
            (json!({ "type": "nbd", "host": "a;b" }), "location.host"),
            (json!({ "type": "nbd", "host": "[::1]" }), "location.host"),
            (json!({ "type": "nbd", "host": "a:1" }), "location.host"),
            (json!({ "type": "nbd", "host": "" }), "location.host"),
            (
                json!({ "type": "nbd", "host": "a", "port": 0 }),
                "location.port",
            ),
            (
                json!({ "type": "nbd", "host": "a", "port": "1" }),
                "location.port",
            ),
            (
                json!({ "type": "nbd", "path": "/run/s", "port": 1 }),
                "location.port",
            ),
            (json!({ "type": "nbd", "path": "run/s" }), "location.path"),
            (
                json!({ "type": "nbd", "path": format!("/{}", "x".repeat(108)) }),
                "location.path",
            ),
            (
                json!({ "type": "nbd", "host": "a", "export": "a\nb" }),
                "location.export",
            ),
            (
                json!({ "type": "nbd", "host": "a", "uri": "x" }),
                "location.uri",
            ),
            (
                json!({ "type": "nbd", "host": "a", "tls": {} }),
                "location.tls.credentials",
            ),
            (
                json!({ "type": "nbd", "path": "/run/s", "tls": { "credentials": "/c" } }),
                "location.tls.hostname",
            ),
            (json!({ "type": "rbd", "image": "i" }), "location.pool"),
            (
                json!({ "type": "rbd", "pool": "p", "image": "i@s" }),
                "location.image",
            ),
            (
                json!({ "type": "rbd", "pool": "p/q", "image": "i" }),
                "location.pool",
            ),
            (
                json!({ "type": "rbd", "pool": "p", "image": "i", "user": "a:key=b" }),
                "location.user",
            ),
            (
                json!({ "type": "rbd", "pool": "p", "image": "i", "conf": "ceph.conf" }),
                "location.conf",
            ),
            (
                json!({ "type": "rbd", "pool": "p", "image": "i", "monitors": [] }),
                "location.monitors",
            ),
            (
                json!({ "type": "rbd", "pool": "p", "image": "i", "monitors": [{ "host": "a,b" }] }),
                "location.monitors[0].host",
            ),
        ];
        for (value, path) in table {
            assert_eq!(given(&value).unwrap_err(), [path], "{value}");
        }
    }
}
