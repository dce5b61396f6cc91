//! `NftablesPersistence`, over the core's `host::nft_file`.

use std::time::{SystemTime, UNIX_EPOCH};

use infinization_core::Failure;
use infinization_core::config::{BootUnitOptions, PersistenceOptions};
use infinization_core::firewall::boot_unit;
use infinization_core::host::nft::Nft;
use infinization_core::host::nft_file::{self, NftFileOptions, NftFiles, PERSISTENCE_DIR};
use infinization_core::types::HostPath;
use napi_derive::napi;
use serde_json::{Value, json};

use super::NftablesService;
use super::refused::Refused;
use super::warned;
use crate::argument::{Argument, Issue, refusal};
use crate::outcome::{Outcome, data, now};

const UNIT_DIR: &str = "/etc/systemd/system";

/// The firewall in files.
#[napi]
#[derive(Debug)]
pub struct NftablesPersistence {
    files: Result<NftFiles, Refused>,
}

#[napi]
impl NftablesPersistence {
    /// With `config`, or those of a service. Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(config: Argument, service: Option<&NftablesService>) -> Self {
        let files = match service {
            Some(service) => service.files(),
            None => files(config.settings()).map_err(Refused::from),
        };
        Self { files }
    }

    #[napi]
    pub async fn export_to_disk(&self) -> Outcome {
        let written = async { Ok(self.files()?.write().await?) }.await;
        let path = self.path();
        data(async {
            Ok(told(
                written.map(|()| json!({})),
                &json!({ "filePath": path }),
            ))
        })
        .await
    }

    #[napi]
    pub async fn restore_from_disk(&self) -> Outcome {
        let loaded = async { Ok(self.files()?.load().await?) }.await;
        data(async { Ok(restored(loaded)) }).await
    }

    #[napi]
    pub async fn rollback_to_backup(&self) -> Outcome {
        let loaded = async { Ok(self.files()?.roll_back().await?) }.await;
        data(async { Ok(restored(loaded)) }).await
    }

    #[napi]
    pub async fn has_persistence_file(&self) -> Outcome {
        let status = async { Ok(self.files()?.status().await?) }.await;
        data(async { Ok(logged(status).is_some_and(|status| status.written.is_some())) }).await
    }

    #[napi]
    pub async fn remove_persistence_file(&self) -> Outcome {
        let removed = async { Ok(self.files()?.remove().await?) }.await;
        data(async { Ok(logged(removed).unwrap_or_default()) }).await
    }

    #[napi]
    pub async fn get_status(&self) -> Outcome {
        let status = async { Ok(self.files()?.status().await?) }.await;
        let status = logged(status);
        let dir = self.files.as_ref().map(|files| files.dir().to_string());
        data(async {
            let mut told = json!({
                "persistenceDir": dir.unwrap_or_default(),
                "mainFileExists": status.as_ref().is_some_and(|status| status.written.is_some()),
                "backupFileExists": status.as_ref().is_some_and(|status| status.backup),
                "tableExists": status.as_ref().is_some_and(|status| status.table),
            });
            if let Some(written) = status.and_then(|status| status.written) {
                told["mainFileModified"] = json!(milliseconds(written));
            }
            Ok(told)
        })
        .await
    }

    fn files(&self) -> Result<&NftFiles, Failure> {
        self.files.as_ref().map_err(Failure::from)
    }

    fn path(&self) -> String {
        let path = self
            .files
            .as_ref()
            .map(|files| files.path().display().to_string());
        path.unwrap_or_default()
    }
}

/// `installFirewallService`.
#[napi]
pub async fn install_firewall_service(options: Argument) -> Outcome {
    data(async {
        let options = BootUnitOptions::parse(&options.object("options")?)?.config;
        let dir = or_usual(options.dir, PERSISTENCE_DIR)?;
        let units = or_usual(options.unit_dir, UNIT_DIR)?;
        let installed = nft_file::install(dir, units, options.enable).await?;
        let mut told = json!({
            "unitFile": installed.unit,
            "defaultDenyFile": installed.default_deny,
            "mainFile": installed.saved,
        });
        if let Some(link) = installed.enabled_by {
            told["enabledBy"] = json!(link);
        }
        Ok(told)
    })
    .await
}

/// `firewallServiceUnit`.
#[napi]
pub fn firewall_service_unit(options: Argument) -> Outcome {
    now(options.object("options").and_then(|options| {
        let options = BootUnitOptions::parse(&options)?.config;
        Ok(boot_unit(&or_usual(options.dir, PERSISTENCE_DIR)?))
    }))
}

fn files(config: Result<Value, Vec<Issue>>) -> Result<NftFiles, Failure> {
    let config = config.map_err(|issues| refusal("config", issues))?;
    let options = warned("NftablesPersistence", PersistenceOptions::parse(&config)?);
    let options = NftFileOptions {
        dir: or_usual(options.dir, PERSISTENCE_DIR)?,
        backup: options.backup,
        locking: options.locking,
    };
    Ok(NftFiles::new(options, Nft::new()))
}

fn or_usual(dir: Option<HostPath>, usual: &str) -> Result<HostPath, Failure> {
    let usual = || {
        HostPath::parse(usual).map_err(|why| {
            refusal(
                "persistenceDir",
                vec![Issue::at(String::new(), &why.to_string())],
            )
        })
    };
    dir.map_or_else(usual, Ok)
}

fn restored(loaded: Result<usize, Failure>) -> Value {
    let failed = json!({ "rulesLoaded": 0 });
    told(loaded.map(|rules| json!({ "rulesLoaded": rules })), &failed)
}

/// A result: what came of it, or `otherwise` and why.
fn told(outcome: Result<Value, Failure>, otherwise: &Value) -> Value {
    let mut told = otherwise.clone();
    told["success"] = json!(outcome.is_ok());
    told["timestamp"] = json!(milliseconds(SystemTime::now()));
    match outcome {
        Ok(Value::Object(more)) => more.into_iter().for_each(|(key, value)| told[&key] = value),
        Ok(_) => {}
        Err(error) => told["error"] = json!(error.to_string()),
    }
    told
}

/// Nothing of this class rejects.
fn logged<T>(outcome: Result<T, Failure>) -> Option<T> {
    if let Err(error) = &outcome {
        tracing::error!(%error, "the firewall's files could not be used");
    }
    outcome.ok()
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}
