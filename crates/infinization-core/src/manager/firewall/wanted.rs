//! What to filter: one machine, or those of a department.

use serde::Deserialize;

use crate::config::MachineAddresses;
use crate::db::RuleSplit;
use crate::types::{FirewallDefaultAction, FirewallRuleInput, LinkName, VmId};

/// What to filter, and where.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The machine.
    pub vm_id: VmId,
    /// The port its frames pass.
    pub tap: LinkName,
    /// The rules.
    pub rules: RuleSplit,
    /// What happens to a packet no rule decides.
    pub default_action: FirewallDefaultAction,
    /// The addresses the machine may use, if they are not those it was created with.
    pub addresses: Option<MachineAddresses>,
}

/// A department's rules, and its machines.
#[derive(Debug, Clone)]
pub struct Department {
    /// The department's.
    pub rules: Vec<FirewallRuleInput>,
    /// What else decides each machine's rules.
    pub machines: Vec<Member>,
}

/// A machine of a department.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The machine.
    pub vm_id: VmId,
    /// The port its frames pass.
    pub tap_name: LinkName,
    /// Its own rules.
    #[serde(default)]
    pub vm_rules: Vec<FirewallRuleInput>,
    /// What happens to a packet no rule decides.
    #[serde(default)]
    pub default_action: FirewallDefaultAction,
    /// As [`Wanted::addresses`].
    #[serde(default)]
    pub addresses: Option<MachineAddresses>,
}

impl Member {
    pub(super) fn under(self, department: &[FirewallRuleInput]) -> Wanted {
        Wanted {
            vm_id: self.vm_id,
            tap: self.tap_name,
            rules: RuleSplit {
                department_rules: department.to_vec(),
                vm_rules: self.vm_rules,
            },
            default_action: self.default_action,
            addresses: self.addresses,
        }
    }
}
