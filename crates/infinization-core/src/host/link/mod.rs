//! Network links over rtnetlink: find, list, raise, enslave, delete, and wait for a change.
//!
//! Only this folder and [`super::bridge`] know rtnetlink, whose API changes with every minor
//! version. State is never remembered here: each question is put to the kernel, so two
//! [`Links`] cannot disagree. An answer that did not come is an error, never a success.

mod connection;
mod error;
mod links;
mod record;
mod watch;

pub use error::{LinkError, Refusal};
pub(in crate::host) use error::{code_of, network_context};
pub use links::Links;
pub use record::{Link, OperState, TunInfo};
pub use watch::{LinkEvent, LinkWatch};
