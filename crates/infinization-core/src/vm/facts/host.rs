//! All questions to the host that may block: file systems, devices, the name service.
//!
//! A dead network file system answers none of them, so they are asked in one go, away from the tasks
//! of other VMs, and with a deadline. A thread that a dead file system holds ends when that is back.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Once};
use std::time::Duration;

use super::cpus::{self, Pinning};
use super::macs::{self, MacClaim};
use super::network_disks::{self, NetworkDiskClaim};
use super::{about, disks, files, pci};
use crate::config::{
    AcceleratorChoice, BindAddress, ConfigError, DisplayConfig, Issue, NetworkModel, PathRules,
    VmConfig,
};
use crate::error::{ErrorCode, Failure};
use crate::host::accelerator;
use crate::host::blocking::blocking;
use crate::host::display_port::ReservedPort;
use crate::host::users;
use crate::qemu::Accelerator;
use crate::types::{HostPath, VmId};
use crate::vm::services::{self, Services};

/// For all questions together; on a host in order they take milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// How far above the wanted display port is searched.
const PORTS_TRIED: u16 = 100;

/// What is asked about.
pub(super) struct Host {
    pub(super) config: VmConfig,
    pub(super) services: Arc<Services>,
    /// Disks are to be made; otherwise they must be there.
    pub(super) creating: bool,
    pub(super) first_port: u16,
    /// Files that other machines write to, if disks are to be made on others.
    pub(super) written: Vec<(VmId, HostPath)>,
}

/// The answers.
pub(super) struct Seen {
    pub(super) accelerator: Accelerator,
    pub(super) pinning: Pinning,
    pub(super) vhost: bool,
    pub(super) display_address: BindAddress,
    pub(super) display_port: ReservedPort,
    pub(super) vars_template: Option<HostPath>,
    pub(super) missing_directories: Vec<HostPath>,
    /// What encrypted disks lie on, as far as it is encrypted.
    pub(super) encrypted_below: BTreeMap<usize, Vec<HostPath>>,
    /// Only a create claims its address.
    pub(super) mac: Option<MacClaim>,
    /// As its disks on the network.
    pub(super) network_disks: Option<NetworkDiskClaim>,
    pub(super) warnings: Vec<String>,
}

impl Host {
    /// Refuses what cannot be, or tells what planning needs.
    pub(super) fn ask(self) -> impl Future<Output = Result<Seen, Failure>> {
        within(DEADLINE, move || self.look())
    }

    fn look(&self) -> Result<Seen, Failure> {
        let config = &self.config;
        let mac = self.check_named()?;
        let encrypted_below = disks::check(self)?;
        let network_disks = self.claim_network_disks()?;
        let pinning = cpus::pinning(config)?;
        let accelerator = choose_accelerator(config.accelerator)?;
        let vars_template = vars_template(config)?;
        let (display_address, warnings) = self.display_address()?;
        Ok(Seen {
            accelerator,
            pinning,
            vhost: config.network.model == NetworkModel::VirtioNetPci
                && accelerator::vhost_net_available(),
            display_port: self.reserve_port(&display_address)?,
            display_address,
            vars_template,
            missing_directories: self.missing_directories(),
            encrypted_below,
            mac,
            network_disks,
            warnings,
        })
    }

    /// Everything the configuration names by path or address, with every complaint at once.
    fn check_named(&self) -> Result<Option<MacClaim>, Failure> {
        let config = &self.config;
        let user = config.run_as_user.as_ref().map(users::resolve).transpose();
        let user = user.map_err(|error| about("runAsUser", error.into()))?;
        if user.is_none() {
            warn_of_root();
        }
        let mut issues = files::issues(config, self.rules(), user.as_ref())?;
        issues.extend(pci::issues(config));
        let mac = self.claim_mac()?;
        let (mac, issue) = match mac.transpose() {
            Ok(mac) => (mac, None),
            Err(issue) => (None, Some(issue)),
        };
        issues.extend(issue);
        ConfigError::unless_empty(issues)?;
        Ok(mac)
    }

    fn claim_mac(&self) -> Result<Option<Result<MacClaim, Issue>>, Failure> {
        if !self.creating {
            return Ok(None);
        }
        let (machines, claims) = (self.services.machines_directory(), &self.services.macs);
        macs::claim(&self.config, &machines, claims).map(Some)
    }

    fn claim_network_disks(&self) -> Result<Option<NetworkDiskClaim>, Failure> {
        if !self.creating {
            return Ok(None);
        }
        let services = &self.services;
        let (machines, claims) = (services.machines_directory(), &services.network_disks);
        network_disks::claim(&self.config, &machines, claims).map(Some)
    }

    fn rules(&self) -> &PathRules {
        &self.services.config.path_rules
    }

    pub(super) fn allowed(&self) -> &[HostPath] {
        self.rules().allowed.as_deref().unwrap_or_default()
    }

    fn display_address(&self) -> Result<(BindAddress, Vec<String>), Failure> {
        let local = services::local_addresses()?;
        let (display, mut warnings) = self.resolved_display(&local)?;
        let address = display.bind_on(&local).map_err(|why| {
            let message = format!("displayPassword {why}");
            let failure = Failure::new(ErrorCode::InvalidConfig, message);
            about("displayPassword", failure)
        })?;
        if address != display.address {
            warnings.push(format!(
                "displayAddr {} is not on this host: the display listens on {address}",
                display.address
            ));
        }
        Ok((address, warnings))
    }

    /// With the address of this host in place of a name.
    fn resolved_display(&self, local: &[IpAddr]) -> Result<(DisplayConfig, Vec<String>), Failure> {
        let mut display = self.config.display.clone();
        let Some(name) = display.address.name() else {
            return Ok((display, Vec::new()));
        };
        let refused = |why: String| {
            let message = format!("displayAddr {name} {why}");
            about(
                "displayAddr",
                Failure::new(ErrorCode::InvalidConfig, message),
            )
        };
        let known = (name, 0).to_socket_addrs();
        let known = known.map_err(|error| refused(format!("could not be resolved: {error}")))?;
        let known: Vec<IpAddr> = known.map(|known| known.ip().to_canonical()).collect();
        let here = of_this_host(&known, local);
        let here = here.ok_or_else(|| refused("is the name of another host".to_owned()))?;
        let mut warnings = Vec::new();
        if here.is_loopback() {
            warnings.push(format!(
                "displayAddr {name} is {here} here: the display is for this host alone"
            ));
        }
        display.address = BindAddress::Ip(here);
        Ok((display, warnings))
    }

    fn reserve_port(&self, address: &BindAddress) -> Result<ReservedPort, Failure> {
        let (ports, first) = (&self.services.display_ports, self.first_port);
        let last = self.config.display.protocol.last_port();
        let last = last.min(first.saturating_add(PORTS_TRIED - 1));
        let reserved = ports.reserve(&address.to_string(), first..=last);
        reserved.map_err(|error| about("displayPort", error.into()))
    }

    fn missing_directories(&self) -> Vec<HostPath> {
        let settings = &self.services.config;
        let files = self.config.disks.iter().filter_map(|disk| disk.path());
        let parents = files.filter_map(|path| {
            let parent = path.as_path().parent()?.to_str()?;
            HostPath::parse(parent).ok()
        });
        let mut missing: Vec<HostPath> =
            [&settings.socket_dir, &settings.pid_dir, &settings.disk_dir]
                .into_iter()
                .cloned()
                .chain(parents)
                .filter(|path| !path.as_path().is_dir())
                .collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

/// What a name stands for on this host: what others can reach before what they cannot.
fn of_this_host(known: &[IpAddr], local: &[IpAddr]) -> Option<IpAddr> {
    let outside = |ip: &&IpAddr| local.contains(ip) && !ip.is_loopback();
    let found = known.iter().find(outside);
    found
        .or_else(|| known.iter().find(|ip| ip.is_loopback()))
        .copied()
}

/// Does `work` where it may block, but waits no longer than `deadline` for it. It is begun at once:
/// what it knows need not travel in the future.
fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> impl Future<Output = Result<T, Failure>> {
    let done = tokio::time::timeout(deadline, blocking(work));
    async move {
        match done.await {
            Ok(Ok(done)) => done,
            Ok(Err(not_done)) => Err(not_done.into()),
            Err(_elapsed) => Err(no_answer(deadline)),
        }
    }
}

fn no_answer(deadline: Duration) -> Failure {
    let message =
        format!("a file system or name service of the host did not answer within {deadline:?}");
    Failure::new(ErrorCode::Timeout, message)
}

/// Once: the same is true of every machine.
fn warn_of_root() {
    static TOLD: Once = Once::new();
    if nix::unistd::Uid::effective().is_root() {
        TOLD.call_once(|| {
            tracing::warn!(
                "QEMU runs as root: name a user for it with runAsUser or INFINIZATION_QEMU_USER"
            );
        });
    }
}

fn choose_accelerator(wanted: AcceleratorChoice) -> Result<Accelerator, Failure> {
    let host = accelerator::detect();
    match wanted {
        AcceleratorChoice::Kvm | AcceleratorChoice::Auto if host.kvm_usable => Ok(Accelerator::Kvm),
        AcceleratorChoice::Tcg | AcceleratorChoice::Auto => Ok(Accelerator::Tcg),
        AcceleratorChoice::Kvm => {
            let message = format!(
                "accelerator is kvm, but KVM cannot be used here: {}",
                host.why
            );
            let failure = Failure::new(ErrorCode::ResourceUnavailable, message);
            Err(about("accelerator", failure))
        }
    }
}

/// The firmware variables' template, unless the VM has its own variables already.
fn vars_template(config: &VmConfig) -> Result<Option<HostPath>, Failure> {
    let Some(firmware) = &config.firmware else {
        return Ok(None);
    };
    if firmware.vars.as_path().exists() {
        return Ok(None);
    }
    let refused = |code, message| about("uefiFirmware", Failure::new(code, message));
    let templates = firmware
        .vars_templates()
        .map_err(|error| refused(ErrorCode::InvalidConfig, format!("uefiFirmware {error}")))?;
    let found = templates
        .into_iter()
        .find(|template| template.as_path().is_file());
    found.map(Some).ok_or_else(|| {
        let message = format!(
            "no variable store template for the firmware {}",
            firmware.code
        );
        refused(ErrorCode::ResourceUnavailable, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_file_system_that_is_dead() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _ended = ended.recv();
            Ok(())
        };
        let failure = within(Duration::from_millis(20), work).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::Timeout);
        drop(end);
        let answered = within(DEADLINE, || Ok(7)).await;
        assert_eq!(answered.unwrap(), 7);
    }

    #[test]
    fn b33_a_name_is_an_address_of_this_host_or_none() {
        let ips = |list: &[&str]| -> Vec<IpAddr> {
            list.iter().map(|text| text.parse().unwrap()).collect()
        };
        let local = ips(&["127.0.0.1", "192.0.2.1", "2001:db8::1"]);
        for (known, expected) in [
            (&["192.0.2.1"][..], Some("192.0.2.1")),
            (&["127.0.1.1", "2001:db8::1"], Some("2001:db8::1")),
            (&["127.0.1.1"], Some("127.0.1.1")),
            (&["192.0.2.2"], None),
            (&[], None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(of_this_host(&ips(known), &local), expected, "{known:?}");
        }
    }
}
