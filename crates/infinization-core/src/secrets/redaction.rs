//! Taking out of a text what looks like a secret. Pure.

/// What stands before a secret: `password=…`, `--passwd=…`, `"secret": "…"`.
const WORDS: [&str; 4] = ["password", "passwd", "passphrase", "secret"];

/// The text with `***` in place of every value behind `password=`, `passwd=`, `passphrase=` and `secret=`, or a colon,
/// in whatever letters and quotes. A value ends at a blank, a comma, a semicolon, `&` or its quote.
pub fn redacted(text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = value_start(rest) {
        let (before, value) = rest.split_at(start);
        told.push_str(before);
        let end = value_end(before, value);
        if end > 0 {
            told.push_str("***");
        }
        rest = &value[end..];
    }
    told.push_str(rest);
    told
}

/// Where the first value begins that is secret.
fn value_start(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let is_word = |at: usize| {
        let here = |word: &str| {
            let letters = bytes.get(at..at + word.len());
            letters.is_some_and(|letters| letters.eq_ignore_ascii_case(word.as_bytes()))
        };
        WORDS
            .into_iter()
            .find(|word| here(word))
            .map(|word| at + word.len())
    };
    (0..bytes.len())
        .filter_map(is_word)
        .find_map(|end| behind_sign(bytes, end))
}

/// Past `=`, `:` or `": "`.
fn behind_sign(bytes: &[u8], mut at: usize) -> Option<usize> {
    let skip = |mut at: usize, wanted: &[u8]| {
        while bytes.get(at).is_some_and(|byte| wanted.contains(byte)) {
            at += 1;
        }
        at
    };
    at = skip(at, b"\"' ");
    if !matches!(bytes.get(at), Some(b'=' | b':')) {
        return None;
    }
    at = skip(at + 1, b" ");
    match bytes.get(at) {
        Some(b'"' | b'\'') => Some(at + 1),
        _ => Some(at),
    }
}

fn value_end(before: &str, value: &str) -> usize {
    let quote = before
        .chars()
        .next_back()
        .filter(|last| matches!(last, '"' | '\''));
    let ends = |letter: char| match quote {
        Some(quote) => letter == quote || letter == '\n',
        None => letter.is_whitespace() || matches!(letter, ',' | ';' | '&' | '"' | '\''),
    };
    value.find(ends).unwrap_or(value.len())
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
        ] {
            assert_eq!(redacted(text), told, "{text:?}");
        }
    }
}
