//! The protocol layers of disks that are elsewhere: `nbd` and `rbd`, in the words of QEMU's
//! `qapi/block-core.json` (7.2), and the credentials NBD may need.
//!
//! Every part of a location is a value of its own in JSON, so none can be read as another option.

use serde::Serialize;

use super::args::ToArgs;
use super::blockdev::Cache;
use super::machine::object;
use crate::config::{
    DiskLocation, NbdLocation, NbdServer, NetworkLocation, RbdLocation, RbdName, RbdUser,
    ServerAddress,
};
use crate::types::HostPath;

/// `BlockdevOptionsNbd`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Nbd<'a> {
    driver: &'static str,
    server: SocketAddress<'a>,
    export: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_creds: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    reconnect_delay: u32,
    discard: Option<&'static str>,
    cache: Cache,
}

/// `SocketAddress`.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum SocketAddress<'a> {
    Inet(InetAddress<'a>),
    Unix { path: &'a str },
}

/// `InetSocketAddressBase`. Ports are texts there.
#[derive(Debug, Serialize)]
struct InetAddress<'a> {
    host: &'a str,
    port: String,
}

/// `BlockdevOptionsRbd`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Rbd<'a> {
    driver: &'static str,
    pool: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conf: Option<&'a str>,
    /// The monitors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    server: Vec<InetAddress<'a>>,
    discard: Option<&'static str>,
    cache: Cache,
}

/// `tls-creds-x509` of one disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct TlsCredentials<'a> {
    qom_type: &'static str,
    id: String,
    endpoint: &'static str,
    dir: &'a str,
    verify_peer: bool,
}

impl<'a> Nbd<'a> {
    pub(super) fn new(
        disk: &str,
        nbd: &'a NbdLocation,
        discard: Option<&'static str>,
        cache: Cache,
    ) -> Self {
        let server = match &nbd.server {
            NbdServer::Inet(server) => SocketAddress::Inet(server.into()),
            NbdServer::Unix(path) => SocketAddress::Unix {
                path: path.as_str(),
            },
        };
        let tls = nbd.tls.as_ref();
        Self {
            driver: "nbd",
            server,
            export: nbd.export.as_str(),
            tls_creds: tls.map(|_| credentials_of(disk)),
            tls_hostname: tls.and_then(|tls| Some(tls.hostname.as_ref()?.as_str())),
            reconnect_delay: nbd.reconnect_delay,
            discard,
            cache,
        }
    }
}

impl<'a> Rbd<'a> {
    pub(super) fn new(rbd: &'a RbdLocation, discard: Option<&'static str>, cache: Cache) -> Self {
        Self {
            driver: "rbd",
            pool: rbd.pool.as_str(),
            namespace: rbd.namespace.as_ref().map(RbdName::as_str),
            image: rbd.image.as_str(),
            user: rbd.user.as_ref().map(RbdUser::as_str),
            conf: rbd.conf.as_ref().map(HostPath::as_str),
            server: rbd.monitors.iter().map(InetAddress::from).collect(),
            discard,
            cache,
        }
    }
}

impl<'a> From<&'a ServerAddress> for InetAddress<'a> {
    fn from(server: &'a ServerAddress) -> Self {
        Self {
            host: server.host.as_str(),
            port: server.port.to_string(),
        }
    }
}

impl<'a> TlsCredentials<'a> {
    /// What the disk at `location` needs, whose node is `disk`.
    pub(super) fn of(disk: &str, location: &'a DiskLocation) -> Option<Self> {
        let NetworkLocation::Nbd(nbd) = location.network()? else {
            return None;
        };
        Some(Self {
            qom_type: "tls-creds-x509",
            id: credentials_of(disk),
            endpoint: "client",
            dir: nbd.tls.as_ref()?.credentials.as_str(),
            verify_peer: true,
        })
    }
}

impl ToArgs for TlsCredentials<'_> {
    fn to_args(&self) -> Vec<String> {
        object(self)
    }
}

fn credentials_of(disk: &str) -> String {
    format!("{disk}-tls")
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_zero(seconds: &u32) -> bool {
    *seconds == 0
}
