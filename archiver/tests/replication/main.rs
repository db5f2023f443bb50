//! The replication client against real servers. `WALDEN_TEST_PG_DIR/<major>/bin` holds the programs of each major; a test without its
//! server says NOT RUN.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod backup;
mod connecting;
mod server;
mod streaming;
