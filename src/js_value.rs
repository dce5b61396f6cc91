//! Reads what a caller passed into plain JSON values.
//!
//! Only data that JSON can say is taken: plain objects, arrays, strings, finite numbers, booleans,
//! null. A member that is `undefined` counts as absent. Everything else (NaN, BigInt, Date, Buffer,
//! functions, class instances, cycles, throwing getters) is refused with the path where it was
//! found, so that nothing is silently replaced. Reading is bounded in depth, values and text.
//! Nothing here knows what a field means; the core does. Neighbour: [`argument`](crate::argument).

use napi::bindgen_prelude::{
    Function, JsObjectValue, JsValue, KeyCollectionMode, KeyConversion, KeyFilter,
};
use napi::bindgen_prelude::{Object, Unknown};
use napi::{Env, ValueType};
use serde_json::{Map, Number, Value};

use crate::argument::Issue;
use crate::outcome::forget_exception;

/// Deeper nesting is refused.
const MAX_DEPTH: usize = 64;
/// More values in one argument are refused: room for 40,000 firewall rules.
const MAX_VALUES: usize = 1_000_000;
/// More UTF-16 units of text in one argument are refused.
const MAX_TEXT: usize = 64 << 20;
/// Further issues are not listed.
const MAX_ISSUES: usize = 20;
/// The largest integer that a JavaScript number holds exactly.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Reads `value`; `undefined` reads as absent. Never throws.
pub(crate) fn read(env: &Env, value: Unknown<'_>) -> Result<Option<Value>, Vec<Issue>> {
    let mut reader = Reader::new(env);
    let value = reader.read(value);
    if reader.issues.is_empty() {
        Ok(value)
    } else {
        Err(reader.issues)
    }
}

/// Walks one argument.
struct Reader<'a> {
    env: &'a Env,
    path: String,
    /// The objects around the current value, outermost first.
    around: Vec<Unknown<'a>>,
    values: usize,
    text: usize,
    issues: Vec<Issue>,
    full: bool,
}

/// Why a value is not taken.
enum Refusal {
    Because(&'static str),
    /// A getter or Proxy trap threw; its exception was forgotten.
    Threw,
    /// One more issue would say nothing new, or the argument is too large to go on.
    TooLarge,
}

impl From<napi::Error> for Refusal {
    fn from(_: napi::Error) -> Self {
        Self::Threw
    }
}

impl<'a> Reader<'a> {
    fn new(env: &'a Env) -> Self {
        Self {
            env,
            path: String::new(),
            around: Vec::new(),
            values: 0,
            text: 0,
            issues: Vec::new(),
            full: false,
        }
    }

    /// The value, or `None` when it is undefined or refused (then an issue says so).
    fn read(&mut self, value: Unknown<'a>) -> Option<Value> {
        if self.full {
            return None;
        }
        match self.convert(value) {
            Ok(value) => value,
            Err(refusal) => {
                self.refuse(&refusal);
                None
            }
        }
    }

    fn convert(&mut self, value: Unknown<'a>) -> Result<Option<Value>, Refusal> {
        self.count_values(1)?;
        let value = match value.get_type()? {
            ValueType::Undefined => return Ok(None),
            ValueType::Null => Value::Null,
            ValueType::Boolean => Value::Bool(value.coerce_to_bool()?),
            ValueType::Number => number(value.coerce_to_number()?.get_double()?)?,
            ValueType::String => Value::String(self.string(value)?),
            ValueType::Object => self.object(value)?,
            ValueType::BigInt => return Err(Refusal::Because("is a BigInt; give a number")),
            ValueType::Function => return Err(Refusal::Because("is a function")),
            ValueType::Symbol => return Err(Refusal::Because("is a symbol")),
            _ => return Err(Refusal::Because("is not plain data")),
        };
        Ok(Some(value))
    }

    fn string(&mut self, value: Unknown<'a>) -> Result<String, Refusal> {
        let text = value.coerce_to_string()?;
        self.count_text(text.utf16_len()?)?;
        let text = text.into_utf16()?;
        text.as_str()
            .map_err(|_| Refusal::Because("is not well-formed Unicode"))
    }

    fn object(&mut self, value: Unknown<'a>) -> Result<Value, Refusal> {
        if self.around.len() == MAX_DEPTH {
            return Err(Refusal::Because("is nested deeper than 64 levels"));
        }
        for outer in &self.around {
            if self.env.strict_equals(*outer, value)? {
                return Err(Refusal::Because("contains itself"));
            }
        }
        self.around.push(value);
        let read = self.members(value);
        self.around.pop();
        read
    }

    fn members(&mut self, value: Unknown<'a>) -> Result<Value, Refusal> {
        let object = value.coerce_to_object()?;
        if value.is_array()? {
            return self.elements(&object);
        }
        if let Some(what) = not_plain(self.env, value, &object)? {
            return Err(Refusal::Because(what));
        }
        self.properties(&object)
    }

    fn elements(&mut self, array: &Object<'a>) -> Result<Value, Refusal> {
        let length = array.get_array_length()?;
        self.count_values(usize::try_from(length).unwrap_or(usize::MAX))?;
        let mut elements = Vec::new();
        for index in 0..length {
            let read = self.within(&format!("[{index}]"), |reader| {
                let element = array.get_element::<Unknown<'_>>(index)?;
                match element.get_type()? {
                    ValueType::Undefined => Err(Refusal::Because("is undefined")),
                    _ => Ok(reader.read(element)),
                }
            });
            elements.extend(read);
        }
        Ok(Value::Array(elements))
    }

    fn properties(&mut self, object: &Object<'a>) -> Result<Value, Refusal> {
        let keys = object.get_all_property_names(
            KeyCollectionMode::OwnOnly,
            KeyFilter::Enumerable,
            KeyConversion::NumbersToStrings,
        )?;
        let count = keys.get_array_length()?;
        self.count_values(usize::try_from(count).unwrap_or(usize::MAX))?;
        let mut map = Map::new();
        for index in 0..count {
            let key = keys.get_element::<Unknown<'_>>(index)?;
            if key.get_type()? == ValueType::Symbol {
                continue;
            }
            let name = self.string(key)?;
            let member = self.within(&step(&name), |reader| match name.as_str() {
                "__proto__" => Err(Refusal::Because("is not allowed as a key")),
                _ => Ok(reader.read(object.get_property(key)?)),
            });
            map.extend(member.map(|value| (name, value)));
        }
        Ok(Value::Object(map))
    }

    /// Runs `read` one step deeper in the path, with the N-API handles it makes freed afterwards.
    fn within(
        &mut self,
        step: &str,
        read: impl FnOnce(&mut Self) -> Result<Option<Value>, Refusal>,
    ) -> Option<Value> {
        if self.full {
            return None;
        }
        let length = self.path.len();
        self.path.push_str(step);
        let env = self.env;
        let read = env.run_in_scope(|| {
            Ok(read(self).unwrap_or_else(|refusal| {
                self.refuse(&refusal);
                None
            }))
        });
        self.path.truncate(length);
        read.ok().flatten()
    }

    fn refuse(&mut self, refusal: &Refusal) {
        let message = match refusal {
            Refusal::Because(what) => what,
            Refusal::Threw => {
                forget_exception(self.env);
                "could not be read: its getter or Proxy threw"
            }
            Refusal::TooLarge => {
                self.full = true;
                "is too large"
            }
        };
        let path = self.path.trim_start_matches('.').to_owned();
        self.issues.push(Issue::at(path, message));
        self.full |= self.issues.len() == MAX_ISSUES;
    }

    fn count_values(&mut self, more: usize) -> Result<(), Refusal> {
        self.values = self.values.saturating_add(more);
        if self.values > MAX_VALUES {
            Err(Refusal::TooLarge)
        } else {
            Ok(())
        }
    }

    fn count_text(&mut self, more: usize) -> Result<(), Refusal> {
        self.text = self.text.saturating_add(more);
        if self.text > MAX_TEXT {
            Err(Refusal::TooLarge)
        } else {
            Ok(())
        }
    }
}

/// Says what an object is when it is not a plain one. Plain: no prototype, or one that has none
/// itself (`Object.prototype`, of whichever realm).
fn not_plain(
    env: &Env,
    value: Unknown<'_>,
    object: &Object<'_>,
) -> napi::Result<Option<&'static str>> {
    let what = if value.is_date()? {
        "is a Date; give a string or number"
    } else if value.is_typedarray()? || value.is_arraybuffer()? || value.is_dataview()? {
        "is binary data; give a string"
    } else if is_plain(env, object)? {
        return Ok(None);
    } else {
        "is not a plain object"
    };
    Ok(Some(what))
}

fn is_plain(env: &Env, object: &Object<'_>) -> napi::Result<bool> {
    let prototype = object.get_prototype()?;
    if prototype.get_type()? == ValueType::Null {
        // N-API says so of every Proxy, whatever it stands for.
        return is_root(prototype_of(env, object)?);
    }
    is_root(prototype)
}

/// Whether this is null, or an object with nothing above it.
fn is_root(prototype: Unknown<'_>) -> napi::Result<bool> {
    if prototype.get_type()? == ValueType::Null {
        return Ok(true);
    }
    let above = prototype.coerce_to_object()?.get_prototype()?;
    Ok(above.get_type()? == ValueType::Null)
}

/// `Object.getPrototypeOf(object)`, which asks a Proxy's trap.
fn prototype_of<'a>(env: &'a Env, object: &Object<'a>) -> napi::Result<Unknown<'a>> {
    let class: Unknown<'a> = env.get_global()?.get_named_property("Object")?;
    let class = class.coerce_to_object()?;
    let function: Function<'a, Unknown<'a>, Unknown<'a>> =
        class.get_named_property("getPrototypeOf")?;
    function.call(object.to_unknown())
}

fn number(value: f64) -> Result<Value, Refusal> {
    if value.fract() == 0.0 && value.abs() <= MAX_SAFE_INTEGER {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is an integer below 2^53"
        )]
        return Ok(Value::from(value as i64));
    }
    Number::from_f64(value)
        .map(Value::Number)
        .ok_or(Refusal::Because("is not a finite number"))
}

/// How a key continues a path: `.name`, or `["odd name"]`, shortened when it is very long.
fn step(key: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    if !key.is_empty() && key.len() <= 64 && key.chars().all(word) {
        return format!(".{key}");
    }
    let short: String = key.chars().take(64).collect();
    format!("[{}]", Value::String(short))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_numbers_become_integers_and_others_stay() {
        let read = |value| number(value).ok();
        assert_eq!(read(-0.0), Some(json!(0)));
        assert_eq!(read(4096.0), Some(json!(4096)));
        assert_eq!(read(0.5), Some(json!(0.5)));
        assert_eq!(read(1e308), Some(json!(1e308)));
        assert_eq!(
            read(MAX_SAFE_INTEGER),
            Some(json!(9_007_199_254_740_991_i64))
        );
    }

    #[test]
    fn b10_nan_and_infinity_are_refused() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(number(bad).is_err());
        }
    }

    #[test]
    fn a_path_quotes_and_shortens_odd_keys() {
        assert_eq!(step("sizeGB"), ".sizeGB");
        assert_eq!(step("a b"), r#"["a b"]"#);
        assert_eq!(step(""), r#"[""]"#);
        assert!(step(&"x".repeat(10_000)).len() < 80);
    }
}
