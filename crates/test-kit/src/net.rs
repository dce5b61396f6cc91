//! What the network tests share: names, links made by others, and raw frames over a TAP.
#![expect(unsafe_code, reason = "TUNSETOFFLOAD has no safe wrapper")]

use std::future::poll_fn;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use infinization_core::host::link::{Link, LinkEvent, LinkWatch, Links};
use infinization_core::host::tap::{Queues, TapOptions};
use infinization_core::types::LinkName;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Longer than anything here takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn name(text: &str) -> LinkName {
    LinkName::parse(text).unwrap()
}

pub fn queues(count: u32) -> TapOptions {
    TapOptions {
        queues: Queues::new(count).unwrap(),
        owner: None,
    }
}

pub async fn find(links: &Links, name: &LinkName) -> Link {
    links.find(name).await.unwrap().unwrap()
}

/// Waits for the announcement that a link of this name is gone.
pub async fn gone(watch: &mut LinkWatch, name: &LinkName) {
    let waiting = async {
        loop {
            match watch.next().await.unwrap() {
                LinkEvent::Gone(link) if link.name == name.as_str() => return,
                _ => {}
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{name} is still there"));
}

/// Starts an operation and drops it before it can end; false where it was quicker.
pub async fn start_and_drop(operation: impl Future) -> bool {
    let mut operation = std::pin::pin!(operation);
    poll_fn(|context| Poll::Ready(operation.as_mut().poll(context).is_pending())).await
}

/// Runs an operation on a thread that has lost all privileges; threads it starts have none either.
pub fn as_nobody<F, T>(operation: impl FnOnce() -> F + Send) -> T
where
    F: Future<Output = T>,
    T: Send,
{
    let unprivileged = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_uid(nobody).unwrap();
        runtime.block_on(operation())
    };
    std::thread::scope(|scope| scope.spawn(unprivileged).join().unwrap())
}

/// Makes links as another program would, not through the code under test.
pub struct Others(rtnetlink::Handle);

impl Others {
    pub fn new() -> Self {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        Self(handle)
    }

    pub async fn add(&self, link: LinkMessage) {
        self.0.link().add(link).execute().await.unwrap();
    }

    pub async fn veth(&self, name: &str, peer: &str) {
        self.add(LinkVeth::new(name, peer).build()).await;
    }

    pub async fn set_mtu(&self, name: &str, mtu: u32) {
        let change = LinkUnspec::new_with_name(name).mtu(mtu).build();
        self.0.link().set(change).execute().await.unwrap();
    }
}

/// `struct virtio_net_hdr` before each frame.
const VNET_HEADER: usize = 10;
/// IEEE 802 local experimental EtherType: nothing on the host answers it.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// A frame with its `virtio_net_hdr`.
pub struct Frame(Vec<u8>);

impl Frame {
    /// A broadcast frame with a payload nobody but the test understands.
    pub fn broadcast(payload: &[u8]) -> Self {
        let mut octets = vec![0; VNET_HEADER];
        octets.extend([0xff; 6]);
        octets.extend([0x52, 0x54, 0, 0, 0, 1]);
        octets.extend(EXPERIMENTAL);
        octets.extend(payload);
        octets.resize(octets.len().max(VNET_HEADER + 60), 0);
        Self(octets)
    }

    pub fn is_experimental(&self) -> bool {
        self.ether()[12..14] == EXPERIMENTAL
    }

    pub fn payload(&self) -> &[u8] {
        &self.ether()[14..]
    }

    pub fn ether(&self) -> &[u8] {
        &self.0[VNET_HEADER..]
    }

    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the receiver is to fill the checksum in.
    pub fn needs_checksum(&self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// One queue of a TAP, read and written as QEMU does.
pub struct Queue(Arc<OwnedFd>);

impl Queue {
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    pub fn send(&self, frame: &Frame) {
        let written = rustix::io::write(&self.0, &frame.0).unwrap();
        assert_eq!(written, frame.0.len());
    }

    /// What QEMU does for a guest whose driver can finish checksums (`TUN_F_CSUM`).
    pub fn offload_checksums(&self) {
        const TUN_F_CSUM: i32 = 1;
        // SAFETY: the argument is a number, no memory is passed.
        unsafe { tunsetoffload(self.0.as_raw_fd(), TUN_F_CSUM) }.unwrap();
    }

    /// The first frame to come that `wanted` accepts.
    pub async fn receive(&self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let fd = Arc::clone(&self.0);
            let read = tokio::task::spawn_blocking(move || next_frame(&fd));
            let frame = read.await.unwrap();
            if wanted(&frame) {
                return frame;
            }
        }
    }
}

fn next_frame(fd: &OwnedFd) -> Frame {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let mut ready = [PollFd::new(fd, PollFlags::IN)];
    let came = rustix::event::poll(&mut ready, Some(&patience)).unwrap();
    assert_eq!(came, 1, "no such frame came");
    let mut octets = vec![0; 4096];
    let length = rustix::io::read(fd, &mut octets).unwrap();
    octets.truncate(length);
    Frame(octets)
}

nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);
