//! `NftablesService`, over the core's `manager::Firewall`.

use infinization_core::Failure;
use infinization_core::db::RuleSplit;
use infinization_core::host::nft_file::{NftFiles, PERSISTENCE_DIR};
use infinization_core::manager::{Asked, Department, Firewall, Wanted};
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, VmId};
use napi::Env;
use napi::bindgen_prelude::PromiseRaw;
use napi_derive::napi;
use serde::Serialize;
use serde_json::{Value, json};

use super::Infinization;
use super::refused::Refused;
use crate::argument::{Argument, Issue, refusal, wrong};
use crate::outcome::{Outcome, checked, data, done};

const DIR: &str = "firewallPersistenceDir";

/// The firewall, one machine at a time.
#[napi]
#[derive(Debug)]
pub struct NftablesService {
    firewall: Result<Firewall, Refused>,
}

#[napi]
impl NftablesService {
    /// Of a manager, or alone with `config`. Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(config: Argument, owner: Option<&Infinization>) -> Self {
        let firewall = match owner {
            Some(owner) => Ok(owner.manager().firewall()),
            None => alone(config.settings()),
        };
        Self {
            firewall: firewall.map_err(Refused::from),
        }
    }

    #[napi]
    pub async fn initialize(&self) -> Outcome {
        done(async { self.firewall()?.initialize().await }).await
    }

    #[napi(js_name = "createVMChain")]
    pub fn create_vm_chain<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
        tap: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || {
            let (vm_id, tap) = (vm_id.parsed("vmId")?, tap.parsed("tapName")?);
            Ok(self.firewall()?.create_chain(&vm_id, &tap))
        };
        answered(env, asked())
    }

    #[napi(js_name = "ensureVMChain")]
    pub fn ensure_vm_chain<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || Ok(self.firewall()?.ensure_chain(&vm_id.parsed("vmId")?));
        answered(env, asked())
    }

    #[napi]
    pub fn attach_jump_rules<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
        tap: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || {
            let (vm_id, tap) = (vm_id.parsed("vmId")?, tap.parsed("tapName")?);
            Ok(self.firewall()?.attach(&vm_id, &tap))
        };
        env.spawn_future(finished(asked()))
    }

    /// Best effort: what fails is logged.
    #[napi]
    pub fn detach_jump_rules<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || Ok(self.firewall()?.detach(&vm_id.parsed("vmId")?));
        env.spawn_future(tried("detach", asked()))
    }

    #[napi]
    #[allow(
        clippy::too_many_arguments,
        reason = "JavaScript's, one by one; napi keeps no `expect`"
    )]
    pub fn apply_rules<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
        tap: Argument,
        department_rules: Argument,
        vm_rules: Argument,
        default_action: Argument,
        addresses: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || {
            let wanted = wanted(
                vm_id,
                tap,
                [department_rules, vm_rules],
                [default_action, addresses],
            )?;
            Ok(self.firewall()?.apply(wanted))
        };
        answered(env, asked())
    }

    #[napi]
    #[allow(
        clippy::too_many_arguments,
        reason = "JavaScript's, one by one; napi keeps no `expect`"
    )]
    pub fn apply_rules_if_changed<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
        tap: Argument,
        department_rules: Argument,
        vm_rules: Argument,
        default_action: Argument,
        addresses: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || {
            let wanted = wanted(
                vm_id,
                tap,
                [department_rules, vm_rules],
                [default_action, addresses],
            )?;
            Ok(self.firewall()?.apply_if_changed(wanted))
        };
        answered(env, asked())
    }

    #[napi]
    pub fn apply_department_rules<'e>(
        &self,
        env: &'e Env,
        department_rules: Argument,
        machines: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || {
            let department = Department {
                rules: department_rules.shaped("departmentRules")?,
                machines: machines.shaped("machines")?,
            };
            Ok(self.firewall()?.apply_department(department))
        };
        answered(env, asked())
    }

    #[napi]
    pub async fn plan_rules(
        &self,
        vm_id: Argument,
        tap: Argument,
        department_rules: Argument,
        vm_rules: Argument,
        default_action: Argument,
        addresses: Argument,
    ) -> Outcome {
        data(async {
            let wanted = wanted(
                vm_id,
                tap,
                [department_rules, vm_rules],
                [default_action, addresses],
            )?;
            self.firewall()?.plan(&wanted).await
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi(js_name = "flushVMRules")]
    pub fn flush_vm_rules<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || Ok(self.firewall()?.flush(&vm_id.parsed("vmId")?));
        env.spawn_future(tried("flush", asked()))
    }

    /// Best effort: what fails is logged.
    #[napi(js_name = "removeVMChain")]
    pub fn remove_vm_chain<'e>(
        &self,
        env: &'e Env,
        vm_id: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || Ok(self.firewall()?.remove(&vm_id.parsed("vmId")?));
        env.spawn_future(tried("remove", asked()))
    }

    /// Best effort: what fails is logged.
    #[napi(js_name = "removeVMChainByName")]
    pub fn remove_vm_chain_by_name<'e>(
        &self,
        env: &'e Env,
        chain: Argument,
    ) -> napi::Result<PromiseRaw<'e, Outcome>> {
        let asked = || self.firewall()?.remove_by_name(&chain.text("chainName")?);
        env.spawn_future(tried("remove", asked()))
    }

    #[napi]
    pub async fn list_chains(&self) -> Outcome {
        data(async { self.firewall()?.chains().await }).await
    }

    #[napi]
    pub async fn chain_exists(&self, chain: Argument) -> Outcome {
        data(async {
            let chain = chain.text("chainName")?;
            Ok(self.firewall()?.chains().await?.contains(&chain))
        })
        .await
    }

    #[napi]
    pub async fn list_orphaned_chains(&self) -> Outcome {
        data(async { self.firewall()?.orphaned_chains().await }).await
    }

    #[napi]
    pub fn clear_rules_cache(&self, vm_id: Argument) -> Outcome {
        checked(vm_id.parsed("vmId").and_then(|_id: VmId| {
            self.firewall()?.distrust();
            Ok(())
        }))
    }

    #[napi]
    pub async fn force_persist(&self) -> Outcome {
        let saved = async { self.firewall()?.save().await }.await;
        data(async {
            Ok(match saved {
                Ok(()) => json!({ "success": true }),
                Err(error) => json!({ "success": false, "error": error.to_string() }),
            })
        })
        .await
    }

    /// Its files.
    pub(super) fn files(&self) -> Result<NftFiles, Refused> {
        let firewall = self.firewall().map_err(Refused::from)?;
        firewall.files().map_err(Refused::from)
    }

    fn firewall(&self) -> Result<&Firewall, Failure> {
        self.firewall.as_ref().map_err(Failure::from)
    }
}

fn alone(config: Result<Value, Vec<Issue>>) -> Result<Firewall, Failure> {
    let mut settings = config.map_err(|issues| refusal("config", issues))?;
    if let Value::Object(settings) = &mut settings {
        let enabled = settings.remove("enablePersistence").unwrap_or_default();
        let dir = settings
            .remove("persistenceDir")
            .filter(|dir| !dir.is_null());
        let usual = || json!(PERSISTENCE_DIR);
        match (enabled, dir) {
            (Value::Bool(false), _) => {
                return Ok(Firewall::alone(&Value::Object(settings.clone()))?.unsaved());
            }
            (Value::Bool(true), dir) => {
                settings.insert(DIR.to_owned(), dir.unwrap_or_else(usual));
            }
            (Value::Null, Some(dir)) => {
                settings.insert(DIR.to_owned(), dir);
            }
            (Value::Null, None) => {}
            _ => return Err(wrong("enablePersistence", "must be a boolean")),
        }
    }
    Firewall::alone(&settings)
}

fn wanted(
    vm_id: Argument,
    tap: Argument,
    [department_rules, vm_rules]: [Argument; 2],
    [default_action, addresses]: [Argument; 2],
) -> Result<Wanted, Failure> {
    let default_action: Option<FirewallDefaultAction> = default_action.shaped("defaultAction")?;
    Ok(Wanted {
        vm_id: vm_id.parsed("vmId")?,
        tap: tap.parsed("tapName")?,
        rules: RuleSplit {
            department_rules: department_rules
                .shaped::<Vec<FirewallRuleInput>>("departmentRules")?,
            vm_rules: vm_rules.shaped::<Vec<FirewallRuleInput>>("vmRules")?,
        },
        default_action: default_action.unwrap_or_default(),
        addresses: addresses.shaped("addresses")?,
    })
}

/// Answers with data. That something was asked for is noted before this returns, so that the order of the
/// calls is the order of what they ask for.
fn answered<T: Serialize + Send + 'static>(
    env: &Env,
    asked: Result<impl Asked<T>, Failure>,
) -> napi::Result<PromiseRaw<'_, Outcome>> {
    env.spawn_future(async { Ok(data(async { asked?.await }).await) })
}

/// Answers with nothing.
async fn finished(asked: Result<impl Asked<()>, Failure>) -> napi::Result<Outcome> {
    Ok(done(async { asked?.await }).await)
}

/// Answers with nothing, whatever becomes of it.
async fn tried(verb: &str, asked: Result<impl Asked<()>, Failure>) -> napi::Result<Outcome> {
    let work = async {
        if let Err(error) = async { asked?.await }.await {
            tracing::error!(%error, "the firewall could not {verb} a machine's chain");
        }
        Ok(())
    };
    Ok(done(work).await)
}
