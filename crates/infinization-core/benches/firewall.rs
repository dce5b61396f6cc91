//! What a change of the firewall costs, over the same batch as bare netlink messages, by libnftables, by nft's
//! own program, and over one nft program per rule; how soon what another program flushed is closed and put
//! back; and what a TAP costs over the kernel's own calls. `npm run bench` runs it in
//! a network of its own.
//!
//! One JSON object per line goes to standard output: `{"name", "value", "unit", "goal"}`.
#![allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use infinization_core::firewall::{Compiled, Transaction, VmFirewall, document, table_text};
use infinization_core::host::link::Links;
use infinization_core::host::nft::{Nft, NftProgram, NftTransport as _, OurTable, Part, Repair};
use infinization_core::host::program::programs_started;
use infinization_core::host::tap::{self, Queues, TapOptions};
use infinization_core::types::{FirewallRuleInput, LinkName};
use infinization_test_kit::{self as kit, firewall};
use serde_json::json;

use firewall::{compiled, rule, run, vm};

const ROUNDS: u32 = 21;

fn main() {
    kit::in_private_network(|| async {
        let nft = Nft::new();
        nft.prepare().await.unwrap();
        rules(&nft).await;
        crowd(&nft).await;
        department(&nft).await;
        flushed(&nft).await;
        taps().await;
    });
}

fn figure(name: &str, value: f64, unit: &str, goal: &str) {
    let value = (value * 100.0).round() / 100.0;
    println!(
        "{}",
        json!({ "name": format!("firewall: {name}"), "value": value, "unit": unit, "goal": goal })
    );
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// Rules that no other round has.
fn own(count: u32, round: u32) -> Vec<FirewallRuleInput> {
    (0..count)
        .map(|n| rule(&format!("ACCEPT IN udp {}", 1 + n + round * count)))
        .collect()
}

fn machine(id: &str, vm_rules: Vec<FirewallRuleInput>) -> VmFirewall {
    VmFirewall { vm_rules, ..vm(id) }
}

/// Compiles and loads, as `applyRules` does.
async fn apply(nft: &Nft, machine: &VmFirewall) -> Duration {
    let began = Instant::now();
    nft.ensure_vm(&compiled(machine)).await.unwrap();
    began.elapsed()
}

/// `nft -f` of this text.
fn by_nft(options: &[&str], script: &str) -> Duration {
    fed("nft", &[options, &["-f", "-"]].concat(), script)
}

/// How long the program takes that is given this input.
fn fed(program: &str, args: &[&str], input: &str) -> Duration {
    let began = Instant::now();
    let mut command = Command::new(program);
    let command = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    began.elapsed()
}

/// `nft` as a program that stays: libnftables, without a program's beginning and end.
struct Libnftables {
    program: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Libnftables {
    fn new() -> Self {
        let mut program = Command::new("nft");
        let program = program.arg("-i").stdin(Stdio::piped());
        let mut program = program.stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(program.stdout.take().unwrap()).lines();
        Self { program, answers }
    }

    /// Makes one transaction of this text. It has been made when what is asked for after it is answered.
    fn commit(&mut self, text: &str) -> Duration {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let began = Instant::now();
        let path = file.path().display();
        self.say(&format!("include \"{path}\"\nlist table inet answer\n"));
        while self.answers.next().unwrap().unwrap().trim() != "table inet answer {" {}
        began.elapsed()
    }

    fn say(&mut self, lines: &str) {
        let stdin = self.program.stdin.as_mut().unwrap();
        stdin.write_all(lines.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for Libnftables {
    fn drop(&mut self) {
        self.program.kill().unwrap();
        self.program.wait().unwrap();
    }
}

async fn rules(nft: &Nft) {
    run("nft add table inet answer");
    let mut library = Libnftables::new();
    let messages = NftProgram::default();
    for (count, goal) in [(10, "≤ 8"), (100, "≤ 12"), (1000, "≤ 40")] {
        let mut times: [Vec<Duration>; 5] = Default::default();
        for round in 0..ROUNDS {
            let machine = machine("bench-1", own(count, round));
            times[0].push(apply(nft, &machine).await);
            let compiled = compiled(&machine);
            let batch = Transaction::ensure_vm(&compiled);
            let began = Instant::now();
            messages.commit(&batch).await.unwrap();
            times[1].push(began.elapsed());
            times[2].push(library.commit(&flushed_first(&compiled)));
            let json = document(&batch).to_string();
            times[3].push(by_nft(&["-j", "-e", "-a"], &json));
            times[4].push(by_nft(&[], &flushed_first(&compiled)));
        }
        let ways = [
            "",
            ", as netlink messages alone",
            ", by libnftables (`nft -i`)",
            ", by `nft -j -e -a`",
            ", by `nft -f`",
        ];
        for (way, times) in ways.into_iter().zip(times) {
            let goal = if way.is_empty() { goal } else { "" };
            let name = format!("apply {count} rules{way}");
            figure(&name, median(times), "ms", goal);
        }
    }
    run("nft delete table inet answer");
    one_of_a_thousand(nft).await;
    one_of_a_department_s(nft).await;
    one_program_per_rule();
    removal(nft).await;
}

/// The table's text, loaded in place of what there is of it.
fn flushed_first(compiled: &Compiled) -> String {
    let table = "table bridge infinization";
    format!("{table}\ndelete {table}\n{}", table_text(compiled))
}

/// What a manager does when others have meddled, as `nft` did here.
async fn settle(nft: &Nft) {
    while nft.repair().await.unwrap() != Repair::default() {}
}

async fn one_of_a_thousand(nft: &Nft) {
    let mut rules = own(1000, 0);
    apply(nft, &machine("bench-1", rules.clone())).await;
    settle(nft).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        rules[500] = rule(&format!("DROP IN udp {}", 5000 + round));
        times.push(apply(nft, &machine("bench-1", rules.clone())).await);
    }
    figure("one rule of 1000 changed", median(times), "ms", "≤ 8");

    let unchanged = compiled(&machine("bench-1", rules));
    nft.ensure_vm_if_changed(&unchanged).await.unwrap();
    nft.ensure_vm_if_changed(&unchanged).await.unwrap();
    let (before, began) = (programs_started(), Instant::now());
    assert!(!nft.ensure_vm_if_changed(&unchanged).await.unwrap());
    figure(
        "unchanged 1000 rules",
        began.elapsed().as_secs_f64() * 1000.0,
        "ms",
        "",
    );
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let programs = (programs_started() - before) as f64;
    figure("programs run by unchanged rules", programs, "", "0");
}

async fn one_of_a_department_s(nft: &Nft) {
    let mut department = own(1000, 0);
    let of = |department_rules: &[FirewallRuleInput]| VmFirewall {
        department_rules: department_rules.to_vec(),
        ..machine("bench-1", Vec::new())
    };
    apply(nft, &of(&department)).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        department[500] = rule(&format!("DROP IN udp {}", 5000 + round));
        times.push(apply(nft, &of(&department)).await);
    }
    figure(
        "one rule of a department's 1000 changed",
        median(times),
        "ms",
        "≤ 8",
    );
}

fn one_program_per_rule() {
    let began = Instant::now();
    run("nft add table bridge each");
    run("nft add chain bridge each vm");
    for port in 1..=100 {
        run(&format!(
            "nft add rule bridge each vm udp dport {port} accept"
        ));
    }
    figure(
        "apply 100 rules, one nft each",
        began.elapsed().as_secs_f64() * 1000.0,
        "ms",
        "",
    );
    run("nft delete table bridge each");
}

async fn removal(nft: &Nft) {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let machine = machine("bench-2", own(100, round));
        let names = compiled(&machine).ruleset.names;
        apply(nft, &machine).await;
        let began = Instant::now();
        nft.remove_vm(&names).await.unwrap();
        times.push(began.elapsed());
    }
    figure("remove", median(times), "ms", "≤ 8");
}

/// Fifty machines at once, each asked for by itself.
async fn crowd(nft: &Nft) {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let machines: Vec<_> = (0..50)
            .map(|n| compiled(&machine(&format!("crowd-{n}"), own(20, round))))
            .collect();
        let began = Instant::now();
        let loads = machines.into_iter().map(|machine| {
            let nft = nft.clone();
            tokio::spawn(async move { nft.ensure_vm(&machine).await.unwrap() })
        });
        for load in loads.collect::<Vec<_>>() {
            load.await.unwrap();
        }
        times.push(began.elapsed());
    }
    figure(
        "50 machines with 20 rules at once",
        median(times),
        "ms",
        "≤ 150",
    );
}

/// A department of 200 machines gets other rules.
async fn department(nft: &Nft) {
    let all = |round| -> Vec<Compiled> {
        let department_rules = own(50, round);
        let with = |n| VmFirewall {
            department_rules: department_rules.clone(),
            ..machine(&format!("dept-{n}"), own(5, 0))
        };
        (0..200).map(|n| compiled(&with(n))).collect()
    };
    load_all(nft, &all(0)).await;
    settle(nft).await;
    let (mut times, before) = (Vec::new(), state_number().await);
    for round in 1..ROUNDS {
        let machines = all(round);
        times.push(load_all(nft, &machines).await);
    }
    let each = f64::from(state_number().await - before) / f64::from(ROUNDS - 1);
    figure(
        "200 machines, other department rules",
        median(times),
        "ms",
        "",
    );
    figure(
        "transactions that 200 machines' other department rules are",
        each,
        "",
        "1",
    );
    let mut times = Vec::new();
    for round in 1..4 {
        let machines = all(round);
        let batch = Transaction::ensure_vms(&machines);
        times.push(by_nft(&["-j", "-e", "-a"], &document(&batch).to_string()));
    }
    figure(
        "200 machines, all of it by `nft -j -e -a`",
        median(times),
        "ms",
        "",
    );
}

/// Another program flushes everything under 50 machines.
async fn flushed(nft: &Nft) {
    let machines: Vec<_> = (0..50)
        .map(|n| compiled(&machine(&format!("flushed-{n}"), own(20, 0))))
        .collect();
    load_all(nft, &machines).await;
    settle(nft).await;
    let mut other = Libnftables::new();
    let (mut closed, mut back) = (Vec::new(), Vec::new());
    for _round in 0..ROUNDS {
        let began = Instant::now();
        other.say("flush ruleset\n");
        nft.meddled(OurTable::Filter).await.unwrap();
        nft.close_if_gone().await.unwrap();
        closed.push(began.elapsed());
        let repair = nft.repair().await.unwrap();
        back.push(began.elapsed());
        assert_eq!(repair.damages[0].part, Part::Table);
        settle(nft).await;
    }
    figure("flushed by another: closed after", median(closed), "ms", "");
    let goal = "≤ 1000";
    figure(
        "flushed by another: 50 machines put back after",
        median(back),
        "ms",
        goal,
    );
}

/// The kernel counts transactions.
async fn state_number() -> u32 {
    NftProgram::default().generation().await.unwrap()
}

async fn load_all(nft: &Nft, machines: &[Compiled]) -> Duration {
    let began = Instant::now();
    for outcome in nft.ensure_vms(machines).await {
        outcome.unwrap();
    }
    began.elapsed()
}

/// TAPs are made, put on a bridge and brought up: through the library, and by one `ip` for many, which
/// comes near the kernel's own time.
async fn taps() {
    const BATCH: u32 = 50;
    run("ip link add br-bench type bridge");
    let links = Links::new();
    let bridge = LinkName::parse("br-bench").unwrap();
    let tap = LinkName::parse("vnet-bench").unwrap();
    let options = TapOptions {
        queues: Queues::ONE,
        owner: None,
    };
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        drop(tap::create(&tap, options).await.unwrap());
        links.set_master(&tap, &bridge).await.unwrap();
        links.set_up(&tap).await.unwrap();
        ours.push(began.elapsed());
        tap::delete(&links, &tap).await.unwrap();
    }
    for _ in 0..5 {
        let of_each = |line: &str| -> String {
            (0..BATCH)
                .map(|n| line.replace('#', &n.to_string()))
                .collect()
        };
        let made = of_each(
            "tuntap add vnet-raw# mode tap\nlink set vnet-raw# master br-bench\nlink set vnet-raw# up\n",
        );
        raw.push(fed("ip", &["-batch", "-"], &made) / BATCH);
        fed(
            "ip",
            &["-batch", "-"],
            &of_each("tuntap del vnet-raw# mode tap\n"),
        );
    }
    let (ours, raw) = (median(ours), median(raw));
    figure("TAP create and configure", ours, "ms", "");
    figure(
        "TAP create and configure, over the kernel's time",
        ours - raw,
        "ms",
        "≤ 1",
    );
}
