//! Reads a disk's `location` member by member, and checks its texts.

use std::net::IpAddr;

use serde_json::Value;

use super::{NbdLocation, NbdServer, NbdTls, NetworkLocation, RbdLocation, ServerAddress};
use crate::config::LONGEST_SOCKET_PATH;
use crate::config::fields::{Fields, Report, elements, integer_in, parsed, string};
use crate::types::{HostPath, InvalidValue};

/// NBD's port (IANA).
const NBD_PORT: u16 = 10809;

/// The port of Ceph's monitors (messenger v1, which every librados speaks).
const MONITOR_PORT: u16 = 6789;

const MOST_MONITORS: usize = 16;

/// Reads a disk's `location`, which `field` names in a refusal. A key that is none is refused: a server
/// without the option that was meant may be another.
pub(in crate::config) fn read(
    field: &str,
    value: &Value,
    report: &Report,
) -> Option<NetworkLocation> {
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

pub(super) fn check_host(text: &str) -> Result<(), InvalidValue> {
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

pub(super) fn check_export(text: &str) -> Result<(), InvalidValue> {
    const LONGEST: usize = 4096;
    if text.len() > LONGEST || text.chars().any(char::is_control) {
        let why = "must have at most 4096 bytes and no control characters";
        return Err(InvalidValue::new(why));
    }
    Ok(())
}

/// `/` and `@` separate the parts of a location in Ceph's own words.
pub(super) fn check_rbd_name(text: &str) -> Result<(), InvalidValue> {
    let foreign = |c: char| c.is_control() || c == '/' || c == '@';
    if text.is_empty() || text.len() > 255 || text.chars().any(foreign) {
        let why = "must have 1 to 255 bytes, without '/', '@' and control characters";
        return Err(InvalidValue::new(why));
    }
    Ok(())
}

pub(super) fn check_user(text: &str) -> Result<(), InvalidValue> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(known) {
        let why = "must have 1 to 255 letters, digits, '-', '_' and '.'";
        return Err(InvalidValue::new(why));
    }
    Ok(())
}
