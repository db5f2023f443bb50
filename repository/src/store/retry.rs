//! Deadlines, backoff with jitter, and the loop that turns failed attempts into one answer.
//! The only retry between us and a store: `object_store`'s own is switched off, because it neither covers bodies nor shares our budget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Slowest transfer that still counts as progress, in bytes per second: a request may take this much longer for its bytes.
pub const MIN_TRANSFER_RATE: u64 = 256 * 1024;

/// Wait after the first failed attempt; doubles after each.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// Longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// How long one operation on a store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// One request without its bytes; each byte adds its share at [`MIN_TRANSFER_RATE`]. Also the longest silence within a body.
    pub request: Duration,
    /// All attempts of one operation together, waits included.
    pub total: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            request: Duration::from_secs(30),
            total: Duration::from_secs(300),
        }
    }
}

impl Deadlines {
    /// The deadline of one request that moves `bytes` bytes.
    pub(crate) fn request_of(&self, bytes: u64) -> Duration {
        self.request.saturating_add(Duration::from_millis(
            bytes.saturating_mul(1000) / MIN_TRANSFER_RATE,
        ))
    }
}

/// Waits between attempts: exponential, half of it random so that many clients do not return together.
#[derive(Debug)]
pub(crate) struct Backoff {
    state: AtomicU64,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Backoff {
            state: AtomicU64::new(seed),
        }
    }

    /// The wait after `failures` failed attempts (1 or more).
    pub(crate) fn wait_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = FIRST_BACKOFF
            .saturating_mul(1 << doublings)
            .min(MAX_BACKOFF);
        let fraction = 0.5 + 0.5 * (self.next_random() >> 11) as f64 / (1_u64 << 53) as f64;
        full.mul_f64(fraction)
    }

    /// SplitMix64: enough for jitter, and replayable from its seed.
    fn next_random(&self) -> u64 {
        let state = self
            .state
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        split_mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15))
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: u64) -> u64 {
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_stay_within_their_half() {
        let backoff = Backoff::new(7);
        for failures in 1..40 {
            let wait = backoff.wait_after(failures);
            let full = (100_u64 << (failures - 1).min(16)).min(10_000);
            let full = Duration::from_millis(full);
            assert!(
                wait >= full / 2 && wait <= full,
                "after {failures}: {wait:?} of {full:?}"
            );
        }
    }

    #[test]
    fn waits_replay_from_their_seed_and_differ_between_seeds() {
        let waits = |seed| {
            let backoff = Backoff::new(seed);
            (1..6)
                .map(|failures| backoff.wait_after(failures))
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn a_request_gets_time_for_its_bytes() {
        let deadlines = Deadlines {
            request: Duration::from_secs(30),
            total: Duration::from_secs(300),
        };
        assert_eq!(deadlines.request_of(0), Duration::from_secs(30));
        assert_eq!(
            deadlines.request_of(32 << 20),
            Duration::from_secs(30 + 128)
        );
        assert!(deadlines.request_of(u64::MAX) > Duration::from_secs(30));
    }
}
