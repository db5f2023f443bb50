//! The formats Walden stores and where they live: keys, descriptors, sealed objects, catalogue, store.

pub mod descriptor;
pub mod error;
pub mod identity;
pub mod key;
pub mod sealed;

pub use error::{Error, ErrorClass, Result};
