//! What a launch that failed is told as: the step that failed decides.

use serde_json::json;

use crate::error::{ErrorClass, ErrorCode, Failure};
use crate::vm::action::Action;
use crate::vm::machine::Machine;

/// Whether QEMU could not have its display port.
pub(super) fn was_taken(failure: &Failure) -> bool {
    failure.has(ErrorCode::AddressInUse) && step_of(failure) == Some(Action::CONNECT_MONITOR)
}

/// The step that failed.
pub(super) fn step_of(failure: &Failure) -> Option<&str> {
    let mut chain = failure.chain();
    chain.find_map(|failure| failure.context().get("step")?.as_str())
}

/// Puts a foreign error under the verb's own code.
fn wrap(code: ErrorCode, sentence: &str, failure: Failure) -> Failure {
    if failure.code().class() == ErrorClass::Lifecycle {
        return failure;
    }
    if failure.code() == ErrorCode::StorageAborted {
        return Failure::caused_by(ErrorCode::Aborted, "the operation was aborted", failure);
    }
    let message = format!("{sentence}: {failure}");
    Failure::caused_by(code, message, failure)
}

/// What became of the claim on the row decides; an error of another step is none of the kind.
pub(super) fn launch_failure(
    machine: &Machine,
    failure: Failure,
    otherwise: (ErrorCode, &str),
) -> Failure {
    let claiming = step_of(&failure).is_some_and(Action::is_claim);
    let overrun = failure.context().get("prismaCode") == Some(&json!("P2034"));
    let (code, message) = match failure.code() {
        ErrorCode::VersionConflict => (
            ErrorCode::ConcurrentModification,
            "another writer changed the machine first",
        ),
        ErrorCode::UpdateFailed if claiming && overrun => (
            ErrorCode::ConcurrentModification,
            "other writers kept changing the machine",
        ),
        ErrorCode::UpdateFailed if claiming => (
            ErrorCode::InvalidState,
            "the machine's status changed before it could be claimed",
        ),
        ErrorCode::MachineNotFound if claiming => {
            return Failure::caused_by(
                ErrorCode::VmNotFound,
                machine.context.not_found().to_string(),
                failure,
            )
            .of_vm(&machine.context.vm_id);
        }
        _ => {
            let (code, sentence) = otherwise;
            return wrap(code, sentence, failure).of_vm(&machine.context.vm_id);
        }
    };
    let found = failure.context().get("currentStatus").cloned();
    let refused = Failure::caused_by(code, message, failure).of_vm(&machine.context.vm_id);
    match found {
        Some(status) => refused.with("currentStatus", status),
        None => refused,
    }
}
