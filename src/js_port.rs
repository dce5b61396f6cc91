//! A [`Port`] to an object of the caller's: his Prisma client or his adapter.
//!
//! `js/port.js` makes the function that has the object and the calls to it; requests and answers are
//! JSON text. It never throws and never rejects: what the object threw comes as plain facts. The
//! function is held weakly as far as the process' life goes, and let go with the port.

use async_trait::async_trait;
use infinization_core::db::port::{Port, PortError};
use napi::Status;
use napi::bindgen_prelude::Promise;
use napi::threadsafe_function::ThreadsafeFunction;
use serde::Deserialize;
use serde_json::Value;

/// `(request: string) => Promise<string>` of `js/port.js`.
pub type Ask = ThreadsafeFunction<String, Promise<String>, String, Status, false, true>;

/// The way to one object.
pub(crate) struct JsPort(Ask);

impl JsPort {
    pub(crate) fn new(ask: Ask) -> Self {
        Self(ask)
    }

    async fn ask(&self, request: String) -> napi::Result<String> {
        self.0.call_async_catch(request).await?.await
    }
}

impl std::fmt::Debug for JsPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JsPort")
    }
}

/// What comes back.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Envelope {
    Ok(Value),
    Error(Thrown),
}

#[derive(Deserialize)]
struct Thrown {
    name: String,
    code: Option<String>,
    message: String,
    #[serde(default)]
    details: Value,
}

#[async_trait]
impl Port for JsPort {
    async fn call(&self, request: Value) -> Result<Value, PortError> {
        let answer = self.ask(request.to_string()).await;
        // Only an environment that ends leaves a request without an answer.
        let answer = answer.map_err(|why| PortError::gone(format!("JavaScript is gone: {why}")))?;
        open(&answer)
    }
}

fn open(answer: &str) -> Result<Value, PortError> {
    match serde_json::from_str(answer) {
        Ok(Envelope::Ok(value)) => Ok(value),
        Ok(Envelope::Error(thrown)) => Err(PortError {
            name: thrown.name,
            code: thrown.code,
            message: thrown.message,
            details: thrown.details,
        }),
        Err(why) => Err(PortError {
            name: "UnreadableAnswer".to_owned(),
            message: format!("the answer cannot be read: {why}"),
            ..PortError::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_envelope_holds_an_answer_or_what_was_thrown() {
        assert_eq!(open(r#"{"ok":[1]}"#).unwrap(), json!([1]));
        let thrown = open(r#"{"error":{"name":"E","code":"P2025","message":"no"}}"#).unwrap_err();
        assert_eq!(
            (
                thrown.name.as_str(),
                thrown.code.as_deref(),
                thrown.message.as_str()
            ),
            ("E", Some("P2025"), "no")
        );
    }

    #[test]
    fn b18_what_cannot_be_read_is_an_error() {
        let deep = format!("{{\"ok\":{}{}}}", "[".repeat(500), "]".repeat(500));
        for answer in ["", "null", "{}", r#"{"ok":"\ud800"}"#, deep.as_str()] {
            assert_eq!(
                open(answer).unwrap_err().name,
                "UnreadableAnswer",
                "{answer:.40}"
            );
        }
    }
}
