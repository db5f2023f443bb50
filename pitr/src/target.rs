//! Recovery targets as the user names them (pure). How a target is found in WAL: `stop.rs`; how it is told to PostgreSQL: `recovery_conf.rs`.

use crate::error::{Error, Result};
use crate::time::{format_utc, parse_time};
use jiff::tz::TimeZone;
use std::fmt;
use wal_format::{Lsn, Timestamp};

/// Longest name of a restore point in bytes (`MAXFNAMELEN - 1`): the server cuts none, it refuses longer ones.
pub const MAX_RESTORE_POINT_NAME_BYTES: usize = 63;
/// The first transaction id that an ordinary transaction can have.
#[doc(alias = "FirstNormalTransactionId")]
pub const FIRST_NORMAL_XID: u32 = 3;

/// Where recovery is to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At the end of what is stored, tail chunks included.
    Latest,
    /// As soon as the backup is consistent: at its stop LSN.
    Immediate,
    /// At a moment: before the first commit or abort, in WAL order, that is later.
    Time(Timestamp),
    /// At a position, with PostgreSQL's meaning: see [`RecoveryGoal::inclusive`].
    Lsn(Lsn),
    /// At the end of a transaction (its 32-bit id).
    Xid(u32),
    /// At the first restore point of this name.
    Name(String),
}

/// A target, and whether what stands exactly on it is still applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryGoal {
    /// Where to stop.
    pub target: RecoveryTarget,
    /// As `recovery_target_inclusive`. Time: commits *at* the time are applied (true) or not. Xid: that transaction is applied or not.
    /// LSN: the first record that starts at or after it is the last one applied, or the first one not applied. No effect on the others.
    pub inclusive: bool,
}

impl RecoveryTarget {
    /// Reads the short form `--to`: `latest`, `immediate`, an LSN, or a time.
    ///
    /// # Errors
    /// `Config`: none of these, or a time as in [`parse_time`].
    pub fn parse(text: &str, zone: Option<&TimeZone>) -> Result<Self> {
        match text.trim() {
            "latest" => Ok(Self::Latest),
            "immediate" => Ok(Self::Immediate),
            word if looks_like_lsn(word) => Self::parse_lsn(word),
            // A zone's name may hold a slash, an LSN no colon.
            word if word.contains(':') => Self::parse_time(word, zone),
            word => Err(invalid(
                word,
                "expected latest, immediate, a time like 2026-11-22T14:03:11Z or an LSN like 0/16B3740 \
                 (transactions and restore points: --to-xid, --to-name)",
            )),
        }
    }

    /// Reads `--to-time`.
    ///
    /// # Errors
    /// `Config`, as [`parse_time`].
    pub fn parse_time(text: &str, zone: Option<&TimeZone>) -> Result<Self> {
        parse_time(text, zone).map(Self::Time)
    }

    /// Reads `--to-lsn`.
    ///
    /// # Errors
    /// `Config`: not `X/X`, or `0/0`, at which nothing can be.
    pub fn parse_lsn(text: &str) -> Result<Self> {
        let lsn: Lsn = text
            .trim()
            .parse()
            .map_err(|error: wal_format::Error| invalid(text, &error.to_string()))?;
        if !lsn.is_valid() {
            return Err(invalid(text, "nothing is at 0/0"));
        }
        Ok(Self::Lsn(lsn))
    }

    /// Reads `--to-xid`: a transaction id as `pg_current_xact_id()` or `pg_waldump` shows it. An epoch (above 32 bits) is left out, as the
    /// server does.
    ///
    /// # Errors
    /// `Config`: not a number, or an id that no ordinary transaction has.
    pub fn parse_xid(text: &str) -> Result<Self> {
        let digits = text.trim();
        let full: u64 = Some(digits)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| invalid(text, "expected a transaction id, a decimal number"))?;
        let xid = u32::try_from(full & u64::from(u32::MAX)).unwrap_or_default();
        if xid < FIRST_NORMAL_XID {
            return Err(invalid(text, "transaction ids begin with 3"));
        }
        Ok(Self::Xid(xid))
    }

    /// Reads `--to-name`: the name given to `pg_create_restore_point`.
    ///
    /// # Errors
    /// `Config`: empty, longer than [`MAX_RESTORE_POINT_NAME_BYTES`], or with a NUL.
    pub fn parse_name(text: &str) -> Result<Self> {
        if text.is_empty() || text.contains('\0') || text.len() > MAX_RESTORE_POINT_NAME_BYTES {
            return Err(invalid(
                text,
                "the name of a restore point has 1 to 63 bytes",
            ));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Immediate => f.write_str("immediate"),
            Self::Time(moment) => write!(f, "time {}", format_utc(*moment)),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

impl fmt::Display for RecoveryGoal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)?;
        let matters = matches!(
            self.target,
            RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_) | RecoveryTarget::Xid(_)
        );
        f.write_str(if matters && !self.inclusive {
            " (exclusive)"
        } else {
            ""
        })
    }
}

/// Two groups of hexadecimal digits around a slash; anything else with a slash may be a time with a zone's name.
fn looks_like_lsn(word: &str) -> bool {
    word.contains('/') && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'/')
}

fn invalid(input: &str, reason: &str) -> Error {
    Error::InvalidTarget {
        input: input.trim().to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_tells_the_kinds_apart() {
        let check = |text: &str, expected: &str| {
            let target = RecoveryTarget::parse(text, None);
            assert_eq!(target.map(|t| t.to_string()).unwrap(), expected, "{text}");
        };
        check("latest", "latest");
        check("immediate", "immediate");
        check("0/16B3740", "LSN 0/16B3740");
        check("ab/0cd", "LSN AB/CD");
        check("2026-11-22T14:03:11Z", "time 2026-11-22T14:03:11Z");
        check(
            "2026-11-22 14:03:11 Europe/Paris",
            "time 2026-11-22T13:03:11Z",
        );
        for text in [
            "",
            "Latest",
            "now",
            "0/0",
            "/",
            "0/",
            "12",
            "2026-11-22",
            "2026-11-22 14:03:11",
            "1/123456789",
            "before_drop",
        ] {
            let error = RecoveryTarget::parse(text, None).unwrap_err();
            assert_eq!(error.class(), repository::ErrorClass::Config, "{text}");
        }
    }

    #[test]
    fn a_transaction_id_may_carry_its_epoch() {
        let check = |text: &str, expected: Option<u32>| {
            let target = RecoveryTarget::parse_xid(text).ok();
            assert_eq!(target, expected.map(RecoveryTarget::Xid), "{text}");
        };
        check("3", Some(3));
        check(" 748 ", Some(748));
        check("4294967295", Some(u32::MAX));
        check("4294967300", Some(4));
        for text in [
            "",
            "0",
            "1",
            "2",
            "-5",
            "+5",
            "0x5",
            "4294967296",
            "99999999999999999999",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_restore_point_name_has_the_servers_length() {
        assert!(RecoveryTarget::parse_name("vor dem Löschen '%'").is_ok());
        assert!(RecoveryTarget::parse_name(&"x".repeat(63)).is_ok());
        for name in [String::new(), "x".repeat(64), "a\0b".into()] {
            assert!(RecoveryTarget::parse_name(&name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn exclusive_is_said_only_where_it_matters() {
        let show = |target, inclusive| RecoveryGoal { target, inclusive }.to_string();
        assert_eq!(
            show(RecoveryTarget::Lsn(Lsn(16)), false),
            "LSN 0/10 (exclusive)"
        );
        assert_eq!(show(RecoveryTarget::Lsn(Lsn(16)), true), "LSN 0/10");
        assert_eq!(show(RecoveryTarget::Latest, false), "latest");
    }
}
