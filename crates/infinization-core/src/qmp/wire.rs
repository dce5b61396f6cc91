//! Pure framing: commands to bytes, lines to messages.
//!
//! What is sent is always our own serialisation of a checked name and a JSON object, so no
//! argument can end the object it is in and begin another command (B43).

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::events::{QmpEvent, QmpTimestamp};
use super::replies::Greeting;

const MAX_NAME: usize = 128;

/// A command that was not sent. Names the command only when the name itself is sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InvalidCommand {
    #[error("a command's name is 1 to {MAX_NAME} of the characters a-z, A-Z, 0-9, '.', '_', '-'")]
    Name,
    #[error("the arguments of {command} are not a JSON object")]
    Arguments { command: String },
}

/// A command ready to be sent.
pub(super) struct Command {
    name: String,
    arguments: Option<String>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The arguments may hold a password.
        write!(f, "Command({})", self.name)
    }
}

impl Command {
    /// Checks the name, and that `arguments` serialise to an object. `()` and `null` mean none,
    /// an empty object is left out.
    pub(super) fn new(name: &str, arguments: impl Serialize) -> Result<Self, InvalidCommand> {
        if !is_name(name) {
            return Err(InvalidCommand::Name);
        }
        // Through `Value` rather than as raw text: that also refuses lone surrogates and deep
        // nesting, which QEMU's parser answers without saying to which command.
        let arguments = match serde_json::to_value(arguments) {
            Ok(Value::Null) => None,
            Ok(Value::Object(object)) if object.is_empty() => None,
            Ok(object @ Value::Object(_)) => Some(object.to_string()),
            Ok(_) | Err(_) => {
                return Err(InvalidCommand::Arguments {
                    command: name.to_owned(),
                });
            }
        };
        Ok(Self {
            name: name.to_owned(),
            arguments,
        })
    }

    /// The line to send, with its line end.
    pub(super) fn encode(&self, id: Option<u64>) -> Vec<u8> {
        let Self { name, arguments } = self;
        let mut members = vec![format!(r#""execute":"{name}""#)];
        members.extend(
            arguments
                .as_ref()
                .map(|object| format!(r#""arguments":{object}"#)),
        );
        members.extend(id.map(|id| format!(r#""id":{id}"#)));
        format!("{{{}}}\n", members.join(",")).into_bytes()
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed)
}

/// One line from the other side.
#[derive(Debug)]
pub(super) enum Message {
    Greeting(Greeting),
    Reply(Reply),
    Event(QmpEvent),
    /// Sound JSON that is none of these, or a reply to a command that cannot be ours.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Reply {
    /// Absent when QEMU could not even read the command, and always from a guest agent.
    pub(super) id: Option<u64>,
    pub(super) outcome: Result<Box<RawValue>, Refusal>,
}

/// QEMU's "no".
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Refusal {
    pub(super) class: String,
    pub(super) desc: String,
}

/// Reads one line. Errors say what is wrong with it, never what is in it.
pub(super) fn parse(line: &[u8]) -> Result<Message, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "a line is not UTF-8")?;
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|_| "a line is not a JSON object of the protocol")?;
    Ok(envelope.into_message())
}

/// Every member a message may have. `null` differs from absent: it is a sound return value.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    timestamp: Option<QmpTimestamp>,
    #[serde(rename = "return", borrow, default, deserialize_with = "present")]
    returned: Option<&'a RawValue>,
    error: Option<Refusal>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D>(value: D) -> Result<Option<&'a RawValue>, D::Error>
where
    D: Deserializer<'de>,
{
    <&RawValue>::deserialize(value).map(Some)
}

impl Envelope<'_> {
    fn into_message(self) -> Message {
        if let Some(greeting) = self.greeting {
            return Message::Greeting(greeting);
        }
        if let Some(event) = self.event {
            return Message::Event(QmpEvent {
                event: event.into_owned(),
                data: self.data.map_or_else(empty_object, ToOwned::to_owned),
                timestamp: self.timestamp.unwrap_or(QmpTimestamp::UNKNOWN),
            });
        }
        let outcome = match (self.error, self.returned) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(returned)) => Ok(returned.to_owned()),
            (None, None) => return Message::Unknown,
        };
        let id = self.id.map(RawValue::get).filter(|id| *id != "null");
        match id.map(str::parse) {
            None => Message::Reply(Reply { id: None, outcome }),
            Some(Ok(id)) => Message::Reply(Reply {
                id: Some(id),
                outcome,
            }),
            Some(Err(_)) => Message::Unknown,
        }
    }
}

fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).expect("{} is JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(name: &str, arguments: impl Serialize) -> String {
        let command = Command::new(name, arguments).unwrap();
        String::from_utf8(command.encode(Some(7))).unwrap()
    }

    #[test]
    fn commands_are_one_line_of_our_own_json() {
        assert_eq!(
            line("query-status", ()),
            "{\"execute\":\"query-status\",\"id\":7}\n"
        );
        assert_eq!(line("stop", json!({})), "{\"execute\":\"stop\",\"id\":7}\n");
        let raw = RawValue::from_string("{ \"value\" :\n 5 }".to_owned()).unwrap();
        assert_eq!(
            line("balloon", raw),
            "{\"execute\":\"balloon\",\"arguments\":{\"value\":5},\"id\":7}\n"
        );
    }

    #[test]
    fn b43_neither_name_nor_arguments_can_add_a_command() {
        let inject = "stop\"} {\"execute\":\"quit\"}";
        let long = "x".repeat(129);
        for name in ["", inject, "a b", "a\n", "quit\0", "é", &long] {
            assert_eq!(Command::new(name, ()).unwrap_err(), InvalidCommand::Name);
        }
        for arguments in [
            json!([1]),
            json!("{}"),
            json!(inject),
            json!(1),
            json!(true),
        ] {
            let error = Command::new("eject", &arguments).unwrap_err();
            assert!(matches!(error, InvalidCommand::Arguments { .. }));
            assert!(!error.to_string().contains("quit"), "{error}");
        }
        let sent = line("eject", json!({ "id": format!("{inject}\n") }));
        let read: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(read["execute"], "eject");
        assert_eq!(sent.matches('\n').count(), 1);
    }

    #[test]
    fn b43_text_qemu_cannot_read_is_refused_here() {
        let surrogate = RawValue::from_string(r#"{"id":"\ud800"}"#.to_owned()).unwrap();
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(2000), "]".repeat(2000));
        let deep = RawValue::from_string(deep).unwrap();
        for arguments in [surrogate, deep] {
            assert!(Command::new("eject", arguments).is_err());
        }
    }

    #[test]
    fn f7_messages_read_or_say_why_not() {
        let reply = |text: &str| match parse(text.as_bytes()).unwrap() {
            Message::Reply(Reply { id, outcome }) => {
                Some((id, outcome.map(|raw| raw.get().to_owned())))
            }
            _ => None,
        };
        let refusal = Refusal {
            class: "GenericError".into(),
            desc: "no".into(),
        };
        for (text, expected) in [
            (
                "{\"return\": null, \"id\": 3}\r",
                Some((Some(3), Ok("null".into()))),
            ),
            (
                r#"{"id":3,"error":{"class":"GenericError","desc":"no","x":1}}"#,
                Some((Some(3), Err(refusal.clone()))),
            ),
            (
                r#"{"error":{"class":"GenericError","desc":"no"}}"#,
                Some((None, Err(refusal))),
            ),
            (r#"{"return":{},"id":"three"}"#, None),
            (r#"{"return":{},"id":-1}"#, None),
            (r#"{"return":{},"id":null}"#, Some((None, Ok("{}".into())))),
            (r#"{"news":1}"#, None),
        ] {
            assert_eq!(reply(text), expected, "{text}");
        }
        for text in [
            b"\xc3".as_slice(),
            b"{",
            b"[1]",
            b"{\"error\":1,\"id\":1}",
            b"\0",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn f7_deep_nesting_costs_no_stack() {
        let deep = format!(
            "{{\"return\":{}{},\"id\":1}}",
            "[".repeat(1_000_000),
            "]".repeat(1_000_000)
        );
        assert!(matches!(parse(deep.as_bytes()), Ok(Message::Reply(_))));
    }

    #[test]
    fn greetings_and_events_read() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},
            "package": "Debian"}, "capabilities": ["oob", "telepathy"]}}"#;
        let Ok(Message::Greeting(greeting)) = parse(greeting) else {
            panic!("no greeting");
        };
        assert_eq!(greeting.version.qemu.major, 7);
        assert_eq!(greeting.capabilities, ["oob", "telepathy"]);

        let event = r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"NEW_ÉVENT"}"#;
        let Ok(Message::Event(event)) = parse(event.as_bytes()) else {
            panic!("no event");
        };
        assert_eq!(event.event, "NEW_ÉVENT");
        assert_eq!(event.data.get(), "{}");
    }
}
