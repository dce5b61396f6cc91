//! Ending restores that were cut short, for the machine whose disks they were replacing.

use std::path::PathBuf;

use async_trait::async_trait;

use crate::backup::end_cut_short_restore;
use crate::error::Failure;
use crate::host::blocking::blocking;
use crate::types::HostPath;
use crate::vm::{Restores, frozen_layers};

/// Where every machine has a directory, which tells the frozen layers.
#[derive(Debug)]
pub(super) struct CutShort {
    pub(super) machines: PathBuf,
}

#[async_trait]
impl Restores for CutShort {
    async fn end(&self, journal: HostPath) -> Result<(), Failure> {
        let machines = self.machines.clone();
        let frozen = blocking(move || frozen_layers(&machines)).await??;
        Ok(end_cut_short_restore(journal, frozen).await?)
    }
}
