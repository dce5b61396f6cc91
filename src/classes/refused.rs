//! Constructors that were given what makes no sense.

use infinization_core::{ErrorCode, Failure};
use serde_json::{Map, Value};

/// What a constructor was given makes no sense. Constructors do not fail: each method that needs it
/// tells it.
#[derive(Debug)]
pub(super) struct Refused {
    code: ErrorCode,
    message: String,
    context: Map<String, Value>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code(),
            message: failure.to_string(),
            context: failure.context().clone(),
        }
    }
}

impl From<&Refused> for Failure {
    fn from(refused: &Refused) -> Self {
        let failure = Self::new(refused.code, refused.message.as_str());
        let context = refused.context.iter();
        context.fold(failure, |failure, (key, value)| {
            failure.with(key, value.clone())
        })
    }
}
