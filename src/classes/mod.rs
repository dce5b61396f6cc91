//! One file per class that JavaScript sees.

mod backup_service;
mod bridge_manager;
mod call_progress;
mod cancellation;
mod cgroups_manager;
mod command_executor;
mod database;
mod department_nat_service;
mod event_handler;
mod firewall_preset;
mod firewall_rule_translator;
mod guest_agent_client;
mod health_monitor;
mod host_cpus;
mod infinization;
mod journal_reader;
mod mac_address_generator;
mod nftables_persistence;
mod nftables_service;
mod qemu_img_service;
mod qemu_process;
mod qmp_client;
mod refused;
mod secrets;
mod snapshot_manager;
mod state_sync;
mod tap_device_manager;
mod virtual_networks;
mod volume_download;
mod volume_upload;
mod watching;

use std::sync::{Arc, LazyLock, OnceLock};

use infinization_core::config::{Parsed, Warning};
use infinization_core::host::link::Links;
use infinization_core::{ErrorCode, Failure};

use call_progress::{CheckProgress, CopyProgress};
use cancellation::Cancellation;
use infinization::Infinization;
use nftables_service::NftablesService;

/// One netlink connection for all instances, opened by the first request.
static LINKS: LazyLock<Links> = LazyLock::new(Links::new);

/// The failure with `sentence` in front of its words, as the public contract has them.
fn told(sentence: &str, failure: impl Into<Failure>) -> Failure {
    let failure = failure.into();
    let outer = Failure::new(failure.code(), format!("{sentence}: {failure}"));
    let context = failure.context().iter();
    context.fold(outer, |outer, (key, value)| outer.with(key, value.clone()))
}

/// What `begin()` of a class has put there.
fn begun<T>(held: &OnceLock<Arc<T>>, otherwise: &str) -> Result<Arc<T>, Failure> {
    let held = held.get().map(Arc::clone);
    held.ok_or_else(|| Failure::new(ErrorCode::Internal, otherwise))
}

/// Options of a class; what of them has no effect is logged.
fn warned<T>(class: &str, parsed: Parsed<T>) -> T {
    for Warning { path, message } in parsed.warnings {
        tracing::warn!("{class}: {path} {message}");
    }
    parsed.config
}
