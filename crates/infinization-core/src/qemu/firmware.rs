//! UEFI: two flash chips.

use super::FirmwareFiles;
use super::args::ToArgs;
use super::blockdev::Blockdev;
use super::machine::Global;

/// The chips `-machine pflash0=,pflash1=` refers to. Secure Boot keeps the variables behind system
/// management mode: the guest's kernel cannot write them.
pub(super) fn pflash(files: &FirmwareFiles, secure: bool) -> Vec<String> {
    let mut args = Blockdev::raw("pflash0".to_owned(), files.code.as_str(), true).to_args();
    args.extend(Blockdev::raw("pflash1".to_owned(), files.vars.as_str(), false).to_args());
    if secure {
        let global = Global {
            driver: "cfi.pflash01",
            property: "secure",
            value: "on",
        };
        args.extend(global.to_args());
    }
    args
}
