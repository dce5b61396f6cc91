//! A VM's firewall while it exists: changing it, loading it again, and showing it.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::context::VmContext;
use super::machine::Machine;
use super::outcome::OperationResult;
use super::services::{Arrival, Services};
use super::spec;
use crate::config::{MachineAddresses, NetworkConfig, VmConfig};
use crate::db::sqlite::SqliteDatabase;
use crate::db::{RuleSplit, VmRecord};
use crate::error::{ErrorCode, Failure};
use crate::firewall::{ChainNames, Compiled, FailedRule, Network, RuleError};
use crate::host::blocking::blocking;
use crate::host::bridge;
use crate::types::{FirewallRuleInput, LinkName};

impl Machine {
    /// Stores the VM's own rules, and loads them in one transaction if it runs. Rules that make no
    /// sense are refused together, before anything changes; when one half of the change fails, the
    /// other is taken back.
    pub(super) async fn set_firewall_rules(
        &mut self,
        rules: Vec<FirewallRuleInput>,
    ) -> Result<OperationResult, Failure> {
        let context = &self.context;
        let store = context.services.embedded.as_ref();
        let store = store.ok_or_else(|| context.not_found())?;
        let database = &context.services.database;
        let record = database
            .find_machine_without_password(&context.vm_id)
            .await?;
        let record = record.ok_or_else(|| context.not_found())?;
        let compiled = context.compile_own_rules(&record, &rules).await?;
        let place = context.services.nft.line_up(&compiled.ruleset.names);
        place.reached().await;
        // The store first: it can be put back, whatever the kernel says.
        store.set_firewall_rules(&context.vm_id, rules).await?;
        if self.live.is_some()
            && let Err(error) = context.services.nft.ensure_vm(&compiled).await
        {
            context.put_back(store, &record).await;
            return Err(Failure::from(error).of_vm(&context.vm_id));
        }
        context.note_guarded();
        Ok(OperationResult::done(&context.vm_id, "firewall rules set"))
    }

    /// Keeps the addresses the VM may use, and holds it to them in one transaction if it runs. When that fails,
    /// those it had are kept.
    pub(super) async fn set_addresses(
        &mut self,
        addresses: MachineAddresses,
    ) -> Result<OperationResult, Failure> {
        let directory = self.context.directory.clone();
        let before = blocking(move || spec::read(&directory)).await??;
        let before = before.ok_or_else(|| {
            let message = "it has never run on this host, so that there is nowhere to keep them";
            Failure::new(ErrorCode::InvalidState, message).of_vm(&self.context.vm_id)
        })?;
        let mut wanted = before.clone();
        wanted.network.addresses = addresses;
        self.write_spec(wanted).await?;
        if let Err(error) = self.reload_firewall().await {
            if let Err(error) = self.write_spec(before).await {
                tracing::error!(vm = %self.context.vm_id, %error, "the stored addresses are not those in force");
            }
            return Err(error.of_vm(&self.context.vm_id));
        }
        Ok(OperationResult::done(&self.context.vm_id, "addresses set"))
    }

    async fn write_spec(&self, config: VmConfig) -> Result<(), Failure> {
        let directory = self.context.directory.clone();
        Ok(blocking(move || spec::write(&directory, &config, false)).await??)
    }

    /// Loads what the database has for a VM that runs, unless it is in force; for one that does not run,
    /// its next start will.
    pub(super) async fn reload_firewall(&mut self) -> Result<(), Failure> {
        let (context, nft) = (&self.context, &self.context.services.nft);
        if self.live.is_none() {
            nft.abandon_vm(&ChainNames::of(&context.vm_id));
            return Ok(());
        }
        let moment = nft.moment();
        let compiled = context.explain_firewall().await?;
        let place = nft.line_up(&compiled.ruleset.names);
        place.reached().await;
        let compiled = nft.with_newest_rules(&compiled, moment);
        if nft.ensure_vm_if_changed(&compiled).await? {
            tracing::info!(vm = %context.vm_id, "its firewall rules were loaded again");
        }
        context.note_guarded();
        Ok(())
    }
}

impl VmContext {
    /// What a start would load now, as the database has it; while the VM runs, with what this run was
    /// started with. While its bridge is not there, it guards the addresses that it guards now.
    pub async fn explain_firewall(&self) -> Result<Compiled, Failure> {
        self.explain_guarding(None).await
    }

    /// As [`VmContext::explain_firewall`], guarding these addresses if there are any given.
    async fn explain_guarding(&self, addresses: Option<Vec<Network>>) -> Result<Compiled, Failure> {
        let database = &self.services.database;
        let record = database.find_machine_without_password(&self.vm_id).await?;
        let record = record.ok_or_else(|| self.not_found())?;
        let config = self.of_this_run(spec::without_console(self, &record)?);
        let rules = database.get_firewall_rules_split(&self.vm_id).await?;
        let policy = database.get_department_firewall_policy(&self.vm_id).await?;
        let addresses = match addresses {
            Some(addresses) => addresses,
            None => self.guarded(&config.network.bridge).await?,
        };
        self.compile_firewall(&config, &rules, policy.as_deref(), addresses)
    }

    /// The addresses of the bridge, and of the one that its TAP is on; while there is neither, those that are
    /// guarded now.
    async fn guarded(&self, bridge: &LinkName) -> Result<Vec<Network>, Failure> {
        let (links, tap) = (&self.services.links, &self.names.tap);
        let addresses = bridge::addresses_beside(links, tap, &[bridge]).await?;
        Ok(match addresses {
            Some(addresses) => addresses.into_iter().map(Network::from).collect(),
            None => self.guarded_now(),
        })
    }

    /// The addresses that the rules guard: those this process has loaded, or else an earlier one, which has noted them.
    fn guarded_now(&self) -> Vec<Network> {
        let loaded = self.services.nft.loaded(&ChainNames::of(&self.vm_id));
        let loaded = loaded.map(|loaded| loaded.bridge_addresses.clone());
        loaded.unwrap_or_else(|| self.ledger.guarded())
    }

    /// Whether an earlier process has noted that its rules guard these. The database need not be asked then, which may be
    /// away; whatever became of the rules since, they are loaded again.
    fn are_guarded(&self, addresses: &[Network]) -> bool {
        let guarded = self.ledger.guarded();
        let mut chosen = addresses.iter().filter(|it| !it.is_link_local());
        chosen.all(|network| guarded.contains(network))
    }

    /// For the next process, which may find no bridge to ask.
    fn note_guarded(&self) {
        if let Err(error) = self.ledger.guards(self.guarded_now()) {
            tracing::warn!(vm = %self.vm_id, %error, "the ledger could not be written");
        }
    }

    /// Has the running VM guard the addresses of the bridge that its TAP is about to join, and of its own. False when it no longer `stays`: whoever takes its
    /// rules away says so before he lines up for it, and what came after him would be nobody's.
    pub(super) async fn guard_before_joining(
        &self,
        joined: &LinkName,
        own: &LinkName,
        stays: impl Fn() -> bool,
    ) -> Result<bool, Failure> {
        let nft = &self.services.nft;
        let addresses = self.to_guard_on(joined, own).await?;
        if addresses.iter().all(Network::is_link_local) {
            return Ok(true);
        }
        if nft.loaded(&ChainNames::of(&self.vm_id)).is_none() && self.are_guarded(&addresses) {
            return Ok(true);
        }
        let moment = nft.moment();
        let compiled = self.guarding(addresses).await?;
        let place = nft.line_up(&compiled.ruleset.names);
        place.reached().await;
        if !stays() {
            return Ok(false);
        }
        let compiled = nft.with_newest_rules(&compiled, moment);
        nft.ensure_vm_if_changed(&compiled).await?;
        self.note_guarded();
        Ok(true)
    }

    /// The addresses of the bridge that is about to be joined, and of the VM's own. As long as the former has none, it
    /// will most likely get those it had, which are guarded now.
    async fn to_guard_on(
        &self,
        joined: &LinkName,
        own: &LinkName,
    ) -> Result<Vec<Network>, Failure> {
        let of = async |bridge| {
            let Services { links, .. } = self.services.as_ref();
            let found = bridge::addresses_beside(links, &self.names.tap, &[bridge]).await;
            found.map(|found| found.into_iter().flatten().map(Network::from))
        };
        let mut all: Vec<Network> = of(joined).await?.collect();
        if all.iter().all(Network::is_link_local) {
            all.extend(self.guarded_now());
        }
        all.extend(of(own).await?);
        let mut seen = HashSet::new();
        all.retain(|network| seen.insert(*network));
        Ok(all)
    }

    /// The launch is over: has the rules loaded again if the addresses of the VM or its bridge have changed since
    /// `launched` was compiled.
    pub(super) async fn look_at_addresses(&self, network: &NetworkConfig, launched: &Compiled) {
        self.note_guarded();
        let chosen = |all: &[Network]| -> HashSet<(IpAddr, u8)> {
            let chosen = all.iter().filter(|it| !it.is_link_local());
            chosen.map(|it| (it.address, it.prefix)).collect()
        };
        let guarded = self.guarded(&network.bridge).await;
        let guarded = guarded.is_ok_and(|now| chosen(&now) == chosen(&launched.bridge_addresses));
        if !guarded || self.services.pins.known_to(network) != launched.known_addresses {
            let outdated = Arrival::Outdated(self.vm_id.clone());
            // Without a manager there is nobody to load them.
            let _unheard = self.services.arrivals.send(outdated);
        }
    }

    /// What is loaded, but guarding these addresses; the database is asked only for rules that an earlier process
    /// has loaded.
    async fn guarding(&self, addresses: Vec<Network>) -> Result<Compiled, Failure> {
        let loaded = self.services.nft.loaded(&ChainNames::of(&self.vm_id));
        let directory = self.directory.clone();
        let spec = blocking(move || spec::read(&directory)).await??;
        let (Some(loaded), Some(config)) = (loaded, spec) else {
            return self.explain_guarding(Some(addresses)).await;
        };
        let none = RuleSplit::default();
        let guards = self.compile_firewall(&config, &none, None, addresses)?;
        Ok(guards.with_rules_of(&loaded))
    }

    /// The stored configuration with what was given to the start of the QEMU that runs, if one does.
    fn of_this_run(&self, mut config: VmConfig) -> VmConfig {
        let lived = self.ledger.contents().lived;
        let given = lived.and_then(|lived| lived.firewall_default_action);
        config.firewall.default_action = given.or(config.firewall.default_action);
        config
    }

    async fn compile_own_rules(
        &self,
        record: &VmRecord,
        rules: &[FirewallRuleInput],
    ) -> Result<Compiled, Failure> {
        let config = self.of_this_run(spec::without_console(self, record)?);
        let addresses = self.guarded(&config.network.bridge).await?;
        let split = RuleSplit {
            vm_rules: rules.to_vec(),
            ..RuleSplit::default()
        };
        let compiled = self.services.compile_firewall(
            &self.vm_id,
            &config.network,
            addresses,
            &split,
            config.firewall.default_action.unwrap_or_default(),
        )?;
        sensible(&compiled, "rules", rules).map_err(|failure| failure.of_vm(&self.vm_id))?;
        Ok(compiled)
    }

    /// The kernel has refused: the store says again what is in force.
    async fn put_back(&self, store: &SqliteDatabase, record: &VmRecord) {
        let before = record.firewall_rule_set.as_ref();
        let before = before.map(|set| set.rules.clone()).unwrap_or_default();
        if let Err(error) = store.set_firewall_rules(&self.vm_id, before).await {
            tracing::error!(vm = %self.vm_id, %error, "the stored firewall rules are not those in force");
        }
    }
}

/// `INVALID_CONFIG` if any of the user's rules makes no sense, naming the field of every one. `list`
/// is what he called them.
pub(super) fn sensible(
    compiled: &Compiled,
    list: &str,
    rules: &[FirewallRuleInput],
) -> Result<(), Failure> {
    match compiled.failures.as_slice() {
        [] => Ok(()),
        failures => Err(refusal(list, rules, failures)),
    }
}

fn refusal(list: &str, rules: &[FirewallRuleInput], failures: &[FailedRule]) -> Failure {
    let issues = failures.iter().map(|failure| {
        let at = rules.iter().position(|rule| rule.id == failure.rule_id);
        let path = match at {
            Some(index) => format!(
                "{list}[{index}].{}",
                field_of(&rules[index], &failure.error)
            ),
            None => list.to_owned(),
        };
        json!({ "path": path, "message": failure.error.to_string() })
    });
    let issues: Vec<Value> = issues.collect();
    let names: Vec<&str> = failures
        .iter()
        .map(|failure| failure.rule_name.as_str())
        .collect();
    let message = format!("firewall rule {:?}: {}", names[0], failures[0].error);
    Failure::new(ErrorCode::InvalidConfig, message)
        .with("issues", issues)
        .with("rules", names)
}

/// The field of `rule` that `error` is about.
fn field_of(rule: &FirewallRuleInput, error: &RuleError) -> &'static str {
    match error {
        RuleError::NoName => "name",
        RuleError::Action(_) => "action",
        RuleError::Direction(_) => "direction",
        RuleError::Priority => "priority",
        RuleError::Protocol(_) | RuleError::PortsWithoutTransport => "protocol",
        RuleError::Port(port) => port_field(rule, *port),
        RuleError::PortOrder { last, .. } => port_field(rule, f64::from(*last)),
        RuleError::PortStartMissing(_) => match (rule.src_port_start, rule.src_port_end) {
            (None, Some(_)) => "srcPortStart",
            _ => "dstPortStart",
        },
        RuleError::Address(text) if rule.src_ip_addr.as_ref() == Some(text) => "srcIpAddr",
        RuleError::Address(_) | RuleError::MixedFamilies => "dstIpAddr",
        RuleError::Mask { mask, .. } if rule.src_ip_mask.as_ref() == Some(mask) => "srcIpMask",
        RuleError::Mask { .. } => "dstIpMask",
        RuleError::StateShape
        | RuleError::UnknownState(_)
        | RuleError::NoState
        | RuleError::NeedsConntrack => "connectionState",
    }
}

/// The first of the rule's port fields that holds `port`.
fn port_field(rule: &FirewallRuleInput, port: f64) -> &'static str {
    let fields = [
        (rule.src_port_start, "srcPortStart"),
        (rule.src_port_end, "srcPortEnd"),
        (rule.dst_port_start, "dstPortStart"),
        (rule.dst_port_end, "dstPortEnd"),
    ];
    let held = |value: Option<f64>| value.is_some_and(|value| value.total_cmp(&port).is_eq());
    let found = fields.into_iter().find(|(value, _)| held(*value));
    found.map_or("dstPortStart", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::parse_rule;

    fn rule(change: impl FnOnce(&mut FirewallRuleInput)) -> FirewallRuleInput {
        let mut rule = FirewallRuleInput {
            id: "1".to_owned(),
            name: "web".to_owned(),
            action: "ACCEPT".to_owned(),
            direction: "IN".to_owned(),
            protocol: Some("tcp".to_owned()),
            ..FirewallRuleInput::default()
        };
        change(&mut rule);
        rule
    }

    #[test]
    fn b24_b25_b29_b30_a_refusal_names_the_field() {
        let text = |text: &str| Some(text.to_owned());
        let table = [
            (rule(|it| it.name.clear()), "name"),
            (rule(|it| it.action = "allow".to_owned()), "action"),
            (rule(|it| it.direction = "UP".to_owned()), "direction"),
            (rule(|it| it.protocol = text("gre")), "protocol"),
            (rule(|it| it.dst_port_start = Some(65536.0)), "dstPortStart"),
            (
                rule(|it| (it.src_port_start, it.src_port_end) = (Some(9.0), Some(1.0))),
                "srcPortEnd",
            ),
            (
                rule(|it| (it.dst_port_start, it.dst_port_end) = (Some(9.0), Some(1.5))),
                "dstPortEnd",
            ),
            (rule(|it| it.src_port_end = Some(9.0)), "srcPortStart"),
            (rule(|it| it.dst_port_end = Some(9.0)), "dstPortStart"),
            (
                rule(|it| (it.src_port_start, it.dst_port_end) = (Some(9.0), Some(9.0))),
                "dstPortStart",
            ),
            (rule(|it| it.src_ip_addr = text("10.0.0")), "srcIpAddr"),
            (rule(|it| it.dst_ip_addr = text("10.0.0")), "dstIpAddr"),
            (
                rule(|it| (it.dst_ip_addr, it.dst_ip_mask) = (text("10.0.0.0"), text("33"))),
                "dstIpMask",
            ),
            (
                rule(|it| it.connection_state = Some(json!({ "new": false }))),
                "connectionState",
            ),
        ];
        for (rule, field) in table {
            let error = parse_rule(&rule).unwrap_err();
            let failure = FailedRule {
                rule_id: rule.id.clone(),
                rule_name: rule.name.clone(),
                error,
            };
            let refused = refusal("rules", &[rule], &[failure]);
            assert_eq!(refused.code(), ErrorCode::InvalidConfig);
            assert_eq!(
                refused.context()["issues"][0]["path"],
                format!("rules[0].{field}")
            );
        }
    }
}
