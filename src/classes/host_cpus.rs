//! What `js/cpu-pinning.js` asks of the host, and of the choice among its CPUs.

use infinization_core::config::{PinningStrategy, spread};
use infinization_core::host::numa;
use napi_derive::napi;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::argument::Argument;
use crate::outcome::{Outcome, data, now};

/// The nodes that this process may use, with their CPUs.
#[napi]
pub async fn host_nodes() -> Outcome {
    data(async {
        let nodes = numa::nodes(None)?.into_iter();
        let told = nodes.map(|node| json!({ "id": node.id, "cpus": node.cpus }));
        Ok(told.collect::<Vec<Value>>())
    })
    .await
}

#[derive(Deserialize)]
struct Wanted {
    nodes: Vec<Vec<u32>>,
    vcpus: u32,
    strategy: PinningStrategy,
    seed: u32,
}

/// A CPU for each vCPU.
#[napi]
pub fn spread_cpus(wanted: Argument) -> Outcome {
    let wanted = wanted.shaped::<Wanted>("pinning");
    now(wanted.map(|wanted| {
        let nodes: Vec<&[u32]> = wanted.nodes.iter().map(Vec::as_slice).collect();
        spread(&nodes, wanted.vcpus, wanted.strategy, wanted.seed)
    }))
}
