//! A strict reader of JSON objects that goes on after a bad field, so that one refusal names all.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use super::issues::{ConfigError, Issue, Parsed, Warning};
use crate::error::ErrorCode;
use crate::types::InvalidValue;

/// What reading has found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    issues: RefCell<Vec<Issue>>,
    warnings: RefCell<Vec<Warning>>,
}

impl Report {
    pub(super) fn refuse(&self, path: impl Into<String>, message: impl Into<String>) {
        self.refuse_as(ErrorCode::InvalidConfig, path, message);
    }

    pub(super) fn refuse_as(
        &self,
        code: ErrorCode,
        path: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.issues.borrow_mut().push(Issue {
            path: path.into(),
            message: message.into(),
            code,
        });
    }

    pub(super) fn warn(&self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.borrow_mut().push(Warning {
            path: path.into(),
            message: message.into(),
        });
    }

    /// Keeps the good half of `outcome`; the bad half is an issue of `path`.
    pub(super) fn check<T>(
        &self,
        path: impl Into<String>,
        outcome: Result<T, InvalidValue>,
    ) -> Option<T> {
        outcome
            .map_err(|why| self.refuse(path, why.to_string()))
            .ok()
    }

    /// `config` if nothing was refused. A `None` without an issue cannot be: every reader that
    /// gives `None` for a required field has named it.
    pub(super) fn conclude<T>(self, config: Option<T>) -> Result<Parsed<T>, ConfigError> {
        let (issues, warnings) = (self.issues.into_inner(), self.warnings.into_inner());
        match config {
            Some(config) if issues.is_empty() => Ok(Parsed { config, warnings }),
            _ => Err(ConfigError { issues }),
        }
    }
}

/// One JSON object being read. `null` and a missing key are the same.
#[derive(Debug)]
pub(super) struct Fields<'v> {
    object: &'v Map<String, Value>,
    prefix: String,
    report: &'v Report,
    known: RefCell<Vec<&'static str>>,
}

impl<'v> Fields<'v> {
    /// Reads `value`, which `what` names in a refusal, as an object whose fields have no prefix.
    pub(super) fn of(what: &str, value: &'v Value, report: &'v Report) -> Option<Self> {
        Self::open(what, String::new(), value, report)
    }

    /// Reads element `index` of the list `key`.
    pub(super) fn element(
        key: &str,
        index: usize,
        value: &'v Value,
        report: &'v Report,
    ) -> Option<Self> {
        let path = format!("{key}[{index}]");
        Self::open(&path, format!("{path}."), value, report)
    }

    /// Reads `value` as the object that is the member `key`.
    pub(super) fn member(key: &str, value: &'v Value, report: &'v Report) -> Option<Self> {
        Self::open(key, format!("{key}."), value, report)
    }

    fn open(what: &str, prefix: String, value: &'v Value, report: &'v Report) -> Option<Self> {
        let Value::Object(object) = value else {
            report.refuse(what, "must be an object");
            return None;
        };
        Some(Self {
            object,
            prefix,
            report,
            known: RefCell::default(),
        })
    }

    /// The value of `key` unless it is absent or refused.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&'v Value) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        let value = self.value(key)?;
        self.report.check(self.path(key), read(value))
    }

    /// The same for a key that must be there.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&'v Value) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        if self.value(key).is_none() {
            self.report.refuse(self.path(key), "is required");
        }
        self.optional(key, read)
    }

    /// A boolean, or `default`.
    pub(super) fn flag(&self, key: &'static str, default: bool) -> bool {
        self.optional(key, boolean).unwrap_or(default)
    }

    /// Whether `key` holds anything.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Keys that are legal here and read by somebody else.
    pub(super) fn skip(&self, keys: &[&'static str]) {
        self.known.borrow_mut().extend(keys);
    }

    /// Warns about every key nobody asked for.
    pub(super) fn finish(&self) {
        for path in self.strangers() {
            self.report.warn(path, "is not an option and has no effect");
        }
    }

    /// The same where it would not be harmless to go on without it.
    pub(super) fn refuse_strangers(&self) {
        for path in self.strangers() {
            self.report.refuse(path, "is not an option");
        }
    }

    fn strangers(&self) -> Vec<String> {
        let known = self.known.borrow();
        let keys = self
            .object
            .keys()
            .filter(|key| !known.contains(&key.as_str()));
        keys.map(|key| self.path(&shortened(key))).collect()
    }

    fn value(&self, key: &'static str) -> Option<&'v Value> {
        self.known.borrow_mut().push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// A foreign key in a message: short and on one line.
fn shortened(key: &str) -> String {
    key.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// The elements of a list.
pub(super) fn elements(value: &Value) -> Result<&[Value], InvalidValue> {
    match value {
        Value::Array(elements) => Ok(elements),
        _ => Err(InvalidValue::new("must be a list")),
    }
}

/// A string that `T` takes.
pub(super) fn parsed<T: TryFrom<String, Error = InvalidValue>>(
    value: &Value,
) -> Result<T, InvalidValue> {
    T::try_from(string(value)?.to_owned())
}

pub(super) fn string(value: &Value) -> Result<&str, InvalidValue> {
    value
        .as_str()
        .ok_or_else(|| InvalidValue::new("must be a string"))
}

/// A string with something in it and no control characters.
pub(super) fn words_of_text(value: &Value) -> Result<String, InvalidValue> {
    let text = string(value)?;
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err(InvalidValue::new(
            "must not be blank and not hold control characters",
        ));
    }
    Ok(text.to_owned())
}

pub(super) fn boolean(value: &Value) -> Result<bool, InvalidValue> {
    value
        .as_bool()
        .ok_or_else(|| InvalidValue::new("must be true or false"))
}

pub(super) fn number(value: &Value) -> Result<f64, InvalidValue> {
    value
        .as_f64()
        .filter(|number| number.is_finite())
        .ok_or_else(|| InvalidValue::new("must be a number"))
}

/// A whole number. JavaScript has one kind of number, so `4.0` is one too.
pub(super) fn integer(value: &Value) -> Result<i64, InvalidValue> {
    // Beyond 2^53 a JavaScript number no longer says which integer it means.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = number(value)?;
    if number.fract() != 0.0 || number.abs() > EXACT {
        return Err(InvalidValue::new("must be a whole number"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
    Ok(number as i64)
}

/// A whole number of a range.
pub(super) fn integer_in<T>(
    range: RangeInclusive<i64>,
) -> impl FnOnce(&Value) -> Result<T, InvalidValue>
where
    T: TryFrom<i64>,
{
    move |value| within(integer(value)?, &range)
}

/// `number` if it is in `range`.
pub(super) fn within<T: TryFrom<i64>>(
    number: i64,
    range: &RangeInclusive<i64>,
) -> Result<T, InvalidValue> {
    let refused = || {
        InvalidValue::new(format!(
            "must be a whole number from {} to {}",
            range.start(),
            range.end()
        ))
    };
    if !range.contains(&number) {
        return Err(refused());
    }
    T::try_from(number).map_err(|_| refused())
}

/// A span in milliseconds, of at most a week: longer ones are a slip of units.
pub(super) fn milliseconds(value: &Value) -> Result<Duration, InvalidValue> {
    const WEEK: f64 = 7.0 * 24.0 * 3600.0 * 1000.0;
    let ms = number(value)?;
    if !(0.0..=WEEK).contains(&ms) {
        return Err(InvalidValue::new(
            "must be a number of milliseconds, at most a week",
        ));
    }
    Ok(Duration::from_secs_f64(ms / 1000.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn b10_b20_types_are_strict() {
        assert_eq!(integer(&json!(4.0)).unwrap(), 4);
        for bad in [
            json!("50"),
            json!(1.5),
            json!(1e308),
            json!(true),
            json!([1]),
            json!({}),
        ] {
            assert!(integer(&bad).is_err(), "{bad} was taken");
        }
        for bad in [json!(-1), json!(1e12), json!("5")] {
            assert!(milliseconds(&bad).is_err(), "{bad} was taken");
        }
        assert!(boolean(&json!("true")).is_err());
        assert!(words_of_text(&json!(" ")).is_err());
    }

    #[test]
    fn b19_b21_null_is_missing_and_strangers_are_named() {
        let report = Report::default();
        let value = json!({ "a": null, "b": true, "__proto__": {}, "evil\nkey": 1 });
        let fields = Fields::of("config", &value, &report).unwrap();
        assert_eq!(fields.optional("a", boolean), None);
        assert_eq!(fields.required("c", boolean), None);
        assert!(fields.flag("b", false));
        fields.finish();
        let strangers: Vec<String> = report
            .warnings
            .borrow()
            .iter()
            .map(|w| w.path.clone())
            .collect();
        assert_eq!(strangers, ["__proto__", "evilkey"]);
        let error = report.conclude::<()>(None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the configuration is refused: c is required"
        );
    }
}
