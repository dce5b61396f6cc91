//! Text that is shown nowhere and wiped when it is dropped.

use std::fmt;

use zeroize::Zeroizing;

/// Text that must not reach a log, an error or an argv. Its memory is wiped when it is dropped.
///
/// It has no `Display` and no `Serialize`; [`Secret::reveal`] is the one way out, so that every
/// use can be found by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_its_text() {
        let printed = format!("{:?}", Some(Secret::new("hunter2")));
        assert_eq!(printed, "Some(Secret(***))");
    }
}
