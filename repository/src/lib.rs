//! The formats Walden stores and where they live: keys, descriptors, sealed objects, catalogue, store.

pub mod durable;
pub mod error;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Error, ErrorClass, Result};
pub use store::{Deadlines, PutOutcome, Store, StoreOptions};
