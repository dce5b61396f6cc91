//! What a native method hands back to JavaScript.
//!
//! Data crosses as JSON text and failures as plain facts; two functions that `index.js` registers at
//! load make the objects, Dates and errors out of them. So they belong to the caller's realm (under
//! jest, an error made here would not be `instanceof Error`) and are the public error classes.
//!
//! This file holds the only `unsafe` of the bindings: two traits of napi-rs that are declared so,
//! and one N-API call it does not wrap.

use infinization_core::Failure;
use napi::bindgen_prelude::{
    Buffer, FnArgs, FromNapiValue, FunctionRef, JsValue, ToNapiValue, Unknown,
};
use napi::{Env, sys};
use napi_derive::napi;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::argument::Argument;
use crate::errors;
use crate::log::{self, Warn};
use crate::panics::caught;
use crate::runtime;

/// The answer of a method: a value for JavaScript, or the error it rejects (or throws) with.
#[derive(Debug)]
pub struct Outcome(Result<Reply, Failure>);

#[derive(Debug)]
enum Reply {
    /// `undefined`.
    Nothing,
    /// Our own data: the contract's Date fields become Dates.
    Data(String),
    /// Somebody else's JSON (QEMU's), parsed and otherwise left alone.
    Verbatim(String),
    /// A `Buffer`.
    Bytes(Vec<u8>),
}

/// Runs a call that answers with data.
pub(crate) async fn data<T: Serialize>(work: impl Future<Output = Result<T, Failure>>) -> Outcome {
    let text = async { errors::to_json(&work.await?) };
    Outcome(caught(text).await.map(Reply::Data))
}

/// Runs a call that answers with QEMU's own JSON.
pub(crate) async fn verbatim(
    work: impl Future<Output = Result<Box<RawValue>, Failure>>,
) -> Outcome {
    Outcome(
        caught(work)
            .await
            .map(|json| Reply::Verbatim(String::from(Box::<str>::from(json)))),
    )
}

/// Runs a call that answers with bytes.
pub(crate) async fn bytes(work: impl Future<Output = Result<Vec<u8>, Failure>>) -> Outcome {
    Outcome(caught(work).await.map(Reply::Bytes))
}

/// Runs a call that answers with nothing.
pub(crate) async fn done(work: impl Future<Output = Result<(), Failure>>) -> Outcome {
    Outcome(caught(work).await.map(|()| Reply::Nothing))
}

/// Answers at once with data. Nothing of ours that runs on the JavaScript thread panics.
pub(crate) fn now<T: Serialize>(answer: Result<T, Failure>) -> Outcome {
    Outcome(
        answer
            .and_then(|value| errors::to_json(&value))
            .map(Reply::Data),
    )
}

/// Answers at once with nothing.
pub(crate) fn checked(answer: Result<(), Failure>) -> Outcome {
    Outcome(answer.map(|()| Reply::Nothing))
}

/// The functions of `index.js` that make values where the caller lives.
struct Realm {
    revive: FunctionRef<FnArgs<(String, bool)>, Unknown<'static>>,
    fail: FunctionRef<String, Unknown<'static>>,
}

/// Called by `index.js` at load, once per environment (main thread, worker), and again by each jest
/// module registry: the last registration makes the values. `warn` is told what the log warns of.
/// Throws `SPAWN_FAILED` where the host gives the process no threads to work with.
#[napi]
pub fn register(
    env: &Env,
    revive: FunctionRef<FnArgs<(String, bool)>, Unknown<'static>>,
    fail: FunctionRef<String, Unknown<'static>>,
    warn: Warn,
) -> napi::Result<()> {
    log::warn_by(env, warn);
    let realm = Realm { revive, fail };
    match env.get_instance_data::<Realm>()? {
        Some(earlier) => *earlier = realm,
        None => env.set_instance_data(realm, (), |_| {})?,
    }
    match runtime::refused() {
        Some(failure) => Err(Realm::of(env)?.error(env, &failure)),
        None => Ok(()),
    }
}

impl Realm {
    fn of(env: &Env) -> napi::Result<&'static Self> {
        env.get_instance_data::<Self>()?
            .map(|realm| &*realm)
            .ok_or_else(|| napi::Error::from_reason("native.js was loaded without index.js"))
    }

    fn answer(&self, env: &Env, text: String, ours: bool) -> napi::Result<sys::napi_value> {
        let value = self.revive.borrow_back(env)?.call((text, ours).into())?;
        Ok(value.raw())
    }

    fn error(&self, env: &Env, failure: &Failure) -> napi::Error {
        errors::describe(failure)
            .map_err(|failure| napi::Error::from_reason(failure.to_string()))
            .and_then(|facts| self.fail.borrow_back(env)?.call(facts))
            .map_or_else(|error| error, napi::Error::from)
    }
}

#[expect(unsafe_code, reason = "the trait's method is declared unsafe")]
impl ToNapiValue for Outcome {
    unsafe fn to_napi_value(raw: sys::napi_env, outcome: Self) -> napi::Result<sys::napi_value> {
        let env = Env::from_raw(raw);
        let realm = Realm::of(&env)?;
        match outcome.0 {
            // SAFETY: napi-rs calls this on the thread of `raw`, with `raw` alive.
            Ok(Reply::Nothing) => unsafe { <()>::to_napi_value(raw, ()) },
            // SAFETY: as above.
            Ok(Reply::Bytes(bytes)) => unsafe { Buffer::to_napi_value(raw, Buffer::from(bytes)) },
            Ok(Reply::Data(text)) => realm.answer(&env, text, true),
            Ok(Reply::Verbatim(text)) => realm.answer(&env, text, false),
            Err(failure) => Err(realm.error(&env, &failure)),
        }
    }
}

#[expect(unsafe_code, reason = "the trait's method is declared unsafe")]
impl FromNapiValue for Argument {
    unsafe fn from_napi_value(raw: sys::napi_env, value: sys::napi_value) -> napi::Result<Self> {
        // SAFETY: napi-rs hands over a live value of `raw`, on its thread; it is not kept.
        let value = unsafe { Unknown::from_napi_value(raw, value) }?;
        Ok(Self::read(&Env::from_raw(raw), value))
    }
}

/// Forgets the exception that a getter or a Proxy trap has just thrown, so that N-API can be used on.
#[expect(unsafe_code, reason = "napi-rs has no wrapper for it")]
pub(crate) fn forget_exception(env: &Env) {
    let mut exception = std::ptr::null_mut();
    // SAFETY: `env` is alive, we are on its thread, and the value that is written is not used. With
    // no exception pending the call writes `undefined`.
    let _ = unsafe { sys::napi_get_and_clear_last_exception(env.raw(), &raw mut exception) };
}
