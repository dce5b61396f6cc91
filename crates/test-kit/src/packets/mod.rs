//! What the packet tests share: a site of bridges and ports, and the frames that go over it.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `packet` | a packet in words: who, to whom, which protocol |
//! | `frame` | its octets, and how to disguise them |
//! | `disguise` | the same packet in ways a filter may not recognise |
//! | `topology` | two departments, the host between them, the outside behind it |
//! | `port` | one end of a cable: a TAP that is written and read as QEMU does |
//! | `host` | what the host itself sends and receives |

use std::io::Write;
use std::process::{Command, Stdio};

pub mod disguise;
pub mod frame;
pub mod host;
pub mod packet;
pub mod port;
pub mod topology;

pub use packet::{Mark, Packet, What};
pub use topology::{Place, Site};

/// Gives a program its orders in one piece: each start of one costs a slow machine a lot.
fn batch(program: &str, lines: &[String]) {
    let option = if program == "nft" { "-f" } else { "-batch" };
    let mut command = Command::new(program);
    let mut child = command
        .args([option, "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let orders = lines.join("\n") + "\n";
    child
        .stdin
        .take()
        .unwrap()
        .write_all(orders.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{program}: {orders}");
}
