//! What `journal()` is asked: which entries, from where to where, and whether to wait for more.

use serde_json::Value;

use super::fields::{Fields, Report, boolean, elements, integer_in, parsed, words_of_text};
use super::{ConfigError, Parsed, words};
use crate::types::VmId;

/// The greatest integer that JavaScript's numbers say exactly.
const EXACT: i64 = 1 << 53;

words! {
    /// What an entry of a journal speaks of.
    pub enum JournalKind {
        /// An operation was begun, is done, or failed.
        Operation = "operation",
        /// A step of an operation's plan.
        Step = "step",
        /// A thing that an unfinished operation made is taken back.
        Undo = "undo",
        /// A thing that is no longer needed is given back.
        Release = "release",
        /// The machine's status changed.
        Status = "status",
        /// The guest or QEMU did something.
        Event = "event",
        /// What ails a living VM changed.
        Condition = "condition",
        /// QEMU ended.
        Exit = "exit",
        /// Entries that could not be written.
        Lost = "lost",
    }
}

/// One end of what is asked for; the end itself belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalBound {
    /// The entry of this number.
    Seq(u64),
    /// This moment, in milliseconds since the Unix epoch.
    Time(u64),
}

/// What `journal()` is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalOptions {
    /// Only this machine's entries; else every machine's, by time.
    pub vm_id: Option<VmId>,
    /// From here on.
    pub since: Option<JournalBound>,
    /// Up to here.
    pub until: Option<JournalBound>,
    /// Only these kinds; empty for all.
    pub kinds: Vec<JournalKind>,
    /// Only steps, releases and events of these names; empty for all.
    pub steps: Vec<String>,
    /// So many at most.
    pub limit: Option<usize>,
}

impl JournalOptions {
    /// Reads `journal()`'s options; null is all defaults. Moments are `sinceTime` and `untilTime`
    /// here: JSON has no dates.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        if value.is_null() {
            return report.conclude(Some(Self::default()));
        }
        let options = Fields::of("options", value, &report);
        let options = options.map(|fields| Self::read(&fields, &report));
        report.conclude(options)
    }

    fn read(fields: &Fields<'_>, report: &Report) -> Self {
        let number = || integer_in::<u64>(0..=EXACT);
        let bound = |seq, time| {
            let seq = fields.optional(seq, number()).map(JournalBound::Seq);
            seq.or_else(|| fields.optional(time, number()).map(JournalBound::Time))
        };
        let options = Self {
            vm_id: fields.optional("vmId", parsed),
            since: bound("since", "sinceTime"),
            until: bound("until", "untilTime"),
            kinds: list(fields, "kinds", report, parsed),
            steps: list(fields, "steps", report, words_of_text),
            limit: fields.optional("limit", integer_in(0..=EXACT)),
        };
        // Waiting is the reader's business.
        let _follow = fields.optional("follow", boolean);
        fields.refuse_strangers();
        for (key, bound) in [("since", options.since), ("until", options.until)] {
            if matches!(bound, Some(JournalBound::Seq(_))) && options.vm_id.is_none() {
                report.refuse(
                    key,
                    "must be a Date unless vmId is given: each machine counts its own entries",
                );
            }
        }
        options
    }
}

fn list<T>(
    fields: &Fields<'_>,
    key: &'static str,
    report: &Report,
    read: impl Fn(&Value) -> Result<T, crate::types::InvalidValue>,
) -> Vec<T> {
    let values = fields.optional(key, elements).unwrap_or_default();
    let values = values.iter().enumerate();
    let read = values.filter_map(|(at, value)| report.check(format!("{key}[{at}]"), read(value)));
    read.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_is_asked() {
        let asked = json!({
            "vmId": "vm-1", "since": 3, "untilTime": 1000.0, "kinds": ["step", "exit"],
            "steps": ["spawn QEMU"], "limit": 10, "follow": true,
        });
        let expected = JournalOptions {
            vm_id: Some(VmId::parse("vm-1").unwrap()),
            since: Some(JournalBound::Seq(3)),
            until: Some(JournalBound::Time(1000)),
            kinds: vec![JournalKind::Step, JournalKind::Exit],
            steps: vec!["spawn QEMU".to_owned()],
            limit: Some(10),
        };
        assert_eq!(JournalOptions::parse(&asked).unwrap().config, expected);
        let nothing = JournalOptions::parse(&Value::Null).unwrap().config;
        assert_eq!(nothing, JournalOptions::default());
    }

    #[test]
    fn b19_b20_b29_what_makes_no_sense_is_refused_by_its_path() {
        for (asked, path) in [
            (json!({ "since": 3 }), "since"),
            (json!({ "until": 3 }), "until"),
            (json!({ "vmId": "../x" }), "vmId"),
            (json!({ "vmId": "vm-1", "since": -1 }), "since"),
            (json!({ "vmId": "vm-1", "since": "0" }), "since"),
            (json!({ "kinds": ["steps"] }), "kinds[0]"),
            (json!({ "kinds": "step" }), "kinds"),
            (json!({ "limit": 1.5 }), "limit"),
            (json!({ "follow": 1 }), "follow"),
            (json!({ "last": 1 }), "last"),
        ] {
            let error = JournalOptions::parse(&asked).unwrap_err();
            assert_eq!(error.issues[0].path, path, "{asked}");
        }
    }
}
