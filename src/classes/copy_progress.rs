//! The progress of a copy, which the façade asks for while the call is under way.

use infinization_core::storage::{Audience, Progress};
use napi_derive::napi;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::outcome::{Outcome, data};

/// How far a copy is: given to the call that makes it, and asked until the call has ended.
#[napi]
#[derive(Debug)]
pub struct CopyProgress {
    teller: watch::Sender<Progress>,
    heard: Mutex<watch::Receiver<Progress>>,
    ended: CancellationToken,
}

#[napi]
impl CopyProgress {
    #[napi(constructor)]
    pub fn new() -> Self {
        let (teller, heard) = watch::channel(Progress::default());
        Self {
            teller,
            heard: Mutex::new(heard),
            ended: CancellationToken::new(),
        }
    }

    /// The next news, or null when there will be none. Of several at once, the newest.
    #[napi]
    pub async fn next(&self) -> Outcome {
        data(async {
            let mut heard = self.heard.lock().await;
            let news = tokio::select! {
                biased;
                changed = heard.changed() => changed.is_ok(),
                () = self.ended.cancelled() => false,
            };
            Ok(news.then(|| *heard.borrow_and_update()))
        })
        .await
    }

    /// The call has ended.
    #[napi]
    pub fn end(&self) {
        self.ended.cancel();
    }
}

impl CopyProgress {
    pub(super) fn audience(given: Option<&Self>) -> Audience {
        given.map(|it| it.teller.clone())
    }
}
