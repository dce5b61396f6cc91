//! How a switch becomes arguments: JSON where QEMU reads it, a comma list where it does not.

use std::fmt::Display;

use serde::Serialize;

/// One switch of the command line.
pub(super) trait ToArgs {
    /// The switch and its value, as separate arguments.
    fn to_args(&self) -> Vec<String>;
}

/// What `-device` makes. The struct's serde name is the driver's, its fields are the properties.
pub(super) trait Device: Serialize {}

impl<D: Device> ToArgs for D {
    fn to_args(&self) -> Vec<String> {
        json("-device", self)
    }
}

/// A switch whose value is JSON.
pub(super) fn json(switch: &str, value: &impl Serialize) -> Vec<String> {
    #[expect(
        clippy::expect_used,
        reason = "our own structs have text keys and no failing parts"
    )]
    let text = serde_json::to_string(value).expect("plain data");
    vec![switch.to_owned(), text]
}

/// A switch that stands alone.
pub(super) fn bare(switch: &str) -> Vec<String> {
    vec![switch.to_owned()]
}

/// A comma list. A comma in a value is doubled, which is how QEMU reads it back as one.
#[derive(Debug)]
pub(super) struct Opts {
    switch: &'static str,
    text: String,
}

impl Opts {
    pub(super) fn new(switch: &'static str) -> Self {
        Self {
            switch,
            text: String::new(),
        }
    }

    /// The leading value without a name, such as the `socket` of `-chardev socket,…`.
    #[must_use]
    pub(super) fn head(self, value: impl Display) -> Self {
        self.push(&escaped(&value.to_string()))
    }

    #[must_use]
    pub(super) fn with(self, name: &str, value: impl Display) -> Self {
        self.push(&format!("{name}={}", escaped(&value.to_string())))
    }

    #[must_use]
    pub(super) fn with_some(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    #[must_use]
    pub(super) fn on_off(self, name: &str, value: bool) -> Self {
        self.with(name, if value { "on" } else { "off" })
    }

    pub(super) fn args(self) -> Vec<String> {
        vec![self.switch.to_owned(), self.text]
    }

    fn push(mut self, part: &str) -> Self {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(part);
        self
    }
}

fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// `a:b:c`, as `fds=` and `vhostfds=` want it.
pub(super) fn colon_list(numbers: &[i32]) -> String {
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    texts.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b2_a_comma_stays_inside_its_value() {
        let opts = Opts::new("-chardev")
            .head("socket")
            .with("path", "/a,id=evil");
        assert_eq!(opts.args(), ["-chardev", "socket,path=/a,,id=evil"]);
    }
}
