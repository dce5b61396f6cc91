//! Secrets as encrypted text, and taken out of a text, over the core's `secrets`.

use infinization_core::secrets::{self, SecretsKey, invalid_key};
use infinization_core::types::Secret;
use infinization_core::{ErrorCode, Failure};
use napi_derive::napi;
use serde_json::Value;

use crate::argument::Argument;
use crate::outcome::{Outcome, now};

/// `encryptSecret`; `js/secrets.js` has made text of the key.
#[napi]
pub fn encrypt_secret(plain: Argument, key: Argument) -> Outcome {
    let seal = || {
        let plain = text(plain, "plain")?;
        Ok(read(key)?.seal(&plain)?)
    };
    now(seal())
}

/// `decryptSecret`.
#[napi]
pub fn decrypt_secret(sealed: Argument, key: Argument) -> Outcome {
    let open = || {
        let sealed = text(sealed, "text")?;
        let opened = read(key)?.open(sealed.reveal())?;
        Ok(opened.reveal().to_owned())
    };
    now(open())
}

/// A line of `Debugger`, without what looks like a secret.
#[napi]
pub fn redacted(line: String) -> String {
    secrets::redacted(&line)
}

/// Any text, an empty one too.
fn text(argument: Argument, name: &str) -> Result<Secret, Failure> {
    if let Value::String(text) = argument.value(name)? {
        return Ok(Secret::new(text));
    }
    let message = format!("{name} must be a string");
    Err(Failure::new(ErrorCode::InvalidConfig, message))
}

fn read(key: Argument) -> Result<SecretsKey, Failure> {
    let key = text(key, "key")?;
    SecretsKey::from_text(key.reveal()).map_err(|why| invalid_key("key", &why))
}
