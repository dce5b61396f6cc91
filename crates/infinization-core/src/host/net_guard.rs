//! Loading the table that guards virtual networks, and seeing to it that it stays.

use std::sync::{Mutex, PoisonError};

use super::nft::NftError;
use super::program::{Finished, Program};

/// A table of the `inet` family that is loaded as a whole.
#[derive(Debug)]
pub struct NetGuard {
    table: String,
    /// Takes it away.
    removal: String,
    /// What it looks like in nft's words since it was loaded; none if it is not to be there.
    seen: Mutex<Option<String>>,
    turn: tokio::sync::Mutex<()>,
}

impl NetGuard {
    /// Touches nothing.
    pub fn new(table: String, removal: String) -> Self {
        Self {
            table,
            removal,
            seen: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Loads what is `wanted` when it is this call's turn, so that no other call's, decided earlier, comes after
    /// it. It replaces the table, in one transaction; none takes it away.
    pub async fn load(&self, wanted: impl FnOnce() -> Option<String>) -> Result<(), NftError> {
        let _turn = self.turn.lock().await;
        if let Some(text) = wanted() {
            return self.load_in_turn(text).await;
        }
        nft(&["-f", "-"], self.removal.clone()).await?;
        *self.seen() = None;
        Ok(())
    }

    async fn load_in_turn(&self, text: String) -> Result<(), NftError> {
        nft(&["-f", "-"], text).await?;
        let seen = self.list().await?;
        *self.seen() = seen;
        Ok(())
    }

    /// Loads what is `wanted` unless the table is as it was loaded last; says whether it had to.
    pub async fn repair(&self, wanted: impl FnOnce() -> Option<String>) -> Result<bool, NftError> {
        let _turn = self.turn.lock().await;
        let seen = self.seen().clone();
        if seen.is_none() || self.list().await? == seen {
            return Ok(false);
        }
        match wanted() {
            Some(text) => self.load_in_turn(text).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn list(&self) -> Result<Option<String>, NftError> {
        match nft(&["-s", "list", "table", "inet", &self.table], String::new()).await {
            Ok(listed) => Ok(Some(String::from_utf8_lossy(&listed.stdout).into_owned())),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn nft(args: &[&str], stdin: String) -> Result<Finished, NftError> {
    let run = Program::new("nft").args(args).stdin(stdin.into_bytes());
    let finished = run.run().await?;
    if !finished.status.success() {
        return Err(NftError::refused(&finished));
    }
    Ok(finished)
}
