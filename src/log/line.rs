//! One event of the log as text, on one line whatever is in it.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// A longer text is cut.
const MOST_CHARS: usize = 4096;

/// What an event says: its message, and its fields in the order they were given.
#[derive(Debug, Default)]
pub(super) struct Line {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut line = Self::default();
        event.record(&mut line);
        line
    }

    /// For the user: `not reconciled (vm: vm-1, error: …)`.
    pub(super) fn told(&self) -> String {
        let fields = self.fields.iter().map(|(name, value)| match value {
            Value::String(text) => format!("{name}: {text}"),
            other => format!("{name}: {other}"),
        });
        let fields = fields.collect::<Vec<_>>().join(", ");
        one_line(&match fields.as_str() {
            "" => self.message.clone(),
            fields => format!("{} ({fields})", self.message),
        })
    }

    /// For whoever debugs: `[2026-01-31T12:00:00.000Z] DEBUG infinization:qmp message {"id":7}`.
    pub(super) fn logged(&self, level: Level, module: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut line = format!(
            "[{}] {level} infinization:{module} {}",
            iso_8601(now.unwrap_or_default()),
            self.message
        );
        if !self.fields.is_empty() {
            let fields = self.fields.iter().cloned();
            let fields: Map<String, Value> = fields
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            let _infallible = write!(line, " {}", Value::Object(fields));
        }
        one_line(&line)
    }

    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

/// Control characters in a message are shown, not obeyed.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars().take(MOST_CHARS) {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// A time since 1970 as `2026-01-31T12:00:00.000Z`.
fn iso_8601(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{:02}.{:03}Z",
        seconds % 60,
        since_1970.subsec_millis()
    )
}

/// Year, month and day of a day since 1970. Years begin in March here, so that a leap day is the last
/// day of its year; 400 years have 146097 days.
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468; // since the first of March of year 0
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str, fields: &[(&'static str, Value)]) -> Line {
        Line {
            message: message.to_owned(),
            fields: fields.to_vec(),
        }
    }

    #[test]
    fn a_warning_says_who_and_why() {
        let fields = [
            ("vm", "vm-1".into()),
            ("error", "no\nroom".into()),
            ("count", 3.into()),
        ];
        let told = line("not written", &fields).told();
        assert_eq!(told, "not written (vm: vm-1, error: no\\nroom, count: 3)");
        assert_eq!(
            line("stateDri is not an option", &[]).told(),
            "stateDri is not an option"
        );
    }

    #[test]
    fn a_logged_line_has_the_contracts_form() {
        let logged = line("reply", &[("id", 7.into())]).logged(Level::DEBUG, "qmp");
        assert!(
            logged.ends_with(r#"Z] DEBUG infinization:qmp reply {"id":7}"#),
            "{logged}"
        );
        assert!(!line("a\x1b[2Jb\nc", &[]).told().contains(char::is_control));
        assert_eq!(line(&"x".repeat(10_000), &[]).told().len(), MOST_CHARS);
    }

    #[test]
    fn times() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (1_798_761_599_001, "2026-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (ms, text) in table {
            assert_eq!(iso_8601(Duration::from_millis(ms)), text);
        }
    }
}
