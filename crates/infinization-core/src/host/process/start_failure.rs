//! Why a QEMU ended while it was starting, from its last words.

use super::Exit;
use crate::error::{ErrorCode, Failure};
use crate::secrets::redacted_with;
use crate::types::Secret;

/// What QEMU says of an encrypted disk that it cannot open.
const WRONG_KEY: &str = "Invalid password, cannot unlock";
/// What it says of an address that is taken; the second is what the SPICE library says instead.
const TAKEN: [&str; 2] = ["Address already in use", "binding socket to"];

/// The failure that a QEMU's end is whose start was waited for. QEMU repeats the option that it does not take: what looks
/// like a secret in it is not told, nor are the `secrets` it was given.
pub fn ended_while_starting(stderr: &str, exit: Exit, secrets: &[Secret]) -> Failure {
    let code = if stderr.contains(WRONG_KEY) {
        ErrorCode::AuthFailed
    } else if TAKEN.iter().any(|words| stderr.contains(words)) {
        ErrorCode::AddressInUse
    } else {
        ErrorCode::QemuStartFailed
    };
    let stderr = redacted_with(stderr, secrets);
    let last = stderr.lines().last().unwrap_or("without a word");
    Failure::new(code, format!("QEMU ended while starting: {last}"))
        .with("stderr", stderr.as_str())
        .with("exit", format!("{exit:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i43_the_last_words_decide_and_tell_no_secret() {
        for (stderr, code, told) in [
            ("", ErrorCode::QemuStartFailed, "without a word"),
            (
                "warning: x\nqemu: -vnc :0: Address already in use",
                ErrorCode::AddressInUse,
                "-vnc",
            ),
            (
                "qemu: Invalid password, cannot unlock any keyslot",
                ErrorCode::AuthFailed,
                "keyslot",
            ),
            (
                "qemu: -spice port=1,password=hunter2: no",
                ErrorCode::QemuStartFailed,
                "password=***: no",
            ),
            (
                "qemu: -spice port=1,password=my: hunter2 it is: no",
                ErrorCode::QemuStartFailed,
                "password=***: no",
            ),
            (
                "qemu: -vnc :0,password=on to=Address already in use",
                ErrorCode::AddressInUse,
                "password=***",
            ),
        ] {
            let known = [Secret::new("my: hunter2 it is")];
            let failure = ended_while_starting(stderr, Exit::Code(1), &known);
            assert_eq!(failure.code(), code, "{stderr}");
            assert!(failure.to_string().contains(told), "{failure}");
            assert!(!format!("{failure:?}").contains("hunter2"));
        }
    }
}
