//! dnsmasq's file of leases: one line each, `expiry mac address hostname client-id`.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::types::MacAddr;

/// An address that was given away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// To whom.
    pub mac: MacAddr,
    /// Which.
    pub ip: Ipv4Addr,
    /// What the machine calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Until when, in milliseconds since 1970; none for one that never ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
}

/// The leases that have not ended at `now` (seconds since 1970), by address. Lines of other kinds (IPv6, its
/// server's id) and a line that is only half there are left out.
pub fn parse_leases(file: &str, now: u64) -> Vec<Lease> {
    let lines = file
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let mut leases: Vec<Lease> = lines.filter_map(|line| lease(line, now)).collect();
    leases.sort_by_key(|lease| lease.ip);
    leases
}

fn lease(line: &str, now: u64) -> Option<Lease> {
    let mut words = line.split_ascii_whitespace();
    let ends: u64 = words.next()?.parse().ok()?;
    let (mac, ip) = (words.next()?, words.next()?);
    let hostname = words.next()?;
    if ends != 0 && ends <= now {
        return None;
    }
    Some(Lease {
        mac: MacAddr::parse(mac).ok()?,
        ip: ip.parse().ok()?,
        hostname: (hostname != "*").then(|| hostname.to_owned()),
        expires_at: (ends != 0).then(|| ends.saturating_mul(1000)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read_and_the_rest_is_left_out() {
        let file = "1000 52:54:00:00:00:02 10.20.0.9 web 01:52:54:00:00:00:02\n\
                    0 52:54:00:00:00:01 10.20.0.5 * *\n\
                    500 52:54:00:00:00:03 10.20.0.7 old *\n\
                    duid 00:01:00:01\n\
                    900 1234 fd00::5 six 00:01\n\
                    2000 52:54:00:00:00:04 10.20.0.10 half";
        let read = parse_leases(file, 600);
        let told: Vec<_> = read
            .iter()
            .map(|it| (it.ip.octets()[3], it.hostname.as_deref(), it.expires_at))
            .collect();
        assert_eq!(told, [(5, None, None), (9, Some("web"), Some(1_000_000))]);
        assert_eq!(parse_leases("\0\n\n x\n", 0), []);
    }
}
