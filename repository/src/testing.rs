//! For tests of this and other crates (feature `testing`): the storage contract as one suite, a store in memory, and a store that fails
//! on purpose, replayable from a seed. Panics are its way to report. Owns nothing that runs in production.

mod contract;
mod faulty;
mod memory;

pub use contract::contract;
pub use faulty::{FaultPlan, Outage, RequestCount};

use std::sync::Arc;

use crate::cluster::ClusterDocument;
use crate::descriptor::WalDescriptor;
use crate::key::ObjectKey;
use crate::sealed::{BufferPool, Compression, Facts, SealPolicy, Sealed, Sealer};
use crate::store::seam::PAGE_SIZE;
use crate::store::{Deadlines, Store};

/// How tests seal what need not be secret: not encrypted, LZ4, full descriptors.
pub const UNENCRYPTED: SealPolicy = SealPolicy {
    recipients: None,
    compression: Compression::Lz4,
    minimal_descriptor: false,
};

/// A sealed object of PostgreSQL 18, not encrypted.
pub fn sealed(key: ObjectKey, wal: Option<WalDescriptor>, plain: &[u8]) -> Sealed {
    let facts = Facts {
        key,
        pg_version: 18,
        wal,
    };
    Sealer::new(UNENCRYPTED, BufferPool::new(0))
        .seal(facts, plain)
        .expect("seal an object")
}

/// `cluster.json` of a cluster of PostgreSQL 18 with segments of 1 MiB.
pub fn cluster_document(system_identifier: u64) -> ClusterDocument {
    ClusterDocument {
        format: 1,
        requires: Vec::new(),
        system_identifier,
        incarnation: 0,
        parent: None,
        pg_version: 18,
        block_size: 8192,
        wal_segment_size: 1 << 20,
        created: jiff::Timestamp::UNIX_EPOCH,
    }
}

impl Store {
    /// An empty store in memory, shared by its clones.
    pub fn in_memory() -> Store {
        Self::in_memory_paged(PAGE_SIZE)
    }

    /// As [`Store::in_memory`], with fewer objects in a page of a listing than stores give.
    pub fn in_memory_paged(page_size: usize) -> Store {
        Store::with_backend(
            "memory:".into(),
            Arc::new(memory::MemoryBackend::new(page_size)),
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
