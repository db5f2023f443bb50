//! PostgreSQL's `TimestampTz`. Calendars and zones are not its business.

/// Microseconds between 1970-01-01 and 2000-01-01, both 00:00 UTC.
const UNIX_EPOCH_TO_POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A moment: microseconds since 2000-01-01 00:00 UTC (leap seconds not counted), as WAL records and the replication protocol carry it.
#[doc(alias = "TimestampTz")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The moment that many microseconds after 1970-01-01 00:00 UTC; moments beyond the type's range become its ends.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(UNIX_EPOCH_TO_POSTGRES_EPOCH_MICROS))
    }

    /// Microseconds since 1970-01-01 00:00 UTC; moments beyond that type's range become its ends.
    #[must_use]
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_EPOCH_TO_POSTGRES_EPOCH_MICROS)
    }

    /// The moment that many *seconds* after 1970-01-01 00:00 UTC (`pg_time_t`, as checkpoints carry it).
    #[must_use]
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self::from_unix_micros(seconds.saturating_mul(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn the_epochs_are_thirty_years_apart() {
        assert_eq!(Timestamp(0).unix_micros(), 946_684_800_000_000);
        assert_eq!(
            Timestamp::from_unix_micros(0),
            Timestamp(-946_684_800_000_000)
        );
        // 2026-01-23 14:28:11.5 UTC
        assert_eq!(
            Timestamp::from_unix_micros(1_769_178_491_500_000).0,
            822_493_691_500_000
        );
        assert_eq!(Timestamp::from_unix_seconds(946_684_800), Timestamp(0));
    }

    #[test]
    fn extreme_moments_do_not_overflow() {
        assert_eq!(Timestamp(i64::MAX).unix_micros(), i64::MAX);
        assert_eq!(Timestamp::from_unix_micros(i64::MIN), Timestamp(i64::MIN));
        assert_eq!(
            Timestamp::from_unix_seconds(i64::MAX).unix_micros(),
            i64::MAX
        );
    }
}
