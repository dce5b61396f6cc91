//! A panic of ours must never print over the host's terminal, end its process, or pass unnoticed:
//! it becomes a coded failure (fault F48). Neighbour: [`outcome`](crate::outcome) wraps every call.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo};

use futures_util::FutureExt;
use infinization_core::{ErrorCode, Failure};

thread_local! {
    /// Where the last panic of this thread happened; a panic is caught on the thread it happened on.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Sends panics to the log instead of stderr. The hook is this library's own: the standard library
/// is linked into it, so no other addon's panics come here.
#[cfg_attr(
    test,
    expect(dead_code, reason = "a failing test must print its panic")
)]
pub(crate) fn quiet() {
    std::panic::set_hook(Box::new(record));
}

fn record(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    let words = words(info.payload());
    tracing::error!(place, words, "panic");
    PLACE.with(|last| *last.borrow_mut() = place);
}

/// Runs `work` to its end; a panic inside drops what it held (locks, guards) and becomes `INTERNAL`.
pub(crate) async fn caught<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|payload| Err(defect(&*payload)))
}

fn defect(payload: &(dyn Any + Send)) -> Failure {
    let failure = Failure::new(
        ErrorCode::Internal,
        format!("infinization failed inside: {}", words(payload)),
    );
    match PLACE.with(|last| last.borrow_mut().take()) {
        Some(place) => failure.with("place", place),
        None => failure,
    }
}

fn words(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn f48_a_panic_becomes_internal_and_releases_its_locks() {
        let lock = Arc::new(Mutex::new(()));
        let held = Arc::clone(&lock);
        let work = async move {
            let _guard = held.lock().await;
            let nothing: Option<u8> = std::hint::black_box(None);
            Ok(nothing.expect("a number"))
        };
        let failure = caught(work).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::Internal);
        assert!(failure.to_string().ends_with("a number"), "{failure}");
        assert!(lock.try_lock().is_ok());
    }

    #[tokio::test]
    async fn f48_a_panic_in_a_blocking_part_is_caught_with_its_formatted_words() {
        let work = async {
            assert_eq!(1, 2, "sums differ");
            Result::<(), Failure>::Ok(())
        };
        assert!(
            caught(work)
                .await
                .unwrap_err()
                .to_string()
                .contains("sums differ")
        );
    }
}
