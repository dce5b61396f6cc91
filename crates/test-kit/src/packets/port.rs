//! One end of a cable: a TAP, written and read as QEMU does.
//!
//! A frame that is written is bridged, filtered and routed before the call returns, on this thread:
//! the kernel takes a TAP's frames in without a queue. So what has not arrived then never will, and
//! "it did not come" costs no time.

use std::os::fd::OwnedFd;

use infinization_core::host::tap::{self, Queues, TapOptions};
use infinization_core::types::LinkName;
use rustix::io::Errno;

use super::frame::Mac;

/// `struct virtio_net_hdr` before each frame; all zero: nothing is left to do.
const VNET_HEADER: usize = 10;
const LONGEST: usize = 4096;

#[derive(Debug)]
pub struct Port {
    pub name: String,
    pub mac: Mac,
    queue: OwnedFd,
}

impl Port {
    /// A new TAP of this name: down, on no bridge.
    pub async fn new(name: &str, mac: Mac) -> Self {
        let queues = Queues::new(1).unwrap();
        let options = TapOptions {
            queues,
            owner: None,
        };
        let tap = LinkName::parse(name).unwrap();
        let queue = tap::create(&tap, options).await.unwrap().remove(0);
        rustix::io::ioctl_fionbio(&queue, true).unwrap();
        Self {
            name: name.into(),
            mac,
            queue,
        }
    }

    pub fn send(&self, frame: &[u8]) {
        let octets = [&[0; VNET_HEADER], frame].concat();
        let written = rustix::io::write(&self.queue, &octets).unwrap();
        assert_eq!(written, octets.len());
    }

    /// The next frame that has arrived.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut octets = vec![0; LONGEST];
        match rustix::io::read(&self.queue, &mut octets) {
            Ok(length) => Some(octets[VNET_HEADER..length].to_vec()),
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }
}
