//! QEMU on the descriptors of our TAPs, sandboxed, in private network namespaces.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]
#![expect(unsafe_code, reason = "pre_exec, to hand descriptors to QEMU")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;

use infinization_core::host::bridge::{self, Ipv4Cidr};
use infinization_core::host::link::{Link, Links};
use infinization_core::host::tap::{self, Queues};
use infinization_test_kit as kit;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use kit::in_private_network;
use kit::net::{PATIENCE, find, name, queues};

const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// A QEMU whose standard input and output are its monitor or its guest's serial line.
struct Qemu {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Qemu {
    /// Starts QEMU with these descriptors kept open under their own numbers.
    fn start(args: &[&str], fds: Vec<OwnedFd>, uid: u32) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg",
                "-machine",
                "q35",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-sandbox", SANDBOX])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .gid(uid)
            .uid(uid);
        let passed: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let keep = move || {
            for fd in &passed {
                // SAFETY: the parent's `fds` stay open until the spawn is over.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: after the fork only fcntl is called, which is async-signal-safe.
        unsafe { command.pre_exec(keep) };
        let mut child = command.spawn().unwrap();
        drop(fds);
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            child,
            input,
            lines: BufReader::new(output).lines(),
        }
    }

    /// The first line that contains `text`.
    async fn says(&mut self, text: &str) -> String {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(text) {
                    return line;
                }
            }
            panic!("QEMU ended without saying {text:?}");
        };
        let said = timeout(4 * PATIENCE, reading).await;
        said.unwrap_or_else(|_| panic!("QEMU did not say {text:?}"))
    }

    async fn execute(&mut self, command: &str) -> String {
        let line = format!("{command}\n");
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.says(r#""return""#).await
    }

    async fn ended(mut self) {
        drop(self.input);
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
}

fn fd_numbers(fds: &[OwnedFd]) -> String {
    let numbers: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    numbers.join(":")
}

#[test]
fn t2_qemu_runs_on_passed_descriptors_as_nobody() {
    in_private_network(|| async {
        let links = Links::new();
        for count in [1, 2] {
            let tap_name = name(&format!("vnet-qemu{count}"));
            drop(tap::create(&tap_name, queues(count)).await.unwrap());
            // Reopened, as for a machine that is started again.
            let wanted = Queues::new(count).unwrap();
            let fds = tap::open(&links, &tap_name, wanted).await.unwrap();
            let option = if count == 1 { "fd" } else { "fds" };
            let netdev = format!("tap,id=n0,{option}={}", fd_numbers(&fds));
            let (mq, vectors) = (count > 1, 2 * count + 2);
            let mq = if mq {
                format!(",mq=on,vectors={vectors}")
            } else {
                String::new()
            };
            let device = format!("virtio-net-pci,netdev=n0{mq}");
            let args = [
                "-S", "-qmp", "stdio", "-netdev", &netdev, "-device", &device,
            ];
            let mut qemu = Qemu::start(&args, fds, 65534);

            qemu.says("QMP").await;
            qemu.execute(r#"{"execute":"qmp_capabilities"}"#).await;
            let network = qemu
                .execute(r#"{"execute":"human-monitor-command","arguments":{"command-line":"info network"}}"#)
                .await;
            assert_eq!(
                network.matches("type=tap").count(),
                count as usize,
                "{network}"
            );
            // Our copies are closed: it is QEMU that holds the TAP.
            assert!(find(&links, &tap_name).await.carrier);
            tap::open(&links, &tap_name, wanted).await.unwrap_err();
            qemu.execute(r#"{"execute":"quit"}"#).await;
            qemu.ended().await;

            let idle = |link: Option<&Link>| link.is_some_and(|link| !link.carrier);
            links.wait_until(&tap_name, idle, PATIENCE).await.unwrap();
            tap::delete(&links, &tap_name).await.unwrap();
        }
    });
}

#[test]
fn a_guest_with_two_queues_serves_the_host_over_the_bridge() {
    in_private_network(|| async {
        let (links, br, tap_name) = (Links::new(), name("infinibr-guest"), name("vnet-guest"));
        bridge::create(&links, &br).await.unwrap();
        let gateway = Ipv4Cidr::parse("10.177.255.1/16").unwrap();
        bridge::assign_address(&links, &br, gateway).await.unwrap();
        let fds = tap::create(&tap_name, queues(2)).await.unwrap();
        bridge::add_port(&links, &br, &tap_name).await.unwrap();
        links.set_up(&tap_name).await.unwrap();

        let guest = kit::guest_dir();
        let (kernel, initrd) = (guest.join("vmlinuz"), guest.join("initrd.gz"));
        let netdev = format!("tap,id=n0,fds={}", fd_numbers(&fds));
        let mut args = vec!["-m", "256", "-smp", "2", "-serial", "stdio"];
        args.extend(["-kernel", kernel.to_str().unwrap()]);
        args.extend(["-initrd", initrd.to_str().unwrap()]);
        args.extend(["-append", "console=ttyS0 quiet panic=-1"]);
        args.extend(["-netdev", &netdev, "-device"]);
        args.push("virtio-net-pci,netdev=n0,mac=52:54:00:00:07:09,mq=on,vectors=6");
        // The guest's files may lie where nobody cannot read them.
        let mut qemu = Qemu::start(&args, fds, 0);
        qemu.says("INFZ-READY").await;

        // The guest takes its address from its MAC.
        let page = timeout(PATIENCE, fetch("10.177.7.9:80")).await.unwrap();
        assert!(page.contains("tiny-guest-ok"), "{page}");
    });
}

async fn fetch(address: &str) -> String {
    let mut server = TcpStream::connect(address).await.unwrap();
    let request = b"GET / HTTP/1.0\r\n\r\n";
    server.write_all(request).await.unwrap();
    let mut page = String::new();
    server.read_to_string(&mut page).await.unwrap();
    page
}
