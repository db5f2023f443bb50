//! The formats Walden stores and where they live: keys, descriptors, sealed objects, catalogue, store.

pub mod error;

pub use error::{Error, ErrorClass, Result};
