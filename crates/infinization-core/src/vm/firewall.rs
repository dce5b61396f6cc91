//! Changing a VM's firewall while it exists.

use super::machine::Machine;
use super::outcome::OperationResult;
use super::spec;
use crate::db::RuleSplit;
use crate::error::{ErrorCode, Failure};
use crate::host::bridge;
use crate::types::FirewallRuleInput;

impl Machine {
    /// Stores the VM's own rules, and loads them in one transaction if it runs. Rules that make no
    /// sense are refused together, before anything changes.
    pub(super) async fn set_firewall_rules(
        &mut self,
        rules: Vec<FirewallRuleInput>,
    ) -> Result<OperationResult, Failure> {
        let context = &self.context;
        let store = context
            .services
            .embedded
            .as_ref()
            .ok_or_else(|| context.not_found())?;
        let record = context
            .services
            .database
            .find_machine_with_config(&context.vm_id)
            .await?;
        let record = record.ok_or_else(|| context.not_found())?;
        let config = spec::for_start(context, &record)?;
        let addresses = bridge::addresses(&context.services.links, &config.network.bridge).await?;
        let split = RuleSplit {
            vm_rules: rules.clone(),
            ..RuleSplit::default()
        };
        let addresses = addresses.iter().map(|found| found.address).collect();
        let compiled = context.compile_firewall(&config, &split, None, addresses)?;
        if let Some(first) = compiled.failures.first() {
            let names: Vec<&str> = compiled
                .failures
                .iter()
                .map(|failure| failure.rule_name.as_str())
                .collect();
            let message = format!("firewall rule {:?}: {}", first.rule_name, first.error);
            return Err(Failure::new(ErrorCode::InvalidConfig, message)
                .of_vm(&context.vm_id)
                .with("rules", names));
        }
        if self.live.is_some() {
            context.services.nft.ensure_vm(&compiled).await?;
        }
        store.set_firewall_rules(&context.vm_id, rules).await?;
        Ok(OperationResult::done(&context.vm_id, "firewall rules set"))
    }
}
