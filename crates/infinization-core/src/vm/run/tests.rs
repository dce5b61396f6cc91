//! Rollback, with effects that fail, panic or get stuck where a test says so.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::config::JournalOptions;
use crate::types::{HostPath, LinkName, VmId};
use crate::vm::journal::{JournalReader, Journals};
use crate::vm::plan::{Operation, Undo};

/// What goes wrong when an action is performed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    Fails,
    Panics,
    /// It succeeds, and the user cancels meanwhile.
    Cancels,
}

/// Records what is performed and released.
#[derive(Debug, Default)]
struct Fake {
    /// The file whose making goes wrong, and how.
    mishap: Option<(&'static str, Mishap)>,
    /// The release that fails, and how often.
    stuck: Option<(Release, u32)>,
    released: Mutex<Vec<Release>>,
    performed: Mutex<Vec<HostPath>>,
}

impl Fake {
    fn with(at: &'static str, mishap: Mishap) -> Self {
        Self {
            mishap: Some((at, mishap)),
            ..Self::default()
        }
    }

    fn stuck_at(mut self, release: Release, times: u32) -> Self {
        self.stuck = Some((release, times));
        self
    }

    /// Every attempt at a release, in order.
    fn released(&self) -> Vec<Release> {
        let released = self.released.lock();
        released.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn performed(&self) -> Vec<String> {
        let performed = self.performed.lock();
        let performed = performed.unwrap_or_else(PoisonError::into_inner);
        performed.iter().map(ToString::to_string).collect()
    }
}

#[async_trait]
impl Effects for Fake {
    async fn perform(
        &self,
        action: &Action,
        _bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let Action::MakeDirectory { path } = action else {
            panic!("plans of these tests make directories only");
        };
        let mishap = self
            .mishap
            .filter(|(at, _)| *at == path.to_string())
            .map(|(_, mishap)| mishap);
        match mishap {
            Some(Mishap::Fails) => return Err(Failure::new(ErrorCode::StateFile, "no room")),
            Some(Mishap::Panics) => panic!("on purpose"),
            Some(Mishap::Cancels) => cancel.cancel(),
            None => {}
        }
        self.performed.lock().unwrap().push(path.clone());
        Ok(())
    }

    async fn release(&self, release: &Release, _bench: &Bench) -> Result<(), Failure> {
        let mut released = self.released.lock().unwrap();
        released.push(release.clone());
        let Some((stuck, times)) = &self.stuck else {
            return Ok(());
        };
        let tried = released.iter().filter(|tried| *tried == stuck).count();
        if release == stuck && tried <= *times as usize {
            return Err(Failure::new(ErrorCode::StateFile, "device busy"));
        }
        Ok(())
    }
}

/// One attempt's surroundings.
struct Scene {
    directory: TempDir,
    ledger: Ledger,
    journal: Journal,
    bench: Bench,
    cancel: CancellationToken,
}

/// The journal's thread must not write into a directory that is being removed.
impl Drop for Scene {
    fn drop(&mut self) {
        let mut written = pin!(self.journal.written());
        let mut context = Context::from_waker(Waker::noop());
        while written.as_mut().poll(&mut context).is_pending() {
            std::thread::yield_now();
        }
    }
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        // An earlier attempt's belongings, which are nobody's to undo here.
        let earlier = [undo(Lifetime::Machine, "/earlier")];
        let numbers = ledger.intend(&earlier).unwrap();
        ledger.hold(&numbers).unwrap();
        ledger.begin(Operation::Start, 1).unwrap();
        let journals = Journals::patient(directory.path()).unwrap();
        Self {
            directory,
            ledger,
            journal: journals.of(&VmId::parse("vm-1").unwrap()),
            bench: Bench::default(),
            cancel: CancellationToken::new(),
        }
    }

    async fn execute(&self, effects: &Fake, plan: &Plan) -> Result<(), Failure> {
        let run = Run::new(self.desk(effects), &self.cancel);
        let outcome = run.execute(plan).await;
        outcome.map_err(|undone| undone.failure)
    }

    fn desk<'a>(&'a self, effects: &'a Fake) -> Desk<'a> {
        Desk {
            effects,
            ledger: &self.ledger,
            journal: &self.journal,
            bench: &self.bench,
        }
    }

    /// What the journal says: kind, step, phase.
    async fn told(&self) -> Vec<String> {
        self.journal.written().await;
        let directory = self.directory.path().join("journals");
        let mut reader = JournalReader::new(directory, JournalOptions::default());
        let entries = reader.page(1000).unwrap().into_iter();
        let words = entries.map(|entry| {
            let path = entry
                .detail
                .as_ref()
                .and_then(|detail| detail["path"].as_str());
            let phase = entry.phase.unwrap().as_str();
            format!("{} {} {}", entry.kind.as_str(), phase, path.unwrap_or("-"))
        });
        words.collect()
    }

    /// The releases in the ledger, less the earlier attempt's, which must be there.
    fn left(&self) -> Vec<Release> {
        let entries = self.ledger.contents().entries.into_iter();
        let mut releases: Vec<Release> = entries.map(|entry| entry.undo.release).collect();
        assert_eq!(releases.remove(0), file("/earlier"));
        releases
    }
}

fn path(text: &str) -> HostPath {
    HostPath::parse(text).unwrap()
}

fn file(text: &str) -> Release {
    Release::RemoveFile { path: path(text) }
}

fn undo(lifetime: Lifetime, text: &str) -> Undo {
    Undo {
        lifetime,
        release: file(text),
    }
}

fn step(text: &str) -> Step {
    let make = Action::MakeDirectory { path: path(text) };
    Step::new(make).undone_by(Lifetime::Run, file(text))
}

fn plan(stages: &[&[&str]]) -> Plan {
    let stage = |texts: &&[&str]| texts.iter().map(|text| step(text)).collect();
    Plan {
        operation: Operation::Start,
        stages: stages.iter().map(stage).collect(),
    }
}

fn files(texts: &[&str]) -> Vec<Release> {
    texts.iter().map(|text| file(text)).collect()
}

#[tokio::test]
async fn a_plan_that_succeeds_holds_everything_and_releases_nothing() {
    let (scene, fake) = (Scene::new(), Fake::default());
    let plan = plan(&[&["/a"], &["/b", "/c"]]);
    scene.execute(&fake, &plan).await.unwrap();
    assert_eq!(fake.performed(), ["/a", "/b", "/c"]);
    assert_eq!(fake.released(), []);
    assert_eq!(scene.left(), files(&["/a", "/b", "/c"]));
    let contents = scene.ledger.contents();
    assert!(contents.entries.iter().all(|entry| entry.held));
}

#[tokio::test]
async fn a_failure_releases_what_earlier_steps_acquired_newest_first_and_nothing_of_its_own() {
    let table: [(&str, &[&str]); 5] = [
        ("/a", &[]),
        ("/b", &["/a"]),
        // The steps of one stage are performed at once: its neighbours are undone, too.
        ("/c", &["/d", "/b", "/a"]),
        ("/d", &["/c", "/b", "/a"]),
        ("/e", &["/d", "/c", "/b", "/a"]),
    ];
    for (at, undone) in table {
        let (scene, fake) = (Scene::new(), Fake::with(at, Mishap::Fails));
        let plan = plan(&[&["/a"], &["/b"], &["/c", "/d"], &["/e"], &["/f"]]);
        let failure = scene.execute(&fake, &plan).await.unwrap_err();
        assert_eq!(failure.code(), ErrorCode::StateFile, "{at}");
        assert_eq!(failure.context()["step"], "make directory", "{at}");
        assert!(!failure.context().contains_key("notUndone"), "{at}");
        assert_eq!(fake.released(), files(undone), "{at}");
        assert_eq!(scene.left(), [], "{at}");
        assert!(!fake.performed().contains(&"/f".to_owned()), "{at}");
    }
}

#[tokio::test]
async fn a_panic_is_an_internal_failure_and_undoes_the_step_itself_too() {
    let (scene, fake) = (Scene::new(), Fake::with("/b", Mishap::Panics));
    let plan = plan(&[&["/a"], &["/b"], &["/c"]]);
    let failure = scene.execute(&fake, &plan).await.unwrap_err();
    assert_eq!(failure.code(), ErrorCode::Internal);
    assert_eq!(fake.released(), files(&["/b", "/a"]));
    assert_eq!(scene.left(), []);
}

#[tokio::test]
async fn a_cancellation_between_stages_aborts_and_rolls_back() {
    let (scene, fake) = (Scene::new(), Fake::with("/b", Mishap::Cancels));
    let plan = plan(&[&["/a"], &["/b"], &["/c"]]);
    let failure = scene.execute(&fake, &plan).await.unwrap_err();
    assert_eq!(failure.code(), ErrorCode::Aborted);
    assert_eq!(fake.performed(), ["/a", "/b"]);
    assert_eq!(fake.released(), files(&["/b", "/a"]));
    assert_eq!(scene.left(), []);
}

#[tokio::test]
async fn a_cancellation_before_the_first_stage_touches_nothing() {
    let (scene, fake) = (Scene::new(), Fake::default());
    scene.cancel.cancel();
    let failure = scene.execute(&fake, &plan(&[&["/a"]])).await.unwrap_err();
    assert_eq!(failure.code(), ErrorCode::Aborted);
    assert!(fake.performed().is_empty());
    assert_eq!((fake.released(), scene.left()), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_is_tried_three_times_then_told_and_kept() {
    let (scene, fake) = (Scene::new(), Fake::with("/c", Mishap::Fails));
    let fake = fake.stuck_at(file("/b"), u32::MAX);
    let plan = plan(&[&["/a"], &["/b"], &["/c"]]);
    let began = Instant::now();
    let failure = scene.execute(&fake, &plan).await.unwrap_err();
    // The journal's thread is not on this clock, so waiting for it may pass time as well.
    assert!(began.elapsed().as_secs() >= 3);
    // The rest is released all the same.
    assert_eq!(fake.released(), files(&["/b", "/b", "/b", "/a"]));
    assert_eq!(failure.code(), ErrorCode::StateFile);
    let told = json!([{ "step": "remove file", "error": "device busy" }]);
    assert_eq!(failure.context()["notUndone"], told);
    assert_eq!(scene.left(), files(&["/b"]));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_succeeds_at_last_is_not_told() {
    let (scene, fake) = (Scene::new(), Fake::with("/b", Mishap::Fails));
    let fake = fake.stuck_at(file("/a"), 2);
    let plan = plan(&[&["/a"], &["/b"]]);
    let failure = scene.execute(&fake, &plan).await.unwrap_err();
    assert!(!failure.context().contains_key("notUndone"));
    assert_eq!(fake.released(), files(&["/a", "/a", "/a"]));
    assert_eq!(scene.left(), []);
}

#[tokio::test]
async fn only_what_lives_no_longer_than_asked_is_released() {
    let lifetimes = [Lifetime::Run, Lifetime::Data, Lifetime::Machine];
    let table: [(Lifetime, &[&str]); 4] = [
        (Lifetime::Attempt, &[]),
        (Lifetime::Run, &["/run"]),
        (Lifetime::Machine, &["/machine", "/run", "/earlier"]),
        (Lifetime::Data, &["/machine", "/data", "/run", "/earlier"]),
    ];
    for (until, released) in table {
        for order in [Order::NewestFirst, Order::AtOnce] {
            let (scene, fake) = (Scene::new(), Fake::default());
            let texts = ["/run", "/data", "/machine"];
            let undos: Vec<Undo> = std::iter::zip(lifetimes, texts)
                .map(|(lifetime, text)| undo(lifetime, text))
                .collect();
            scene.ledger.intend(&undos).unwrap();
            let cleanup = release_up_to(scene.desk(&fake), until, order).await;
            assert!(cleanup.is_complete());
            assert_eq!(cleanup.resources.len(), released.len());
            assert_eq!(fake.released(), files(released), "{until:?}");
            let left = scene.ledger.contents().entries.len();
            assert_eq!(left, 4 - released.len(), "{until:?}");
        }
    }
}

/// A TAP on a bridge and a loaded firewall, as a create's ledger has them.
fn covered() -> [Release; 4] {
    let tap = LinkName::parse("vnet-0123456789").unwrap();
    [
        Release::DeleteTap { tap: tap.clone() },
        Release::DetachFirewall,
        Release::RemoveFirewall,
        Release::DetachTap { tap },
    ]
}

fn covered_scene() -> Scene {
    let scene = Scene::new();
    let undos = covered().map(|release| Undo {
        lifetime: Lifetime::Run,
        release,
    });
    scene.ledger.intend(&undos).unwrap();
    scene
}

#[tokio::test]
async fn what_another_release_does_as_well_is_not_done_twice() {
    let (scene, fake) = (covered_scene(), Fake::default());
    let cleanup = undo_attempt(scene.desk(&fake)).await;
    assert!(cleanup.is_complete());
    let [delete_tap, _, remove_firewall, _] = covered();
    assert_eq!(fake.released(), [remove_firewall, delete_tap]);
    assert_eq!(scene.left(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_release_stays_for_what_it_covers() {
    let [delete_tap, ..] = covered();
    let scene = covered_scene();
    let fake = Fake::default().stuck_at(delete_tap.clone(), u32::MAX);
    let cleanup = undo_attempt(scene.desk(&fake)).await;
    assert_eq!(scene.left(), std::slice::from_ref(&delete_tap));
    let stuck: Vec<_> = cleanup.stuck().collect();
    let [(resource, failure)] = stuck.as_slice() else {
        panic!("{stuck:?}");
    };
    assert_eq!((&resource.release, resource.attempts), (&delete_tap, 3));
    assert_eq!(failure.to_string(), "device busy");
}

#[tokio::test]
async fn the_journal_tells_each_step_before_it_is_begun_and_how_it_ended() {
    let (scene, fake) = (Scene::new(), Fake::with("/c", Mishap::Fails));
    let plan = plan(&[&["/a", "/b"], &["/c"]]);
    scene.execute(&fake, &plan).await.unwrap_err();
    let told = [
        "step begun /a",
        "step begun /b",
        "step done -",
        "step done -",
        "step begun /c",
        "step failed -",
        "undo begun /b",
        "undo undone -",
        "undo begun /a",
        "undo undone -",
    ];
    assert_eq!(scene.told().await, told);
}
