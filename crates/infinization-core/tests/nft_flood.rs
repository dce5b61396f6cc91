//! Nothing slips through while rules change: packets that must not pass, and forged ones, are sent without
//! a pause while rule sets and the chains that a department shares are exchanged, batches fail, the service is made anew and processes that load
//! rules are killed.
//!
//! `INFINIZATION_FLOOD_CHANGES=1000` is the long form, which must send 10,000 a second: run it alone.
//! Its own `main`: it starts itself again as the process that is killed.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]
#![expect(clippy::print_stdout, reason = "it reports as a test does")]

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use infinization_core::db::RuleSplit;
use infinization_core::manager::{Department, Firewall, Member, Wanted};
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, VmNames};
use infinization_test_kit::{self as kit, firewall};
use serde_json::json;

use firewall::{address, rule, run};
use kit::packets::Place::{self, A1, A2, Host, Outside, Wire};
use kit::packets::packet::{NEIGHBOUR_ADVERT, ROUTER_ADVERT, SYN};
use kit::packets::{Mark, Packet, Site, What, frame};

/// What the process that is killed is told.
const VICTIM: &str = "INFINIZATION_TEST_VICTIM";
/// How many changes there are unless more are asked for.
const CHANGES: usize = 60;
/// Of the long form, in packets a second.
const LEAST_RATE: u64 = 10_000;
/// A victim lives so long at most; the kill comes at different moments of its work.
const SHORT_LIFE: Duration = Duration::from_millis(120);

fn main() {
    if std::env::var_os(VICTIM).is_some() {
        // In the network of whoever started it.
        kit::runtime().block_on(change_until_killed());
        return;
    }
    let changes = std::env::var("INFINIZATION_FLOOD_CHANGES");
    let changes = changes.map_or(CHANGES, |text| text.parse().unwrap());
    // Asked here, as the path may mean nothing to a thread with mounts of its own.
    let myself = std::env::current_exe().unwrap();
    kit::in_private_network(move || flood_while_rules_change(myself, changes));
}

async fn flood_while_rules_change(myself: PathBuf, changes: usize) {
    let site = Site::new().await;
    let firewall = service().await;
    firewall.apply(open(0)).await.unwrap();
    firewall.apply(variant(0)).await.unwrap();
    let flood = Flood::start(site);
    let mut chaos = Chaos {
        myself,
        firewall,
        victims: 0,
    };
    for n in 1..=changes {
        chaos.change(n).await;
    }
    let counts = flood.stop();
    println!(
        "{changes} changes, {} processes killed: {counts}",
        chaos.victims
    );
    counts.check(changes > CHANGES);
    println!("f1 f4 f27 f29 nothing slips through while rules change ... ok");
}

async fn service() -> Firewall {
    let firewall = Firewall::alone(&json!({ "bridgeConntrackMode": "degrade" })).unwrap();
    firewall.initialize().await.unwrap();
    firewall
}

/// The rules that are exchanged. All of them forbid what the flood sends, and allow the same flow.
fn variant(n: usize) -> Wanted {
    let mut rules = vec![
        rule("ACCEPT OUT tcp 80"),
        rule("ACCEPT IN udp 7000"),
        rule("DROP INOUT tcp 22"),
    ];
    let others = (0..n % 7).map(|port| rule(&format!("ACCEPT INOUT udp {}", 9000 + port)));
    rules.extend(others);
    if n.is_multiple_of(5) {
        rules.push(rule("REJECT OUT udp 53"));
    }
    member(A1, n, rules, FirewallDefaultAction::Drop)
}

/// The neighbour, of which only the department's chain forbids anything.
fn open(n: usize) -> Wanted {
    member(A2, n, Vec::new(), FirewallDefaultAction::Accept)
}

/// What the two machines share, one rule of which never changes.
fn department(n: usize) -> Vec<FirewallRuleInput> {
    let others = (0..n % 5).map(|port| rule(&format!("ACCEPT OUT udp {}", 9100 + port)));
    others.chain([rule("DROP OUT udp 7001")]).collect()
}

fn member(
    place: Place,
    n: usize,
    vm_rules: Vec<FirewallRuleInput>,
    policy: FirewallDefaultAction,
) -> Wanted {
    let vm_id = place.vm_id();
    Wanted {
        addresses: None,
        tap: VmNames::of(&vm_id).tap,
        vm_id,
        rules: RuleSplit {
            department_rules: department(n),
            vm_rules,
        },
        default_action: policy,
    }
}

/// Both machines with other rules of the department: the chain is replaced and renamed under them.
async fn change_department(firewall: &Firewall, n: usize) {
    let members = [variant(n), open(n)].map(|wanted| Member {
        vm_id: wanted.vm_id,
        tap_name: wanted.tap,
        vm_rules: wanted.rules.vm_rules,
        default_action: wanted.default_action,
        addresses: None,
    });
    let changed = firewall.apply_department(Department {
        rules: department(n),
        machines: members.into(),
    });
    for machine in changed.await.unwrap() {
        assert!(machine.error.is_none(), "{n}: {:?}", machine.error);
    }
}

/// Everything that happens to the rules.
struct Chaos {
    /// This program.
    myself: PathBuf,
    firewall: Firewall,
    victims: usize,
}

impl Chaos {
    async fn change(&mut self, n: usize) {
        match n % 20 {
            7 => self.firewall = service().await,
            11 => self.fail().await,
            13 => self.detach_and_return(n).await,
            17 => self.kill_one_at_work(n),
            n if n % 3 == 0 => change_department(&self.firewall, n).await,
            _ => drop(self.firewall.apply(variant(n)).await.unwrap()),
        }
    }

    /// A batch that the kernel refuses as a whole: the port is in the way of it.
    async fn fail(&self) {
        run("nft add chain bridge infinization foreign");
        let other = member(Place::B1, 0, Vec::new(), FirewallDefaultAction::Accept);
        let tap = VmNames::of(&A1.vm_id()).tap;
        let refused = self.firewall.apply(Wanted { tap, ..other }).await;
        assert!(refused.is_err(), "two machines share a port");
        run("nft delete chain bridge infinization foreign");
    }

    /// As a stop and a start do.
    async fn detach_and_return(&self, n: usize) {
        let vm_id = A1.vm_id();
        self.firewall.detach(&vm_id).await.unwrap();
        self.firewall.flush(&vm_id).await.unwrap();
        self.firewall.remove(&vm_id).await.unwrap();
        self.firewall.apply(variant(n)).await.unwrap();
    }

    /// Another process of ours changes the same rules and is killed while it does.
    fn kill_one_at_work(&mut self, n: usize) {
        let mut victim: Child = Command::new(&self.myself).env(VICTIM, "").spawn().unwrap();
        let step = u32::try_from(self.victims % 6 + 1).unwrap();
        std::thread::sleep(SHORT_LIFE * step / 6);
        victim.kill().unwrap();
        let status = victim.wait().unwrap();
        assert!(!status.success(), "change {n}: it ended by itself");
        self.victims += 1;
    }
}

async fn change_until_killed() {
    let firewall = service().await;
    for n in 0.. {
        firewall.apply(variant(n)).await.unwrap();
        change_department(&firewall, n).await;
    }
}

/// What was sent and what became of it.
#[derive(Debug, Default)]
struct Counts {
    forbidden: u64,
    forged: u64,
    /// Of those, what arrived.
    leaks: Vec<String>,
    /// Packets of the flow that is allowed.
    allowed: u64,
    arrived: u64,
    took: Duration,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            forbidden,
            forged,
            allowed,
            arrived,
            took,
            ..
        } = self;
        let leaks = self.leaks.len();
        write!(
            f,
            "{leaks} leaks of {forbidden} forbidden and {forged} forged packets in "
        )?;
        write!(f, "{took:.1?}, {arrived} of {allowed} allowed ones arrived")
    }
}

impl Counts {
    /// How fast it was is asked of the long form alone, which has the machine for itself.
    fn check(&self, long: bool) {
        assert!(self.leaks.is_empty(), "{self}: {:?}", self.leaks);
        let least = LEAST_RATE * self.took.as_secs();
        let enough = self.forbidden + self.forged >= least;
        assert!(enough || !long, "that was too slow: {self}");
        assert!(
            self.arrived * 2 > self.allowed,
            "the allowed flow broke down: {self}"
        );
    }
}

/// Sends on a thread of its own until it is told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    sending: std::thread::JoinHandle<Counts>,
}

/// So many of each kind, then whatever arrived is looked at.
const BURST: usize = 64;

impl Flood {
    fn start(site: Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let sending = std::thread::spawn(move || send_until(&told, site));
        Self { stop, sending }
    }

    fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.join().unwrap()
    }
}

fn send_until(told: &AtomicBool, mut site: Site) -> Counts {
    let mark = site.mark();
    let (forbidden, forged) = (forbidden(mark), forged(mark));
    let from_host = between(Host, A1, tcp(22), mark);
    let allowed = Packet {
        mark: site.mark(),
        ..allowed(mark)
    };
    let mut counts = Counts::default();
    let began = Instant::now();
    while !told.load(Ordering::Relaxed) {
        for n in 0..BURST {
            let (from, frame) = &forbidden[n % forbidden.len()];
            site.send_frame(*from, frame);
            site.send_frame(A1, &forged[n % forged.len()]);
        }
        site.send(Host, A1, &from_host);
        site.send(A1, A2, &allowed);
        counts.forbidden += BURST as u64 + 1;
        counts.forged += BURST as u64;
        counts.allowed += 1;
        for (place, arrival) in site.take() {
            if arrival.mark == Some(mark) {
                counts.leaks.push(format!("{place:?} {arrival:?}"));
            }
            counts.arrived += u64::from(place == A2 && arrival.mark == Some(allowed.mark));
        }
    }
    counts.took = began.elapsed();
    counts
}

fn allowed(mark: Mark) -> Packet {
    between(A1, A2, tcp(80), mark)
}

fn between(from: Place, to: Place, what: What, mark: Mark) -> Packet {
    let (from, to) = (from.address(true), to.address(true));
    Packet {
        from,
        to,
        what,
        mark,
    }
}

fn tcp(to: u16) -> What {
    What::Tcp {
        from: 5000,
        to,
        flags: SYN,
    }
}

fn udp(to: u16) -> What {
    What::Udp { from: 5000, to }
}

/// From the machine whose rules change and to it: on its link, to the host and beyond.
fn forbidden(mark: Mark) -> Vec<(Place, Vec<u8>)> {
    let all = [
        (A1, A2, tcp(22)),
        (A1, A2, udp(7001)),
        (A1, Host, tcp(22)),
        (A1, Outside, udp(7001)),
        (A2, A1, tcp(22)),
        (A2, A1, udp(7001)),
        // Nothing but the shared chain is in the way of these.
        (A2, Host, udp(7001)),
        (A2, Outside, udp(7001)),
        (A2, Wire, udp(7001)),
        (Wire, A1, tcp(80)),
        (Outside, A1, udp(7001)),
    ];
    let frame = |(from, to, what): (Place, Place, What)| {
        let packet = between(from, to, what, mark);
        (from, Site::frame(from, to, &packet))
    };
    all.map(frame).to_vec()
}

/// What A1 may never send, whatever its rules are.
fn forged(mark: Mark) -> Vec<Vec<u8>> {
    let stranger = [0x52, 0x54, 0, 0x66, 0x66, 0x66];
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let discovery = |from, kind| Packet {
        from: address(from),
        to: address("ff02::1"),
        what: What::Icmp { kind, id: 1 },
        mark,
    };
    let gateway = Packet {
        from: A1.gateway(true),
        ..allowed(mark)
    };
    let arp = Packet {
        what: What::Arp,
        ..gateway
    };
    let offer = between(A1, A2, What::Udp { from: 67, to: 68 }, mark);
    vec![
        frame::of(&allowed(mark), stranger, A2.mac()),
        frame::of(&gateway, A1.mac(), A2.mac()),
        frame::of(&arp, A1.mac(), frame::EVERYBODY),
        frame::of(&offer, A1.mac(), A2.mac()),
        frame::of(&discovery("fe80::2", ROUTER_ADVERT), A1.mac(), group),
        frame::of(&discovery("fd01::1", NEIGHBOUR_ADVERT), A1.mac(), group),
    ]
}
