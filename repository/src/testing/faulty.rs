//! A back end that fails on purpose around a real one: before the request, after it (the lost reply), slowly, never, cut short or lying.
//! Owns the dice. What is drawn for a request depends on the seed, its kind, its path and how often that was asked: a run replays.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::store::seam::{Backend, Failure, Fetched, Page, PageRequest, split_mix};
use crate::store::{ObjectMeta, PutOutcome};

/// Longer than any deadline: what a stalled request waits for.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// How often which fault happens, each in requests of a thousand. The default has no faults.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Where the dice start.
    pub seed: u64,
    /// The request fails and nothing happened.
    pub fail_before: u16,
    /// The request was carried out and its reply is lost.
    pub fail_after: u16,
    /// The request waits up to `max_delay` first.
    pub delay: u16,
    /// Longest delay.
    pub max_delay: Duration,
    /// The request never ends (its deadline ends it).
    pub stall: u16,
    /// A read brings only a part of the bytes.
    pub truncate: u16,
    /// A read brings all bytes, one bit of them wrong. Nothing in the store can notice: the reader must.
    pub flip: u16,
    /// A switch that makes every request stall while it is on.
    pub outage: Outage,
    /// Counts what is asked.
    pub requests: RequestCount,
}

/// How many requests were made. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct RequestCount {
    by_kind: Arc<Mutex<HashMap<&'static str, u64>>>,
}

impl RequestCount {
    /// Requests of a kind so far: `put`, `fetch`, `head`, `list`.
    pub fn of(&self, kind: &str) -> u64 {
        let counts = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(kind).copied().unwrap_or(0)
    }

    fn add(&self, kind: &'static str) {
        let mut counts = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(kind).or_default() += 1;
    }
}

/// A switch: while it is on, no request gets an answer. Clones are the same switch.
#[derive(Clone, Debug, Default)]
pub struct Outage {
    on: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl Outage {
    /// Begins or ends the outage; requests already stalled stay so until their deadline.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// Requests that met the outage so far.
    pub fn requests_stalled(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }
}

pub(super) struct FaultyBackend {
    inner: Arc<dyn Backend>,
    plan: FaultPlan,
    asked: Mutex<HashMap<String, u64>>,
}

/// The faults of one request.
struct Dice {
    state: u64,
}

impl Dice {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        split_mix(self.state)
    }

    fn falls(&mut self, per_mille: u16) -> bool {
        self.next() % 1000 < u64::from(per_mille)
    }
}

impl FaultyBackend {
    pub(super) fn new(inner: Arc<dyn Backend>, plan: FaultPlan) -> Self {
        FaultyBackend {
            inner,
            plan,
            asked: Mutex::default(),
        }
    }

    fn dice(&self, kind: &'static str, path: &str) -> Dice {
        self.plan.requests.add(kind);
        let request = format!("{kind} {path}");
        // FNV-1a: any fixed hash will do.
        let hash = request
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
            });
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let count = asked.entry(request).or_default();
        *count += 1;
        Dice {
            state: split_mix(self.plan.seed ^ hash)
                .wrapping_add(count.wrapping_mul(0xD134_2543_DE82_EF95)),
        }
    }

    async fn around<T>(
        &self,
        dice: &mut Dice,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let plan = &self.plan;
        if plan.outage.on.load(Ordering::SeqCst) {
            plan.outage.refused.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(FOR_EVER).await;
        }
        if dice.falls(plan.delay) {
            let part = (dice.next() % 1000) as u32;
            tokio::time::sleep(plan.max_delay.mul_f64(f64::from(part) / 1000.0)).await;
        }
        if dice.falls(plan.stall) {
            tokio::time::sleep(FOR_EVER).await;
        }
        if dice.falls(plan.fail_before) {
            return Err(Failure::transient("planned fault before the request"));
        }
        let answer = request.await?;
        if dice.falls(plan.fail_after) {
            return Err(Failure::transient("planned fault after the request"));
        }
        Ok(answer)
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    async fn put_new(&self, path: &str, body: &[Bytes]) -> Result<PutOutcome, Failure> {
        let mut dice = self.dice("put", path);
        self.around(&mut dice, self.inner.put_new(path, body)).await
    }

    async fn fetch(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure> {
        let mut dice = self.dice("fetch", path);
        let mut fetched = self
            .around(&mut dice, self.inner.fetch(path, range, limit))
            .await?;
        let length = fetched.bytes.len() as u64;
        if length > 0 && dice.falls(self.plan.truncate) {
            fetched.bytes.truncate((dice.next() % length) as usize);
        }
        let length = fetched.bytes.len() as u64;
        if length > 0 && dice.falls(self.plan.flip) {
            let mut bytes = BytesMut::from(fetched.bytes.as_ref());
            let bit = dice.next() % (length * 8);
            if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
            fetched.bytes = bytes.freeze();
        }
        Ok(fetched)
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, Failure> {
        let mut dice = self.dice("head", path);
        self.around(&mut dice, self.inner.head(path)).await
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        let mut dice = self.dice("list", &request.folder);
        self.around(&mut dice, self.inner.list_page(request)).await
    }
}
