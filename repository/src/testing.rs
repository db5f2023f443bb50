//! For tests of this and other crates (feature `testing`): the storage contract as one suite, a store in memory, and a store that fails
//! on purpose, replayable from a seed. Panics are its way to report. Owns nothing that runs in production.

mod contract;
mod faulty;
mod memory;

pub use contract::contract;
pub use faulty::{FaultPlan, Outage, RequestCount};

use std::sync::Arc;

use crate::store::{Deadlines, Store};

impl Store {
    /// An empty store in memory, shared by its clones.
    pub fn in_memory() -> Store {
        Store::with_backend(
            "memory:".into(),
            Arc::new(memory::MemoryBackend::default()),
            Deadlines::default(),
            1,
        )
    }

    /// `inner` with faults as planned, under `deadlines`. The faults of a path depend only on the seed, the path and the number of
    /// requests for it so far, not on how requests of several paths interleave.
    pub fn faulty(inner: &Store, plan: FaultPlan, deadlines: Deadlines) -> Store {
        let seed = plan.seed;
        let backend = Arc::new(faulty::FaultyBackend::new(inner.backend(), plan));
        Store::with_backend(inner.url().to_owned(), backend, deadlines, seed)
    }
}
