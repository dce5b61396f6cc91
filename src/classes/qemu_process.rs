//! `QemuProcess`, over the core's `own_qemu`.

use infinization_core::Failure;
use infinization_core::config::{QemuLaunch, QemuTraits, stop_grace};
use infinization_core::own_qemu::QemuProcess as Core;
use napi_derive::napi;

use super::refused::Refused;
use super::warned;
use crate::argument::Argument;
use crate::outcome::{Outcome, done, now};

/// A QEMU of the user's: `js/qemu-process.js` has the command line and what the QEMU is known by.
#[napi]
#[derive(Debug)]
pub struct QemuProcess {
    core: Result<Core, Refused>,
}

#[napi]
impl QemuProcess {
    /// Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(vm_id: Argument) -> Self {
        let vm_id = vm_id.parsed("vmId");
        Self {
            core: vm_id.map(Core::new).map_err(Refused::from),
        }
    }

    #[napi]
    pub async fn start(&self, launch: Argument, known_by: Argument) -> Outcome {
        done(async {
            let core = self.core()?;
            let launch = QemuLaunch::parse(&launch.value("command")?)?;
            let launch = warned("QemuProcess", launch);
            core.start(launch, &traits(known_by)?).await
        })
        .await
    }

    #[napi]
    pub async fn stop(&self, known_by: Argument, options: Argument) -> Outcome {
        done(async {
            let grace = stop_grace(&options.value("options")?)?;
            let grace = warned("QemuProcess", grace);
            self.core()?.stop(&traits(known_by)?, grace).await
        })
        .await
    }

    #[napi]
    pub async fn force_kill(&self, known_by: Argument) -> Outcome {
        done(async { self.core()?.force_kill(&traits(known_by)?).await }).await
    }

    #[napi]
    pub fn is_alive(&self) -> bool {
        self.core.as_ref().is_ok_and(Core::is_alive)
    }

    /// Null while none runs.
    #[napi]
    pub fn get_pid(&self) -> Outcome {
        now(Ok(self.core.as_ref().ok().and_then(Core::pid)))
    }

    fn core(&self) -> Result<&Core, Failure> {
        Ok(self.core.as_ref()?)
    }
}

fn traits(known_by: Argument) -> Result<QemuTraits, Failure> {
    let traits = QemuTraits::parse(&known_by.value("traits")?)?;
    Ok(warned("QemuProcess", traits))
}
