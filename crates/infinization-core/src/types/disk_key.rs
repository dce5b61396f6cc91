use serde::Deserialize;

use super::{InvalidValue, Secret};

/// QEMU reads no limit; cryptsetup's own for what people type.
const LONGEST: usize = 512;

/// The passphrase of an encrypted image: 1 to 512 bytes of UTF-8 without a NUL, which is what QEMU takes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
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

#[cfg(test)]
mod tests {
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
}
