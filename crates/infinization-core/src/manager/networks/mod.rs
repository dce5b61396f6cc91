//! Virtual networks: bridges with an address, DHCP, DNS and NAT of our own.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the public verbs, one method each |
//! | `all` | [`Networks`]: those of a state directory, what they share |
//! | `one` | [`Network`]: one of them, and how it is |
//! | `furnish` | setting one up, taking it down |
//! | `update` | changing one |
//! | `supervise` | looking after dnsmasq and the guard |
//! | `pinning` | holding machines to their addresses |
//! | `error` | why a verb fails |
//!
//! `{stateDir}/networks/<name>/network.json` is written before anything is made and removed after everything
//! is: it is what a later process takes back, starts or removes. Invariants: a link that is not ours, which its
//! hardware address tells, is neither used nor removed; calls on one network are served in order, and one that
//! has begun is finished, whoever waits: `shutdown` does. Nothing here runs unless there is a network. Neighbours:
//! [`crate::network`] decides, [`crate::host::dnsmasq`], `bridge` and `nft` act.

mod all;
mod error;
mod furnish;
mod one;
mod pinning;
mod supervise;
mod update;

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Manager, Open, to_value};
use crate::config::{NetworkName, Parsed, VirtualNetwork};
use crate::error::{ErrorCode, Failure};
use crate::types::InvalidValue;

pub(super) use all::Networks;
pub(super) use pinning::{follow_pins, stored_pins};

impl Manager {
    /// `networks.create`.
    pub async fn create_network(&self, config: Value) -> Result<Value, Failure> {
        let open = self.open()?;
        let Parsed { config, .. } = VirtualNetwork::parse(&config)?;
        let created = open.finished(|networks| async move { networks.create(config).await });
        to_value(&created.await?.info())
    }

    /// `networks.list`.
    pub fn list_networks(&self) -> Result<Value, Failure> {
        let all = self.networks()?.all();
        let infos: Vec<_> = all.iter().map(|network| network.info()).collect();
        to_value(&infos)
    }

    /// `networks.get`.
    pub fn network(&self, name: &str) -> Result<Value, Failure> {
        to_value(&self.networks()?.find(&parse_name(name)?)?.info())
    }

    /// `networks.start`.
    pub async fn start_network(&self, name: &str) -> Result<Value, Failure> {
        let (open, name) = (self.open()?, parse_name(name)?);
        let started = open.finished(|networks| async move { networks.start(&name).await });
        to_value(&started.await?.info())
    }

    /// `networks.stop`.
    pub async fn stop_network(&self, name: &str) -> Result<Value, Failure> {
        let (open, name) = (self.open()?, parse_name(name)?);
        let stopped = open.finished(|networks| async move { networks.stop(&name).await });
        to_value(&stopped.await?.info())
    }

    /// `networks.update`: a merge patch (RFC 7396) of what the network is.
    pub async fn update_network(&self, name: &str, changes: Value) -> Result<Value, Failure> {
        let (open, name) = (self.open()?, parse_name(name)?);
        let updated =
            open.finished(|networks| async move { networks.update(&name, &changes).await });
        to_value(&updated.await?.info())
    }

    /// `networks.remove`: an absent network is removed already.
    pub async fn remove_network(&self, name: &str) -> Result<(), Failure> {
        let (open, name) = (self.open()?, parse_name(name)?);
        let removed = open.finished(|networks| async move { networks.remove(&name).await });
        removed.await
    }

    /// `networks.leases`.
    pub async fn network_leases(&self, name: &str) -> Result<Value, Failure> {
        let network = self.networks()?.find(&parse_name(name)?)?;
        to_value(&network.leases().await?)
    }

    /// A machine's configuration with the bridge of the network it names.
    pub(super) fn on_network(&self, mut config: Value) -> Result<Value, Failure> {
        let Some(network) = config
            .get_mut("network")
            .map(Value::take)
            .filter(|it| !it.is_null())
        else {
            return Ok(config);
        };
        if config.get("bridge").is_some_and(|bridge| !bridge.is_null()) {
            return Err(refused("network", "must not be given beside bridge"));
        }
        let name = network
            .as_str()
            .ok_or_else(|| refused("network", "must be a string"))?;
        let name = NetworkName::parse(name).map_err(|why| refused("network", &why.to_string()))?;
        let found = self.networks()?.find(&name);
        let found =
            found.map_err(|_| refused("network", &format!("is {name}, which there is not")))?;
        config["bridge"] = json!(found.config().bridge);
        Ok(config)
    }

    fn networks(&self) -> Result<Arc<Networks>, Failure> {
        Ok(Arc::clone(&self.open()?.networks))
    }
}

impl Open {
    /// Not waiting any longer does not stop what has begun. It has the manager, so that nobody else gets the
    /// state directory meanwhile.
    async fn finished<
        T: Send + 'static,
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    >(
        self: Arc<Self>,
        work: impl FnOnce(Arc<Networks>) -> W,
    ) -> Result<T, Failure> {
        let networks = Arc::clone(&self.networks);
        let work = work(Arc::clone(&networks));
        let begun = networks.work.spawn(async move {
            let _open = self;
            work.await
        });
        begun.await.map_err(|_| closed())?
    }
}

fn closed() -> Failure {
    Failure::new(ErrorCode::Closed, "the instance was shut down")
}

/// What was checked does not fit another module's type.
fn invalid(why: &InvalidValue) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("an address that was checked {why}"),
    )
}

fn parse_name(name: &str) -> Result<NetworkName, Failure> {
    NetworkName::parse(name).map_err(|why| refused("name", &why.to_string()))
}

pub(super) fn refused(path: &str, message: &str) -> Failure {
    let issue = json!({ "path": path, "message": message });
    Failure::new(ErrorCode::InvalidConfig, format!("{path} {message}")).with("issues", vec![issue])
}
