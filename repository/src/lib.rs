//! The formats Walden stores and where they live: keys, descriptors, sealed objects, catalogue, store.

pub mod backup;
pub mod catalog;
pub mod cluster;
pub mod copy;
pub mod descriptor;
pub mod durable;
pub mod error;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod gap;
pub mod identity;
pub mod index;
pub mod key;
mod listing;
pub mod manifest;
pub mod mirror;
pub mod names;
pub mod repo;
pub mod sealed;
pub mod several;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wal;

pub use error::{Error, ErrorClass, Result};
pub use repo::{Repository, Stored};
pub use several::Repositories;
pub use store::{Deadlines, PutOutcome, Store, StoreOptions};
