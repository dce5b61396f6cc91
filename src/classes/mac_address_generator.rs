//! `MacAddressGenerator`, over the core's `host::mac`.

use infinization_core::host::mac;
use infinization_core::types::{VmId, VmNames};
use napi_derive::napi;

use crate::argument::Argument;
use crate::outcome::{Outcome, now};

/// Addresses for guests, and what an address is.
#[napi]
#[derive(Debug)]
pub struct MacAddressGenerator {}

#[napi]
impl MacAddressGenerator {
    #[napi]
    pub fn generate() -> String {
        mac::random().to_string()
    }

    #[napi]
    pub fn generate_from_vm_id(vm_id: Argument) -> Outcome {
        now(vm_id
            .parsed::<VmId>("vmId")
            .map(|vm_id| VmNames::of(&vm_id).mac))
    }

    /// Any six hex pairs; whether a guest may have it is not asked.
    #[napi]
    pub fn validate(mac: Argument) -> Outcome {
        now(mac.text("mac").map(|mac| is_mac(&mac)))
    }

    #[napi]
    pub fn is_qemu_mac(mac: Argument) -> Outcome {
        now(mac
            .text("mac")
            .map(|mac| is_mac(&mac) && mac.starts_with("52:54:")))
    }
}

/// The name of the chain that holds a machine's rules.
#[napi(js_name = "generateVMChainName")]
pub fn generate_vm_chain_name(vm_id: Argument) -> Outcome {
    now(vm_id
        .parsed::<VmId>("vmId")
        .map(|vm_id| VmNames::of(&vm_id).chain))
}

fn is_mac(text: &str) -> bool {
    let pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_hex_pairs() {
        assert!(is_mac("01:00:5E:00:00:fB"));
        for bad in [
            "",
            "52:54:00:00:00",
            "52:54:00:00:00:01:02",
            "52-54-00-00-00-01",
            "52:54:00:00:0:001",
        ] {
            assert!(!is_mac(bad), "{bad} was taken");
        }
    }
}
