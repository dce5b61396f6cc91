//! `TapDeviceManager`, over the core's `host::tap`.

use infinization_core::Failure;
use infinization_core::host::link::{Link, OperState};
use infinization_core::host::nft::Nft;
use infinization_core::host::tap;
use infinization_core::types::{LinkName, VmId, VmNames};
use napi_derive::napi;
use serde_json::json;

use super::{LINKS, told};
use crate::argument::Argument;
use crate::outcome::{Outcome, data, done};

/// The host's TAP devices.
#[napi]
#[derive(Debug, Default)]
pub struct TapDeviceManager {}

#[napi]
impl TapDeviceManager {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// The TAP is down, and a port of no bridge: `configure` does that.
    #[napi]
    pub async fn create(&self, vm_id: Argument) -> Outcome {
        data(async {
            let vm_id: VmId = vm_id.parsed("vmId")?;
            let created = tap::create_anew(&LINKS, &vm_id).await;
            created.map_err(|error| {
                let name = VmNames::of(&vm_id).tap;
                told(&format!("Failed to create TAP device {name}"), error).of_vm(&vm_id)
            })
        })
        .await
    }

    /// A new TAP's checksum offload is off, so there is nothing to turn off.
    #[napi]
    pub async fn configure(&self, tap: Argument, bridge: Argument) -> Outcome {
        done(async {
            let (tap, bridge) = (name(tap)?, bridge.optional_text("bridge")?);
            let configured = configure(&tap, bridge.as_deref()).await;
            configured
                .map_err(|failure| told(&format!("Failed to configure TAP device {tap}"), failure))
        })
        .await
    }

    #[napi]
    pub async fn destroy(&self, tap: Argument) -> Outcome {
        done(async {
            let tap = name(tap)?;
            let deleted = tap::delete(&LINKS, &tap).await;
            deleted.map_err(|error| told(&format!("Failed to destroy TAP device {tap}"), error))
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi]
    pub async fn bring_down(&self, tap: Argument) -> Outcome {
        done(async {
            let tap = name(tap)?;
            if let Err(error) = LINKS.set_down(&tap).await {
                tracing::warn!(%tap, %error, "not taken down");
            }
            Ok(())
        })
        .await
    }

    /// Best effort: what fails is logged.
    #[napi]
    pub async fn detach_from_bridge(&self, tap: Argument) -> Outcome {
        done(async {
            let tap = name(tap)?;
            if !matches!(LINKS.find(&tap).await, Ok(Some(_))) {
                return Ok(());
            }
            let (freed, down) = (LINKS.set_nomaster(&tap).await, LINKS.set_down(&tap).await);
            if let Err(error) = freed.and(down) {
                tracing::warn!(%tap, %error, "not detached");
            }
            Ok(())
        })
        .await
    }

    #[napi]
    pub async fn attach_to_bridge(&self, tap: Argument, bridge: Argument) -> Outcome {
        done(async {
            let (tap, bridge) = (name(tap)?, bridge.text("bridge")?);
            let attached = configure(&tap, Some(&bridge)).await;
            attached.map_err(|failure| {
                told(
                    &format!("Failed to attach TAP device {tap} to {bridge}"),
                    failure,
                )
            })
        })
        .await
    }

    #[napi]
    pub async fn exists(&self, tap: Argument) -> Outcome {
        data(async { Ok(find(tap)?.await.is_some()) }).await
    }

    /// Up, with somebody at the other end.
    #[napi]
    pub async fn has_carrier(&self, tap: Argument) -> Outcome {
        data(async {
            let carrier =
                |link: Link| link.up && (link.lower_up || link.operstate == OperState::Up);
            Ok(find(tap)?.await.is_some_and(carrier))
        })
        .await
    }

    #[napi]
    pub async fn list_all_tap_devices(&self) -> Outcome {
        data(async {
            let taps = tap::list(&LINKS).await.unwrap_or_default();
            Ok(taps.into_iter().map(|tap| tap.name).collect::<Vec<_>>())
        })
        .await
    }

    /// Persistent, and no process has it open. A stopped machine's TAP is so, too.
    #[napi]
    pub async fn is_orphaned(&self, tap: Argument) -> Outcome {
        data(async { Ok(find(tap)?.await.as_ref().is_some_and(tap::is_idle)) }).await
    }

    /// Never takes what belongs to a machine with a firewall chain.
    #[napi]
    pub async fn cleanup_orphaned_tap_devices(&self) -> Outcome {
        data(async {
            let removed = tap::remove_orphans(&LINKS, &Nft::new()).await;
            let removed = removed.unwrap_or_else(|error| {
                tracing::warn!(%error, "orphans were not looked for");
                tap::Removed::default()
            });
            Ok(json!({
                "total": removed.total,
                "cleaned": removed.cleaned,
                "failed": removed.failed,
            }))
        })
        .await
    }

    /// In the style of `ip link`; a failure is told in the text.
    #[napi]
    pub async fn get_device_state(&self, tap: Argument) -> Outcome {
        data(async {
            let tap = name(tap)?;
            Ok(state_text(&tap)
                .await
                .unwrap_or_else(|failure| format!("Error: {failure}")))
        })
        .await
    }
}

fn name(argument: Argument) -> Result<LinkName, Failure> {
    argument.parsed("tapName")
}

/// The link of this name, as far as there is one and the kernel tells it.
fn find(argument: Argument) -> Result<impl Future<Output = Option<Link>>, Failure> {
    let text = argument.text("tapName")?;
    Ok(async move {
        let name = LinkName::parse(text).ok()?;
        LINKS.find(&name).await.ok().flatten()
    })
}

async fn configure(tap: &LinkName, bridge: Option<&str>) -> Result<(), Failure> {
    LINKS.set_up(tap).await?;
    if let Some(bridge) = bridge {
        let bridge = LinkName::parse(bridge)
            .map_err(|why| crate::argument::wrong("bridge", &why.to_string()))?;
        LINKS.set_master(tap, &bridge).await?;
    }
    Ok(())
}

async fn state_text(tap: &LinkName) -> Result<String, Failure> {
    let all = LINKS.list().await?;
    let link = all.iter().find(|link| link.name == tap.as_str());
    let link = link.ok_or_else(|| tap_missing(tap))?;
    let master = all.iter().find(|other| Some(other.index) == link.master);
    Ok(describe(link, master.map(|master| master.name.as_str())))
}

fn tap_missing(tap: &LinkName) -> Failure {
    tap::TapError::NotFound { name: tap.clone() }.into()
}

/// `7: vnet-1: <UP,LOWER_UP> mtu 1500 master br0 state UP`
fn describe(link: &Link, master: Option<&str>) -> String {
    let flag = |set: bool, word| set.then_some(word);
    let flags = [
        flag(link.up && !link.lower_up, "NO-CARRIER"),
        Some("BROADCAST"),
        Some("MULTICAST"),
        flag(link.up, "UP"),
        flag(link.lower_up, "LOWER_UP"),
    ];
    let flags = flags.into_iter().flatten().collect::<Vec<_>>().join(",");
    let master = master.map_or(String::new(), |name| format!(" master {name}"));
    let state = match link.operstate {
        OperState::Up => "UP",
        OperState::Unknown => "UNKNOWN",
        _ => "DOWN",
    };
    let Link {
        index, name, mtu, ..
    } = link;
    format!("{index}: {name}: <{flags}> mtu {mtu}{master} state {state}")
}
