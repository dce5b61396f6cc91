//! The environment's `DEBUG`, as the `debug` package of npm has it: patterns between commas or blanks,
//! `*` for anything, `-` in front to leave something out.
//!
//! A line of module `qmp` at level debug is `infinization:qmp:debug`. A pattern may end after any of
//! the three: `infinization` is all of us, `infinization:qmp` one module, `infinization:*:error` one
//! level.

use tracing::Level;

/// What of us is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Namespaces {
    wanted: Vec<String>,
    left_out: Vec<String>,
}

impl Namespaces {
    /// Reads `DEBUG`; patterns that are about others are forgotten.
    pub(super) fn parse(debug: &str) -> Self {
        let mut namespaces = Self::default();
        for pattern in debug
            .split([',', ' '])
            .filter(|pattern| !pattern.is_empty())
        {
            match pattern.strip_prefix('-') {
                Some(pattern) => namespaces.left_out.push(pattern.to_owned()),
                None if is_ours(pattern) => namespaces.wanted.push(pattern.to_owned()),
                None => {}
            }
        }
        namespaces
    }

    /// Whether nothing is shown.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Whether a line of `module` at `level` is shown. The most detailed level is debug.
    pub(super) fn hold(&self, module: &str, level: Level) -> bool {
        if self.is_empty() || level > Level::DEBUG {
            return false;
        }
        let level = level.as_str().to_ascii_lowercase();
        let names = [
            "infinization".to_owned(),
            format!("infinization:{module}"),
            format!("infinization:{module}:{level}"),
        ];
        let any = |patterns: &[String]| {
            let mut patterns = patterns.iter();
            patterns.any(|pattern| names.iter().any(|name| matches(pattern, name)))
        };
        any(&self.wanted) && !any(&self.left_out)
    }
}

/// Whether `pattern` can be about us.
fn is_ours(pattern: &str) -> bool {
    let head = pattern.split(':').next().unwrap_or_default();
    matches(head, "infinization")
}

/// Whether all of `text` is what `pattern` says.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.any(|at| matches(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        // DEBUG, and whether it shows qmp at debug, vm at warn
        let table = [
            ("", false, false),
            ("*", true, true),
            ("infinization", true, true),
            ("infinization:*", true, true),
            ("express:*,infinization:*", true, true),
            ("express infinization", true, true),
            ("infinization:qmp", true, false),
            ("infinization:q*", true, false),
            ("infinization:qmp:debug", true, false),
            ("infinization:*:warn", false, true),
            ("infinization:*,-infinization:qmp", false, true),
            ("*,-infinization", false, false),
            ("infinization:nothing", false, false),
            ("express:*", false, false),
            ("infinizations", false, false),
            ("-infinization", false, false),
        ];
        for (debug, qmp, vm) in table {
            let namespaces = Namespaces::parse(debug);
            assert_eq!(namespaces.hold("qmp", Level::DEBUG), qmp, "{debug:?}: qmp");
            assert_eq!(namespaces.hold("vm", Level::WARN), vm, "{debug:?}: vm");
            assert!(!namespaces.hold("vm", Level::TRACE), "{debug:?}: trace");
        }
    }

    #[test]
    fn what_is_about_others_costs_nothing() {
        assert!(Namespaces::parse("express:*,koa").is_empty());
        assert!(!Namespaces::parse("inf*").is_empty());
    }
}
