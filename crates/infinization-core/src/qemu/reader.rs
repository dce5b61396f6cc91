//! Reads an argv back the way QEMU does, knowing nothing of how it was written.

use serde_json::{Map, Value};

/// One switch and what QEMU sees behind it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Switch {
    pub(super) name: String,
    /// A comma list is read into an object of texts; a leading value without a name is `""`.
    pub(super) value: Value,
}

/// Every argument that starts with `-` is a switch; the next one, unless it is a switch too, is its
/// value.
pub(super) fn parse_argv(args: &[String]) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(name) = args.next() {
        assert!(name.starts_with('-'), "{name} is no switch");
        let value = args.next_if(|next| !next.starts_with('-'));
        switches.push(Switch {
            name: name.clone(),
            value: value.map_or(Value::Null, |text| parse_value(text)),
        });
    }
    switches
}

fn parse_value(text: &str) -> Value {
    if text.starts_with('{') {
        return serde_json::from_str(text).unwrap();
    }
    let mut options = Map::new();
    for (index, part) in split_at_commas(text).into_iter().enumerate() {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if index == 0 => (String::new(), part),
            // A word alone is "on" (QemuOpts).
            None => (part, "on".to_owned()),
        };
        let twice = options.insert(key, value.into());
        assert_eq!(twice, None, "an option twice in {text}");
    }
    Value::Object(options)
}

/// QemuOpts: `,` ends a part, `,,` is a comma.
fn split_at_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// The switches without what they say: names and keys, but no values. Two command lines of one
/// shape have the same options.
pub(super) fn shape(switches: &[Switch]) -> Vec<String> {
    switches
        .iter()
        .map(|switch| format!("{} {}", switch.name, keys(&switch.value)))
        .collect()
}

fn keys(value: &Value) -> String {
    let Value::Object(fields) = value else {
        return String::new();
    };
    let keys: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("{key}{}", keys(value)))
        .collect();
    format!("{{{}}}", keys.join(","))
}

/// The switches called `name`.
pub(super) fn all<'a>(switches: &'a [Switch], name: &'a str) -> impl Iterator<Item = &'a Value> {
    let named = switches.iter().filter(move |switch| switch.name == name);
    named.map(|switch| &switch.value)
}

/// The one switch called `name`.
pub(super) fn one<'a>(switches: &'a [Switch], name: &'a str) -> &'a Value {
    let mut found = all(switches, name);
    let value = found.next().unwrap_or(&Value::Null);
    assert!(found.next().is_none(), "{name} twice");
    value
}

/// The device with this id.
pub(super) fn device<'a>(switches: &'a [Switch], id: &str) -> Option<&'a Value> {
    all(switches, "-device").find(|device| device["id"] == id)
}

/// The block node with this name.
pub(super) fn node<'a>(switches: &'a [Switch], name: &str) -> &'a Value {
    let mut nodes = all(switches, "-blockdev");
    nodes.find(|node| node["node-name"] == name).unwrap()
}
