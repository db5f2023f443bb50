//! The storage contract on every back end, and what only one of them can get wrong.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests, which also damage files on purpose"
)]

mod answers;
mod faults;
mod local;
mod s3;
mod weed;

/// The mark that `.ci/run` looks for: a test that could not run here is not a test that passed.
#[expect(clippy::print_stderr, reason = "for the reader of the test's output")]
fn not_run(test: &str, why: &str) {
    eprintln!("NOT RUN: {test}: {why}");
}
