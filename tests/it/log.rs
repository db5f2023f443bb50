//! The catalogue snapshot that each backup takes, held against the server's own answers, and `walden log` against a workload that is
//! written down outside the database.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod snapshot;
