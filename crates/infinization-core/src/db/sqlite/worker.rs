//! The thread that owns the connection. SQLite calls block on the disk, so they happen here and
//! nowhere else; callers send a closure and await its answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::schema;
use crate::db::DbError;
use crate::error::ErrorCode;

/// How long a disk may take; what was asked may be done all the same.
const DEADLINE: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the thread. It ends when this is dropped and what was sent is done.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread and waits until the file is open and its schema is ours.
    pub(super) async fn start(path: PathBuf) -> Result<Self, DbError> {
        let (jobs, queue) = mpsc::channel();
        let (report, opened) = oneshot::channel();
        std::thread::Builder::new()
            .name("infinization-db".to_owned())
            .spawn(move || work(&path, report, &queue))
            .map_err(|error| {
                let words = format!("the store's thread could not be started: {error}");
                DbError::new(ErrorCode::DbConnectionError, words)
            })?;
        opened.await.map_err(|_| gone())??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the connection.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        match timeout(DEADLINE, self.finish(job)).await {
            Ok(done) => done,
            Err(_elapsed) => Err(gone()),
        }
    }

    /// [`run`](Self::run), however long it takes: for what must not be told to have failed and be done
    /// all the same.
    pub(super) async fn finish<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            // A caller who stopped waiting is no reason to stop the work.
            let _unheard = reply.send(job(db));
        });
        self.jobs.send(job).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn work(path: &Path, report: oneshot::Sender<Result<(), DbError>>, queue: &mpsc::Receiver<Job>) {
    match schema::open(path) {
        Ok(mut db) => {
            let _unheard = report.send(Ok(()));
            for job in queue {
                // A defect in one operation ends that operation: its transaction rolls back as it
                // unwinds, and the connection stays usable.
                let _panicked = catch_unwind(AssertUnwindSafe(|| job(&mut db)));
            }
        }
        Err(error) => {
            let _unheard = report.send(Err(error));
        }
    }
}

fn gone() -> DbError {
    DbError::new(
        ErrorCode::DbConnectionError,
        "the store's thread gave no answer",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn f48_a_panic_ends_one_operation_and_not_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let worker = Worker::start(dir.path().join("x.db")).await.unwrap();
        let panicked = worker
            .run::<()>(|db| {
                let _open = db.transaction();
                panic!("a defect");
            })
            .await;
        assert_eq!(panicked.unwrap_err().code, ErrorCode::DbConnectionError);
        assert!(worker.run(|db| Ok(db.is_autocommit())).await.unwrap());
    }
}
