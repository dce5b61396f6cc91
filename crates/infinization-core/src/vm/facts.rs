//! Finds out what planning must know of the host and the row. Reads only: everything that can
//! refuse an operation refuses here, before the first side effect, and names the field it is about
//! (`context.issues[].path`) as the parser does.
//!
//! The three things it takes are the display port's reservation, and a new machine's MAC address and disks on the
//! network, which are given back when dropped.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `facts` | what netlink, `/proc` and the rules say |
//! | `host` | all that may block, asked in one go |
//! | `files`, `pci`, `macs` | what the configuration names |
//! | `cpus` | where CPUs run and memory lies |
//! | `disks` | images: what they are, and who else has them |
//! | `network_disks` | disks that are elsewhere |

mod cpus;
mod disks;
mod files;
mod host;
mod macs;
mod network_disks;
mod pci;

use std::sync::Arc;

use serde_json::json;

use self::host::{Host, Seen};
use self::macs::MacClaim;
pub use self::macs::MacClaims;
use self::network_disks::NetworkDiskClaim;
pub use self::network_disks::NetworkDiskClaims;
use super::context::VmContext;
use super::disk_uses::{row_uses, written_files};
use super::firewall::sensible;
use super::launch::ReadRules;
use super::planner::{Facts, RowClaim, TapState};
use crate::config::VmConfig;
use crate::db::RuleSplit;
use crate::error::{ErrorCode, Failure};
use crate::firewall::{Compiled, Network};
use crate::host::blocking::blocking;
use crate::host::bridge;
use crate::host::display_port::ReservedPort;
use crate::host::nft::Moment;
use crate::host::process::find_by_name;
use crate::qemu::name_argument;
use crate::types::{FirewallDefaultAction, HostPath, VmId};

/// What was found out, and what must be kept while the plan runs.
pub(super) struct Gathered {
    pub(super) facts: Facts,
    pub(super) reserved: Reserved,
}

/// Kept while the VM lives, and told to the caller.
pub(super) struct Reserved {
    pub(super) display_port: ReservedPort,
    /// Until the launch is over; then the machine's spec file says it.
    pub(super) mac: Option<MacClaim>,
    /// Likewise.
    pub(super) network_disks: Option<NetworkDiskClaim>,
    pub(super) warnings: Vec<String>,
}

impl VmContext {
    pub(super) async fn gather(
        &self,
        config: &VmConfig,
        rules: &ReadRules,
        row: RowClaim,
        first_port: u16,
    ) -> Result<Gathered, Failure> {
        self.no_living_namesake(config).await?;
        let creating = !matches!(row, RowClaim::Transition { .. });
        let host = Host {
            config: config.clone(),
            services: Arc::clone(&self.services),
            creating,
            first_port,
            written: self.written_by_others(config, creating).await?,
        };
        let seen = host.ask().await?;
        network_disks::check(&config.disks).await?;
        let addresses = self.bridge_addresses(config).await?;
        let policy = rules.policy.as_deref();
        let compiled = self.compile_firewall(config, &rules.split, policy, addresses)?;
        // In a database of the user's own, a rule that makes no sense is left out and told.
        if creating && self.services.embedded.is_some() {
            sensible(&compiled, "firewallRules", &rules.split.vm_rules)?;
        }
        let firewall = (compiled, rules.as_of);
        let tap = self.tap_state(config).await?;
        self.together(seen, firewall, tap, row)
    }

    fn together(
        &self,
        seen: Seen,
        (firewall, firewall_as_of): (Compiled, Moment),
        tap: TapState,
        row: RowClaim,
    ) -> Result<Gathered, Failure> {
        let mut warnings = seen.warnings;
        warnings.extend(firewall_warnings(&firewall));
        let facts = Facts {
            accelerator: seen.accelerator,
            vhost: seen.vhost,
            display_port: seen.display_port.number(),
            display_address: seen.display_address,
            tap,
            firewall,
            firewall_as_of,
            vars_template: seen.vars_template,
            row,
            missing_directories: seen.missing_directories,
            pinned_cpus: seen.pinning.cpus,
            host_nodes: seen.pinning.nodes,
            encrypted_below: seen.encrypted_below,
            directory: HostPath::parse(self.directory.display().to_string()).map_err(|error| {
                Failure::new(ErrorCode::InvalidConfig, format!("stateDir {error}"))
            })?,
        };
        let reserved = Reserved {
            display_port: seen.display_port,
            mac: seen.mac,
            network_disks: seen.network_disks,
            warnings,
        };
        Ok(Gathered { facts, reserved })
    }

    /// What a new disk must not lie on. Only clones ask.
    async fn written_by_others(
        &self,
        config: &VmConfig,
        creating: bool,
    ) -> Result<Vec<(VmId, HostPath)>, Failure> {
        if !creating || config.disks.iter().all(|disk| disk.backing_file.is_none()) {
            return Ok(Vec::new());
        }
        let services = &self.services;
        let machines = services.machines_directory();
        let mut written = blocking(move || written_files(&machines)).await??;
        written.extend(row_uses(&*services.database, &services.config.disk_dir).await?);
        written.retain(|(vm_id, _)| *vm_id != self.vm_id);
        Ok(written)
    }

    async fn bridge_addresses(&self, config: &VmConfig) -> Result<Vec<Network>, Failure> {
        let found = bridge::addresses(&self.services.links, &config.network.bridge).await;
        let found = found.map_err(|error| {
            let message = format!("the bridge {} cannot be used", config.network.bridge);
            about(
                "bridge",
                Failure::caused_by(ErrorCode::NetworkError, message, error),
            )
        })?;
        Ok(found.into_iter().map(Network::from).collect())
    }

    /// Another machine's QEMU of the same internal name would share disks and sockets with ours.
    /// It is never touched; the operation is refused.
    async fn no_living_namesake(&self, config: &VmConfig) -> Result<(), Failure> {
        let namesakes = find_by_name(&name_argument(&config.internal_name)).await?;
        let Some(namesake) = namesakes.first() else {
            return Ok(());
        };
        let message = format!("a QEMU named {} is running already", config.internal_name);
        let failure =
            Failure::new(ErrorCode::ResourceUnavailable, message).with("pid", namesake.pid());
        Err(about("internalName", failure))
    }

    pub(super) fn compile_firewall(
        &self,
        config: &VmConfig,
        rules: &RuleSplit,
        policy: Option<&str>,
        bridge_addresses: Vec<Network>,
    ) -> Result<Compiled, Failure> {
        let department = match policy {
            Some("ALLOW_ALL") => FirewallDefaultAction::Accept,
            _ => FirewallDefaultAction::Drop,
        };
        let default_action = config.firewall.default_action.unwrap_or(department);
        let compiled = self.services.compile_firewall(
            &self.vm_id,
            &config.network,
            bridge_addresses,
            rules,
            default_action,
        )?;
        if compiled.failures.is_empty() {
            return Ok(compiled);
        }
        // A rule that cannot be applied leaves the VM other than its owner meant: it is told, and
        // the rest protects it as far as it goes.
        for failure in &compiled.failures {
            tracing::warn!(vm = %self.vm_id, rule = %failure.rule_name, error = %failure.error, "firewall rule left out");
        }
        Ok(compiled)
    }

    async fn tap_state(&self, config: &VmConfig) -> Result<TapState, Failure> {
        let tap = &self.names.tap;
        let Some(link) = self.services.links.find(tap).await? else {
            return Ok(TapState::Absent);
        };
        if !link.is_tap() {
            let message = format!("{tap} exists and is not a TAP device");
            return Err(Failure::new(ErrorCode::DeviceAlreadyExists, message));
        }
        if link.carrier {
            let message = format!("TAP {tap} is in use by another process");
            return Err(Failure::new(ErrorCode::DeviceAlreadyExists, message));
        }
        let multi_queue = link.tun.is_some_and(|tun| tun.multi_queue);
        let wanted = config.network.queues > 1;
        Ok(if multi_queue == wanted {
            TapState::Kept
        } else {
            TapState::OtherQueues
        })
    }
}

/// Names the field a refusal is about, as a refused configuration does.
fn about(field: impl Into<String>, failure: Failure) -> Failure {
    let issue = json!({
        "path": field.into(),
        "message": failure.to_string(),
        "code": failure.code().as_str(),
    });
    failure.with("issues", vec![issue])
}

fn firewall_warnings(compiled: &Compiled) -> Vec<String> {
    let failed = compiled.failures.iter().map(|failure| {
        format!(
            "firewall rule {:?} was left out: {}",
            failure.rule_name, failure.error
        )
    });
    let degraded = compiled
        .degraded
        .iter()
        .map(|rule| format!("firewall rule {:?} is {}", rule.rule_name, rule.degradation));
    failed.chain(degraded).collect()
}
