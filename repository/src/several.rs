//! Several repositories read as one: what the first cannot give is asked of the next, and absence is proven by all of them or not at all.
//!
//! Owns the order in which repositories are asked, how long a bad one may hold the others up and how long it is then passed over, the
//! union of listings, and the account of what came from where. Only reads. Does not own requests and their retries (`store/`), or what
//! an object must be (the caller's check).

mod read;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::key::ObjectKey;
use crate::{Error, ErrorClass, Repository, Result};

/// How long a repository is waited for before the next one is asked, without an object's bytes.
const PATIENCE: Duration = Duration::from_secs(5);
/// Slowest transfer that is waited for when another repository can be asked, in bytes per second.
const PATIENT_RATE: u64 = 2 << 20;
/// How long what fails at once is tried again before the next one is asked.
const FAILING: Duration = Duration::from_secs(2);
/// How long a repository that gave no answer is asked last; doubles with each time in a row.
const AVOIDED_FOR: Duration = Duration::from_secs(60);
/// Longest such time.
const MAX_AVOIDED_FOR: Duration = Duration::from_secs(600);
/// Longest wait before all repositories are asked again.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Objects from elsewhere that an account names; the others are counted.
const MAX_NAMED: usize = 50;

/// An error of a crate that reads through [`Repositories`].
pub trait Fault: std::error::Error + From<Error> {
    /// What can be done about it.
    fn class(&self) -> ErrorClass;
}

impl Fault for Error {
    fn class(&self) -> ErrorClass {
        self.class()
    }
}

/// What it takes to say that an object does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Every repository says so. One that does not answer is asked again until its deadline.
    Proven,
    /// One says so and the others give no answer: for what nobody needs to exist.
    Likely,
}

/// Repositories in the order in which they are asked. Cheap to clone; clones share what they learn.
#[derive(Clone)]
pub struct Repositories {
    shared: Arc<Shared>,
}

struct Shared {
    members: Vec<Repository>,
    avoided: Mutex<BTreeMap<usize, Avoided>>,
    account: Mutex<Account>,
}

/// A repository that is asked last for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Avoided {
    until: SystemTime,
    in_a_row: u32,
}

/// What did not come from the first repository, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Objects by the repository that gave them; the first one's are not counted.
    pub taken: BTreeMap<String, u64>,
    /// What a repository could not give, at most 50 of them.
    pub named: Vec<FallOver>,
}

/// An object that a repository could not give, and another one gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallOver {
    /// The one that could not.
    pub repository: String,
    /// What was asked for.
    pub object: String,
    /// Why it could not.
    pub problem: String,
    /// The one that gave it.
    pub taken_from: String,
}

/// How asking one after the other ended.
enum Round<T, E> {
    /// One gave what was asked for.
    Given(T),
    /// Those that failed, and those that do not have it.
    Nobody(Vec<(usize, E)>, Vec<usize>),
}

/// What several repositories list together.
#[derive(Debug)]
pub struct Union {
    /// Everything that at least one of them lists.
    pub catalog: Catalog,
    /// Those that did not answer: what they alone hold is not known.
    pub unanswered: Vec<(String, Error)>,
}

impl Union {
    /// Why nothing is known of an object that is not listed; `None` if all have answered.
    #[must_use]
    pub fn unknown(&self, object: &str) -> Option<Error> {
        let classes = self.unanswered.iter().map(|(_, error)| error.class());
        let class = classes.min_by_key(|class| rank(*class))?;
        let said = self
            .unanswered
            .iter()
            .map(|(name, error)| format!("{name}: {}", chain(error)));
        Some(Error::NoRepositoryGives {
            object: object.to_owned(),
            said: said.collect::<Vec<_>>().join("; "),
            class,
        })
    }
}

impl From<Repository> for Repositories {
    fn from(only: Repository) -> Self {
        Self::new(vec![only])
    }
}

impl From<&Repository> for Repositories {
    fn from(only: &Repository) -> Self {
        only.clone().into()
    }
}

impl From<&Repositories> for Repositories {
    fn from(repositories: &Repositories) -> Self {
        repositories.clone()
    }
}

impl Repositories {
    /// Reads from these, in this order; of an empty list nothing can be read.
    #[must_use]
    pub fn new(members: Vec<Repository>) -> Self {
        Self {
            shared: Arc::new(Shared {
                members,
                avoided: Mutex::default(),
                account: Mutex::default(),
            }),
        }
    }

    /// Whether there is another one to ask.
    #[must_use]
    pub fn is_several(&self) -> bool {
        self.members().len() > 1
    }

    /// The repositories, in the order of the configuration.
    #[must_use]
    pub fn members(&self) -> &[Repository] {
        &self.shared.members
    }

    /// Where they are, for messages.
    #[must_use]
    pub fn urls(&self) -> String {
        let urls: Vec<&str> = self.members().iter().map(Repository::url).collect();
        urls.join(", ")
    }

    /// What came from others than the first so far.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account_mut(|account| account.clone())
    }

    /// Which repositories are asked last at the moment, for [`Repositories::remember`] in another process: one line each.
    #[must_use]
    pub fn memory(&self) -> String {
        let mut text = String::new();
        for (index, avoided) in self.avoided_mut(|all| all.clone()) {
            let until = avoided.until.duration_since(UNIX_EPOCH).unwrap_or_default();
            if let Some(member) = self.members().get(index) {
                // Writing to a string cannot fail.
                writeln!(
                    text,
                    "{} {} {}",
                    member.name(),
                    until.as_secs(),
                    avoided.in_a_row
                )
                .expect("a string takes any text");
            }
        }
        text
    }

    /// Takes over what [`Repositories::memory`] said. What cannot be read is passed over: it only costs time.
    pub fn remember(&self, memory: &str) {
        let latest = SystemTime::now() + MAX_AVOIDED_FOR;
        for line in memory.lines() {
            let mut words = line.split(' ');
            let (name, until, in_a_row) = (words.next(), words.next(), words.next());
            let index = self
                .members()
                .iter()
                .position(|member| Some(member.name()) == name);
            let until = until.and_then(|text| text.parse().ok());
            let until =
                until.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
            let in_a_row = in_a_row.and_then(|text| text.parse().ok());
            if let (Some(index), Some(until), Some(in_a_row)) = (index, until, in_a_row) {
                let avoided = Avoided {
                    // A clock that was wrong must not shut a repository out for long.
                    until: until.min(latest),
                    in_a_row,
                };
                self.avoided_mut(|all| all.insert(index, avoided));
            }
        }
    }

    /// Asks one repository after the other until one gives what passes `check`. `None`: absent, as `absence` wants it proven.
    ///
    /// `ask` says `None` for an object that its repository is proven not to have, and is given a repository whose deadlines fit: with
    /// others to ask, an object of `size` bytes is waited for some seconds. Where nobody can give it and one has not answered, all are asked
    /// again until the store's own deadline is over.
    ///
    /// # Errors
    /// Of a single repository its own. Of several one that names each: class `Retry` if one of them may still have it, else the worst of theirs.
    pub async fn first<T, E, Ask, Asked, Check, Checked>(
        &self,
        object: &str,
        size: u64,
        absence: Absence,
        ask: Ask,
        check: Check,
    ) -> Result<Option<T>, E>
    where
        E: Fault,
        Ask: Fn(Repository) -> Asked,
        Asked: Future<Output = Result<Option<T>, E>>,
        Check: Fn(T) -> Checked,
        Checked: Future<Output = Result<T, E>>,
    {
        if let [only] = self.members() {
            return match ask(only.clone()).await? {
                Some(found) => check(found).await.map(Some),
                None => Ok(None),
            };
        }
        let begun = Instant::now();
        let total = self.patience();
        let mut patience =
            PATIENCE + Duration::from_millis(size.saturating_mul(1000) / PATIENT_RATE);
        let mut pause = Duration::from_secs(1);
        loop {
            let round = self.round(object, patience, absence, &ask, &check).await;
            let (failures, absent) = match round {
                Round::Given(found) => return Ok(Some(found)),
                Round::Nobody(failures, absent) => (failures, absent),
            };
            let proves =
                |class: ErrorClass| !matches!(class, ErrorClass::Retry | ErrorClass::Config);
            let is_absent = match absence {
                Absence::Proven => failures.is_empty(),
                Absence::Likely => {
                    !absent.is_empty() && !failures.iter().any(|(_, error)| proves(error.class()))
                }
            };
            if is_absent {
                return Ok(None);
            }
            let may_pass = failures
                .iter()
                .any(|(_, error)| error.class() == ErrorClass::Retry);
            let left = total.saturating_sub(begun.elapsed());
            if !may_pass || left <= pause {
                return Err(self.nobody(object, failures, &absent));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            patience = (patience * 2).min(left);
        }
    }

    /// Asks each of several repositories once for what one of them has given already and the caller cannot use, until one gives what passes
    /// `check`. `None`: nobody does. Who does not answer is not waited for.
    pub async fn other<T, E, Ask, Asked, Check, Checked>(
        &self,
        object: &str,
        ask: Ask,
        check: Check,
    ) -> Option<T>
    where
        E: Fault,
        Ask: Fn(Repository) -> Asked,
        Asked: Future<Output = Result<Option<T>, E>>,
        Check: Fn(T) -> Checked,
        Checked: Future<Output = Result<T, E>>,
    {
        if !self.is_several() {
            return None;
        }
        let round = self.round(object, PATIENCE, Absence::Proven, &ask, &check);
        match round.await {
            Round::Given(found) => Some(found),
            Round::Nobody(..) => None,
        }
    }

    /// Asks one after the other, each once.
    async fn round<T, E, Ask, Asked, Check, Checked>(
        &self,
        object: &str,
        patience: Duration,
        absence: Absence,
        ask: &Ask,
        check: &Check,
    ) -> Round<T, E>
    where
        E: Fault,
        Ask: Fn(Repository) -> Asked,
        Asked: Future<Output = Result<Option<T>, E>>,
        Check: Fn(T) -> Checked,
        Checked: Future<Output = Result<T, E>>,
    {
        let mut failures: Vec<(usize, E)> = Vec::new();
        let mut absent = Vec::new();
        for index in self.order() {
            let Some(member) = self.members().get(index) else {
                continue;
            };
            if absence == Absence::Likely && !absent.is_empty() && self.is_avoided(index) {
                continue;
            }
            let found = match ask(member.hurried(patience, FAILING)).await {
                Ok(found) => {
                    self.answered(index);
                    found
                }
                Err(error) => {
                    match is_answer(error.class()) {
                        true => self.answered(index),
                        false => self.avoid(index, &error),
                    }
                    failures.push((index, error));
                    continue;
                }
            };
            let Some(found) = found else {
                absent.push(index);
                continue;
            };
            match check(found).await {
                Ok(found) => {
                    self.note(object, index, &failures, &absent);
                    return Round::Given(found);
                }
                Err(error) => failures.push((index, error)),
            }
        }
        Round::Nobody(failures, absent)
    }

    /// As [`Repositories::first`], for what is checked by asking for it.
    ///
    /// # Errors
    /// As [`Repositories::first`].
    pub async fn first_given<T, E, Ask, Asked>(
        &self,
        object: &str,
        size: u64,
        absence: Absence,
        ask: Ask,
    ) -> Result<Option<T>, E>
    where
        E: Fault,
        Ask: Fn(Repository) -> Asked,
        Asked: Future<Output = Result<Option<T>, E>>,
    {
        let as_it_is = |found| std::future::ready(Ok(found));
        self.first(object, size, absence, ask, as_it_is).await
    }

    /// Those that are not avoided first, else as configured.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.members().len()).collect();
        order.sort_by_key(|index| self.is_avoided(*index));
        order
    }

    fn is_avoided(&self, index: usize) -> bool {
        let now = SystemTime::now();
        self.avoided_mut(|all| all.get(&index).is_some_and(|avoided| avoided.until > now))
    }

    fn avoid(&self, index: usize, error: &dyn std::error::Error) {
        let now = SystemTime::now();
        let span = self.avoided_mut(|all| {
            let known = all.get(&index).copied();
            if known.is_some_and(|known| known.until > now) {
                return None;
            }
            let in_a_row = known.map_or(0, |known| known.in_a_row).saturating_add(1);
            let span = AVOIDED_FOR.saturating_mul(1 << (in_a_row - 1).min(8));
            let span = span.min(MAX_AVOIDED_FOR);
            let until = now + span;
            all.insert(index, Avoided { until, in_a_row });
            Some(span)
        });
        if let Some(span) = span {
            tracing::warn!(
                repository = self.name(index),
                asked_last_for_seconds = span.as_secs(),
                cause = chain(error),
                "a repository does not answer: the others are asked"
            );
        }
    }

    fn answered(&self, index: usize) {
        self.avoided_mut(|all| all.remove(&index));
    }

    /// Accounts for an object that others were asked for in vain.
    fn note<E: Fault>(
        &self,
        object: &str,
        giver: usize,
        failures: &[(usize, E)],
        absent: &[usize],
    ) {
        if giver == 0 && failures.is_empty() {
            return;
        }
        let taken_from = self.name(giver);
        let failed = failures.iter().map(|(index, error)| (*index, chain(error)));
        let lacking = absent
            .iter()
            .map(|index| (*index, "it is not there".to_owned()));
        let fall_overs: Vec<FallOver> = failed
            .chain(lacking)
            .map(|(index, problem)| FallOver {
                repository: self.name(index),
                object: object.to_owned(),
                problem,
                taken_from: taken_from.clone(),
            })
            .collect();
        self.account_mut(|account| {
            if giver > 0 {
                *account.taken.entry(taken_from.clone()).or_default() += 1;
            }
            for fall_over in fall_overs {
                if account.named.len() < MAX_NAMED {
                    tracing::warn!(
                        repository = fall_over.repository,
                        object = fall_over.object,
                        problem = fall_over.problem,
                        taken_from = fall_over.taken_from,
                        "an object was taken from another repository"
                    );
                    account.named.push(fall_over);
                }
            }
        });
    }

    /// One error for all of them.
    fn nobody<E: Fault>(&self, object: &str, failures: Vec<(usize, E)>, absent: &[usize]) -> E {
        let classes = failures.iter().map(|(_, error)| error.class());
        let class = classes
            .min_by_key(|class| rank(*class))
            .unwrap_or(ErrorClass::NotFound);
        let failed = failures.iter().map(|(index, error)| (*index, chain(error)));
        let lacking = absent
            .iter()
            .map(|index| (*index, "it is not there".to_owned()));
        let mut said: Vec<(usize, String)> = failed.chain(lacking).collect();
        said.sort_unstable();
        let said: Vec<String> = said
            .into_iter()
            .map(|(index, text)| format!("{}: {text}", self.name(index)))
            .collect();
        E::from(Error::NoRepositoryGives {
            object: object.to_owned(),
            said: said.join("; "),
            class,
        })
    }

    fn lacks(&self, key: &ObjectKey) -> Error {
        let location = match self.members() {
            [only] => format!("{}/{key}", only.url()),
            _ => format!("{key} in {}", self.urls()),
        };
        Error::NotFound { location }
    }

    fn name(&self, index: usize) -> String {
        self.members()
            .get(index)
            .map_or_else(String::new, |member| member.name().to_owned())
    }

    fn avoided_mut<T>(&self, work: impl FnOnce(&mut BTreeMap<usize, Avoided>) -> T) -> T {
        work(
            &mut self
                .shared
                .avoided
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn account_mut<T>(&self, work: impl FnOnce(&mut Account) -> T) -> T {
        work(
            &mut self
                .shared
                .account
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Whether a store that says this has answered: it is no reason to ask others first from now on.
fn is_answer(class: ErrorClass) -> bool {
    !matches!(class, ErrorClass::Retry | ErrorClass::Config)
}

/// Which of several errors is the one to act on: what may pass, then what is certain.
fn rank(class: ErrorClass) -> u8 {
    match class {
        ErrorClass::Retry => 0,
        ErrorClass::Corrupt => 1,
        ErrorClass::Key => 2,
        ErrorClass::Conflict => 3,
        ErrorClass::Bug => 4,
        ErrorClass::Config => 5,
        ErrorClass::NotFound => 6,
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        write!(text, ": {error}").expect("a string takes any text");
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[path = "several/tests.rs"]
mod tests;
