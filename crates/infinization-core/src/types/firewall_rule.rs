//! A rule as users write it. What it means is decided by [`crate::firewall`]'s parser.

use serde::{Deserialize, Serialize};

/// A firewall rule as the user's database and API hold it; nothing in it is checked yet.
///
/// Every field is kept in the widest form its source may have, so that one malformed rule can be
/// reported by name instead of failing the whole set. The firewall compiler is where it is parsed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FirewallRuleInput {
    /// The row's id.
    pub id: String,
    /// Shown in the ruleset as the rule's comment.
    pub name: String,
    /// Free text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `ACCEPT`, `DROP` or `REJECT`.
    pub action: String,
    /// `IN` (to the VM), `OUT` (from the VM) or `INOUT`.
    pub direction: String,
    /// Lower comes first.
    pub priority: f64,
    /// `tcp`, `udp`, `icmp` or `all`; absent or empty means `all`.
    pub protocol: Option<String>,
    /// First source port (tcp, udp).
    pub src_port_start: Option<f64>,
    /// Last source port; absent means the first alone.
    pub src_port_end: Option<f64>,
    /// First destination port (tcp, udp).
    pub dst_port_start: Option<f64>,
    /// Last destination port; absent means the first alone.
    pub dst_port_end: Option<f64>,
    /// Source address, IPv4 or IPv6.
    pub src_ip_addr: Option<String>,
    /// Source mask: a prefix length or a dotted mask.
    pub src_ip_mask: Option<String>,
    /// Destination address, IPv4 or IPv6.
    pub dst_ip_addr: Option<String>,
    /// Destination mask: a prefix length or a dotted mask.
    pub dst_ip_mask: Option<String>,
    /// `{ established, new, related, invalid: boolean }`, or the older `{ states: ["ESTABLISHED"] }`.
    pub connection_state: Option<serde_json::Value>,
    /// This VM rule takes the place of an equal department rule.
    pub overrides_dept: bool,
}

/// What happens to a packet no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum FirewallDefaultAction {
    /// It passes.
    Accept,
    /// It is dropped.
    #[default]
    Drop,
}
