//! Secrets as text that may be stored: AES-256-GCM, written `iv:tag:data`, each part in base64.
//!
//! What looks like a secret in somebody else's text is taken out by `redaction`, which has the one list of what one is called.
//!
//! Pure but for the random numbers, which are asked of the kernel. Neighbours: the embedded store keeps
//! passwords and disk keys in this form, and users have it as `encryptSecret` and `decryptSecret`.
//!
//! A text that cannot be read is one error, whatever is wrong with it: no word of it, and no hint of what
//! a better key would have to be.

mod redaction;

pub use redaction::{is_secret_name, redacted, redacted_with, secrets_among};

use std::fmt;

use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{Aead, KeyInit, Nonce, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{Aes256Gcm, AesGcm};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Coded, ErrorCode, Failure};
use crate::types::{InvalidValue, Secret, base64};

/// The bytes of a key.
pub const KEY_LENGTH: usize = 32;
/// What GCM is made for; NIST SP 800-38D wants no other of a random one.
const IV_LENGTH: usize = 12;
const TAG_LENGTH: usize = 16;

/// A key for secrets. It is wiped when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretsKey(Zeroizing<[u8; KEY_LENGTH]>);

impl SecretsKey {
    /// Takes a key over; `None` if it is not 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; KEY_LENGTH] = bytes.try_into().ok()?;
        Some(Self(Zeroizing::new(bytes)))
    }

    /// Reads a key that is written as 64 hexadecimal digits, or as 44 characters of base64.
    pub fn from_text(text: &str) -> Result<Self, InvalidValue> {
        let bytes = match text.len() {
            64 => from_hex(text),
            _ => base64::decode(text),
        };
        bytes
            .map(Zeroizing::new)
            .and_then(|bytes| Self::from_bytes(&bytes))
            .ok_or_else(|| {
                InvalidValue::new("must be 32 bytes, or 64 hexadecimal digits or base64 of as many")
            })
    }

    /// The secret as text that may be stored. The same secret is another text each time.
    pub fn seal(&self, secret: &Secret) -> Result<String, SealError> {
        let mut iv = [0; IV_LENGTH];
        rustix::rand::getrandom(&mut iv, rustix::rand::GetRandomFlags::empty())
            .map_err(|_errno| SealError::NoRandomNumbers)?;
        self.seal_with(iv, secret.reveal().as_bytes())
            .ok_or(SealError::NoRandomNumbers)
    }

    fn seal_with(&self, iv: [u8; IV_LENGTH], plain: &[u8]) -> Option<String> {
        let nonce: &Nonce<Aes256Gcm> = (&iv).into();
        let sealed = Aes256Gcm::new((&*self.0).into())
            .encrypt(nonce, plain)
            .ok()?;
        let (data, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_LENGTH)?)?;
        let part = base64::encode;
        Some(format!("{}:{}:{}", part(&iv), part(tag), part(data)))
    }

    /// What [`seal`](Self::seal) was given. Texts with an IV of 16 bytes, as some programs make them, are
    /// read too.
    pub fn open(&self, sealed: &str) -> Result<Secret, SealError> {
        let plain = self.opened(sealed).ok_or(SealError::Unreadable)?;
        match String::from_utf8(plain) {
            Ok(text) => Ok(Secret::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(SealError::Unreadable)
            }
        }
    }

    fn opened(&self, sealed: &str) -> Option<Vec<u8>> {
        let parts: Vec<_> = sealed.split(':').map(base64::decode).collect();
        let [Some(iv), Some(tag), Some(data)] = parts.as_slice() else {
            return None;
        };
        if tag.len() != TAG_LENGTH {
            return None;
        }
        let data = [data.as_slice(), tag].concat();
        match iv.len() {
            12 => self.open_with::<U12>(iv, &data),
            16 => self.open_with::<U16>(iv, &data),
            _ => None,
        }
    }

    fn open_with<N: ArraySize>(&self, iv: &[u8], data: &[u8]) -> Option<Vec<u8>> {
        let cipher = AesGcm::<Aes256, N>::new((&*self.0).into());
        let nonce: &Nonce<AesGcm<Aes256, N>> = iv.try_into().ok()?;
        cipher.decrypt(nonce, Payload::from(data)).ok()
    }
}

impl fmt::Debug for SecretsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretsKey(***)")
    }
}

/// Why a secret could not be encrypted or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Another key, another text, or none of ours: which it is cannot be told.
    #[error("the secret cannot be read: it was not encrypted with this key, or was changed since")]
    Unreadable,
    /// The kernel gives none.
    #[error("the secret could not be encrypted: the kernel gives no random numbers")]
    NoRandomNumbers,
}

impl Coded for SealError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable => ErrorCode::SecretUnreadable,
            Self::NoRandomNumbers => ErrorCode::Internal,
        }
    }
}

/// The refusal of a key that was passed as `field`.
pub fn invalid_key(field: &str, why: &InvalidValue) -> Failure {
    Failure::new(ErrorCode::InvalidKey, format!("{field} {why}")).with("field", field)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    pairs.iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(hex: &str) -> SecretsKey {
        SecretsKey::from_text(hex).unwrap()
    }

    fn hex(text: &str) -> Vec<u8> {
        from_hex(text).unwrap()
    }

    /// From NIST's CAVP test vectors, gcmEncryptExtIV256 and gcmDecrypt256 (no associated data), and test cases 13 and 14 of the
    /// GCM submission.
    #[test]
    fn nist_s_vectors() {
        let zeros = "00".repeat(32);
        let table = [
            (
                zeros.as_str(),
                "000000000000000000000000",
                "",
                "",
                "530f8afbc74536b9a963b4f1c4cb738b",
            ),
            (
                zeros.as_str(),
                "000000000000000000000000",
                "00000000000000000000000000000000",
                "cea7403d4d606b6e074ec5d3baf39d18",
                "d0d1c8a799996bf0265b98b5d48ab919",
            ),
            (
                "31bdadd96698c204aa9ce1448ea94ae1fb4a9a0b3c9d773b51bb1822666b8f22",
                "0d18e06c7c725ac9e362e1ce",
                "2db5168e932556f8089a0622981d017d",
                "fa4362189661d163fcd6a56d8bf0405a",
                "d636ac1bbedd5cc3ee727dc2ab4a9489",
            ),
        ];
        for (secret, iv, plain, data, tag) in table {
            let key = key(secret);
            let sealed = key
                .seal_with(hex(iv).try_into().unwrap(), &hex(plain))
                .unwrap();
            let parts: Vec<_> = sealed
                .split(':')
                .map(|part| base64::decode(part).unwrap())
                .collect();
            assert_eq!(parts, [hex(iv), hex(tag), hex(data)], "{secret}");
            assert_eq!(key.opened(&sealed).unwrap(), hex(plain));
        }
    }

    /// Made by Node's `createCipheriv('aes-256-gcm', …)` with an IV of 16 bytes.
    #[test]
    fn what_other_programs_wrote_is_read() {
        let key = SecretsKey::from_bytes(&[7; 32]).unwrap();
        let theirs = include_str!("secrets/by_node.txt").trim_end();
        assert_eq!(key.open(theirs).unwrap().reveal(), "s3cret ü");
    }

    #[test]
    fn a_key_is_32_bytes_however_it_is_written() {
        let same = SecretsKey::from_bytes(&[0xab; 32]).unwrap();
        assert_eq!(key(&"ab".repeat(32)), same);
        assert_eq!(key(&"AB".repeat(32)), same);
        assert_eq!(key(&base64::encode(&[0xab; 32])), same);
        let (short, long) = (base64::encode(&[0; 31]), base64::encode(&[0; 33]));
        let odd = "g".repeat(64);
        for bad in [
            "",
            "x",
            &"a".repeat(32),
            &odd,
            &"é".repeat(32),
            &short,
            &long,
        ] {
            assert!(SecretsKey::from_text(bad).is_err(), "{bad}");
        }
        assert_eq!(SecretsKey::from_bytes(&[0; 31]), None);
        assert_eq!(format!("{same:?}"), "SecretsKey(***)");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_and_nothing_else_does(
            secret in any::<[u8; 32]>(), plain in any::<String>(), at in any::<prop::sample::Index>(), bit in 0..6_u8,
        ) {
            let key = SecretsKey::from_bytes(&secret).unwrap();
            let sealed = key.seal(&Secret::new(plain.clone())).unwrap();
            let opened = key.open(&sealed).unwrap();
            prop_assert_eq!(opened.reveal(), &plain);
            let again = key.seal(&Secret::new(plain.clone())).unwrap();
            prop_assert_ne!(&sealed, &again);

            let mut other = secret;
            other[at.index(32)] ^= 1;
            let other = SecretsKey::from_bytes(&other).unwrap();
            prop_assert_eq!(other.open(&sealed), Err(SealError::Unreadable));

            let mut parts: Vec<_> = sealed.split(':').map(|part| base64::decode(part).unwrap()).collect();
            for part in 0..3 {
                let length = parts[part].len();
                if length == 0 {
                    continue;
                }
                let (byte, mask) = (at.index(length), 1 << bit);
                parts[part][byte] ^= mask;
                let text = parts.iter().map(|part| base64::encode(part)).collect::<Vec<_>>().join(":");
                prop_assert_eq!(key.open(&text), Err(SealError::Unreadable));
                parts[part][byte] ^= mask;
                let mut cut = parts.clone();
                cut[part].pop();
                let text = cut.iter().map(|part| base64::encode(part)).collect::<Vec<_>>().join(":");
                prop_assert_eq!(key.open(&text), Err(SealError::Unreadable));
            }
        }

        #[test]
        fn any_text_at_all_is_refused_calmly(text in ".{0,80}") {
            let key = SecretsKey::from_bytes(&[1; 32]).unwrap();
            prop_assert_eq!(key.open(&text), Err(SealError::Unreadable));
        }
    }
}
