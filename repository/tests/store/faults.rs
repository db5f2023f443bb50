//! The store over a faulty back end, on a stopped clock: retries, deadlines, and that faults replay from their seed.

use std::time::Duration;

use repository::testing::{FaultPlan, Outage};
use repository::{Deadlines, Error, ErrorClass, PutOutcome, Store};
use tokio::time::Instant;

fn deadlines() -> Deadlines {
    Deadlines {
        request: Duration::from_secs(10),
        total: Duration::from_secs(120),
    }
}

fn everything(seed: u64) -> FaultPlan {
    FaultPlan {
        seed,
        fail_before: 200,
        fail_after: 200,
        delay: 300,
        max_delay: Duration::from_secs(3),
        stall: 50,
        truncate: 200,
        ..FaultPlan::default()
    }
}

/// Puts and reads back; answers what happened and when, on the test's clock.
async fn work(seed: u64) -> Vec<(PutOutcome, Duration)> {
    let inner = Store::in_memory();
    let store = Store::faulty(&inner, everything(seed), deadlines());
    let started = Instant::now();
    let mut history = Vec::new();
    for number in 0..100_u32 {
        let (path, body) = (
            format!("object/{number}"),
            vec![number as u8; 100 + number as usize],
        );
        history.push((
            store.put_new(&path, body.clone()).await.unwrap(),
            started.elapsed(),
        ));
        assert_eq!(store.fetch(&path, 1000).await.unwrap(), body, "{path}");
        assert_eq!(inner.fetch(&path, 1000).await.unwrap(), body, "{path}");
    }
    assert_eq!(store.list("object").await.unwrap().len(), 100);
    history
}

#[tokio::test(start_paused = true)]
async fn work_gets_done_through_faults_and_replays_from_its_seed() {
    let (one, again, other) = (work(1).await, work(1).await, work(2).await);
    assert_eq!(one, again);
    assert_ne!(one, other);
    let lost_replies = one
        .iter()
        .filter(|(outcome, _)| *outcome == PutOutcome::AlreadyExists)
        .count();
    assert!(lost_replies > 5, "the plan loses replies: {lost_replies}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_answer_never_passes_for_a_short_object() {
    let inner = Store::in_memory();
    assert_eq!(
        inner.put_new("x", "0123456789").await.unwrap(),
        PutOutcome::Created
    );
    let store = Store::faulty(
        &inner,
        FaultPlan {
            truncate: 1000,
            ..FaultPlan::default()
        },
        deadlines(),
    );
    for error in [
        store.fetch("x", 100).await.unwrap_err(),
        store.fetch_head("x", 4).await.unwrap_err(),
        store.fetch_range("x", 2..5).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::Unavailable { attempts: 10.., .. }),
            "{error:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_goes_through_because_only_the_reader_can_tell() {
    let inner = Store::in_memory();
    assert_eq!(
        inner.put_new("x", vec![0; 64]).await.unwrap(),
        PutOutcome::Created
    );
    let store = Store::faulty(
        &inner,
        FaultPlan {
            flip: 1000,
            ..FaultPlan::default()
        },
        deadlines(),
    );
    let bytes = store.fetch("x", 64).await.unwrap();
    assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_at_the_total_deadline_and_what_follows_works() {
    let outage = Outage::default();
    let plan = FaultPlan {
        outage: outage.clone(),
        ..FaultPlan::default()
    };
    let store = Store::faulty(&Store::in_memory(), plan, deadlines());
    assert_eq!(store.put_new("x", "1").await.unwrap(), PutOutcome::Created);
    outage.set(true);
    let started = Instant::now();
    let error = store.fetch("x", 1).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(
        started.elapsed() <= deadlines().total,
        "{:?}",
        started.elapsed()
    );
    assert!(
        started.elapsed() >= deadlines().total / 2,
        "gave up early: {:?}",
        started.elapsed()
    );
    assert!(
        outage.requests_stalled() >= 5,
        "{}",
        outage.requests_stalled()
    );
    outage.set(false);
    assert_eq!(store.fetch("x", 1).await.unwrap(), "1");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_get_better_is_not_retried() {
    let store = Store::faulty(&Store::in_memory(), FaultPlan::default(), deadlines());
    let started = Instant::now();
    assert_eq!(
        store.fetch("x", 1).await.unwrap_err().class(),
        ErrorClass::NotFound
    );
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn contract_in_memory() {
    repository::testing::contract(&Store::in_memory()).await;
}
