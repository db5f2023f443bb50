//! Falling over between stores in memory, some of them faulty.

use super::read::found;
use super::*;
use crate::key::ClusterId;
use crate::sealed::OpenPolicy;
use crate::testing::{self, FaultPlan, Outage};
use crate::{Deadlines, PutOutcome, Store};

const SEGMENT: &str = "7412/wal/00000001/00000000/000000010000000000000001.wal";
const OTHER: &str = "7412/wal/00000001/00000000/000000010000000000000002.wal";

fn key(path: &str) -> ObjectKey {
    path.parse().unwrap()
}

/// A store with an outage to switch on.
fn store() -> (Store, Store, Outage) {
    let inner = Store::in_memory();
    let outage = Outage::default();
    let plan = FaultPlan {
        outage: outage.clone(),
        ..FaultPlan::default()
    };
    let deadlines = Deadlines {
        request: Duration::from_secs(30),
        total: Duration::from_secs(300),
    };
    (Store::faulty(&inner, plan, deadlines), inner, outage)
}

struct World {
    both: Repositories,
    inner: [Store; 2],
    outage: [Outage; 2],
}

fn world() -> World {
    let (first, second) = (store(), store());
    World {
        both: Repositories::new(vec![
            Repository::new("first", first.0),
            Repository::new("second", second.0),
        ]),
        inner: [first.1, second.1],
        outage: [first.2, second.2],
    }
}

impl World {
    async fn put(&self, index: usize, path: &str, damage: bool) {
        let sealed = testing::sealed(key(path), None, b"WAL");
        let mut bytes = [&sealed.header[..], &sealed.payload[..]].concat();
        if damage {
            *bytes.last_mut().unwrap() ^= 1;
        }
        let put = self.inner[index].put_new(path, bytes).await.unwrap();
        assert_eq!(put, PutOutcome::Created);
    }

    async fn fetch(&self, path: &str) -> Result<Vec<u8>> {
        let (key, policy) = (key(path), OpenPolicy::default());
        Ok(self.both.fetch(&key, &policy, 1 << 20).await?.1)
    }

    fn taken(&self) -> Vec<(String, String)> {
        let account = self.both.account();
        let named = account.named.into_iter();
        named.map(|one| (one.repository, one.taken_from)).collect()
    }
}

fn names(first: &str, second: &str) -> (String, String) {
    (first.into(), second.into())
}

#[tokio::test(start_paused = true)]
async fn what_the_first_lacks_or_holds_damaged_comes_from_the_second_and_is_said() {
    let world = world();
    world.put(1, SEGMENT, false).await;
    assert_eq!(world.fetch(SEGMENT).await.unwrap(), b"WAL");
    assert_eq!(world.taken(), [names("first", "second")]);
    world.put(0, OTHER, true).await;
    world.put(1, OTHER, false).await;
    assert_eq!(world.fetch(OTHER).await.unwrap(), b"WAL");
    let account = world.both.account();
    assert_eq!(account.taken["second"], 2);
    assert!(account.named[1].problem.contains("checksum"), "{account:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_first_costs_seconds_once_and_is_asked_last_for_a_while() {
    let world = world();
    for path in [SEGMENT, OTHER] {
        world.put(0, path, false).await;
        world.put(1, path, false).await;
    }
    world.outage[0].set(true);
    let begun = Instant::now();
    assert_eq!(world.fetch(SEGMENT).await.unwrap(), b"WAL");
    let once = begun.elapsed();
    assert!(once >= PATIENCE && once < PATIENCE * 2, "{once:?}");
    let asked = world.outage[0].requests_stalled();
    for _ in 0..5 {
        assert_eq!(world.fetch(OTHER).await.unwrap(), b"WAL");
    }
    assert!(begun.elapsed() < PATIENCE * 2, "{:?}", begun.elapsed());
    assert_eq!(world.outage[0].requests_stalled(), asked);
    // Another process that is told of it does not ask it either.
    let memory = world.both.memory();
    let other = Repositories::new(world.both.members().to_vec());
    other.remember(&memory);
    assert_eq!(other.order(), [1, 0]);
    other.remember("nonsense\nfirst\nfirst x y\n");
    assert_eq!(other.memory(), memory);
}

#[tokio::test(start_paused = true)]
async fn absence_is_proven_by_all_or_not_at_all() {
    let world = world();
    let missing = world.fetch(SEGMENT).await.unwrap_err();
    assert_eq!(missing.class(), ErrorClass::NotFound);
    world.outage[0].set(true);
    let unknown = world.fetch(SEGMENT).await.unwrap_err();
    assert_eq!(unknown.class(), ErrorClass::Retry, "{unknown}");
    let text = unknown.to_string();
    assert!(
        text.contains("first: ") && text.contains("second: it is not there"),
        "{text}"
    );
    let place = key(SEGMENT);
    let likely = world.both.find_descriptor(&place, Absence::Likely);
    assert_eq!(likely.await.unwrap(), None);
    let listed = world.both.list(ClusterId::new(7412)).await.unwrap();
    assert_eq!(listed.unanswered.len(), 1);
    assert_eq!(listed.unanswered[0].0, "first");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_object_is_not_absent_however_many_lack_it() {
    let world = world();
    world.put(0, SEGMENT, true).await;
    let damaged = world.fetch(SEGMENT).await.unwrap_err();
    assert_eq!(damaged.class(), ErrorClass::Corrupt, "{damaged}");
    let opened = |one: Repository| async move {
        found(
            one.fetch(&key(SEGMENT), &OpenPolicy::default(), 1 << 20)
                .await,
        )
    };
    let likely = world
        .both
        .first_given(SEGMENT, 0, Absence::Likely, opened)
        .await;
    assert_eq!(likely.unwrap_err().class(), ErrorClass::Corrupt);
}

#[tokio::test(start_paused = true)]
async fn when_nobody_answers_all_are_asked_until_one_comes_back() {
    let world = world();
    world.put(1, SEGMENT, false).await;
    world.outage.iter().for_each(|outage| outage.set(true));
    let back = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        world.outage[1].set(false);
    };
    let (fetched, ()) = tokio::join!(world.fetch(SEGMENT), back);
    assert_eq!(fetched.unwrap(), b"WAL");
    // And it ends, when nobody does.
    world.outage[1].set(true);
    let begun = Instant::now();
    assert_eq!(
        world.fetch(SEGMENT).await.unwrap_err().class(),
        ErrorClass::Retry
    );
    let whole = begun.elapsed();
    assert!(whole <= Duration::from_secs(660), "{whole:?}");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_the_callers_check_is_asked_of_the_next() {
    let world = world();
    world.put(0, SEGMENT, false).await;
    world.put(1, SEGMENT, false).await;
    let place = key(SEGMENT);
    let ask = |one: Repository| {
        let place = place.clone();
        async move {
            let name = one.name().to_owned();
            Ok(found(one.fetch_descriptor(&place).await)?.map(|_| name))
        }
    };
    let check = |name: String| async move {
        match name.as_str() {
            "first" => Err(Error::Damaged {
                key: SEGMENT.into(),
                what: "does not fit".into(),
            }),
            _ => Ok(name),
        }
    };
    let from = world
        .both
        .first(SEGMENT, 0, Absence::Proven, ask, check)
        .await;
    assert_eq!(from.unwrap().as_deref(), Some("second"));
    assert_eq!(world.taken(), [names("first", "second")]);
}

#[tokio::test(start_paused = true)]
async fn listings_are_joined() {
    let world = world();
    world.put(0, SEGMENT, false).await;
    world.put(1, SEGMENT, false).await;
    world.put(1, OTHER, false).await;
    let listed = world.both.list(ClusterId::new(7412)).await.unwrap();
    let timelines: Vec<_> = listed.catalog.timelines.values().collect();
    assert_eq!(timelines[0].segments.len(), 2);
    assert!(listed.unanswered.is_empty());
}
