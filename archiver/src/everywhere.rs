//! Doing one thing in several repositories at once: who is waited for, for how long, and when it is enough.
//!
//! Owns that one repository that hangs or refuses does not decide for the others. Does not own what is done, or the retries of one of them.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use crate::{Error, Result};

/// How long repositories are waited for after one of them is done; each that is done begins the wait anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    /// While fewer are done than needed.
    pub(crate) needed: Duration,
    /// Once enough are.
    pub(crate) stragglers: Duration,
}

/// Asks all `members` at once, by number, and gives what those said that were done in time: at least one. Nobody is waited for before the
/// first is done. What is not waited for any longer is dropped.
///
/// # Errors
/// The first error, once so many have failed that `needed` cannot be reached.
pub(crate) async fn everywhere<T, F: Future<Output = Result<T>>>(
    members: impl IntoIterator<Item = usize>,
    needed: usize,
    waits: Waits,
    ask: impl Fn(usize) -> F,
) -> Result<BTreeMap<usize, T>> {
    let ask = &ask;
    let mut running: FuturesUnordered<_> = members
        .into_iter()
        .map(|number| async move { (number, ask(number).await) })
        .collect();
    let mut done = BTreeMap::new();
    let mut first_error: Option<Error> = None;
    let mut until = None;
    loop {
        if done.len() + running.len() < needed.max(1) {
            return Err(first_error.unwrap_or(Error::TooFewRepositories {
                left: done.len() + running.len(),
                needed,
            }));
        }
        let next = match until {
            None => running.next().await,
            Some(until) => match timeout_at(until, running.next()).await {
                Ok(next) => next,
                Err(_) => return Ok(done),
            },
        };
        match next {
            None => return Ok(done),
            Some((number, Ok(said))) => {
                done.insert(number, said);
                let wait = match done.len() >= needed {
                    true => waits.stragglers,
                    false => waits.needed,
                };
                until = Some(Instant::now() + wait);
            }
            Some((_, Err(error))) => {
                first_error.get_or_insert(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members by what they do: after how many milliseconds they are done, or an error at once.
    async fn ask(members: &[Option<u64>], needed: usize) -> Result<Vec<usize>> {
        let waits = Waits {
            needed: Duration::from_secs(1),
            stragglers: Duration::from_millis(200),
        };
        let done = everywhere(0..members.len(), needed, waits, |number| async move {
            match members[number] {
                Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                None => return Err(Error::Interrupted { during: "a test" }),
            }
            Ok(())
        })
        .await?;
        Ok(done.into_keys().collect())
    }

    #[tokio::test]
    async fn stragglers_are_waited_for_shortly_and_the_needed_for_long() {
        let check = async |members: &[Option<u64>], needed, expected: &[usize]| {
            let done = ask(members, needed).await.unwrap();
            assert_eq!(done.as_slice(), expected, "{members:?} {needed}");
        };
        check(&[Some(7)], 1, &[0]).await;
        check(&[Some(1), Some(5)], 1, &[0, 1]).await;
        check(&[Some(1), Some(600)], 1, &[0]).await;
        check(&[Some(1), Some(600)], 2, &[0, 1]).await;
        check(&[Some(1), Some(60_000)], 2, &[0]).await;
        check(&[Some(1), None, Some(5)], 2, &[0, 2]).await;
        check(&[Some(60_000), Some(300)], 1, &[1]).await;
    }

    #[tokio::test]
    async fn as_soon_as_too_few_are_left_the_error_is_given() {
        assert!(ask(&[None, Some(60_000)], 2).await.is_err());
        assert!(ask(&[None, None], 1).await.is_err());
        assert!(ask(&[], 1).await.is_err(), "nobody is nobody");
    }
}
