//! Hands out TCP ports for displays, so that two VMs of this process never get the same one.
//!
//! A port is reserved from before QEMU is told of it until its VM is off, and binding proves that
//! no other process has it. Between that proof and QEMU's own bind another process may still take
//! it: the start then sees `Address already in use` and asks for the next port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::error::{Coded, ErrorCode};

/// No port of the range is free on the address.
#[derive(Debug, thiserror::Error)]
#[error("no free display port from {first} to {last} on {address}")]
pub struct NoFreePort {
    first: u16,
    last: u16,
    address: String,
}

impl Coded for NoFreePort {
    fn code(&self) -> ErrorCode {
        ErrorCode::AddressInUse
    }

    fn context(&self) -> Map<String, Value> {
        Map::from_iter([("address".to_owned(), Value::from(self.address.as_str()))])
    }
}

/// The ports this process has given out. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct DisplayPorts {
    reserved: Arc<Mutex<BTreeSet<u16>>>,
}

/// A reserved port; dropping it gives the port back.
#[derive(Debug)]
pub struct ReservedPort {
    port: u16,
    reserved: Arc<Mutex<BTreeSet<u16>>>,
}

impl ReservedPort {
    /// The port's number.
    pub fn number(&self) -> u16 {
        self.port
    }
}

impl Drop for ReservedPort {
    fn drop(&mut self) {
        self.reserved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.port);
    }
}

impl DisplayPorts {
    /// The first port of `range` that no VM of ours has and that `address` can be bound to.
    pub fn reserve(
        &self,
        address: &str,
        range: RangeInclusive<u16>,
    ) -> Result<ReservedPort, NoFreePort> {
        let (first, last) = (*range.start(), *range.end());
        for port in range {
            if let Some(port) = self.claim(port)
                && can_bind(address, port.number())
            {
                return Ok(port);
            }
        }
        Err(NoFreePort {
            first,
            last,
            address: address.to_owned(),
        })
    }

    /// Takes `port` for a VM that is known to listen on it already.
    pub fn claim(&self, port: u16) -> Option<ReservedPort> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.insert(port).then(|| ReservedPort {
            port,
            reserved: Arc::clone(&self.reserved),
        })
    }
}

fn can_bind(address: &str, port: u16) -> bool {
    // A name that does not resolve is QEMU's to refuse: it says why.
    let addresses = (address, port).to_socket_addrs().map_or_else(
        |_| vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)],
        Iterator::collect,
    );
    // std binds with SO_REUSEADDR, as QEMU does: a port in TIME_WAIT is free, a listening one is not.
    addresses
        .iter()
        .all(|address| TcpListener::bind(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_vms_never_share_a_port() {
        let ports = DisplayPorts::default();
        let first = ports.reserve("127.0.0.1", 36900..=36999).unwrap();
        let second = ports.reserve("127.0.0.1", 36900..=36999).unwrap();
        assert_ne!(first.number(), second.number());
    }

    #[test]
    fn f37_a_port_another_process_listens_on_is_passed_over() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let ports = DisplayPorts::default();
        assert!(ports.reserve("127.0.0.1", port..=port).is_err());
        drop(taken);
        assert_eq!(
            ports.reserve("127.0.0.1", port..=port).unwrap().number(),
            port
        );
        assert_eq!(
            ports.reserve("127.0.0.1", port..=port).unwrap().number(),
            port,
            "given back"
        );
    }
}
