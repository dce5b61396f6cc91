//! `firewallPreset`, over the core's `firewall`.

use infinization_core::firewall::{PresetOptions, Service, preset_values};
use infinization_core::{ErrorCode, Failure};
use napi_derive::napi;
use serde_json::Value;

use crate::argument::{Argument, wrong};
use crate::outcome::{Outcome, now};

/// The rules that let a service through. `service` is the key of a known one, or its ports.
#[napi]
pub fn firewall_preset(service: Argument, options: Argument) -> Outcome {
    now(rules(service, options))
}

fn rules(service: Argument, options: Argument) -> Result<Vec<Value>, Failure> {
    let service = known_or_given(service.value("service")?)?;
    let options = options.object("options")?;
    let options: PresetOptions = serde_json::from_value(options)
        .map_err(|why| wrong("options", &format!("is refused: {why}")))?;
    let rules = service.rules(&options)?;
    preset_values(&rules).map_err(|error| {
        let message = format!("a rule is no JSON: {error}");
        Failure::new(ErrorCode::Internal, message)
    })
}

fn known_or_given(service: Value) -> Result<Service, Failure> {
    match service {
        Value::String(key) => {
            Service::known(&key).ok_or_else(|| wrong("service", "is no known service"))
        }
        given => serde_json::from_value(given)
            .map_err(|why| wrong("service", &format!("is refused: {why}"))),
    }
}
