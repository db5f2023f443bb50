//! How long a test goes on that could go on for ever: a few rounds within `make test`, as many as one likes with `make soak`. Owns the
//! settings `ROUNDS`, `MINUTES` and `SEED`; what a round is, each test knows.
//!
//! A test whose name begins with `soak_` is run by `make soak` too, with these settings. It takes its rounds from here:
//! `for seed in soak::rounds(3) { … }`.

use super::process::note;
use super::workload::Random;
use std::time::{Duration, Instant};

/// Rounds that a soak of so many minutes may have at most.
const MAX_ROUNDS: u64 = 1_000_000;

/// The seeds of a test's rounds: so many as said, else as many as begin within the minutes said, else `share`. Each is printed, and
/// `SEED=` of it alone makes the same round again.
pub(crate) fn rounds(share: u64) -> impl Iterator<Item = u64> {
    let (rounds, minutes) = (number("ROUNDS"), number("MINUTES"));
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let first = seed();
    let most = rounds.unwrap_or(if until.is_some() { MAX_ROUNDS } else { share });
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    (0..most)
        .take_while(move |round| {
            *round == 0 || rounds.is_some() || until.is_none_or(|until| Instant::now() < until)
        })
        .map(move |round| {
            let seed = first.wrapping_add(round);
            note(&format!("{test}: round {}, SEED={seed}", round + 1));
            seed
        })
}

/// What a test of one round draws its random numbers from: as said, else another each time.
pub(crate) fn seed() -> u64 {
    number("SEED").unwrap_or_else(|| {
        let now = jiff::Timestamp::now().as_microsecond().unsigned_abs();
        // Of a length that can be typed again.
        Random::new(now ^ u64::from(std::process::id()) << 40).below(1_000_000_000) * 1000
    })
}

fn number(name: &str) -> Option<u64> {
    let said = std::env::var(format!("WALDEN_TEST_{name}")).ok()?;
    let number = said.parse();
    Some(number.unwrap_or_else(|_| panic!("WALDEN_TEST_{name} is {said:?}, not a number")))
}
