//! A machine whose ledger was damaged (a host that lost power may tear it): what the machine may
//! hold follows from its names and its spec. What of it is not there was released already.

use std::path::Path;

use super::action::{Release, Slot};
use super::ledger::Ledger;
use super::plan::{Lifetime, Undo};
use super::planner::sockets;
use super::spec;
use crate::config::VmConfig;
use crate::host::state_file::StateFileError;
use crate::types::{HostPath, VmNames};

/// Opens the ledger; a damaged one is set aside and made anew.
pub(super) fn open_ledger(directory: &Path, names: &VmNames) -> Result<Ledger, StateFileError> {
    let error = match Ledger::open(directory) {
        Err(error @ StateFileError::Torn { .. }) => error,
        opened => return opened,
    };
    tracing::error!(%error, "a damaged ledger is set aside; its machine is looked for by name");
    let spec = spec::read(directory).unwrap_or_else(|error| {
        tracing::error!(%error, "the spec is damaged too");
        None
    });
    Ledger::replace_damaged(directory, &what_it_may_hold(names, spec.as_ref()))
}

fn what_it_may_hold(names: &VmNames, spec: Option<&VmConfig>) -> Vec<Undo> {
    let tap = || names.tap.clone();
    let of = |lifetime| move |release| Undo { lifetime, release };
    let machine = [Release::DeleteTap { tap: tap() }, Release::RemoveFirewall];
    let run = [
        Release::RemoveCgroup,
        Release::EndQemu,
        Release::DetachFirewall,
        Release::DetachTap { tap: tap() },
    ];
    let files = spec.into_iter().flat_map(run_files);
    let machine = machine.into_iter().map(of(Lifetime::Machine));
    let run = run.into_iter().chain(files).map(of(Lifetime::Run));
    machine.chain(run).collect()
}

fn run_files(spec: &VmConfig) -> Vec<Release> {
    let socket = |(slot, path): (Slot, HostPath)| Release::RemoveSocket { slot, path };
    let path = spec.paths.pid_file.clone();
    let sockets = sockets(spec).into_iter().map(socket);
    sockets.chain([Release::RemovePidFile { path }]).collect()
}
