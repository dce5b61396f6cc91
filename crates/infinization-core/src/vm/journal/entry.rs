//! The words of a journal: what one line says (pure).
//!
//! Nothing secret gets in: details are made of names, paths, error texts and QEMU's own event data,
//! and a key that is called like a secret loses its value. Every detail is bounded, so that neither
//! a guest nor a tool can make a line long.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{JournalKind as Kind, words};
use crate::error::Failure;
use crate::secrets::is_secret_name;
use crate::types::VmId;

/// The longest text of a detail, in bytes; of QEMU's last words their end, of others their beginning.
const LONGEST_TEXT: usize = 1024;
/// The most elements a list or an object of a detail keeps.
const MOST_ELEMENTS: usize = 32;
/// How deep a detail may be.
const DEEPEST: usize = 6;
/// A detail that is longer after all that is left out.
const LONGEST_DETAIL: usize = 8 * 1024;

words! {
    /// Who is behind an entry.
    pub enum Actor {
        /// A verb of the public API.
        Api = "api",
        /// The guest: it shut down, reset itself, panicked, slept, wrote to a full disk.
        Guest = "guest",
        /// The monitor: what QEMU reports that the guest did not do, and the connection to it.
        Monitor = "monitor",
        /// The end of QEMU's process.
        Process = "process",
        /// The library, taking stock after its own restart.
        Recovery = "recovery",
        /// `reconcileStartupState`.
        Reconcile = "reconcile",
        /// The health monitor.
        Health = "health",
    }
}

words! {
    /// How far an operation, a step or a release has come.
    pub enum Phase {
        /// Written before anything was done.
        Begun = "begun",
        /// It was done.
        Done = "done",
        /// It failed; a step that failed has left nothing behind of its own.
        Failed = "failed",
        /// What the step had made is gone again.
        Undone = "undone",
    }
}

/// One line of a VM's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalEntry {
    /// The machine.
    pub vm_id: VmId,
    /// Counts this machine's entries from 0, without gaps.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch; a `Date` in JavaScript.
    pub timestamp: u64,
    /// Who is behind it.
    pub actor: Actor,
    /// What was under way: a verb, `recover`, `reconcile`, `check`; `run` between them.
    pub operation: Cow<'static, str>,
    /// What it speaks of.
    pub kind: Kind,
    /// The name of the step, the release or the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Cow<'static, str>>,
    /// How far it has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The status or condition before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The status or condition after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
}

/// The number of the entry that a line is, whatever its other words are: a newer version has some
/// that this one does not know.
pub(super) fn number_of(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    let numbered: Numbered = serde_json::from_slice(line).ok()?;
    Some(numbered.seq)
}

/// An entry in the making: what its author knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    pub(super) kind: Kind,
    pub(super) actor: Option<Actor>,
    pub(super) step: Option<Cow<'static, str>>,
    pub(super) phase: Option<Phase>,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) detail: Option<Value>,
}

impl Note {
    /// A note of this kind that says nothing yet.
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            actor: None,
            step: None,
            phase: None,
            from: None,
            to: None,
            detail: None,
        }
    }

    /// Somebody else than whose operation is under way.
    #[must_use]
    pub fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// The step's, release's or event's name.
    #[must_use]
    pub fn step(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.step = Some(name.into());
        self
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }

    /// What it was, and what it is.
    #[must_use]
    pub fn change(mut self, from: Option<String>, to: impl Into<String>) -> Self {
        self.from = from;
        self.to = Some(to.into());
        self
    }

    /// The facts; bounded here. Nothing to tell is no detail.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        let empty = match &detail {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        self.detail = (!empty).then(|| bounded(detail));
        self
    }

    /// Why it failed.
    #[must_use]
    pub fn failure(self, failure: &Failure) -> Self {
        self.phase(Phase::Failed).detail(told(failure))
    }
}

/// A failure as a journal tells it: its code and words, and what it was caused by.
fn told(failure: &Failure) -> Value {
    let causes = failure.chain().skip(1).map(|cause| {
        let mut facts = cause.context().clone();
        facts.insert("code".to_owned(), cause.code().as_str().into());
        facts.insert("message".to_owned(), cause.to_string().into());
        Value::Object(facts)
    });
    let mut facts = failure.context().clone();
    facts.insert("code".to_owned(), failure.code().as_str().into());
    facts.insert("message".to_owned(), failure.to_string().into());
    let causes: Vec<Value> = causes.collect();
    if !causes.is_empty() {
        facts.insert("causes".to_owned(), causes.into());
    }
    Value::Object(facts)
}

fn bounded(detail: Value) -> Value {
    let detail = cut("", detail, DEEPEST);
    let length = detail.to_string().len();
    if length > LONGEST_DETAIL {
        return json!({ "leftOut": length });
    }
    detail
}

fn cut(key: &str, value: Value, depth: usize) -> Value {
    match value {
        _ if is_secret_name(key) => "***".into(),
        _ if depth == 0 => Value::Null,
        Value::String(text) => cut_text(text, key == "stderr").into(),
        Value::Array(elements) => {
            let elements = elements.into_iter().take(MOST_ELEMENTS);
            elements.map(|one| cut("", one, depth - 1)).collect()
        }
        Value::Object(map) => {
            let fields = map.into_iter().take(MOST_ELEMENTS);
            let fields = fields.map(|(key, value)| {
                let value = cut(&key, value, depth - 1);
                (cut_text(key, false), value)
            });
            Value::Object(fields.collect::<Map<_, _>>())
        }
        plain => plain,
    }
}

fn cut_text(text: String, keep_end: bool) -> String {
    if text.len() <= LONGEST_TEXT {
        return text;
    }
    if keep_end {
        let is_start = |at: &usize| text.is_char_boundary(*at);
        let from = (text.len() - LONGEST_TEXT..=text.len()).find(is_start);
        return format!("…{}", &text[from.unwrap_or_default()..]);
    }
    let is_end = |at: &usize| text.is_char_boundary(*at);
    let to = (0..=LONGEST_TEXT).rev().find(is_end);
    format!("{}…", &text[..to.unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn a_detail_is_bounded_whatever_it_is_made_of() {
        let long = "ä".repeat(100_000);
        let nested = (0..50).fold(json!(1), |inner, _| json!([inner]));
        for detail in [
            json!({ "stderr": long, "reason": long }),
            json!(vec![long.clone(); 100]),
            json!({ long.clone(): 1 }),
            nested,
        ] {
            let note = Note::of(Kind::Event).detail(detail);
            let length = note.detail.unwrap().to_string().len();
            assert!(length <= LONGEST_DETAIL, "{length}");
        }
        assert_eq!(Note::of(Kind::Event).detail(json!({})).detail, None);
    }

    #[test]
    fn of_last_words_the_end_is_kept() {
        let words = format!("{}the end", "x".repeat(5000));
        let note = Note::of(Kind::Exit).detail(json!({ "stderr": words }));
        let kept = note.detail.unwrap()["stderr"].as_str().unwrap().to_owned();
        assert!(kept.ends_with("the end") && kept.len() < 2000);
    }

    #[test]
    fn what_is_called_a_secret_is_not_told() {
        let detail = json!({
            "a": { "newPassword": "x1y2z3", "clientSecret": ["x1y2z3"] },
            "Passphrase": "x1y2z3",
        });
        let text = Note::of(Kind::Step)
            .detail(detail)
            .detail
            .unwrap()
            .to_string();
        assert!(!text.contains("x1y2z3"), "{text}");
    }

    #[test]
    fn a_failure_tells_its_causes() {
        let cause = Failure::new(ErrorCode::RuleInvalid, "no such table").with("errno", 2);
        let failure = Failure::caused_by(ErrorCode::StartFailed, "not started", cause);
        let note = Note::of(Kind::Operation).failure(&failure);
        assert_eq!(note.phase, Some(Phase::Failed));
        let detail = note.detail.unwrap();
        assert_eq!(detail["code"], "START_FAILED");
        assert_eq!(detail["causes"][0]["errno"], 2);
        assert_eq!(detail["causes"][0]["message"], "no such table");
    }

    #[test]
    fn an_entry_reads_as_it_was_written() {
        let entry = JournalEntry {
            vm_id: VmId::parse("vm-1").unwrap(),
            seq: 7,
            timestamp: 1_700_000_000_000,
            actor: Actor::Api,
            operation: "stop".into(),
            kind: Kind::Release,
            step: Some("detach TAP from bridge".into()),
            phase: Some(Phase::Done),
            from: None,
            to: None,
            detail: Some(json!({ "tap": "vnet-1" })),
        };
        let line = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            line,
            r#"{"vmId":"vm-1","seq":7,"timestamp":1700000000000,"actor":"api","operation":"stop","kind":"release","step":"detach TAP from bridge","phase":"done","detail":{"tap":"vnet-1"}}"#
        );
        assert_eq!(serde_json::from_str::<JournalEntry>(&line).unwrap(), entry);
    }
}
