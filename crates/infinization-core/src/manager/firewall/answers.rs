//! What the firewall service answers, in the shapes of the contract.

use serde::Serialize;
use serde_json::Value;

use crate::error::Failure;
use crate::firewall::{self, ChainText, Compiled, Transaction, Verdict};
use crate::types::{FirewallDefaultAction, LinkName, VmId};

/// `FirewallApplyResult`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Rules after merging; one for both directions counts once.
    pub total_rules: usize,
    /// Those in force.
    pub applied_rules: usize,
    /// Those that are not: the machine is not protected as asked.
    pub failed_rules: usize,
    /// The machine's visible chain.
    pub chain_name: String,
    /// Why each failed.
    pub failures: Vec<FailedRule>,
    /// Those in force in a weaker form, which the kernel forces on them.
    pub degraded: Vec<DegradedRule>,
}

/// A rule that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedRule {
    /// Its name.
    pub rule_name: String,
    /// Why.
    pub error: String,
}

/// A rule that does less than it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DegradedRule {
    /// Its name.
    pub rule_name: String,
    /// In what way.
    pub reason: String,
}

/// `FirewallPlan`: what would be loaded for a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FirewallPlan {
    /// The machine.
    pub vm_id: VmId,
    /// The port its frames pass.
    pub tap_name: LinkName,
    /// What happens to a packet no rule decides.
    pub default_action: FirewallDefaultAction,
    /// What would become of the rules.
    #[serde(flatten)]
    pub applied: Applied,
    /// The chains its packets pass.
    pub chains: Vec<ChainText>,
    /// The table with this machine alone, in nft's syntax.
    pub text: String,
    /// The transaction, as `nft -j` would be given it.
    pub json: Value,
}

impl FirewallPlan {
    pub(in crate::manager) fn of(vm_id: &VmId, compiled: &Compiled) -> Self {
        let last = compiled.ruleset.vm.last();
        Self {
            vm_id: vm_id.clone(),
            tap_name: compiled.ruleset.tap.clone(),
            default_action: match last.map(|rule| &rule.verdict) {
                Some(Verdict::Accept) => FirewallDefaultAction::Accept,
                _ => FirewallDefaultAction::Drop,
            },
            applied: applied(compiled),
            chains: firewall::chain_texts(compiled),
            text: firewall::table_text(compiled),
            json: firewall::document(&Transaction::ensure_vm(compiled)),
        }
    }
}

/// What became of one machine of a department.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DepartmentApplied {
    /// The machine.
    pub vm_id: VmId,
    /// What is in force now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Applied>,
    /// Why the old rules still are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Refused>,
}

/// Why a machine's rules were not loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Of the table of codes.
    pub code: &'static str,
    /// In words.
    pub message: String,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code().as_str(),
            message: failure.to_string(),
        }
    }
}

/// `applyRulesIfChanged`'s answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Whether the kernel did not hold the rules yet.
    pub changed: bool,
    /// What was loaded, if anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Applied>,
}

pub(super) fn applied(compiled: &Compiled) -> Applied {
    Applied {
        total_rules: compiled.total,
        applied_rules: compiled.applied,
        failed_rules: compiled.failures.len(),
        chain_name: compiled.ruleset.names.vm.clone(),
        failures: compiled.failures.iter().map(FailedRule::from).collect(),
        degraded: compiled.degraded.iter().map(DegradedRule::from).collect(),
    }
}

impl From<&firewall::FailedRule> for FailedRule {
    fn from(rule: &firewall::FailedRule) -> Self {
        Self {
            rule_name: rule.rule_name.clone(),
            error: rule.error.to_string(),
        }
    }
}

impl From<&firewall::DegradedRule> for DegradedRule {
    fn from(rule: &firewall::DegradedRule) -> Self {
        Self {
            rule_name: rule.rule_name.clone(),
            reason: rule.degradation.to_string(),
        }
    }
}
