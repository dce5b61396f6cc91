//! The verbs on one VM: each is parsed here and asked of the VM's task.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::firewall::FirewallPlan;
use super::{Manager, TRANSIENT, parse_id, to_value};
use crate::config::{Parsed, StartOptions, StopOptions, VmConfig};
use crate::error::Failure;
use crate::vm::Verb;

impl Manager {
    /// What `create_vm` would do, without touching anything.
    pub async fn plan_vm(&self, config: Value) -> Result<Value, Failure> {
        let open = self.open()?;
        let config = self.on_network(config)?;
        let Parsed { config, warnings } = VmConfig::parse(&config, &open.services.parser)?;
        // A context of its own, never a task: planning leaves no trace.
        let context = open.services.context_of(&config.id)?;
        let (plan, found) = context.plan_create(&config).await?;
        let mut said: Vec<String> = warnings
            .iter()
            .map(|w| format!("{} {}", w.path, w.message))
            .collect();
        said.extend(found);
        let mut shown = to_value(&plan)?;
        shown["vmId"] = json!(config.id);
        shown["warnings"] = json!(said);
        Ok(shown)
    }

    /// `explainFirewall`: what a start would load now, without touching anything.
    pub async fn explain_firewall(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        // A context of its own, never a task: explaining leaves no trace.
        let context = open.services.context_of(&vm_id)?;
        let compiled = context.explain_firewall().await?;
        to_value(&FirewallPlan::of(&vm_id, &compiled))
    }

    /// `createVM`.
    pub async fn create_vm(
        &self,
        config: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let open = self.open()?;
        let config = self.on_network(config)?;
        let Parsed { config, warnings } = VmConfig::parse(&config, &open.services.parser)?;
        let handle = open.handle(&config.id)?;
        let created = handle.create(config, warnings, cancel).await;
        open.drop_if_empty(&handle);
        to_value(&created?)
    }

    /// `startVM`.
    pub async fn start_vm(
        &self,
        vm_id: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let options = StartOptions::parse(&options)?.warned("startVM", &parse_id(&vm_id)?);
        self.verb(&vm_id, Verb::Start { options, cancel }).await
    }

    /// `stopVM`.
    pub async fn stop_vm(
        &self,
        vm_id: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let options = StopOptions::parse(&options)?.warned("stopVM", &parse_id(&vm_id)?);
        self.verb(&vm_id, Verb::Stop { options, cancel }).await
    }

    /// `restartVM`.
    pub async fn restart_vm(&self, vm_id: String) -> Result<Value, Failure> {
        self.verb(&vm_id, Verb::Restart).await
    }

    /// `suspendVM`.
    pub async fn suspend_vm(&self, vm_id: String) -> Result<Value, Failure> {
        self.verb(&vm_id, Verb::Suspend).await
    }

    /// `resumeVM`.
    pub async fn resume_vm(&self, vm_id: String) -> Result<Value, Failure> {
        self.verb(&vm_id, Verb::Resume).await
    }

    /// `resetVM`.
    pub async fn reset_vm(&self, vm_id: String) -> Result<Value, Failure> {
        self.verb(&vm_id, Verb::Reset).await
    }

    /// `destroyVM`: an absent machine is destroyed already.
    pub async fn destroy_vm(&self, vm_id: String) -> Result<Value, Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        let handle = open.handle(&vm_id)?;
        let destroyed = handle.verb(Verb::Destroy).await;
        open.drop_if_empty(&handle);
        to_value(&destroyed?)
    }

    /// `reconcileStartupState`: settles rows that an earlier process left between two states.
    pub async fn reconcile_startup_state(
        &self,
        statuses: Option<Vec<String>>,
    ) -> Result<Value, Failure> {
        let open = self.open()?;
        let statuses = statuses.unwrap_or_else(|| TRANSIENT.map(str::to_owned).to_vec());
        let statuses: Vec<&str> = statuses.iter().map(String::as_str).collect();
        to_value(&open.reconcile(&statuses).await?)
    }

    pub(super) async fn verb(&self, vm_id: &str, verb: Verb) -> Result<Value, Failure> {
        let open = self.open()?;
        let vm_id = parse_id(vm_id)?;
        let handle = open.known(&vm_id).await?;
        to_value(&handle.verb(verb).await?)
    }
}
