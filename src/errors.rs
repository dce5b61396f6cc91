//! Failures as the plain facts that `js/errors.js` makes public error classes of, and the one table
//! of codes for whoever documents or checks it.

use infinization_core::{ErrorCode, Failure};
use napi_derive::napi;
use serde::Serialize;
use serde_json::{Map, Value};

/// One failure of a chain.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts<'a> {
    class: &'static str,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    context: &'a Map<String, Value>,
}

impl<'a> Facts<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self {
            class: failure.code().class().as_str(),
            code: failure.code().as_str(),
            message: failure.to_string(),
            vm_id: failure.vm_id().map(AsRef::as_ref),
            context: failure.context(),
        }
    }
}

/// The chain, outermost first, as JSON text.
pub(crate) fn describe(failure: &Failure) -> Result<String, Failure> {
    to_json(&failure.chain().map(Facts::of).collect::<Vec<_>>())
}

/// JSON text of our own data, which always has one: a map key that is no string is our defect.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("no JSON form: {error}")))
}

/// A row of the table of error codes.
#[napi(object, object_from_js = false)]
#[derive(Debug)]
pub struct ErrorTableRow {
    /// The class that carries the code.
    pub class: &'static str,
    /// The code.
    pub code: &'static str,
    /// One sentence for the documentation.
    pub sentence: &'static str,
}

/// Every code an error of this library can carry, in the order of the table.
#[napi]
pub fn error_table() -> Vec<ErrorTableRow> {
    let row = |code: &ErrorCode| ErrorTableRow {
        class: code.class().as_str(),
        code: code.as_str(),
        sentence: code.sentence(),
    };
    ErrorCode::ALL.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use infinization_core::types::VmId;

    use super::*;

    #[test]
    fn a_chain_is_told_outermost_first() {
        let inner = Failure::new(ErrorCode::HostFile, "cannot open").with("errno", 13);
        let outer = Failure::caused_by(ErrorCode::CreateFailed, "not created", inner)
            .of_vm(&VmId::parse("vm-1").unwrap());
        assert_eq!(
            serde_json::from_str::<Value>(&describe(&outer).unwrap()).unwrap(),
            serde_json::json!([
                { "class": "LifecycleError", "code": "CREATE_FAILED", "message": "not created", "vmId": "vm-1" },
                { "class": "ProcessError", "code": "HOST_FILE", "message": "cannot open", "context": { "errno": 13 } },
            ])
        );
    }
}
