//! `infinization.networks`, over the core's `manager`.

use infinization_core::manager::Manager;
use napi_derive::napi;

use super::Infinization;
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// `infinization.networks`.
#[napi]
#[derive(Debug)]
pub struct VirtualNetworks {
    manager: Manager,
}

#[napi]
impl VirtualNetworks {
    /// Of a manager.
    #[napi(constructor)]
    pub fn new(owner: &Infinization) -> Self {
        Self {
            manager: owner.manager().clone(),
        }
    }

    #[napi]
    pub async fn create(&self, config: Argument) -> Outcome {
        data(async { self.manager.create_network(config.object("config")?).await }).await
    }

    #[napi]
    pub async fn list(&self) -> Outcome {
        data(async { self.manager.list_networks() }).await
    }

    #[napi]
    pub async fn get(&self, name: Argument) -> Outcome {
        data(async { self.manager.network(&name.text("name")?) }).await
    }

    #[napi]
    pub async fn start(&self, name: Argument) -> Outcome {
        data(async { self.manager.start_network(&name.text("name")?).await }).await
    }

    #[napi]
    pub async fn stop(&self, name: Argument) -> Outcome {
        data(async { self.manager.stop_network(&name.text("name")?).await }).await
    }

    #[napi]
    pub async fn update(&self, name: Argument, changes: Argument) -> Outcome {
        data(async {
            let (name, changes) = (name.text("name")?, changes.object("changes")?);
            self.manager.update_network(&name, changes).await
        })
        .await
    }

    #[napi]
    pub async fn remove(&self, name: Argument) -> Outcome {
        done(async { self.manager.remove_network(&name.text("name")?).await }).await
    }

    #[napi]
    pub async fn leases(&self, name: Argument) -> Outcome {
        data(async { self.manager.network_leases(&name.text("name")?).await }).await
    }
}
