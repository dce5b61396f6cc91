//! Where a disk's bytes are: in a file of this host, or behind an NBD server or a Ceph cluster.
//!
//! A location is always given by its parts, each of which is checked; no text is ever taken apart. The text of
//! a location on the network ([`fmt::Display`]) is for rows and people, and to find the disk again.

mod parse;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(super) use parse::read;
use parse::{check_export, check_host, check_rbd_name, check_user};

use crate::types::{HostPath, checked_string};

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

#[cfg(test)]
mod tests;
