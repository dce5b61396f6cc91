//! What may be forwarded from and to the bridges: a table of the `inet` family, one per state directory.
//!
//! ```text
//! chain forward { type filter hook forward priority filter - 5; policy accept;
//!   isolated:  iifname br oifname != br drop;  oifname br iifname != br drop
//!   nat:       oifname br iifname != br  ct state established,related accept, else drop
//!   routed:    -
//! }
//! ```
//!
//! It is loaded as a whole, in place of what was there. Masquerading alone keeps nobody out: a neighbour of
//! the host who routes through it would reach the machines behind a `nat` network.

use std::path::Path;

use super::tag;
use crate::config::{NetworkMode, VirtualNetwork};

/// The table's name, for the networks kept in this directory.
pub fn guard_table(state_dir: &Path) -> String {
    format!("infinization_net_{}", tag(state_dir))
}

/// The table for these networks, for `nft -f`.
pub fn guard_text<'a>(
    table: &str,
    networks: impl IntoIterator<Item = &'a VirtualNetwork>,
) -> String {
    let rules: String = networks.into_iter().flat_map(rules).collect();
    let removal = guard_removal(table);
    format!(
        "{removal}table inet {table} {{\n\tchain forward {{\n\t\ttype filter hook forward priority -5; \
         policy accept;\n{rules}\t}}\n}}\n"
    )
}

/// Takes the table away, for `nft -f`; fine if there is none.
pub fn guard_removal(table: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n")
}

fn rules(network: &VirtualNetwork) -> Vec<String> {
    let (bridge, name) = (&network.bridge, &network.name);
    let out = format!("iifname \"{bridge}\" oifname != \"{bridge}\"");
    let into = format!("oifname \"{bridge}\" iifname != \"{bridge}\"");
    let rules = match network.mode {
        NetworkMode::Routed => Vec::new(),
        NetworkMode::Isolated => vec![format!("{out} drop"), format!("{into} drop")],
        NetworkMode::Nat => vec![
            format!("{into} ct state established,related accept"),
            format!("{into} drop"),
        ],
    };
    let lines = rules.into_iter();
    lines
        .map(|rule| format!("\t\t{rule} comment \"network {name}\"\n"))
        .collect()
}
