//! One network, and how it is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio_util::sync::DropGuard;

use crate::config::{NetworkName, VirtualNetwork};
use crate::host::dnsmasq::{Dnsmasq, DnsmasqError};
use crate::host::process::ProcessHandle;
use crate::network::Lease;

/// One network. Whoever changes it on the host holds its turn.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) name: NetworkName,
    pub(super) dir: PathBuf,
    pub(super) dnsmasq: Dnsmasq,
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Changed by whoever has the turn.
    config: Mutex<Arc<VirtualNetwork>>,
    status: Mutex<Status>,
}

/// How it is.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// Whether its bridge is there, and ours: what the guard goes by.
    pub(super) up: bool,
    /// What is wrong with it.
    pub(super) error: Option<String>,
    /// dnsmasq, while it runs.
    pub(super) process: Option<ProcessHandle>,
    /// How often that has ended by itself.
    pub(super) restarts: u64,
    /// Ends who looks after dnsmasq.
    pub(super) watch: Option<DropGuard>,
    /// Ends who looks for leases to be pinned.
    pub(super) pinning: Option<DropGuard>,
}

/// `VirtualNetwork` of the public types.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkInfo {
    #[serde(flatten)]
    config: VirtualNetwork,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    restarts: u64,
}

impl Network {
    pub(super) fn new(config: VirtualNetwork, dir: PathBuf) -> Self {
        Self {
            dnsmasq: Dnsmasq::new(dir.clone()),
            name: config.name.clone(),
            dir,
            turn: tokio::sync::Mutex::default(),
            config: Mutex::new(Arc::new(config)),
            status: Mutex::default(),
        }
    }

    /// What it shall be.
    pub(super) fn config(&self) -> Arc<VirtualNetwork> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&config)
    }

    /// It shall be this from now on.
    pub(super) fn shall_be(&self, config: Arc<VirtualNetwork>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The leases that have not ended; those of a subnet it had before do not count.
    pub(super) async fn leases(&self) -> Result<Vec<Lease>, DnsmasqError> {
        let subnet = self.config().subnet;
        let mut leases = self.dnsmasq.leases().await?;
        leases.retain(|lease| subnet.is_host(lease.ip));
        Ok(leases)
    }

    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn info(&self) -> NetworkInfo {
        let status = self.status();
        let alive = status.process.as_ref().filter(|process| process.is_alive());
        NetworkInfo {
            config: VirtualNetwork::clone(&self.config()),
            state: match (&status.error, status.up) {
                (Some(_), _) => "failed",
                (None, true) => "active",
                (None, false) => "inactive",
            },
            error: status.error.clone(),
            pid: alive.map(ProcessHandle::pid),
            restarts: status.restarts,
        }
    }

    /// Whether it has a dnsmasq at all.
    pub(super) fn is_served(&self) -> bool {
        let config = self.config();
        let answers = config.dns.as_ref().is_some_and(|dns| dns.enabled);
        config.dhcp.is_some() || answers
    }
}
