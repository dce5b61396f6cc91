use std::sync::Arc;

use infinization_core::db::{self, DbError, wire};
use infinization_core::manager::Manager;
use infinization_core::types::{InternalName, InvalidValue, VmId};
use infinization_core::{ErrorCode, Failure};
use napi_derive::napi;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Infinization;
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// The embedded store as an `InfinizationDatabase`: what `getPrismaAdapter()` returns. Every failure
/// is a `PrismaAdapterError`.
#[napi(js_name = "EmbeddedDatabase")]
#[derive(Debug)]
pub struct Database {
    manager: Manager,
}

/// `updateMachineStatus`'s options.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusOptions {
    only_if_not_in: Option<Vec<String>>,
}

#[napi]
impl Database {
    /// The store of `owner`.
    #[napi(constructor)]
    pub fn new(owner: &Infinization) -> Self {
        Self {
            manager: owner.manager(),
        }
    }

    #[napi]
    pub async fn find_machine(&self, id: Argument) -> Outcome {
        data(async { Ok(self.store()?.find_machine(&vm_id(id)?).await?) }).await
    }

    #[napi]
    pub async fn find_machine_by_internal_name(&self, name: Argument) -> Outcome {
        data(async {
            let name: InternalName = parsed(name, "internalName")?;
            let found = self.store()?.find_machine_by_internal_name(&name).await?;
            Ok(found.as_ref().map(wire::running_vm))
        })
        .await
    }

    #[napi]
    pub async fn find_machine_with_config(&self, id: Argument) -> Outcome {
        data(async {
            let found = self.store()?.find_machine_with_config(&vm_id(id)?).await?;
            Ok(found.as_ref().map(wire::vm_record))
        })
        .await
    }

    #[napi(js_name = "findRunningVMs")]
    pub async fn find_running_vms(&self) -> Outcome {
        data(async {
            let found = self.store()?.find_running_vms().await?;
            Ok(found.iter().map(wire::running_vm).collect::<Value>())
        })
        .await
    }

    #[napi]
    pub async fn find_machines_by_statuses(&self, statuses: Argument) -> Outcome {
        data(async {
            let statuses: Vec<String> = shaped(statuses, "statuses")?;
            let statuses: Vec<&str> = statuses.iter().map(String::as_str).collect();
            let found = self.store()?.find_machines_by_statuses(&statuses).await?;
            Ok(found.iter().map(wire::running_vm).collect::<Value>())
        })
        .await
    }

    #[napi]
    pub async fn update_machine_status(
        &self,
        id: Argument,
        status: Argument,
        options: Argument,
    ) -> Outcome {
        done(async {
            let (id, status) = (vm_id(id)?, text(status, "status")?);
            let options: Option<StatusOptions> = shaped(options, "options")?;
            let unless = options
                .unwrap_or_default()
                .only_if_not_in
                .unwrap_or_default();
            let unless: Vec<&str> = unless.iter().map(String::as_str).collect();
            Ok(self
                .store()?
                .update_machine_status(&id, &status, &unless)
                .await?)
        })
        .await
    }

    #[napi]
    pub async fn update_machine_configuration(&self, id: Argument, update: Argument) -> Outcome {
        done(async {
            let id = vm_id(id)?;
            let update: Map<String, Value> = shaped(update, "update")?;
            let update = wire::configuration_update(&update)?;
            Ok(self
                .store()?
                .update_machine_configuration(&id, update)
                .await?)
        })
        .await
    }

    #[napi(js_name = "transitionVMStatus")]
    pub async fn transition_vm_status(
        &self,
        id: Argument,
        expected: Argument,
        next: Argument,
        version: Argument,
    ) -> Outcome {
        data(async {
            let (id, expected) = (vm_id(id)?, text(expected, "expectedStatus")?);
            let (new, version) = (
                text(next, "newStatus")?,
                shaped(version, "expectedVersion")?,
            );
            let store = self.store()?;
            let moved = store
                .transition_vm_status(&id, &expected, &new, version)
                .await?;
            Ok(wire::transition(&moved))
        })
        .await
    }

    #[napi]
    pub async fn clear_machine_configuration(&self, id: Argument) -> Outcome {
        done(async {
            Ok(self
                .store()?
                .clear_machine_configuration(&vm_id(id)?)
                .await?)
        })
        .await
    }

    #[napi]
    pub async fn clear_volatile_machine_configuration(&self, id: Argument) -> Outcome {
        done(async {
            let id = vm_id(id)?;
            Ok(self
                .store()?
                .clear_volatile_machine_configuration(&id)
                .await?)
        })
        .await
    }

    #[napi]
    pub async fn get_machine_internal_name(&self, id: Argument) -> Outcome {
        data(async { Ok(self.store()?.get_machine_internal_name(&vm_id(id)?).await?) }).await
    }

    #[napi]
    pub async fn get_machine_disk_path(&self, id: Argument) -> Outcome {
        data(async { Ok(self.store()?.get_machine_disk_path(&vm_id(id)?).await?) }).await
    }

    #[napi]
    pub async fn get_firewall_rules(&self, id: Argument) -> Outcome {
        data(async {
            let rules = self.store()?.get_firewall_rules(&vm_id(id)?).await?;
            Ok(wire::rules(&rules))
        })
        .await
    }

    #[napi]
    pub async fn get_firewall_rules_split(&self, id: Argument) -> Outcome {
        data(async {
            let rules = self.store()?.get_firewall_rules_split(&vm_id(id)?).await?;
            Ok(wire::rule_split(&rules))
        })
        .await
    }

    #[napi]
    pub async fn get_department_firewall_policy(&self, id: Argument) -> Outcome {
        data(async {
            Ok(self
                .store()?
                .get_department_firewall_policy(&vm_id(id)?)
                .await?)
        })
        .await
    }

    #[napi]
    pub async fn get_firewall_rule_set_id(&self, id: Argument) -> Outcome {
        data(async { Ok(self.store()?.get_firewall_rule_set_id(&vm_id(id)?).await?) }).await
    }

    fn store(&self) -> Result<Arc<dyn db::Database>, Failure> {
        self.manager
            .database()
            .map_err(|closed| DbError::new(ErrorCode::DbConnectionError, closed.to_string()).into())
    }
}

fn vm_id(argument: Argument) -> Result<VmId, Failure> {
    parsed(argument, "id")
}

fn parsed<T: std::str::FromStr<Err = InvalidValue>>(
    argument: Argument,
    name: &str,
) -> Result<T, Failure> {
    argument.parsed(name).map_err(malformed)
}

fn text(argument: Argument, name: &str) -> Result<String, Failure> {
    argument.text(name).map_err(malformed)
}

fn shaped<T: DeserializeOwned>(argument: Argument, name: &str) -> Result<T, Failure> {
    argument.shaped(name).map_err(malformed)
}

fn malformed(refusal: Failure) -> Failure {
    DbError::new(ErrorCode::InvalidInput, refusal.to_string()).into()
}
