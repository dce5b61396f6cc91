//! Where QEMU's JSON has the `data` of a `secret`: `{"qom-type":"secret","id":"s","data":"…"}`. Pure.

use super::skip;

/// QEMU reads no deeper; what is deeper here is no JSON, and takes no memory.
const DEEPEST: usize = 1024;

/// Strings are looked into as well: they may quote such an object. So many in one another.
const STRINGS: u32 = 3;

/// What was seen of an object that has begun.
#[derive(Default)]
struct Object<'a> {
    /// The key whose value comes next.
    key: Option<&'a [u8]>,
    is_secret: bool,
    data: Vec<usize>,
}

impl<'a> Object<'a> {
    /// A string in it, with its quote here.
    fn saw(&mut self, quote: usize, string: &'a [u8]) {
        match self.key.take() {
            None => self.key = Some(string),
            Some(b"qom-type") => self.is_secret |= string == b"secret",
            Some(b"data") => self.data.push(quote),
            Some(_) => {}
        }
    }

    fn secrets(self) -> Vec<usize> {
        if self.is_secret {
            self.data
        } else {
            Vec::new()
        }
    }
}

/// Each by the quote before it, in their order. An object that does not end counts, too.
pub(super) fn secret_data(text: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    look(text, 0, STRINGS, &mut found);
    found.sort_unstable();
    found
}

fn look(text: &[u8], mut at: usize, strings: u32, found: &mut Vec<usize>) {
    let mut open = Vec::<Object<'_>>::new();
    while let Some(byte) = text.get(at) {
        match (byte, open.last_mut()) {
            (b'{', _) => {
                if open.len() == DEEPEST {
                    found.extend(open.drain(..).flat_map(Object::secrets));
                }
                open.push(Object::default());
            }
            (b'}', Some(_)) => found.extend(open.pop().into_iter().flat_map(Object::secrets)),
            (b',', Some(object)) => object.key = None,
            (quote @ (b'"' | b'\''), Some(object)) => {
                let escapes = super::escapes_at_end(&text[..at]);
                let start = at + 1;
                let end = start + super::quoted_len(&text[start..], *quote, escapes);
                object.saw(at, &text[start..end]);
                if strings > 0 {
                    look(&text[..end], start, strings - 1, found);
                }
                // The quote that ends it.
                at = skip(text, end, b"\\");
            }
            _ => {}
        }
        at += 1;
    }
    found.extend(open.into_iter().flat_map(Object::secrets));
}
