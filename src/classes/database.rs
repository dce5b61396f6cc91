//! `PrismaAdapter` and `getPrismaAdapter()`, over the core's `db`.

use std::sync::Arc;
use std::time::Duration;

use infinization_core::db::port::DEFAULT_DEADLINE;
use infinization_core::db::prisma::PrismaDatabase;
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
use crate::js_port::{Ask, JsPort};
use crate::outcome::{Outcome, data, done};

/// The 16 operations, as an `InfinizationDatabase`: on the rows of a manager, or on those behind a
/// Prisma client. Every failure is a `PrismaAdapterError`. `js/database.js` makes the public classes.
#[napi(js_name = "InfinizationDatabase")]
#[derive(Debug)]
pub struct Database {
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    OfManager(Manager),
    OfClient(Arc<dyn db::Database>),
}

/// `updateMachineStatus`'s options.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusOptions {
    only_if_not_in: Option<Vec<String>>,
}

#[napi]
impl Database {
    /// The rows of `owner`; or, without one, those behind the client that `ask` has, which are told
    /// apart by `node_id` if it is given. An answer of that client may take `timeout` milliseconds.
    #[napi(constructor)]
    pub fn new(
        owner: Option<&Infinization>,
        ask: Option<Ask>,
        node_id: Option<String>,
        timeout: Option<f64>,
    ) -> napi::Result<Self> {
        let rows = match (owner, ask) {
            (Some(owner), _) => Rows::OfManager(owner.manager()),
            (None, Some(ask)) => Rows::OfClient(client(ask, node_id, timeout)),
            (None, None) => return Err(napi::Error::from_reason("whose rows?")),
        };
        Ok(Self { rows })
    }

    #[napi]
    pub async fn find_machine(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            store.find_machine(&id).await.map_err(of(&id))
        })
        .await
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
            let (store, id) = self.about(id)?;
            let found = store.find_machine_with_config(&id).await;
            Ok(found.map_err(of(&id))?.as_ref().map(wire::vm_record))
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
            let (store, id) = self.about(id)?;
            let status = text(status, "status")?;
            let options: Option<StatusOptions> = shaped(options, "options")?;
            let unless = options
                .unwrap_or_default()
                .only_if_not_in
                .unwrap_or_default();
            let unless: Vec<&str> = unless.iter().map(String::as_str).collect();
            let written = store.update_machine_status(&id, &status, &unless).await;
            written.map_err(of(&id))
        })
        .await
    }

    #[napi]
    pub async fn update_machine_configuration(&self, id: Argument, update: Argument) -> Outcome {
        done(async {
            let (store, id) = self.about(id)?;
            let update: Map<String, Value> = shaped(update, "update")?;
            let update = wire::configuration_update(&update).map_err(of(&id))?;
            let written = store.update_machine_configuration(&id, update).await;
            written.map_err(of(&id))
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
            let (store, id) = self.about(id)?;
            let expected = text(expected, "expectedStatus")?;
            let (new, version) = (
                text(next, "newStatus")?,
                shaped(version, "expectedVersion")?,
            );
            let moved = store.transition_vm_status(&id, &expected, &new, version);
            Ok(wire::transition(&moved.await.map_err(of(&id))?))
        })
        .await
    }

    #[napi]
    pub async fn clear_machine_configuration(&self, id: Argument) -> Outcome {
        done(async {
            let (store, id) = self.about(id)?;
            let cleared = store.clear_machine_configuration(&id).await;
            cleared.map_err(of(&id))
        })
        .await
    }

    #[napi]
    pub async fn clear_volatile_machine_configuration(&self, id: Argument) -> Outcome {
        done(async {
            let (store, id) = self.about(id)?;
            let cleared = store.clear_volatile_machine_configuration(&id).await;
            cleared.map_err(of(&id))
        })
        .await
    }

    #[napi]
    pub async fn get_machine_internal_name(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            store.get_machine_internal_name(&id).await.map_err(of(&id))
        })
        .await
    }

    #[napi]
    pub async fn get_machine_disk_path(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            store.get_machine_disk_path(&id).await.map_err(of(&id))
        })
        .await
    }

    #[napi]
    pub async fn get_firewall_rules(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            let rules = store.get_firewall_rules(&id).await;
            Ok(wire::rules(&rules.map_err(of(&id))?))
        })
        .await
    }

    #[napi]
    pub async fn get_firewall_rules_split(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            let rules = store.get_firewall_rules_split(&id).await;
            Ok(wire::rule_split(&rules.map_err(of(&id))?))
        })
        .await
    }

    #[napi]
    pub async fn get_department_firewall_policy(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            let policy = store.get_department_firewall_policy(&id).await;
            policy.map_err(of(&id))
        })
        .await
    }

    #[napi]
    pub async fn get_firewall_rule_set_id(&self, id: Argument) -> Outcome {
        data(async {
            let (store, id) = self.about(id)?;
            store.get_firewall_rule_set_id(&id).await.map_err(of(&id))
        })
        .await
    }

    fn about(&self, id: Argument) -> Result<(Arc<dyn db::Database>, VmId), Failure> {
        let id: VmId = parsed(id, "id")?;
        Ok((self.store()?, id))
    }

    fn store(&self) -> Result<Arc<dyn db::Database>, Failure> {
        match &self.rows {
            Rows::OfClient(rows) => Ok(Arc::clone(rows)),
            Rows::OfManager(manager) => manager.database().map_err(|closed| {
                DbError::new(ErrorCode::DbConnectionError, closed.to_string()).into()
            }),
        }
    }
}

fn client(ask: Ask, node_id: Option<String>, timeout: Option<f64>) -> Arc<dyn db::Database> {
    let deadline = timeout.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
    let rows = PrismaDatabase::new(Arc::new(JsPort::new(ask)), node_id);
    Arc::new(rows.answering_within(deadline.unwrap_or(DEFAULT_DEADLINE)))
}

/// Says which machine a failure is about.
fn of(id: &VmId) -> impl FnOnce(DbError) -> Failure {
    |error| Failure::from(error).of_vm(id)
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
