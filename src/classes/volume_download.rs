//! Bytes of a volume, on their way out.

use std::sync::{Arc, OnceLock};

use infinization_core::manager::{self, Manager};
use napi_derive::napi;

use super::{Cancellation, Infinization};
use crate::argument::Argument;
use crate::outcome::{Outcome, bytes, data, done};

/// A volume that goes out: `js/volumes.js` makes a stream of it.
#[napi]
#[derive(Debug)]
pub struct VolumeDownload {
    manager: Manager,
    download: OnceLock<Arc<manager::VolumeDownload>>,
}

#[napi]
impl VolumeDownload {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new(owner: &Infinization) -> Self {
        Self {
            manager: owner.manager(),
            download: OnceLock::new(),
        }
    }

    /// Opens the volume, and tells its size and format.
    #[napi]
    pub async fn begin(
        &self,
        pool: Argument,
        name: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (pool, name) = (pool.text("pool")?, name.text("name")?);
            let options = options.object("options")?;
            let download = self.manager.download_volume(pool, name, options, cancel);
            let download = Arc::new(download.await?);
            let facts = download.facts();
            let _once = self.download.set(download);
            Ok(facts)
        })
        .await
    }

    /// The next bytes; none at the end.
    #[napi]
    pub async fn read(&self) -> Outcome {
        bytes(async {
            let download = super::begun(&self.download, "the download was not begun")?;
            download.read().await
        })
        .await
    }

    /// Lets go of the volume.
    #[napi]
    pub async fn close(&self) -> Outcome {
        done(async {
            if let Some(download) = self.download.get() {
                download.close().await;
            }
            Ok(())
        })
        .await
    }
}
