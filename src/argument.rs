//! An argument of a method, and what it may be read as. The one door for what callers pass.
//!
//! A refusal is `INVALID_CONFIG` with the path of every value it is about. Neighbour:
//! [`js_value`] reads the JavaScript value itself.

use std::str::FromStr;

use infinization_core::types::InvalidValue;
use infinization_core::{ErrorCode, Failure};
use napi::Env;
use napi::bindgen_prelude::Unknown;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::js_value;

/// An argument as it was passed; reading it never throws.
#[derive(Debug, Clone)]
pub struct Argument(Result<Option<Value>, Vec<Issue>>);

/// What is wrong, and where: `disks[0].sizeGB`. An empty path is the argument itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Issue {
    path: String,
    message: String,
}

impl Argument {
    /// Reads `value`; `undefined` reads as absent.
    pub(crate) fn read(env: &Env, value: Unknown<'_>) -> Self {
        Self(js_value::read(env, value))
    }

    /// Any JSON value; absent reads as null.
    pub(crate) fn value(self, name: &str) -> Result<Value, Failure> {
        self.present(name).map(Option::unwrap_or_default)
    }

    /// An object; absent reads as an empty one.
    pub(crate) fn object(self, name: &str) -> Result<Value, Failure> {
        self.settings().map_err(|issues| refusal(name, issues))
    }

    /// As [`object`](Self::object), for a refusal that is told later.
    pub(crate) fn settings(self) -> Result<Value, Vec<Issue>> {
        match self.0? {
            None => Ok(Value::Object(Map::new())),
            Some(object @ Value::Object(_)) => Ok(object),
            Some(_) => Err(vec![Issue::of_all("must be an object")]),
        }
    }

    /// A string; absent and null read as none.
    pub(crate) fn optional_text(self, name: &str) -> Result<Option<String>, Failure> {
        match self.present(name)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "must be a string")),
        }
    }

    /// A string that makes a `T`; it must be given.
    pub(crate) fn parsed<T: FromStr<Err = InvalidValue>>(self, name: &str) -> Result<T, Failure> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|why: InvalidValue| wrong(name, &why.to_string()))
    }

    /// Data of the shape of `T`; absent reads as null.
    pub(crate) fn shaped<T: DeserializeOwned>(self, name: &str) -> Result<T, Failure> {
        read_as(self.value(name)?, name)
    }

    /// An object of the shape of `T`; absent and null read as an empty one. What is no object is not quoted: it may
    /// be a key that was meant to be in one.
    pub(crate) fn options<T: DeserializeOwned>(self, name: &str) -> Result<T, Failure> {
        match self.present(name)? {
            None | Some(Value::Null) => read_as(Value::Object(Map::new()), name),
            Some(object @ Value::Object(_)) => read_as(object, name),
            Some(_) => Err(wrong(name, "must be an object")),
        }
    }

    /// An array; it must be given.
    pub(crate) fn array(self, name: &str) -> Result<Value, Failure> {
        match self.present(name)? {
            Some(array @ Value::Array(_)) => Ok(array),
            _ => Err(wrong(name, "must be an array")),
        }
    }

    /// A string; it must be given.
    pub(crate) fn text(self, name: &str) -> Result<String, Failure> {
        match self.present(name)? {
            Some(Value::String(text)) => Ok(text),
            _ => Err(wrong(name, "must be a string")),
        }
    }

    /// An array of strings, or absent.
    pub(crate) fn texts(self, name: &str) -> Result<Option<Vec<String>>, Failure> {
        let refused = || wrong(name, "must be an array of strings");
        self.present(name)?
            .map(|value| serde_json::from_value(value).map_err(|_| refused()))
            .transpose()
    }

    /// A boolean, or absent.
    pub(crate) fn flag(self, name: &str) -> Result<Option<bool>, Failure> {
        match self.present(name)? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(wrong(name, "must be a boolean")),
        }
    }

    fn present(self, name: &str) -> Result<Option<Value>, Failure> {
        self.0.map_err(|issues| refusal(name, issues))
    }
}

impl Issue {
    /// An issue about a member of the argument.
    pub(crate) fn at(path: String, message: &str) -> Self {
        Self {
            path,
            message: message.to_owned(),
        }
    }

    /// An issue about the argument itself.
    fn of_all(message: &str) -> Self {
        Self {
            path: String::new(),
            message: message.to_owned(),
        }
    }
}

fn read_as<T: DeserializeOwned>(value: Value, name: &str) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|why| wrong(name, &format!("is refused: {why}")))
}

/// A refusal of the argument itself.
pub(crate) fn wrong(name: &str, message: &str) -> Failure {
    refusal(name, vec![Issue::of_all(message)])
}

/// `INVALID_CONFIG`, with every issue in `context.issues`. An issue about the argument itself takes
/// the argument's name as its path.
pub(crate) fn refusal(name: &str, mut issues: Vec<Issue>) -> Failure {
    for issue in issues.iter_mut().filter(|issue| issue.path.is_empty()) {
        name.clone_into(&mut issue.path);
    }
    let told = issues
        .iter()
        .map(|issue| format!("{} {}", issue.path, issue.message));
    let message = told.collect::<Vec<_>>().join("; ");
    Failure::new(ErrorCode::InvalidConfig, message).with("issues", json!(issues))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b38_what_stands_where_options_should_is_not_quoted() {
        #[derive(Debug, serde::Deserialize)]
        struct Options {
            _size: Option<u64>,
        }
        let read = |value: Option<Value>| Argument(Ok(value)).options::<Options>("options");
        for given in [json!("hunter2"), json!(123_456), json!(["hunter2"])] {
            let refused = read(Some(given)).unwrap_err();
            assert_eq!(refused.to_string(), "options must be an object");
        }
        for none in [None, Some(Value::Null), Some(json!({}))] {
            assert!(read(none).is_ok());
        }
    }

    #[test]
    fn a_refusal_names_every_issue_and_the_argument_itself() {
        let issue = |path: &str, message: &str| Issue {
            path: path.into(),
            message: message.into(),
        };
        let failure = refusal(
            "config",
            vec![issue("", "is a function"), issue("a.b", "is NaN")],
        );
        assert_eq!(failure.to_string(), "config is a function; a.b is NaN");
        assert_eq!(
            failure.context()["issues"][1],
            json!({ "path": "a.b", "message": "is NaN" })
        );
    }
}
