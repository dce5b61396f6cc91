//! What `EventHandler`, `HealthMonitor` and `StateSync` have in common: whose machines they are about, and a
//! database of the user's.

use std::sync::Arc;

use infinization_core::Failure;
use infinization_core::db::Database;
use infinization_core::db::injected::InjectedDatabase;
use infinization_core::events::EventBus;
use infinization_core::manager::Manager;
use infinization_core::sync::{Turns, Watching};
use tokio_util::sync::CancellationToken;

use super::Infinization;
use super::refused::Refused;
use crate::argument::wrong;
use crate::events::{Deliver, carry};
use crate::js_port::{Ask, JsPort};

/// Whose machines a class is about.
#[derive(Debug)]
pub(super) enum Of<T> {
    /// A manager's, which looks after its own: what `getEventHandler()` and its like return.
    Manager(Manager),
    /// The user's.
    User(Result<T, Refused>),
}

impl<T> Of<T> {
    /// The face of `owner`; without one, what `alone` makes of the constructor's arguments.
    pub(super) fn new(
        owner: Option<&Infinization>,
        alone: impl FnOnce() -> Result<T, Failure>,
    ) -> Self {
        match owner {
            Some(owner) => Self::Manager(owner.manager()),
            None => Self::User(alone().map_err(Refused::from)),
        }
    }
}

/// A database of the user's.
pub(super) fn database(ask: Option<Ask>) -> Result<Arc<dyn Database>, Failure> {
    let ask = ask.ok_or_else(|| wrong("db", "must be an object"))?;
    Ok(Arc::new(InjectedDatabase::new(Arc::new(JsPort::new(ask)))))
}

/// What the classes of the user's own stand on; their events go to `deliver`.
pub(super) fn watching(
    ask: Option<Ask>,
    lock: Option<Ask>,
    deliver: Option<Deliver>,
) -> Result<Watching, Failure> {
    let lock = lock.ok_or_else(|| wrong("vmLock", "must be a KeyedMutex"))?;
    let events = EventBus::default();
    if let Some(deliver) = deliver {
        carry(events.subscribe(), deliver, CancellationToken::new());
    }
    Ok(Watching {
        database: database(ask)?,
        turns: Turns::new(Arc::new(JsPort::new(lock))),
        events,
    })
}
