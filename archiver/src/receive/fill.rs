//! Fills up what a repository lacks from its peers, byte for byte and without a key: after an outage, and what a backup left out.
//!
//! Owns when that is done, and that WAL goes over in its order: whatever cuts it off leaves no hole behind what is there. One task for each
//! repository, as long as the process lives: a server that is gone does not keep the repositories from agreeing. Does not own what is missing or
//! how one object goes over (`repository::copy`), or what a lane may store meanwhile (`lanes.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repository::cluster::ClusterDocument;
use repository::copy::{self, CopyError, Missing, Stage, copy_object};
use repository::key::ObjectKey;
use repository::store::Listed;
use repository::{ErrorClass, Repository};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::upload::{Uploader, error_text, require_known};
use crate::{Error, Result};

/// How often repositories are compared although nobody asked: a backup may have gone on without one of them.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// First wait after a failed attempt.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How often an outage is spoken of.
const REMINDER: Duration = Duration::from_secs(60);
/// Repositories that are filled at the same time: each holds one object of up to 33 MiB, or a segment.
const MAX_AT_ONCE: usize = 2;

/// What has been asked for, and of whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Request {
    /// Counts up.
    number: u64,
    /// Repositories to compare with, of which one must answer; none: all that do.
    sources: Vec<usize>,
}

/// The tasks. Clones talk to the same ones.
#[derive(Clone)]
pub(super) struct Fillers {
    requests: Vec<watch::Sender<Request>>,
    /// For each repository the last request that was done: everything a source had when it was made is there.
    done: watch::Receiver<Vec<u64>>,
}

impl Fillers {
    /// Starts a task for each repository; they end when the set is dropped. With a single repository there is none.
    pub(super) fn start(uploader: &Uploader, cluster: &ClusterDocument) -> (Self, JoinSet<()>) {
        let count = uploader.repositories().len();
        let (reporter, done) = watch::channel(vec![0; count]);
        let reporter = Arc::new(reporter);
        let permits = Arc::new(Semaphore::new(MAX_AT_ONCE));
        let mut tasks = JoinSet::new();
        let mut requests = Vec::new();
        for target in 0..count {
            let (sender, receiver) = watch::channel(Request::default());
            requests.push(sender);
            let filler = Filler {
                uploader: uploader.clone(),
                cluster: cluster.clone(),
                target,
                permits: Arc::clone(&permits),
                same: BTreeSet::new(),
                down_since: None,
            };
            if count > 1 {
                tasks.spawn(filler.run(receiver, Arc::clone(&reporter)));
            }
        }
        (Self { requests, done }, tasks)
    }

    /// Has a repository filled with what at least one of `sources` has from now on; gives the request's number.
    pub(super) fn request(&self, target: usize, sources: Vec<usize>) -> u64 {
        let mut given = 0;
        self.requests[target].send_modify(|request| {
            request.number += 1;
            request.sources = sources;
            given = request.number;
        });
        given
    }

    /// Whether a request is done.
    pub(super) fn is_done(&self, target: usize, request: u64) -> bool {
        self.done.borrow()[target] >= request
    }

    /// Resolves when something more is done. Of several callers' clones each is told.
    pub(super) async fn progressed(&mut self) {
        if self.done.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Has all of them filled from each other, and waits for it, for at most `patience`.
    pub(super) async fn fill_all(&mut self, patience: Duration) {
        let requests: Vec<u64> = (0..self.requests.len())
            .map(|target| self.request(target, Vec::new()))
            .collect();
        let all_done = async {
            while (0..requests.len()).any(|target| !self.is_done(target, requests[target])) {
                self.progressed().await;
            }
        };
        // Whatever is missing afterwards shows in the next listing.
        drop(tokio::time::timeout(patience, all_done).await);
    }
}

struct Filler {
    uploader: Uploader,
    cluster: ClusterDocument,
    target: usize,
    permits: Arc<Semaphore>,
    /// What has been compared and found to be the same contents sealed twice.
    same: BTreeSet<ObjectKey>,
    /// Since when the repository cannot be filled, and when that was last said.
    down_since: Option<(Instant, Instant)>,
}

impl Filler {
    async fn run(
        mut self,
        mut requests: watch::Receiver<Request>,
        done: Arc<watch::Sender<Vec<u64>>>,
    ) {
        loop {
            let asked = tokio::time::timeout(INTERVAL, requests.changed()).await;
            if matches!(asked, Ok(Err(_))) {
                return;
            }
            // Nobody waits for a comparison that nobody asked for: it takes the time to look everywhere.
            let everywhere = asked.is_err();
            let mut wait = FIRST_WAIT;
            loop {
                let mut request = requests.borrow_and_update().clone();
                if everywhere {
                    request.sources.clear();
                }
                match self.fill_wal(&request).await {
                    Ok(()) => {
                        self.say_filled();
                        done.send_modify(|done| done[self.target] = request.number);
                        break;
                    }
                    Err(error) => self.say_failed(&error),
                }
                if self.uploader.is_refused(self.target) {
                    break;
                }
                // A new request is a reason to look again at once, but not in a loop.
                tokio::time::sleep(FIRST_WAIT).await;
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = requests.changed() => {}
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            // WAL goes first: a new request cuts this off, which is as good as a crash.
            tokio::select! {
                _ = requests.changed() => requests.mark_changed(),
                () = self.fill_backups() => {}
            }
        }
    }

    fn name(&self) -> &str {
        self.uploader.repositories()[self.target].name()
    }

    fn say_failed(&mut self, error: &Error) {
        let now = Instant::now();
        let (since, said) = self.down_since.unwrap_or((now, now));
        let is_new = self.down_since.is_none();
        if is_new || now.duration_since(said) >= REMINDER {
            tracing::warn!(
                repository = self.name(),
                seconds = now.duration_since(since).as_secs(),
                error = error_text(error),
                "this repository is behind and cannot be filled up yet"
            );
            self.down_since = Some((since, now));
        }
    }

    fn say_filled(&mut self) {
        if let Some((since, _)) = self.down_since.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(
                repository = self.name(),
                seconds,
                "this repository has what its peers have again"
            );
        }
    }

    /// Copies the WAL that its peers have and it lacks, oldest first.
    async fn fill_wal(&mut self, request: &Request) -> Result<()> {
        if self.uploader.is_refused(self.target) {
            return Err(Error::TooFewRepositories { left: 0, needed: 1 });
        }
        let uploader = self.uploader.clone();
        let target = &uploader.repositories()[self.target];
        require_known(target, &self.cluster).await?;
        let (mut compared, mut failed) = (false, None);
        for (number, source) in uploader.repositories().iter().enumerate() {
            let wanted = request.sources.is_empty() || request.sources.contains(&number);
            if number == self.target || uploader.is_refused(number) || !wanted {
                continue;
            }
            // The peer first: what is stored while we list may be missing there, never here.
            match self.fill_wal_from(source, target).await {
                Ok(()) => compared = true,
                Err(error @ CopyError::To { .. }) => return Err(self.refused(error)),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if !compared => Err(self.refused(error)),
            _ if !compared => Err(Error::Interrupted {
                during: "comparing repositories",
            }),
            _ => Ok(()),
        }
    }

    async fn fill_wal_from(
        &mut self,
        source: &Repository,
        target: &Repository,
    ) -> Result<(), CopyError> {
        let missing = self.missing(source, target).await?;
        let (mut objects, mut bytes) = (0_u64, 0_u64);
        for item in &missing.differing {
            if Stage::of(&item.key) <= Some(Stage::Tails) && !self.same.contains(&item.key) {
                copy::compare_object(source, target, item).await?;
                self.same.insert(item.key.clone());
            }
        }
        for item in missing.objects {
            if Stage::of(&item.key) > Some(Stage::Tails) {
                continue;
            }
            let _permit = self.permits.acquire().await;
            match copy_object(source, target, &item.key, item.size).await {
                Ok(_) => (objects, bytes) = (objects + 1, bytes + item.size),
                // Removed since it was listed, because something that covers it was stored.
                Err(CopyError::From { source, .. })
                    if source.class() == ErrorClass::NotFound
                        && matches!(item.key, ObjectKey::Tail { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if objects > 0 {
            tracing::info!(
                repository = target.name(),
                from = source.name(),
                objects,
                bytes,
                "copied WAL that was missing"
            );
        }
        Ok(())
    }

    async fn missing(
        &self,
        source: &Repository,
        target: &Repository,
    ) -> Result<Missing, CopyError> {
        let cluster = self.cluster.id();
        let there = source.list_objects(cluster).await;
        let there = there.map_err(|error| CopyError::From {
            repository: source.name().to_owned(),
            source: error,
        })?;
        let here = target.list_objects(cluster).await;
        let here = here.map_err(|error| CopyError::To {
            repository: target.name().to_owned(),
            source: error,
        })?;
        let sized = |listed: Vec<Listed>| listed.into_iter().map(|one| (one.path, one.size));
        Ok(copy::missing(sized(there), sized(here)))
    }

    /// Backups and roll-ups. What fails is tried again at the next comparison.
    async fn fill_backups(&self) {
        let target = &self.uploader.repositories()[self.target];
        for (number, source) in self.uploader.repositories().iter().enumerate() {
            let refused = self.uploader.is_refused(self.target) || self.uploader.is_refused(number);
            if number == self.target || refused {
                continue;
            }
            let Ok(mut missing) = self.missing(source, target).await else {
                continue;
            };
            let stage = |key: &ObjectKey| Stage::of(key);
            missing.retain(|key| {
                matches!(stage(key), Some(Stage::Backups | Stage::BackupDescriptors))
            });
            if missing.objects.is_empty() {
                continue;
            }
            let (objects, bytes) = (missing.objects.len(), missing.bytes());
            match self.copy_backups(source, target, missing).await {
                Ok(()) => tracing::info!(
                    repository = target.name(),
                    from = source.name(),
                    objects,
                    bytes,
                    "copied backups that were missing"
                ),
                Err(error) => tracing::warn!(
                    repository = target.name(),
                    from = source.name(),
                    error = error_text(&error),
                    "not all missing backups could be copied; this is tried again later"
                ),
            }
        }
    }

    /// Descriptors stand behind everything else, so a backup exists only if all of it went over; the first failure ends it.
    async fn copy_backups(
        &self,
        source: &Repository,
        target: &Repository,
        missing: Missing,
    ) -> Result<(), CopyError> {
        for item in missing.objects {
            let _permit = self.permits.acquire().await;
            copy_object(source, target, &item.key, item.size).await?;
        }
        Ok(())
    }

    /// Other contents under the same key are for a person to look at.
    fn refused(&self, error: CopyError) -> Error {
        let is_conflict = error.class() == ErrorClass::Conflict;
        let (CopyError::From { source, .. } | CopyError::To { source, .. }) = error;
        if is_conflict {
            self.uploader.refuse(self.target, &source);
        }
        source.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, cluster};
    use super::*;
    use repository::testing::{FaultPlan, RequestCount};
    use repository::{Deadlines, PutOutcome, Store};

    const HISTORY: &str = "7412/wal/00000002.history";
    const FIRST: &str = "7412/wal/00000001/00000000/000000010000000000000001.wal";
    const SECOND: &str = "7412/wal/00000001/00000000/000000010000000000000002.wal";
    const THIRD: &str = "7412/wal/00000001/00000000/000000010000000000000003.wal";
    const TAIL: &str = "7412/tail/00000001/000000010000000000000004.00000000-00000100.0A1B2C3D";
    const IN_ORDER: [&str; 5] = [HISTORY, FIRST, SECOND, THIRD, TAIL];

    /// Repositories that know the cluster; the last one is to be filled.
    struct World {
        stores: Vec<Store>,
        filler: Filler,
    }

    impl World {
        async fn new(count: usize) -> Self {
            let stores: Vec<Store> = (0..count).map(|_| Store::in_memory()).collect();
            let filler = Filler {
                uploader: testing::uploader(&stores).await,
                cluster: cluster(),
                target: count - 1,
                permits: Arc::new(Semaphore::new(1)),
                same: BTreeSet::new(),
                down_since: None,
            };
            Self { stores, filler }
        }

        async fn put(&self, number: usize, path: &str, bytes: Vec<u8>) {
            let put = self.stores[number].put_new(path, bytes).await;
            assert_eq!(put.unwrap(), PutOutcome::Created);
        }

        async fn fill(&mut self) -> Result<()> {
            self.filler.fill_wal(&Request::default()).await
        }

        /// What is archived in the one to be filled.
        async fn filled(&self) -> Vec<String> {
            let listed = self.stores[self.filler.target].list("7412").await.unwrap();
            let paths = listed.into_iter().map(|object| object.path);
            let mut paths: Vec<String> = paths.filter(|path| !path.ends_with(".json")).collect();
            paths.sort_by_key(|path| IN_ORDER.iter().position(|known| known == path));
            paths
        }
    }

    fn sealed(path: &str, plain: &[u8]) -> Vec<u8> {
        testing::sealed(path, None, plain)
    }

    /// One byte of it is another one.
    fn damaged(path: &str) -> Vec<u8> {
        let mut bytes = sealed(path, b"WAL");
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    }

    #[tokio::test]
    async fn wal_goes_over_with_what_says_how_it_is_read() {
        let mut world = World::new(2).await;
        for path in IN_ORDER {
            world.put(0, path, sealed(path, b"WAL")).await;
        }
        world.fill().await.unwrap();
        assert_eq!(world.filled().await, IN_ORDER);
        for path in IN_ORDER {
            let there = world.stores[1].fetch(path, 1 << 20).await.unwrap();
            assert_eq!(there, sealed(path, b"WAL"), "{path}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_no_success_and_nothing_behind_it_is_stored() {
        let mut world = World::new(2).await;
        for path in IN_ORDER {
            let bytes = match path {
                SECOND => damaged(path),
                path => sealed(path, b"WAL"),
            };
            world.put(0, path, bytes).await;
        }
        let error = world.fill().await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Corrupt, "{error}");
        assert_eq!(world.filled().await, [HISTORY, FIRST]);
        assert!(!world.filler.uploader.is_refused(1), "it may be had later");
    }

    #[tokio::test]
    async fn what_one_peer_cannot_give_comes_from_the_next() {
        let mut world = World::new(3).await;
        world.put(0, FIRST, damaged(FIRST)).await;
        for path in IN_ORDER {
            world.put(1, path, sealed(path, b"WAL")).await;
        }
        world.fill().await.unwrap();
        assert_eq!(world.filled().await, IN_ORDER);
    }

    #[tokio::test]
    async fn other_contents_under_the_same_key_are_left_as_they_are_and_nothing_more_is_stored() {
        let mut world = World::new(2).await;
        world.put(0, FIRST, sealed(FIRST, b"WAL")).await;
        world.put(0, SECOND, sealed(SECOND, b"WAL")).await;
        let other = sealed(FIRST, b"WAL of another server");
        world.put(1, FIRST, other.clone()).await;
        let error = world.fill().await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Conflict, "{error}");
        assert!(world.filler.uploader.is_refused(1));
        assert_eq!(world.filled().await, [FIRST]);
        let there = world.stores[1].fetch(FIRST, 1 << 20).await.unwrap();
        assert_eq!(there, other);
        assert!(world.fill().await.is_err());
        assert_eq!(world.filled().await, [FIRST]);
    }

    #[tokio::test]
    async fn a_backup_exists_once_all_of_it_is_over() {
        let of_backup = |object: &str| format!("7412/backups/20260123T142811Z-full-3fa9/{object}");
        let (manifest, descriptor) = (of_backup("manifest"), of_backup("backup.json"));
        for is_whole in [true, false] {
            let world = World::new(2).await;
            let bytes = match is_whole {
                true => sealed(&manifest, b"{}"),
                false => damaged(&manifest),
            };
            world.put(0, &manifest, bytes).await;
            world.put(0, &descriptor, b"{}".to_vec()).await;
            world.filler.fill_backups().await;
            let listed = world.stores[1].list("7412/backups").await.unwrap();
            let count = listed.len();
            assert_eq!(count, if is_whole { 2 } else { 0 }, "{listed:?}");
        }
    }

    #[tokio::test]
    async fn a_repository_that_is_not_there_is_not_asked_in_a_loop() {
        let requests = RequestCount::default();
        let plan = FaultPlan {
            requests: requests.clone(),
            ..FaultPlan::default()
        };
        let counted = Store::faulty(&Store::in_memory(), plan, Deadlines::default());
        let mut world = World::new(1).await;
        // Nobody made the second one.
        let mut repositories = world.filler.uploader.repositories().to_vec();
        repositories.push(Repository::new("none", counted));
        world.filler.uploader = testing::uploader_of(repositories);
        world.filler.target = 1;
        let (sender, receiver) = watch::channel(Request::default());
        let (done, _) = watch::channel(vec![0; 2]);
        sender.send_modify(|request| request.number = 1);
        let run = Box::pin(world.filler.run(receiver, Arc::new(done)));
        drop(tokio::time::timeout(FIRST_WAIT / 2, run).await);
        assert_eq!(requests.of("fetch"), 1);
    }
}
