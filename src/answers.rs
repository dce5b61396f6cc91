//! Many small answers over one callback. A promise of N-API's own costs a thread-safe function
//! each; a monitor call is over in less time than that takes.
//!
//! `js/qmp-client.js` numbers its calls and keeps their promises; what settles them comes back here.

use infinization_core::Failure;
use napi::Status;
use napi::bindgen_prelude::FnArgs;
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use serde_json::value::RawValue;

use crate::errors;

/// `settle(call: number, succeeded: boolean, json: string)` of `js/qmp-client.js`. Weak: whoever has
/// calls under way keeps the process alive.
pub type Settle = ThreadsafeFunction<
    FnArgs<(u32, bool, String)>,
    (),
    FnArgs<(u32, bool, String)>,
    Status,
    false,
    true,
>;

/// Sends the answer of a call to JavaScript, with the call's number. From any thread.
pub(crate) fn answer(settle: &Settle, call: u32, answer: Result<Box<RawValue>, Failure>) {
    let told = match answer {
        Ok(json) => (call, true, String::from(Box::<str>::from(json))),
        Err(failure) => (call, false, described(&failure)),
    };
    // An environment that is going away wants no answers.
    let _ended = settle.call(told.into(), ThreadsafeFunctionCallMode::NonBlocking);
}

fn described(failure: &Failure) -> String {
    errors::describe(failure).unwrap_or_else(|defect| {
        // The facts of a defect are plain text.
        errors::describe(&defect).unwrap_or_default()
    })
}
