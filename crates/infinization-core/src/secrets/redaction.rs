//! Taking out of a text what looks like a secret. Pure.
//!
//! Where a value ends is told by the syntax it stands in, as far as that can be seen: what has an end of its own (quotes,
//! QEMU's `key=value,`) is taken out up to there, and anything else up to the end of its line. Rather too much is
//! taken out than too little; who knows a secret by itself has it taken out first ([`redacted_with`]), whatever is in it.

mod objects;

use std::collections::BTreeSet;

use zeroize::Zeroizing;

use crate::types::Secret;

/// What a secret is called, or what its name has in it.
const WORDS: [&str; 4] = ["password", "passwd", "passphrase", "secret"];

/// What stands before the secret of a `secret,id=s,data=…`.
const DATA: &str = "data=";

/// Options of QEMU's that name a `secret` by its id, which is none itself. Of another program's `…-secret` nobody knows.
const REFERENCES: [&str; 5] = [
    "key-secret",
    "new-secret",
    "old-secret",
    "password-secret",
    "cookie-secret",
];

/// What stands in place of a secret.
const MASK: &str = "***";

/// A shorter value that is known is no secret: taking it out everywhere would only garble what is told.
const SHORTEST_KNOWN: usize = 4;

/// Whether something of this name is a secret.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

/// The text with `***` in place of every value behind `password=`, `passwd=`, `passphrase=` and `secret=`, or a colon,
/// in whatever letters and quotes, and behind `data=` of QEMU's `secret,…`, and behind `"data":` in JSON of the `qom-type`
/// `secret`.
///
/// A value in quotes ends at its quote, which a `\` may be before. Another ends at a comma that is not doubled, `;`, `&`,
/// a quote, a colon with a blank behind it (QEMU's `-spice password=…: why not`), and at a blank where the next option
/// (`--name`, `name=value`) begins; else at the end of the line, since blanks may be part of it. A list or an
/// object goes up to the end of the line.
pub fn redacted(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut done = 0;
    let mut search = Search::of(text);
    while let Some(start) = search.next_value() {
        told.push_str(&text[done..start]);
        done = start + value_len(&text[..start], &text[start..]);
        if done > start {
            told.push_str(MASK);
        }
        search.at = done;
    }
    told.push_str(&text[done..]);
    told
}

/// [`redacted`], and before that each of `secrets` taken out wherever it stands. Not those of less than four bytes, nor a part
/// of what a secret is called: without that word others would not be found.
pub fn redacted_with(text: &str, secrets: &[Secret]) -> String {
    let mut known: Vec<&str> = secrets.iter().map(Secret::reveal).collect();
    known.retain(|secret| secret.len() >= SHORTEST_KNOWN && !is_of_word(secret));
    // One may be a part of another.
    known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let mut told = Zeroizing::new(text.to_owned());
    for secret in known {
        if told.contains(secret) {
            *told = told.replace(secret, MASK);
        }
    }
    redacted(&told)
}

fn is_of_word(secret: &str) -> bool {
    let secret = secret.to_ascii_lowercase();
    WORDS.iter().any(|word| word.contains(&secret))
}

/// The secrets among a program's arguments, each as it may be repeated: `--password=…`, `--password …`, and those of
/// options in QEMU's `key=value,`, with their commas doubled and not. Not an id that stands for one, as in `key-secret=…`.
pub fn secrets_among(args: &[String]) -> Vec<Secret> {
    let names_next = |arg: &String| arg.starts_with('-') && ends_with_word(arg.as_bytes());
    let pairs = args.iter().zip(args.iter().skip(1));
    let named = pairs.filter(|(arg, next)| names_next(arg) && !next.starts_with('-'));
    let next = named.map(|(_name, next)| next.as_str());
    let within = args.iter().flat_map(|arg| values_within(arg));
    let found: BTreeSet<&str> = next.chain(within).collect();
    let doubled = found.iter().filter(|value| value.contains(",,"));
    let single = doubled.map(|value| Secret::new(value.replace(",,", ",")));
    let as_given = found.iter().map(|value| Secret::new(*value));
    as_given.chain(single).collect()
}

/// Of an argument that is nothing but a name and a value all of it may be the value, too.
fn values_within(arg: &str) -> Vec<&str> {
    let mut values = Vec::new();
    let mut search = Search::of(arg);
    while let Some(start) = search.next_value() {
        let value = &arg[start..];
        let end = if arg[..start].ends_with(['"', '\'']) {
            value_len(&arg[..start], value)
        } else {
            option_end(value)
        };
        search.at = start + end;
        if is_reference(&arg[..start]) {
            continue;
        }
        // Once: of each of many, all that follows would be far more than there is.
        if values.is_empty() && !arg[..start].contains(',') {
            values.push(value);
        }
        values.push(&value[..end]);
    }
    values
}

fn is_reference(before: &str) -> bool {
    let name = before.trim_end_matches(['"', '\'', '\\', ' ', '=', ':']);
    REFERENCES.iter().any(|reference| name.ends_with(reference))
}

/// At the first comma that is not doubled.
fn option_end(value: &str) -> usize {
    let mut at = 0;
    while let Some(comma) = value[at..].find(',') {
        at += comma;
        if !value[at..].starts_with(",,") {
            return at;
        }
        at += 2;
    }
    value.len()
}

/// A search for values, from the beginning to the end.
struct Search<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether an option of QEMU's that is about a `secret` has begun.
    in_object: bool,
    /// The quotes before the secrets of JSON objects.
    in_json: Vec<usize>,
}

impl<'a> Search<'a> {
    fn of(text: &'a str) -> Self {
        Self {
            bytes: text.as_bytes(),
            at: 0,
            in_object: false,
            in_json: objects::secret_data(text.as_bytes()),
        }
    }

    /// Where the next value begins that is secret.
    fn next_value(&mut self) -> Option<usize> {
        while let Some(byte) = self.bytes.get(self.at) {
            if byte.is_ascii_whitespace() {
                self.in_object = false;
            }
            self.in_object |= self.bytes[self.at..].starts_with(b"secret,");
            if let Some(value) = self.value_here() {
                return Some(value);
            }
            self.at += 1;
        }
        None
    }

    fn value_here(&self) -> Option<usize> {
        if self.in_json.binary_search(&self.at).is_ok() {
            return Some(self.at + 1);
        }
        if self.in_object && self.is_here(DATA) {
            return Some(self.at + DATA.len());
        }
        let word = WORDS.into_iter().find(|word| self.is_here(word))?;
        behind_sign(self.bytes, self.at + word.len())
    }

    fn is_here(&self, word: &str) -> bool {
        let letters = self.bytes.get(self.at..self.at + word.len());
        letters.is_some_and(|letters| letters.eq_ignore_ascii_case(word.as_bytes()))
    }
}

/// Past `=`, `:` or `": "`.
fn behind_sign(bytes: &[u8], at: usize) -> Option<usize> {
    let at = skip(bytes, at, b"\"'\\ ");
    if !matches!(bytes.get(at), Some(b'=' | b':')) {
        return None;
    }
    let at = skip(bytes, at + 1, b" ");
    let quote = skip(bytes, at, b"\\");
    match bytes.get(quote) {
        Some(b'"' | b'\'') => Some(quote + 1),
        _ => Some(at),
    }
}

fn skip(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| what.contains(byte)).count()
}

fn value_len(before: &str, value: &str) -> usize {
    match before.as_bytes() {
        [before @ .., quote @ (b'"' | b'\'')] => {
            quoted_len(value.as_bytes(), *quote, escapes_at_end(before))
        }
        _ => plain_len(value),
    }
}

fn escapes_at_end(text: &[u8]) -> usize {
    let escapes = text.iter().rev().take_while(|byte| **byte == b'\\');
    escapes.count()
}

/// Behind a quote with so many `\` before it. Text that is quoted once more has each `\` twice, and one before each quote.
fn quoted_len(value: &[u8], quote: u8, escapes: usize) -> usize {
    let mut run = 0;
    for (at, byte) in value.iter().enumerate() {
        match *byte {
            b'\n' => return at,
            b'\\' => run += 1,
            letter if letter == quote && run % (2 * (escapes + 1)) == escapes => {
                return at - escapes;
            }
            _ => run = 0,
        }
    }
    value.len()
}

fn plain_len(value: &str) -> usize {
    let line = value.split('\n').next().unwrap_or_default();
    if was_taken_out(line) {
        return MASK.len();
    }
    let end = match line.as_bytes().first() {
        Some(b'{' | b'[') => line.len(),
        _ => plain_end(line.as_bytes()),
    };
    line[..end].trim_end().len()
}

/// What has been through here once is not taken for a secret of several words.
fn was_taken_out(line: &str) -> bool {
    let rest = line.strip_prefix(MASK);
    rest.is_some_and(|rest| !rest.starts_with(|next: char| next == '*' || next.is_alphanumeric()))
}

fn plain_end(line: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = line.get(at) {
        let next = line.get(at + 1);
        match byte {
            b',' if next == Some(&b',') => at += 2,
            b',' | b';' | b'&' => return at,
            // Within a word it closes nothing.
            b'"' | b'\'' if !next.is_some_and(u8::is_ascii_alphanumeric) => return at,
            // Behind a word of ours it is a sign, and what follows as secret.
            b':' if next.is_some_and(u8::is_ascii_whitespace) && !ends_with_word(&line[..at]) => {
                return at;
            }
            blank if blank.is_ascii_whitespace() => {
                let word = skip(line, at, b" \t\r");
                if begins_option(&line[word..]) {
                    return at;
                }
                at = word.max(at + 1);
            }
            _ => at += 1,
        }
    }
    line.len()
}

fn ends_with_word(text: &[u8]) -> bool {
    let text = text.trim_ascii_end();
    WORDS.iter().any(|word| {
        let from = text.len().saturating_sub(word.len());
        text[from..].eq_ignore_ascii_case(word.as_bytes())
    })
}

/// `--name`, `-n` or `name=value`; the `=` that base64 ends with is none.
fn begins_option(text: &[u8]) -> bool {
    if let [b'-', next, ..] = text {
        return *next == b'-' || next.is_ascii_alphabetic();
    }
    let in_name = |byte: &&u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    let name = text.iter().take_while(in_name).count();
    match &text[name..] {
        [b'=', value, ..] => name > 0 && *value != b'=' && !value.is_ascii_whitespace(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
