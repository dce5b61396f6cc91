//! What the kernel's bridge family can do, told by what it does: the words of the refusal differ
//! from kernel to kernel (`EPROTO`, `ENOENT`, `EOPNOTSUPP`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use super::error::NftError;
use super::transport::NftTransport;
use crate::firewall::{Capabilities, Field, Match, NftRule, Transaction, Verdict};

/// An answer that is looked for once and kept; a probe that could not run is not an answer. What was missing
/// may be there by now: somebody loads the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Probe {
    answer: Arc<Mutex<Option<Capabilities>>>,
    warned: Arc<AtomicBool>,
}

impl Probe {
    pub(super) async fn capabilities(
        &self,
        transport: &dyn NftTransport,
    ) -> Result<Capabilities, NftError> {
        self.unless_known(transport, |_any| true).await
    }

    /// As [`Probe::capabilities`], but looks again if anything was missing.
    pub(super) async fn again_if_missing(
        &self,
        transport: &dyn NftTransport,
    ) -> Result<Capabilities, NftError> {
        let is_whole = |known: Capabilities| known.conntrack && known.reject;
        self.unless_known(transport, is_whole).await
    }

    async fn unless_known(
        &self,
        transport: &dyn NftTransport,
        is_enough: impl Fn(Capabilities) -> bool,
    ) -> Result<Capabilities, NftError> {
        let mut answer = self.answer.lock().await;
        match *answer {
            Some(known) if is_enough(known) => Ok(known),
            _ => Ok(*answer.insert(probe(transport).await?)),
        }
    }

    /// Warns about stateless filtering, the first time.
    pub(super) fn warn_stateless(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "this kernel cannot track connections on bridges (module nf_conntrack_bridge): \
                 machines are filtered without connection state"
            );
        }
    }
}

/// The kernel loads the modules it has for an expression by itself.
async fn probe(transport: &dyn NftTransport) -> Result<Capabilities, NftError> {
    let rule = |verdict| NftRule::new(verdict, "infinization-probe");
    // If this plain rule is refused, a refusal of the others would mean nothing.
    let plain = Transaction::probe(rule(Verdict::Accept));
    transport.check(&plain).await?;

    let tracked = Match::is(Field::CtState, "established");
    let state = Transaction::probe(rule(Verdict::Accept).when([tracked]));
    let reject = Transaction::probe(rule(Verdict::RejectAsUnreachable));
    Ok(Capabilities {
        conntrack: taken(transport.check(&state).await)?,
        reject: taken(transport.check(&reject).await)?,
    })
}

fn taken(outcome: Result<(), NftError>) -> Result<bool, NftError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(NftError::Refused { .. }) => Ok(false),
        Err(could_not_ask) => Err(could_not_ask),
    }
}
