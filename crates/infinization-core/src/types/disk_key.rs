//! The key of an encrypted disk. Like [`super::Secret`] it is in no log and no plan.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{InvalidValue, Secret};

/// QEMU reads no limit; cryptsetup's own for what people type.
const LONGEST: usize = 512;

/// The passphrase of an encrypted image: 1 to 512 bytes of UTF-8 without a NUL, which is what QEMU takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskKey(Secret);

impl DiskKey {
    /// The passphrase itself.
    pub fn reveal(&self) -> &str {
        self.0.reveal()
    }
}

impl TryFrom<String> for DiskKey {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let key = Secret::new(text);
        let text = key.reveal();
        if text.is_empty() || text.len() > LONGEST || text.contains('\0') {
            let why = "must have 1 to 512 bytes of UTF-8 text and no NUL";
            return Err(InvalidValue::new(why));
        }
        Ok(Self(key))
    }
}

/// By hand, as serde's own words for what is no text quote it.
impl<'de> Deserialize<'de> for DiskKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        let text = text.map_err(|_words| D::Error::custom("a key must be a string"))?;
        Self::try_from(text).map_err(|why| D::Error::custom(format_args!("a key {why}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn b38_a_key_is_text_and_is_never_printed() {
        for bad in ["", "a\0b", &"x".repeat(513)] {
            assert!(DiskKey::try_from(bad.to_owned()).is_err());
        }
        let key = DiskKey::try_from("hunter2 ü".to_owned()).unwrap();
        assert_eq!(key.reveal(), "hunter2 ü");
        assert!(!format!("{key:?}").contains("hunter2"));
    }

    #[test]
    fn b38_what_is_no_key_is_not_quoted() {
        for (given, why) in [
            (json!(123_456), "a key must be a string"),
            (json!(["hunter2"]), "a key must be a string"),
            (json!({ "hunter2": true }), "a key must be a string"),
            (
                json!("hunter2\0"),
                "a key must have 1 to 512 bytes of UTF-8 text and no NUL",
            ),
        ] {
            let refused = serde_json::from_value::<DiskKey>(given).unwrap_err();
            assert_eq!(refused.to_string(), why);
        }
    }
}
