//! Guests without QEMU: network namespaces whose end of a veth pair stands for a VM's NIC. The
//! other end has a TAP's name and is a port of the bridge.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::firewall::run;

/// What is expected to arrive gets this long.
const GENEROUS: Duration = Duration::from_secs(20);
/// What is expected to vanish is given up on after this long.
const SHORT: Duration = Duration::from_millis(600);

/// A bridge of the host with addresses of its own.
pub fn bridge(name: &str, addresses: &[&str]) {
    run("ip link set lo up");
    run(&format!("ip link add {name} type bridge mcast_snooping 0"));
    run(&format!("ip link set {name} up"));
    for address in addresses {
        run(&format!(
            "ip addr add {address} dev {name}{}",
            nodad(address)
        ));
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// A network namespace, held by a thread that does what it is told in there.
pub struct Guest {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
    pub port: String,
    pub mac: String,
}

impl Guest {
    /// Plugs `eth0` of a new namespace into `bridge` by a port of this name.
    pub fn plug(bridge: &str, port: &str, mac: &str, addresses: &[&str]) -> Self {
        let guest = Self::apart(port, mac);
        run(&format!("ip link set {port} master {bridge}"));
        guest.configure(addresses);
        guest
    }

    /// A new namespace whose `eth0` leads to `port` of the host.
    pub fn apart(port: &str, mac: &str) -> Self {
        let (jobs, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        let (ready, tid) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(nix::unistd::gettid()).unwrap();
            for job in inbox {
                job();
            }
        });
        let tid = tid.recv().unwrap();
        run(&format!(
            "ip link add {port} type veth peer name eth0 address {mac} netns {tid}"
        ));
        run(&format!("ip link set {port} up"));
        Self {
            jobs,
            port: port.into(),
            mac: mac.into(),
        }
    }

    pub fn configure(&self, addresses: &[&str]) {
        self.sh("ip link set lo up");
        self.sh("ip link set eth0 up");
        for address in addresses {
            self.sh(&format!("ip addr add {address} dev eth0{}", nodad(address)));
        }
    }

    /// Does something in the namespace.
    pub fn within<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, outcome) = channel();
        let job = move || done.send(job()).unwrap();
        self.jobs.send(Box::new(job)).unwrap();
        outcome.recv().unwrap()
    }

    /// Runs a set-up command in the namespace.
    pub fn sh(&self, line: &str) -> String {
        let line = line.to_owned();
        self.within(move || run(&line))
    }

    /// Whether a command does what it should in the namespace.
    pub fn succeeds(&self, line: &str) -> bool {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        self.within(move || {
            let output = Command::new(&words[0]).args(&words[1..]).output();
            output.unwrap().status.success()
        })
    }

    pub fn serves_tcp(&self, port: u16) {
        self.within(move || serve_tcp(port));
    }

    pub fn reaches(&self, address: &str, port: u16) -> bool {
        let to = socket(address, port);
        self.within(move || connects(to, GENEROUS))
    }

    pub fn is_blocked_from(&self, address: &str, port: u16) -> bool {
        let to = socket(address, port);
        self.within(move || !connects(to, SHORT))
    }

    /// Whether somebody says no, instead of nothing.
    pub fn is_refused_by(&self, address: &str, port: u16, expected: bool) -> bool {
        let to = socket(address, port);
        let patience = if expected { GENEROUS } else { SHORT };
        self.within(move || {
            let error = TcpStream::connect_timeout(&to, patience).unwrap_err();
            error.kind() == std::io::ErrorKind::ConnectionRefused
        })
    }

    /// Sends Ethernet frames as they are.
    pub fn sends(&self, frame: &[u8]) {
        let frame = frame.to_vec();
        self.within(move || {
            let mut socat = socat(&["-u", "-", "INTERFACE:eth0"]);
            socat.stdin.take().unwrap().write_all(&frame).unwrap();
            assert!(socat.wait().unwrap().success());
        });
    }

    /// Everything that arrives from now on.
    pub fn listens(&self) -> Sniffer {
        self.within(Sniffer::start)
    }
}

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// Answers every connection on this port of the current namespace with one byte.
pub fn serve_tcp(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _gone = connection.and_then(|mut peer| peer.write_all(b"."));
        }
    });
}

/// Sends every datagram on this port of the current namespace back.
pub fn echo_udp(port: u16) {
    let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _gone = socket.send_to(&buffer[..length], peer);
        }
    });
}

/// From the host's side: the connection is answered.
pub fn host_reaches(address: &str, port: u16) -> bool {
    connects(socket(address, port), GENEROUS)
}

pub fn host_is_blocked_from(address: &str, port: u16) -> bool {
    !connects(socket(address, port), SHORT)
}

fn connects(to: SocketAddr, patience: Duration) -> bool {
    let answer = TcpStream::connect_timeout(&to, patience).and_then(|mut stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.read_exact(&mut [0])
    });
    answer.is_ok()
}

/// Whether a datagram from one port comes back from another.
pub fn udp_answers(from: u16, to: SocketAddr, expected: bool) -> bool {
    let socket = bind_udp(from);
    socket.set_broadcast(true).unwrap();
    let patience = if expected { GENEROUS } else { SHORT };
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(b"ping", to).unwrap();
    socket.recv_from(&mut [0; 64]).is_ok()
}

/// A program that another thread is starting has a copy of our last socket for a moment.
fn bind_udp(port: u16) -> UdpSocket {
    let deadline = Instant::now() + GENEROUS;
    loop {
        match UdpSocket::bind(("0.0.0.0", port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            bound => return bound.unwrap(),
        }
    }
}

fn socat(args: &[&str]) -> Child {
    let mut command = Command::new("socat");
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// The frames that reach a guest.
pub struct Sniffer {
    socat: Child,
    frames: Receiver<Vec<u8>>,
}

impl Sniffer {
    fn start() -> Self {
        let mut socat = socat(&["-u", "INTERFACE:eth0", "-"]);
        let mut stdout = socat.stdout.take().unwrap();
        let (sender, frames) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                let _closed = sender.send(buffer[..length].to_vec());
            }
        });
        Self { socat, frames }
    }

    /// Whether `probe`, sent by `guest`, is seen before a later harmless frame is. The bridge keeps
    /// the order, so no time has to pass for "it did not come".
    pub fn sees(&self, guest: &Guest, probe: &[u8]) -> bool {
        let marker = marker(&guest.mac);
        self.until_seen(guest, &marker);
        guest.sends(probe);
        // Told apart from the markers that were sent while the sniffer was starting.
        let end = [&marker[..], b"end"].concat();
        let seen = self.until_seen(guest, &end);
        let arriving = without_tag(probe);
        seen.iter().any(|frame| contains(frame, &arriving))
    }

    fn until_seen(&self, guest: &Guest, marker: &[u8]) -> Vec<Vec<u8>> {
        let (deadline, mut seen) = (Instant::now() + GENEROUS, Vec::new());
        while Instant::now() < deadline {
            guest.sends(marker);
            while let Ok(frame) = self.frames.recv_timeout(Duration::from_millis(100)) {
                let last = contains(&frame, marker);
                seen.push(frame);
                if last {
                    return seen;
                }
            }
        }
        panic!("no frame arrives at all");
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        let _gone = self.socat.kill();
        let _reaped = self.socat.wait();
    }
}

/// Several frames may be read at once, and short ones are padded.
fn contains(bytes: &[u8], frame: &[u8]) -> bool {
    bytes.windows(frame.len()).any(|window| window == frame)
}

/// Of a protocol number reserved for experiments.
fn marker(mac: &str) -> Vec<u8> {
    ethernet("ff:ff:ff:ff:ff:ff", mac, 0x88b5, b"infinization marker")
}

pub fn octets(mac: &str) -> Vec<u8> {
    mac.split(':')
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

pub fn ethernet(to: &str, from: &str, protocol: u16, payload: &[u8]) -> Vec<u8> {
    [
        &octets(to)[..],
        &octets(from),
        &protocol.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// A frame with an 802.1Q tag put in.
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00, 0x00, 0x05], &frame[12..]].concat()
}

/// What a packet socket shows of a frame: the kernel takes a tag out and keeps it beside it.
fn without_tag(frame: &[u8]) -> Vec<u8> {
    let at = if frame[12..14] == [0x81, 0x00] {
        16
    } else {
        12
    };
    [&frame[..12], &frame[at..]].concat()
}

/// An ARP reply: "`ip` is at `mac`".
pub fn arp(mac: &str, ip: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    [&head[..], &octets(mac), &ip, &[0xff; 6], &ip].concat()
}

/// UDP over IPv4.
pub fn udp4(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut ip = [
        &[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0][..],
        &from.0,
        &to.0,
    ]
    .concat();
    let words = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = [from.1.to_be_bytes(), to.1.to_be_bytes(), [0, 12], [0, 0]].concat();
    [&ip[..], &udp, b"ping"].concat()
}

/// An ICMPv6 message; nobody on the way looks at its checksum.
pub fn icmpv6(from: &str, to: &str, kind: u8, body: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let length = u16::try_from(4 + body.len()).unwrap().to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], 58, 255];
    [
        &head[..],
        &address(from),
        &address(to),
        &[kind, 0, 0, 0],
        body,
    ]
    .concat()
}
