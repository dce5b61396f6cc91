//! The 16 operations over a Prisma client that is written down beforehand: what is asked, and what is
//! made of each answer and each error.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;
mod probing;
mod reading;
mod writing;

use std::sync::Arc;

use infinization_core::db::prisma::PrismaDatabase;
use infinization_test_kit as kit;

use kit::port::Script;

fn database(port: &Arc<Script>) -> PrismaDatabase {
    let port: Arc<Script> = Arc::clone(port);
    PrismaDatabase::new(port, None)
}

/// One that looks at the machines of `node-a` alone.
fn of_node(port: &Arc<Script>) -> PrismaDatabase {
    let port: Arc<Script> = Arc::clone(port);
    PrismaDatabase::new(port, Some("node-a".to_owned()))
}
