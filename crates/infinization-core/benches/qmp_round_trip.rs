//! What one command costs: `query-status` against a real QEMU, one at a time and eight at once.
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use infinization_core::qmp::QmpClient;
use infinization_test_kit as kit;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use kit::qmp::Qemu;

const AT_ONCE: u64 = 8;

fn round_trip(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let qemu = Qemu::start(&["-machine", "none"]);
    let (client, _events) = runtime.block_on(qemu.connect());

    let mut group = criterion.benchmark_group("query-status");
    group.bench_function("serial", |bencher| {
        bencher.iter(|| runtime.block_on(client.query_status()).unwrap());
    });
    group.throughput(Throughput::Elements(AT_ONCE));
    group.bench_function("eight at once", |bencher| {
        bencher.iter(|| runtime.block_on(at_once(&client)));
    });
    group.finish();
}

async fn at_once(client: &QmpClient) {
    let mut calls = JoinSet::new();
    for _ in 0..AT_ONCE {
        let client = client.clone();
        calls.spawn(async move { client.query_status().await.unwrap() });
    }
    calls.join_all().await;
}

criterion_group!(benches, round_trip);
criterion_main!(benches);
