//! The progress of a call, which the façade asks for while the call is under way.

use infinization_core::{backup, storage};
use napi_derive::napi;
use serde::Serialize;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::outcome::{Outcome, data};

/// What is told of one call until it has ended. Only the newest is kept for whoever is slow.
#[derive(Debug)]
struct News<T> {
    teller: watch::Sender<T>,
    heard: Mutex<watch::Receiver<T>>,
    ended: CancellationToken,
}

impl<T: Clone + Default + Serialize> News<T> {
    fn new() -> Self {
        let (teller, heard) = watch::channel(T::default());
        Self {
            teller,
            heard: Mutex::new(heard),
            ended: CancellationToken::new(),
        }
    }

    async fn next(&self) -> Outcome {
        data(async {
            let mut heard = self.heard.lock().await;
            let news = tokio::select! {
                biased;
                changed = heard.changed() => changed.is_ok(),
                () = self.ended.cancelled() => false,
            };
            Ok(news.then(|| heard.borrow_and_update().clone()))
        })
        .await
    }
}

/// How far a copy is: given to the call that makes it, and asked until the call has ended.
#[napi]
#[derive(Debug)]
pub struct CopyProgress(News<storage::Progress>);

#[napi]
impl CopyProgress {
    #[napi(constructor)]
    pub fn new() -> Self {
        Self(News::new())
    }

    /// The next news, or null when there will be none. Of several at once, the newest.
    #[napi]
    pub async fn next(&self) -> Outcome {
        self.0.next().await
    }

    /// The call has ended.
    #[napi]
    pub fn end(&self) {
        self.0.ended.cancel();
    }
}

impl CopyProgress {
    pub(super) fn audience(given: Option<&Self>) -> storage::Audience {
        given.map(|it| it.0.teller.clone())
    }
}

/// How far a look at a backup's files is, in the same way.
#[napi]
#[derive(Debug)]
pub struct CheckProgress(News<Option<backup::Progress>>);

#[napi]
impl CheckProgress {
    #[napi(constructor)]
    pub fn new() -> Self {
        Self(News::new())
    }

    /// The next news, or null when there will be none. Of several at once, the newest.
    #[napi]
    pub async fn next(&self) -> Outcome {
        self.0.next().await
    }

    /// The call has ended.
    #[napi]
    pub fn end(&self) {
        self.0.ended.cancel();
    }
}

impl CheckProgress {
    pub(super) fn tell(given: Option<&Self>) -> impl Fn(backup::Progress) + Send + Sync + 'static {
        let teller = given.map(|it| it.0.teller.clone());
        move |progress| {
            if let Some(teller) = &teller {
                teller.send_replace(Some(progress));
            }
        }
    }
}
