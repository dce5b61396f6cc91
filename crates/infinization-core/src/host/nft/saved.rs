//! The filter's table as text: read from the kernel, and loaded in place of what is there.

use super::notice::OurTable;
use super::{Nft, NftError};
use crate::firewall::TABLE;
use crate::host::program::{Finished, Program};

impl Nft {
    /// The table as `nft -f` would read it; none if there is none. Costs a program.
    pub async fn text(&self) -> Result<Option<String>, NftError> {
        let listing = Program::new("nft").args(["-s", "list", "table", "bridge", TABLE]);
        match succeeded(listing.run().await?) {
            Ok(listed) => Ok(Some(String::from_utf8_lossy(&listed.stdout).into_owned())),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Loads the text, which replaces the table, in one transaction and a turn of its own; answers how many
    /// rules there are now. What this process has loaded is in doubt afterwards, and so is repaired.
    pub async fn load_text(&self, text: String) -> Result<usize, NftError> {
        self.in_turn(move |nft| async move {
            let load = Program::new("nft")
                .args(["-f", "-"])
                .stdin(text.into_bytes());
            let loaded = load.run().await;
            nft.journal.doubt_all();
            succeeded(loaded?)?;
            Ok(nft.transport.read().await?.listing.rules.len())
        })
        .await
    }

    /// What is believed of the filter is asked of the kernel before it is believed again.
    pub fn distrust(&self) {
        self.journal.doubt(OurTable::Filter);
    }
}

fn succeeded(finished: Finished) -> Result<Finished, NftError> {
    if !finished.status.success() {
        return Err(NftError::refused(&finished));
    }
    Ok(finished)
}
