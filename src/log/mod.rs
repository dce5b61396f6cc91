//! Where the log goes. What is worth a warning reaches the user by itself, as a warning of the
//! process (`process.emitWarning`, type `InfinizationWarning`); all of it goes to stderr when the
//! environment's `DEBUG` asks for it.
//!
//! Nothing waits for JavaScript: what it does not take now, because no environment is left or too
//! much waits already, goes to stderr. The log says who and why (`vm`, `error`) and never holds a
//! secret: what is one has no text form (`types::Secret`). Neighbours: [`line`] makes the text,
//! [`namespaces`] reads `DEBUG`.

mod line;
mod namespaces;

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use line::Line;
use namespaces::Namespaces;

/// How many warnings wait for a busy JavaScript thread.
const WAITING: usize = 256;

/// `warn(message: string)` of `js/native.js`. Weak: it keeps no process alive.
pub type Warn = ThreadsafeFunction<String, (), String, Status, false, true, WAITING>;

/// Who warns: one function per environment (main thread, worker), the oldest environment first.
static WARNERS: Mutex<Vec<Warner>> = Mutex::new(Vec::new());

struct Warner {
    /// Tells environments apart; it is never followed.
    environment: usize,
    warn: Warn,
}

/// Sends the log of this process where it goes. `DEBUG` is read now.
#[cfg_attr(test, expect(dead_code, reason = "tests make logs of their own"))]
pub(crate) fn open() {
    let debug = std::env::var("DEBUG").unwrap_or_default();
    let log = Log {
        shown: Namespaces::parse(&debug),
    };
    // The library is loaded once; were it twice, the first one's log would do.
    let _already_open = tracing::subscriber::set_global_default(log);
}

/// From now on this environment is warned by `warn`; an earlier function of it is forgotten.
pub(crate) fn warn_by(env: &Env, warn: Warn) {
    let environment = env.raw() as usize;
    let mut warners = WARNERS.lock().unwrap_or_else(PoisonError::into_inner);
    match warners
        .iter_mut()
        .find(|known| known.environment == environment)
    {
        Some(known) => known.warn = warn,
        None => warners.push(Warner { environment, warn }),
    }
}

/// The oldest environment that is still there is told; usually that is the main thread's.
fn warn(text: &str) {
    let mut warners = WARNERS.lock().unwrap_or_else(PoisonError::into_inner);
    let told = loop {
        let Some(oldest) = warners.first() else {
            break false;
        };
        let mode = ThreadsafeFunctionCallMode::NonBlocking;
        match oldest.warn.call(text.to_owned(), mode) {
            Status::Ok => break true,
            Status::QueueFull => break false,
            _ended => drop(warners.remove(0)),
        }
    };
    drop(warners);
    if !told {
        print(&format!("InfinizationWarning: {text}"));
    }
}

/// A line on stderr; one that cannot be written is lost.
fn print(line: &str) {
    let _lost = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The subscriber of everything that the core and its bindings log. They use no spans.
#[derive(Debug)]
struct Log {
    shown: Namespaces,
}

impl Log {
    fn shows(&self, metadata: &Metadata<'_>) -> bool {
        self.shown
            .hold(module(metadata.target()), *metadata.level())
    }
}

fn is_warning(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::WARN
}

/// The part of us that speaks: `infinization_core::qmp::dial` is `qmp`.
fn module(target: &str) -> &str {
    target.split("::").nth(1).unwrap_or("core")
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("infinization");
        ours && metadata.is_event() && (is_warning(metadata) || self.shows(metadata))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.shown.is_empty() {
            LevelFilter::WARN
        } else {
            LevelFilter::DEBUG
        })
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let line = Line::of(event);
        if self.shows(metadata) {
            print(&line.logged(*metadata.level(), module(metadata.target())));
        }
        if is_warning(metadata) {
            warn(&line.told());
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_named_by_the_first_word_below_the_crate() {
        let table = [
            ("infinization_core::qmp::dial", "qmp"),
            ("infinization_core::vm", "vm"),
            ("infinization::panics", "panics"),
            ("infinization", "core"),
        ];
        for (target, name) in table {
            assert_eq!(module(target), name, "{target}");
        }
    }

    #[test]
    fn without_debug_only_warnings_are_looked_at() {
        let quiet = Log {
            shown: Namespaces::parse(""),
        };
        let loud = Log {
            shown: Namespaces::parse("infinization:*"),
        };
        assert_eq!(quiet.max_level_hint(), Some(LevelFilter::WARN));
        assert_eq!(loud.max_level_hint(), Some(LevelFilter::DEBUG));
    }
}
