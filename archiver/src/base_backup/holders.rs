//! One backup's way into several repositories side by side: which of them have all of it so far, and who is let go and why.
//!
//! Everything of a backup is read once and sealed once; each step ends when all that are left have done it. One that fails for good, or holds up
//! the others, is let go: it lacks something from then on, and is filled from one that has it all, later. The last one is never let go: what it
//! cannot do, the backup cannot. Does not own what is stored (`parts.rs`, `mod.rs`), the retries of one of them (`upload.rs`), or filling up.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use repository::cluster::ClusterDocument;
use repository::key::ObjectKey;
use repository::sealed::Sealed;
use repository::{Repository, Stored};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::parts::Place;
use crate::upload::{NEEDED_GRACE, Uploader, error_text, require_known};
use crate::{Error, Result};

/// How long one may hold up the others, which have what it has not, without getting anything done.
const PATIENCE: Duration = NEEDED_GRACE;
/// How long one is waited for at the beginning, once another one has answered.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// A repository that does not have the backup, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its place among the uploader's.
    pub repository: usize,
    /// Why it was let go.
    pub why: String,
}

/// The repositories that have all of a backup so far; at least one. Clones are of the same ones.
#[derive(Clone)]
pub(super) struct Holders {
    uploader: Uploader,
    members: Arc<watch::Sender<Vec<Member>>>,
}

#[derive(Clone, Debug)]
struct Member {
    /// When it last got something done.
    moved: Instant,
    /// Why it was let go.
    left: Option<String>,
}

impl Holders {
    /// All that the uploader knows. Nobody is asked yet.
    pub(super) fn new(uploader: Uploader) -> Self {
        let member = Member {
            moved: Instant::now(),
            left: None,
        };
        let members = vec![member; uploader.repositories().len()];
        Self {
            uploader,
            members: Arc::new(watch::Sender::new(members)),
        }
    }

    /// Those that answer and know the cluster.
    ///
    /// # Errors
    /// What the last one says, if none does.
    pub(super) async fn begin(uploader: &Uploader, cluster: &ClusterDocument) -> Result<Self> {
        let holders = Self::new(uploader.clone());
        for number in 0..uploader.repositories().len() {
            if uploader.is_refused(number) {
                holders.let_go(number, "it holds other contents than ours".to_owned());
            }
        }
        let known = |number: usize| require_known(&uploader.repositories()[number], cluster);
        holders.each_within(ANSWER_PATIENCE, known).await?;
        Ok(holders)
    }

    /// What seals, and knows the repositories by their numbers.
    pub(super) fn uploader(&self) -> &Uploader {
        &self.uploader
    }

    /// Those that were let go, in the configuration's order.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        let members = self.members.borrow();
        let left = members.iter().enumerate().filter_map(|(repository, one)| {
            let why = one.left.clone()?;
            Some(LeftOut { repository, why })
        });
        left.collect()
    }

    /// Stores a sealed object of this backup; durable in all that are left when this returns.
    ///
    /// # Errors
    /// What the last one says: `Conflict`, `Corrupt`, `Bug`; `Timeout` after the place's patience, which waits out what passes.
    pub(super) async fn put(&self, place: &Place, sealed: &Sealed) -> Result<()> {
        let put = |repository: Repository| async move { repository.put(sealed).await };
        self.store(place, &sealed.key, put).await
    }

    /// The same for a plain document.
    ///
    /// # Errors
    /// As [`Holders::put`].
    pub(super) async fn put_document<T: Serialize + Sync>(
        &self,
        place: &Place,
        key: &ObjectKey,
        document: &T,
    ) -> Result<()> {
        let put = |repository: Repository| async move { repository.put_json(key, document).await };
        self.store(place, key, put).await
    }

    async fn store<F: Future<Output = repository::Result<Stored>>>(
        &self,
        place: &Place,
        key: &ObjectKey,
        put: impl Fn(Repository) -> F,
    ) -> Result<()> {
        let (put, patience) = (&put, place.patience);
        let stored = self.each(|number| async move {
            let stored = self.uploader.with_patience(number, key, put);
            let in_time = timeout(patience, stored).await;
            in_time.map_err(|_| Error::Timeout {
                during: format!("store {key}"),
                after: patience,
            })?
        });
        stored.await.map(drop)
    }

    /// Does one thing in all that are left, and gives what those said that are left afterwards: at least one.
    ///
    /// # Errors
    /// What the last one says.
    pub(super) async fn each<T, F: Future<Output = Result<T>>>(
        &self,
        ask: impl Fn(usize) -> F,
    ) -> Result<BTreeMap<usize, T>> {
        self.each_within(PATIENCE, ask).await
    }

    async fn each_within<T, F: Future<Output = Result<T>>>(
        &self,
        patience: Duration,
        ask: impl Fn(usize) -> F,
    ) -> Result<BTreeMap<usize, T>> {
        let ask = &ask;
        let mut running: FuturesUnordered<_> = self
            .left()
            .into_iter()
            .map(|number| async move {
                tokio::select! {
                    said = ask(number) => (number, Some(said)),
                    // Another object's turn let it go: nobody waits for it here either.
                    () = self.gone(number) => (number, None),
                }
            })
            .collect();
        let mut done = BTreeMap::new();
        let mut first_done = None;
        loop {
            let held_up = first_done.and_then(|since| self.held_up(&done, since, patience));
            let said = tokio::select! {
                said = running.next() => said,
                number = pass(held_up) => {
                    // Meanwhile it may have got something else done.
                    if held_up == first_done.and_then(|since| self.held_up(&done, since, patience)) {
                        let why = format!("it held up the others for {} seconds", patience.as_secs());
                        self.let_go(number, why);
                    }
                    continue;
                }
            };
            match said {
                None => break,
                Some((_, None)) => {}
                Some((number, Some(Ok(said)))) => {
                    self.note_moved(number);
                    done.insert(number, said);
                    first_done.get_or_insert_with(Instant::now);
                }
                Some((number, Some(Err(error)))) => {
                    if !self.let_go(number, error_text(&error)) {
                        return Err(error);
                    }
                }
            }
        }
        let left = self.left();
        done.retain(|number, _| left.contains(number));
        Ok(done)
    }

    /// Who is to be let go next, and when: of those that are not done, while one that is left is.
    fn held_up<T>(
        &self,
        done: &BTreeMap<usize, T>,
        since: Instant,
        patience: Duration,
    ) -> Option<(Instant, usize)> {
        let members = self.members.borrow();
        let left = members
            .iter()
            .enumerate()
            .filter(|(_, one)| one.left.is_none());
        let (is_done, waiting): (Vec<_>, Vec<_>) =
            left.partition(|(number, _)| done.contains_key(number));
        let waiting = waiting
            .into_iter()
            .map(|(number, one)| (one.moved.max(since) + patience, number));
        waiting.min().filter(|_| !is_done.is_empty())
    }

    fn left(&self) -> Vec<usize> {
        let members = self.members.borrow();
        let left = members
            .iter()
            .enumerate()
            .filter(|(_, one)| one.left.is_none());
        left.map(|(number, _)| number).collect()
    }

    /// Resolves when this one was let go.
    async fn gone(&self, number: usize) {
        let mut members = self.members.subscribe();
        let gone = members.wait_for(|members| members[number].left.is_some());
        // Its sender lives as long as we do.
        drop(gone.await);
    }

    fn note_moved(&self, number: usize) {
        self.members.send_if_modified(|members| {
            members[number].moved = Instant::now();
            false
        });
    }

    /// Whether it could be let go: another one is left.
    fn let_go(&self, number: usize, why: String) -> bool {
        let repository = self.uploader.repositories()[number].name();
        let is_said = self.members.send_if_modified(|members| {
            let mut others = members.iter().enumerate();
            let is_last = !others.any(|(other, one)| other != number && one.left.is_none());
            if is_last || members[number].left.is_some() {
                return false;
            }
            members[number].left = Some(why.clone());
            true
        });
        if is_said {
            tracing::warn!(
                repository,
                why,
                "the backup goes on without this repository, which is filled up later"
            );
        }
        self.members.borrow()[number].left.is_some()
    }
}

/// Waits for the moment; for ever without one.
async fn pass(held_up: Option<(Instant, usize)>) -> usize {
    match held_up {
        None => std::future::pending().await,
        Some((until, number)) => {
            sleep_until(until).await;
            number
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::Store;
    use repository::mirror::Ack;
    use repository::testing::UNENCRYPTED;

    /// So many repositories.
    fn holders(count: usize) -> Holders {
        let repository =
            |number: usize| Repository::new(&format!("number {number}"), Store::in_memory());
        let repositories = (0..count).map(repository).collect();
        Holders::new(Uploader::mirrored(repositories, Ack::All, UNENCRYPTED, 1))
    }

    /// Each is done after so many seconds, or fails at once.
    async fn ask(holders: &Holders, members: &[Option<u64>]) -> Result<Vec<usize>> {
        let done = holders.each(|number| async move {
            match members[number] {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => return Err(Error::Interrupted { during: "a test" }),
            }
            Ok(())
        });
        Ok(done.await?.into_keys().collect())
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_or_holds_up_the_others_is_let_go_and_the_last_one_never() {
        let check = async |members: &[Option<u64>], expected: &[usize], seconds: u64| {
            let (holders, begun) = (holders(members.len()), Instant::now());
            let done = ask(&holders, members).await.unwrap();
            assert_eq!(done.as_slice(), expected, "{members:?}");
            assert_eq!(begun.elapsed().as_secs(), seconds, "{members:?}");
            let left = holders.left_out();
            assert_eq!(left.len() + done.len(), members.len(), "{left:?}");
            assert!(left.iter().all(|one| !done.contains(&one.repository)));
        };
        let hour = Some(3600);
        check(&[hour], &[0], 3600).await;
        check(&[hour, None], &[0], 3600).await;
        check(&[Some(1), Some(20)], &[0, 1], 20).await;
        check(&[Some(1), hour], &[0], 31).await;
        check(&[hour, Some(7), Some(9)], &[1, 2], 37).await;
        check(&[None, Some(7), None], &[1], 7).await;
        for members in [&[None][..], &[None, None]] {
            let holders = holders(members.len());
            assert!(ask(&holders, members).await.is_err());
            assert_eq!(holders.left_out().len(), members.len() - 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gets_something_done_meanwhile_is_waited_for_and_whoever_is_gone_by_nobody() {
        let holders = holders(2);
        // The second one takes 40 seconds for one thing, and does another one meanwhile.
        let (one, two) = tokio::join!(
            ask(&holders, &[Some(1), Some(40)]),
            ask(&holders, &[Some(1), Some(15)])
        );
        assert_eq!((one.unwrap(), two.unwrap()), (vec![0, 1], vec![0, 1]));
        let begun = Instant::now();
        let (one, two) = tokio::join!(
            ask(&holders, &[Some(1), Some(3600)]),
            ask(&holders, &[Some(100), Some(3600)])
        );
        assert_eq!((one.unwrap(), two.unwrap()), (vec![0], vec![0]));
        assert_eq!(begun.elapsed().as_secs(), 100);
        assert_eq!(ask(&holders, &[Some(1), None]).await.unwrap(), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_hold_up_each_other_leave_one() {
        let holders = holders(2);
        let (one, two) = tokio::join!(
            ask(&holders, &[Some(1), Some(3600)]),
            ask(&holders, &[Some(3600), Some(2)])
        );
        // Which one, nobody can say: both have been waited for as long.
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!((one.len(), &one), (1, &two));
        assert_eq!(holders.left_out().len(), 1);
    }
}
