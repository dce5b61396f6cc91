use infinization_core::Failure;
use infinization_core::db::RuleSplit;
use infinization_core::host::nft_file::{NftFiles, PERSISTENCE_DIR};
use infinization_core::manager::{Firewall, Wanted};
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, VmId};
use napi_derive::napi;
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
    pub async fn create_vm_chain(&self, vm_id: Argument, tap: Argument) -> Outcome {
        data(async {
            let (vm_id, tap) = (vm_id.parsed("vmId")?, tap.parsed("tapName")?);
            self.firewall()?.create_chain(&vm_id, &tap).await
        })
        .await
    }

    #[napi(js_name = "ensureVMChain")]
    pub async fn ensure_vm_chain(&self, vm_id: Argument) -> Outcome {
        data(async { self.firewall()?.ensure_chain(&vm_id.parsed("vmId")?).await }).await
    }

    #[napi]
    pub async fn attach_jump_rules(&self, vm_id: Argument, tap: Argument) -> Outcome {
        done(async {
            let (vm_id, tap) = (vm_id.parsed("vmId")?, tap.parsed("tapName")?);
            self.firewall()?.attach(&vm_id, &tap).await
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi]
    pub async fn detach_jump_rules(&self, vm_id: Argument) -> Outcome {
        done(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            logged("detach", self.firewall()?.detach(&vm_id).await);
            Ok(())
        })
        .await
    }

    #[napi]
    pub async fn apply_rules(
        &self,
        vm_id: Argument,
        tap: Argument,
        department_rules: Argument,
        vm_rules: Argument,
        default_action: Argument,
    ) -> Outcome {
        data(async {
            let wanted = wanted(vm_id, tap, [department_rules, vm_rules], default_action)?;
            self.firewall()?.apply(&wanted).await
        })
        .await
    }

    #[napi]
    pub async fn apply_rules_if_changed(
        &self,
        vm_id: Argument,
        tap: Argument,
        department_rules: Argument,
        vm_rules: Argument,
        default_action: Argument,
    ) -> Outcome {
        data(async {
            let wanted = wanted(vm_id, tap, [department_rules, vm_rules], default_action)?;
            self.firewall()?.apply_if_changed(&wanted).await
        })
        .await
    }

    #[napi]
    pub async fn plan_rules(
        &self,
        vm_id: Argument,
        tap: Argument,
        department_rules: Argument,
        vm_rules: Argument,
        default_action: Argument,
    ) -> Outcome {
        data(async {
            let wanted = wanted(vm_id, tap, [department_rules, vm_rules], default_action)?;
            self.firewall()?.plan(&wanted).await
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi(js_name = "flushVMRules")]
    pub async fn flush_vm_rules(&self, vm_id: Argument) -> Outcome {
        done(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            logged("flush", self.firewall()?.flush(&vm_id).await);
            Ok(())
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi(js_name = "removeVMChain")]
    pub async fn remove_vm_chain(&self, vm_id: Argument) -> Outcome {
        done(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            logged("remove", self.firewall()?.remove(&vm_id).await);
            Ok(())
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi(js_name = "removeVMChainByName")]
    pub async fn remove_vm_chain_by_name(&self, chain: Argument) -> Outcome {
        done(async {
            let chain = chain.text("chainName")?;
            logged("remove", self.firewall()?.remove_by_name(&chain).await);
            Ok(())
        })
        .await
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
    default_action: Argument,
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
    })
}

fn logged(verb: &str, outcome: Result<(), Failure>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "the firewall could not {verb} a machine's chain");
    }
}
