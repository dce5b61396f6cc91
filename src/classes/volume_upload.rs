//! Bytes of a volume, on their way in.

use std::mem;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use infinization_core::Failure;
use infinization_core::manager::{self, Manager};
use napi_derive::napi;

use super::{Cancellation, Infinization};
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// A volume that comes in: `js/volumes.js` reads its source.
#[napi]
#[derive(Debug)]
pub struct VolumeUpload {
    manager: Manager,
    upload: OnceLock<Arc<manager::VolumeUpload>>,
    /// The piece that is written next.
    staged: Mutex<Vec<u8>>,
}

#[napi]
impl VolumeUpload {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new(owner: &Infinization) -> Self {
        Self {
            manager: owner.manager(),
            upload: OnceLock::new(),
            staged: Mutex::default(),
        }
    }

    #[napi]
    pub async fn begin(
        &self,
        pool: Argument,
        name: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        done(async {
            let (pool, name) = (pool.text("pool")?, name.text("name")?);
            let options = options.object("options")?;
            let upload = self.manager.upload_volume(pool, name, options, cancel);
            let _once = self.upload.set(Arc::new(upload.await?));
            Ok(())
        })
        .await
    }

    /// Takes a copy of the next piece: the caller's bytes may change as soon as this returns.
    #[napi]
    pub fn stage(&self, piece: &[u8]) {
        self.replace_staged(piece.to_vec());
    }

    /// Writes what was staged.
    #[napi]
    pub async fn write(&self) -> Outcome {
        let piece = self.replace_staged(Vec::new());
        done(async { self.begun()?.write(piece).await }).await
    }

    #[napi]
    pub async fn finish(&self) -> Outcome {
        data(async { self.begun()?.finish().await }).await
    }

    /// Ends it, if it is not finished; nothing of it stays.
    #[napi]
    pub async fn abandon(&self) -> Outcome {
        done(async {
            if let Some(upload) = self.upload.get() {
                upload.abandon().await;
            }
            Ok(())
        })
        .await
    }

    fn replace_staged(&self, next: Vec<u8>) -> Vec<u8> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        mem::replace(&mut staged, next)
    }

    fn begun(&self) -> Result<Arc<manager::VolumeUpload>, Failure> {
        super::begun(&self.upload, "the upload was not begun")
    }
}
