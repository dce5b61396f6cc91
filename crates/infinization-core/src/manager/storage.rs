//! The verbs on storage pools and volumes: which machine has which file is known here.

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Manager, Open, to_value};
use crate::config::{
    CloneOptions, Parsed, PoolName, PoolOptions, VolumeConvertOptions, VolumeName, VolumeOptions,
    VolumeResizeOptions,
};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::blocking;
use crate::host::qemu_img::Job;
use crate::host::users;
use crate::storage::{Audience, Use, Uses};
use crate::types::{HostPath, InvalidValue, VmId};
use crate::vm::{Verb, disk_uses, row_uses};

impl Manager {
    /// `definePool`.
    pub async fn define_pool(&self, name: String, options: Value) -> Result<Value, Failure> {
        let (name, open) = (named("pool", name)?, self.open()?);
        let Parsed { config, .. } = PoolOptions::parse(&options)?;
        to_value(&open.pools.define(&name, &config).await?)
    }

    /// `listPools`.
    pub async fn list_pools(&self) -> Result<Value, Failure> {
        to_value(&self.open()?.pools.list().await?)
    }

    /// `getPool`.
    pub async fn get_pool(&self, name: String) -> Result<Value, Failure> {
        let name = named("pool", name)?;
        to_value(&self.open()?.pools.get(&name).await?)
    }

    /// `undefinePool`.
    pub async fn undefine_pool(&self, name: String) -> Result<Value, Failure> {
        let name = named("pool", name)?;
        self.open()?.pools.undefine(&name).await?;
        Ok(Value::Null)
    }

    /// `listVolumes`.
    pub async fn list_volumes(&self, pool: String) -> Result<Value, Failure> {
        let (pool, open) = (named("pool", pool)?, self.open()?);
        to_value(&open.pools.volumes(&pool, &open.shown_uses().await?).await?)
    }

    /// `createVolume`.
    pub async fn create_volume(
        &self,
        pool: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        let (pool, open) = (named("pool", pool)?, self.open()?);
        let Parsed { config, .. } = VolumeOptions::parse(&options)?;
        let (owner, job) = (open.image_owner().await?, job(cancel));
        to_value(&open.pools.create(&pool, &config, owner, &job).await?)
    }

    /// `cloneVolume`.
    pub async fn clone_volume(
        &self,
        pool: String,
        options: Value,
        cancel: CancellationToken,
        audience: Audience,
    ) -> Result<Value, Failure> {
        let (pool, open) = (named("pool", pool)?, self.open()?);
        let Parsed { config, .. } = CloneOptions::parse(&options)?;
        let (owner, job) = (open.image_owner().await?, job(cancel));
        // A copy needs nobody once it is begun, and takes its time.
        let (_turn, uses) = if config.linked {
            (Some(open.pools.turn().await), open.uses().await?)
        } else {
            (None, Uses::default())
        };
        let (pools, uses) = (&open.pools, &uses);
        let cloned = pools.clone_volume(&pool, &config, uses, owner, &job, &audience);
        to_value(&Box::pin(cloned).await?)
    }

    /// `convertVolume`.
    pub async fn convert_volume(
        &self,
        pool: String,
        options: Value,
        cancel: CancellationToken,
        audience: Audience,
    ) -> Result<Value, Failure> {
        let (pool, open) = (named("pool", pool)?, self.open()?);
        let Parsed { config, .. } = VolumeConvertOptions::parse(&options)?;
        let (owner, job) = (open.image_owner().await?, job(cancel));
        let pools = &open.pools;
        let converted = pools.convert(&pool, &config, owner, &job, &audience);
        to_value(&converted.await?)
    }

    /// `resizeVolume`: by QEMU, where a running machine has it.
    pub async fn resize_volume(
        &self,
        pool: String,
        name: String,
        options: Value,
    ) -> Result<Value, Failure> {
        let (pool, name): (PoolName, VolumeName) = (named("pool", pool)?, named("name", name)?);
        let open = self.open()?;
        let Parsed { config, .. } = VolumeResizeOptions::parse(&options)?;
        let turn = open.pools.turn().await;
        let (path, uses) = (open.pools.path_of(&pool, &name).await?, open.uses().await?);
        for vm_id in uses.users(&path) {
            let handle = open.vms().get(&vm_id).cloned();
            if let Some(handle) = handle.filter(|handle| handle.view().live.is_some()) {
                let size = config.capacity;
                let (path, shrink) = (path.clone(), config.shrink);
                // The machine may be busy for long, and its QEMU knows what it has.
                drop(turn);
                handle.verb(Verb::ResizeDisk { path, size, shrink }).await?;
                return to_value(&open.pools.volume(&pool, &name, &uses).await?);
            }
        }
        let resized = open.pools.resize_volume(&pool, &name, &config, &uses);
        to_value(&resized.await?)
    }

    /// `deleteVolume`.
    pub async fn delete_volume(&self, pool: String, name: String) -> Result<Value, Failure> {
        let (pool, name) = (named("pool", pool)?, named("name", name)?);
        let open = self.open()?;
        let _turn = open.pools.turn().await;
        let uses = open.uses().await?;
        open.pools.delete_volume(&pool, &name, &uses).await?;
        Ok(Value::Null)
    }
}

impl Open {
    /// Who has which image now, by the state directory and by the rows.
    async fn uses(&self) -> Result<Uses, Failure> {
        let rows = self.row_uses().await?;
        self.uses_with(rows).await
    }

    /// The same to be shown: while the database is away, without what only rows know.
    async fn shown_uses(&self) -> Result<Uses, Failure> {
        let rows = self.row_uses().await.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "the rows do not tell who has which volume");
            Vec::new()
        });
        self.uses_with(rows).await
    }

    async fn row_uses(&self) -> Result<Vec<(VmId, HostPath)>, Failure> {
        let services = &self.services;
        Ok(row_uses(&*services.database, &services.config.disk_dir).await?)
    }

    async fn uses_with(&self, rows: Vec<(VmId, HostPath)>) -> Result<Uses, Failure> {
        let machines = self.services.machines_directory();
        let mut noted = blocking(move || disk_uses(&machines)).await??;
        noted.extend(rows);
        noted.sort();
        noted.dedup();
        let machines = noted
            .into_iter()
            .map(|(vm_id, path)| Use { vm_id, path })
            .collect();
        let (files, unknown) = self.pools.all_files().await?;
        Ok(Uses::look(machines, files, unknown).await)
    }

    /// Machines' QEMUs have to open the volumes.
    pub(super) async fn image_owner(&self) -> Result<Option<(u32, u32)>, Failure> {
        let Some(user) = self.services.config.run_as_user.clone() else {
            return Ok(None);
        };
        let found = blocking(move || users::resolve(&user)).await??;
        Ok(Some((found.uid, found.gid)))
    }
}

pub(super) fn named<T: TryFrom<String, Error = InvalidValue>>(
    what: &'static str,
    text: String,
) -> Result<T, Failure> {
    T::try_from(text).map_err(|error| {
        let issue = serde_json::json!({
            "path": what,
            "message": error.to_string(),
            "code": ErrorCode::InvalidConfig.as_str(),
        });
        Failure::new(ErrorCode::InvalidConfig, format!("{what} {error}"))
            .with("issues", vec![issue])
    })
}

pub(super) fn job(cancel: CancellationToken) -> Job {
    Job {
        cancel,
        ..Job::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b7_a_name_that_leads_elsewhere_is_refused_by_its_field() {
        let refused = named::<VolumeName>("name", "../a.raw".to_owned()).unwrap_err();
        assert_eq!(refused.context()["issues"][0]["path"], "name");
    }
}
