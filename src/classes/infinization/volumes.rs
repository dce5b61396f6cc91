//! Pools, and the volumes in them.

use napi_derive::napi;

use super::Infinization;
use crate::argument::Argument;
use crate::classes::{Cancellation, CopyProgress};
use crate::outcome::{Outcome, data};

#[napi]
impl Infinization {
    #[napi]
    pub async fn define_pool(&self, name: Argument, options: Argument) -> Outcome {
        data(async {
            let (name, options) = (name.text("name")?, options.object("options")?);
            self.manager.define_pool(name, options).await
        })
        .await
    }

    #[napi]
    pub async fn list_pools(&self) -> Outcome {
        data(self.manager.list_pools()).await
    }

    #[napi]
    pub async fn get_pool(&self, name: Argument) -> Outcome {
        data(async { self.manager.get_pool(name.text("name")?).await }).await
    }

    #[napi]
    pub async fn undefine_pool(&self, name: Argument) -> Outcome {
        data(async { self.manager.undefine_pool(name.text("name")?).await }).await
    }

    #[napi]
    pub async fn list_volumes(&self, pool: Argument) -> Outcome {
        data(async { self.manager.list_volumes(pool.text("pool")?).await }).await
    }

    #[napi]
    pub async fn create_volume(
        &self,
        pool: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (pool, options) = (pool.text("pool")?, options.object("options")?);
            self.manager.create_volume(pool, options, cancel).await
        })
        .await
    }

    #[napi]
    pub async fn clone_volume(
        &self,
        pool: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
        progress: Option<&CopyProgress>,
    ) -> Outcome {
        let (cancel, audience) = (
            Cancellation::token(cancel),
            CopyProgress::audience(progress),
        );
        data(async {
            let (pool, options) = (pool.text("pool")?, options.object("options")?);
            let cloned = self.manager.clone_volume(pool, options, cancel, audience);
            cloned.await
        })
        .await
    }

    #[napi]
    pub async fn convert_volume(
        &self,
        pool: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
        progress: Option<&CopyProgress>,
    ) -> Outcome {
        let (cancel, audience) = (
            Cancellation::token(cancel),
            CopyProgress::audience(progress),
        );
        data(async {
            let (pool, options) = (pool.text("pool")?, options.object("options")?);
            let converted = self.manager.convert_volume(pool, options, cancel, audience);
            converted.await
        })
        .await
    }

    #[napi]
    pub async fn resize_volume(
        &self,
        pool: Argument,
        name: Argument,
        options: Argument,
    ) -> Outcome {
        data(async {
            let (pool, name) = (pool.text("pool")?, name.text("name")?);
            let options = options.object("options")?;
            self.manager.resize_volume(pool, name, options).await
        })
        .await
    }

    #[napi]
    pub async fn delete_volume(&self, pool: Argument, name: Argument) -> Outcome {
        data(async {
            let (pool, name) = (pool.text("pool")?, name.text("name")?);
            self.manager.delete_volume(pool, name).await
        })
        .await
    }
}
