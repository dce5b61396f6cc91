//! Taking out of a text what looks like a secret. Pure.

/// What stands before a secret: `password=…`, `--passwd=…`, `"secret": "…"`.
const WORDS: [&str; 4] = ["password", "passwd", "passphrase", "secret"];

/// What stands before the secret of a `secret,id=s,data=…`.
const DATA: &str = "data=";

/// The text with `***` in place of every value behind `password=`, `passwd=`, `passphrase=` and `secret=`, or a colon,
/// in whatever letters and quotes, and behind `data=` of QEMU's `secret,…`. A value ends at a blank, a comma that is not
/// doubled, a semicolon, `&` or its quote, which a `\` may be before.
pub fn redacted(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(start) = value_start(text, at) {
        told.push_str(&text[at..start]);
        at = start + value_len(&text[..start], &text[start..]);
        if at > start {
            told.push_str("***");
        }
    }
    told.push_str(&text[at..]);
    told
}

/// Where the first value from `from` on begins that is secret.
fn value_start(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let is_here = |at: usize, word: &str| {
        let letters = bytes.get(at..at + word.len());
        letters.is_some_and(|letters| letters.eq_ignore_ascii_case(word.as_bytes()))
    };
    (from..bytes.len()).find_map(|at| {
        if is_here(at, DATA) && is_of_secret(&bytes[..at]) {
            return Some(at + DATA.len());
        }
        let word = WORDS.into_iter().find(|word| is_here(at, word))?;
        behind_sign(bytes, at + word.len())
    })
}

/// Whether what stands before `,data=` is the beginning of an `-object secret`.
fn is_of_secret(before: &[u8]) -> bool {
    let mut words = before.rsplit(u8::is_ascii_whitespace);
    let object = words.next().unwrap_or_default();
    object.windows(7).any(|here| here == b"secret,")
}

/// Past `=`, `:` or `": "`.
fn behind_sign(bytes: &[u8], mut at: usize) -> Option<usize> {
    let skip = |mut at: usize, wanted: &[u8]| {
        while bytes.get(at).is_some_and(|byte| wanted.contains(byte)) {
            at += 1;
        }
        at
    };
    at = skip(at, b"\"'\\ ");
    if !matches!(bytes.get(at), Some(b'=' | b':')) {
        return None;
    }
    at = skip(at + 1, b" ");
    let quote = skip(at, b"\\");
    match bytes.get(quote) {
        Some(b'"' | b'\'') => Some(quote + 1),
        _ => Some(at),
    }
}

fn value_len(before: &str, value: &str) -> usize {
    match before.as_bytes() {
        [before @ .., quote @ (b'"' | b'\'')] => {
            let escapes = before.iter().rev().take_while(|byte| **byte == b'\\');
            quoted_len(value.as_bytes(), *quote, escapes.count())
        }
        _ => plain_len(value),
    }
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
    let mut rest = value;
    loop {
        let end = |letter: char| letter.is_whitespace() || ",;&\"'".contains(letter);
        rest = &rest[rest.find(end).unwrap_or(rest.len())..];
        // QEMU's way to have a comma in a value.
        match rest.strip_prefix(",,") {
            Some(more) => rest = more,
            None => return value.len() - rest.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i43_what_looks_like_a_secret_is_taken_out() {
        for (text, told) in [
            ("", ""),
            ("no password here", "no password here"),
            ("a password=hunter2 b", "a password=*** b"),
            (
                "-spice port=5900,password=hunter2,addr=::",
                "-spice port=5900,password=***,addr=::",
            ),
            ("PASSWD=x;Secret: y", "PASSWD=***;Secret: ***"),
            (
                "{\"password\": \"a, b\", \"x\": 1}",
                "{\"password\": \"***\", \"x\": 1}",
            ),
            ("https://h/?secret=s&b=1", "https://h/?secret=***&b=1"),
            ("passphrase='ä ö'", "passphrase='***'"),
            ("password=", "password="),
            ("password=a password=b", "password=*** password=***"),
            ("the secret=\nnext", "the secret=\nnext"),
            ("password=a,,b,c", "password=***,c"),
            ("password=a,,", "password=***"),
            (
                "-object secret,id=s,data=hunter2,format=raw: no",
                "-object secret,id=s,data=***,format=raw: no",
            ),
            (
                "secret,data=a,,b,password=c,data=d e",
                "secret,data=***,password=***,data=*** e",
            ),
            ("a secret, b,data=c data=d", "a secret, b,data=c data=d"),
            (r#""password": "a\"tail" b"#, r#""password": "***" b"#),
            (
                r#""password": "a\\", "x": "y""#,
                r#""password": "***", "x": "y""#,
            ),
            (
                r#"{\"password\": \"hunter2\", \"x\": 1}"#,
                r#"{\"password\": \"***\", \"x\": 1}"#,
            ),
            (
                r#"\"password\": \"a\\\"tail\" b"#,
                r#"\"password\": \"***\" b"#,
            ),
        ] {
            assert_eq!(redacted(text), told, "{text:?}");
        }
    }
}
