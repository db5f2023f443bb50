//! Moments as people write and read them: RFC 3339, PostgreSQL's own form, zones and clock changes. What a moment is for: `target.rs`.

use crate::error::{Error, Result};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use wal_format::Timestamp;

/// Reads a moment: `2026-11-22T14:03:11.5Z`, `2026-11-22 14:03:11+01`, or with a zone's name (`2026-11-22 14:03:11 Europe/Paris`,
/// `2026-11-22T14:03:11[Europe/Paris]`). Without a zone, `zone` says which clocks are meant.
///
/// # Errors
/// `Config`: not a moment, finer than a microsecond, without a zone while `zone` is `None`, or a local time that its zone's clocks showed
/// twice or never.
pub fn parse_time(text: &str, zone: Option<&TimeZone>) -> Result<Timestamp> {
    let input = text.trim();
    let fail = |reason: &str| invalid(input, reason);
    let (date_time, written_zone) = split_zone(input);
    let local = parse_local(date_time).map_err(fail)?;
    match (written_zone, zone) {
        (WrittenZone::None, None) => Err(fail(
            "the time has no zone: append Z or an offset like +01:00, or say which clocks are meant with --tz",
        )),
        (WrittenZone::None, Some(zone)) => resolve_local(input, local, zone),
        (WrittenZone::Named(name), _) => resolve_local(input, local, &find_zone(name)?),
        (WrittenZone::Offset(written), _) => {
            let offset = parse_offset(written).ok_or_else(|| fail(EXPECTED))?;
            at_offset(local, offset).ok_or_else(|| fail("out of range"))
        }
    }
}

/// Finds a zone by its name in the zone database that is part of the program: `Europe/Paris`, `UTC`.
///
/// # Errors
/// `Config`: there is no zone of that name. Abbreviations (`CET`, `EST`) that the database does not know are no zones.
pub fn find_zone(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|_| {
        invalid(
            name,
            "no such time zone; expected a name like Europe/Paris or UTC",
        )
    })
}

/// The moment as RFC 3339 in UTC, with as many digits of the fraction as it needs.
pub fn format_utc(moment: Timestamp) -> String {
    match jiff::Timestamp::from_microsecond(moment.unix_micros()) {
        Ok(timestamp) => timestamp.to_string(),
        Err(_) => format!("{} microseconds after 2000-01-01T00:00:00Z", moment.0),
    }
}

/// The moment in UTC and, where `zone` shows another time, in that zone.
pub fn format_with_local(moment: Timestamp, zone: &TimeZone) -> String {
    let utc = format_utc(moment);
    let Ok(timestamp) = jiff::Timestamp::from_microsecond(moment.unix_micros()) else {
        return utc;
    };
    let offset = zone.to_offset(timestamp);
    if offset == Offset::UTC {
        return utc;
    }
    let local = timestamp.display_with_offset(offset);
    match zone.iana_name() {
        Some(name) => format!("{utc} ({local} {name})"),
        None => format!("{utc} ({local})"),
    }
}

const EXPECTED: &str = "expected a time like 2026-11-22T14:03:11Z or 2026-11-22 14:03:11+01";

#[derive(Debug, PartialEq)]
enum WrittenZone<'t> {
    None,
    /// `Z`, `+01`, `-0330`, `+05:30`.
    Offset(&'t str),
    /// `Europe/Paris`
    Named(&'t str),
}

/// Cuts the zone off. The date has two hyphens, so a sign counts only behind the time's first colon.
fn split_zone(text: &str) -> (&str, WrittenZone<'_>) {
    if let Some((date_time, name)) = text.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        return (date_time.trim_end(), WrittenZone::Named(name));
    }
    let Some(colon) = text.find(':') else {
        return (text, WrittenZone::None);
    };
    let is_time = |c: char| c.is_ascii_digit() || c == ':' || c == '.';
    let Some(length) = text[colon..].find(|c: char| !is_time(c)) else {
        return (text, WrittenZone::None);
    };
    let (date_time, zone) = text.split_at(colon + length);
    let zone = zone.trim_start();
    let is_offset = zone.starts_with(['+', '-']) || zone.eq_ignore_ascii_case("z");
    (
        date_time,
        if is_offset {
            WrittenZone::Offset(zone)
        } else {
            WrittenZone::Named(zone)
        },
    )
}

/// Date and time of day, without a zone.
fn parse_local(text: &str) -> std::result::Result<DateTime, &'static str> {
    let (date, time) = text.split_once(['T', 't', ' ']).ok_or(EXPECTED)?;
    let (date, time) = (date.trim(), time.trim());
    let shape = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect()
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let digits_only = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
    if shape(date) != "0000-00-00"
        || !matches!(shape(whole).as_str(), "00:00:00" | "00:00")
        || !digits_only
    {
        return Err(EXPECTED);
    }
    if fraction.len() > 6 && fraction.bytes().skip(6).any(|b| b != b'0') {
        return Err(
            "PostgreSQL's times end at the microsecond: give at most six digits after the point",
        );
    }
    if whole.ends_with(":60") {
        return Err("PostgreSQL has no leap seconds: a minute ends with second 59");
    }
    let micros = fraction.get(..6).unwrap_or(fraction);
    let whole = if whole.len() == 5 {
        format!("{whole}:00")
    } else {
        whole.to_owned()
    };
    format!("{date}T{whole}.{micros}")
        .parse()
        .map_err(|_| "no such date or time of day")
}

/// `Z`, `+H`, `+HH`, `+HHMM`, `+HH:MM`, `+HH:MM:SS`, as RFC 3339 and PostgreSQL write them; up to 15:59:59 like PostgreSQL.
fn parse_offset(text: &str) -> Option<Offset> {
    if text.eq_ignore_ascii_case("z") {
        return Some(Offset::UTC);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let rest = text.strip_prefix(['+', '-'])?;
    let digits = |part: &str| -> Option<i32> {
        let plain = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse().ok()).flatten()
    };
    let parts: Vec<&str> = match rest.len() {
        4 if !rest.contains(':') => vec![rest.get(..2)?, rest.get(2..)?],
        _ => rest.split(':').collect(),
    };
    let (hours, minutes, seconds) = match *parts.as_slice() {
        [hours] => (digits(hours)?, 0, 0),
        [hours, minutes] => (digits(hours)?, digits(minutes)?, 0),
        [hours, minutes, seconds] => (digits(hours)?, digits(minutes)?, digits(seconds)?),
        _ => return None,
    };
    if hours > 15 || minutes > 59 || seconds > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60 + seconds)).ok()
}

fn resolve_local(input: &str, local: DateTime, zone: &TimeZone) -> Result<Timestamp> {
    let (happened, before, after) = match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => {
            return at_offset(local, offset).ok_or_else(|| invalid(input, "out of range"));
        }
        AmbiguousOffset::Gap { before, after } => ("never happened", before, after),
        AmbiguousOffset::Fold { before, after } => ("happened twice", before, after),
    };
    let mut readings: Vec<jiff::Timestamp> = Vec::new();
    for offset in [before, after] {
        readings.push(
            offset
                .to_timestamp(local)
                .map_err(|_| invalid(input, "out of range"))?,
        );
    }
    readings.sort();
    // The zone's own reading of each moment: for a time that never happened these are times its clocks did show.
    let show = |reading: Option<&jiff::Timestamp>| -> String {
        reading.map_or_else(String::new, |moment| {
            moment
                .display_with_offset(zone.to_offset(*moment))
                .to_string()
        })
    };
    Err(Error::AmbiguousTime {
        input: input.to_owned(),
        happened,
        zone: zone.iana_name().unwrap_or("the local zone").to_owned(),
        earlier: show(readings.first()),
        later: show(readings.last()),
    })
}

fn at_offset(local: DateTime, offset: Offset) -> Option<Timestamp> {
    let timestamp = offset.to_timestamp(local).ok()?;
    Some(Timestamp::from_unix_micros(timestamp.as_microsecond()))
}

fn invalid(input: &str, reason: &str) -> Error {
    Error::InvalidTarget {
        input: input.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paris() -> TimeZone {
        find_zone("Europe/Paris").unwrap()
    }

    #[test]
    fn a_time_with_a_zone_is_one_moment() {
        let check = |text: &str, expected: &str| {
            // The zone on the command line never changes a time that has its own.
            for zone in [None, Some(paris())] {
                let moment = parse_time(text, zone.as_ref());
                assert_eq!(moment.map(format_utc).unwrap(), expected, "{text}");
            }
        };
        check("2026-11-22T14:03:11Z", "2026-11-22T14:03:11Z");
        check("2026-11-22t14:03:11z", "2026-11-22T14:03:11Z");
        check("2026-11-22T14:03Z", "2026-11-22T14:03:00Z");
        check(" 2026-11-22 14:03:11+01 ", "2026-11-22T13:03:11Z");
        check(
            "2026-11-22 14:03:11.123456+01",
            "2026-11-22T13:03:11.123456Z",
        );
        check(
            "2026-11-22 14:03:11.123456000+01",
            "2026-11-22T13:03:11.123456Z",
        );
        check("2026-11-22 14:03:11 +0530", "2026-11-22T08:33:11Z");
        check("2026-11-22T14:03:11-03:30", "2026-11-22T17:33:11Z");
        check("1890-01-01 12:00:00+00:09:21", "1890-01-01T11:50:39Z");
        check("2026-11-22 14:03:11 UTC", "2026-11-22T14:03:11Z");
        check("2026-11-22 14:03:11 Europe/Paris", "2026-11-22T13:03:11Z");
        check("2026-07-22T14:03:11[Europe/Paris]", "2026-07-22T12:03:11Z");
        check("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z");
    }

    #[test]
    fn a_time_without_a_zone_needs_one() {
        let text = "2026-07-22 14:03:11";
        assert!(matches!(
            parse_time(text, None),
            Err(Error::InvalidTarget { .. })
        ));
        let moment = parse_time(text, Some(&paris())).unwrap();
        assert_eq!(format_utc(moment), "2026-07-22T12:03:11Z");
    }

    #[test]
    fn a_local_time_in_a_clock_change_is_refused_with_both_readings() {
        let check = |text: &str, expected: &str| {
            assert_eq!(
                parse_time(text, Some(&paris())).unwrap_err().to_string(),
                expected
            );
        };
        check(
            "2026-10-25 02:30:00",
            "2026-10-25 02:30:00 happened twice in Europe/Paris: say 2026-10-25T02:30:00+02:00 or 2026-10-25T02:30:00+01:00",
        );
        check(
            "2026-03-29 02:30:00",
            "2026-03-29 02:30:00 never happened in Europe/Paris: say 2026-03-29T01:30:00+01:00 or 2026-03-29T03:30:00+02:00",
        );
        // Both readings can be given as they are printed; the edges of the change are plain times.
        for text in [
            "2026-10-25T02:30:00+02:00",
            "2026-10-25 01:59:59.999999",
            "2026-10-25 03:00:00",
            "2026-03-29 03:00:00",
        ] {
            assert!(parse_time(text, Some(&paris())).is_ok(), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_moment() {
        for text in [
            "",
            "now",
            "yesterday",
            "2026-11-22",
            "14:03:11Z",
            "2026-11-22T14Z",
            "2026-11-22T14:03:11+",
            "2026-11-22T14:03:11+25",
            "2026-11-22T14:03:11+01:60",
            "2026-11-22T14:03:11+1:2:3:4",
            "2026-02-30T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T23:59:60Z",
            "2026-11-22T14:03:11.1234567Z",
            "2026-11-22T14:03:11.Z",
            "2026-1-2T14:03:11Z",
            "2026-11-22 14:03:11 Mars/Olympus",
            "2026-11-22 14:03:11 []",
            "22.11.2026 14:03:11Z",
            "2026-11-22T14:03:11ZZ",
            "é:+1",
        ] {
            assert!(parse_time(text, Some(&TimeZone::UTC)).is_err(), "{text}");
        }
    }

    #[test]
    fn shows_utc_and_local() {
        let moment = parse_time("2026-07-22T14:03:11.5Z", None).unwrap();
        assert_eq!(
            format_with_local(moment, &paris()),
            "2026-07-22T14:03:11.5Z (2026-07-22T16:03:11.5+02:00 Europe/Paris)"
        );
        assert_eq!(
            format_with_local(moment, &TimeZone::UTC),
            "2026-07-22T14:03:11.5Z"
        );
        assert!(format_utc(Timestamp(i64::MAX)).starts_with("92233"));
    }

    proptest! {
        #[test]
        fn a_printed_moment_reads_back(micros in -60_000_000_000_000_000_i64..200_000_000_000_000_000) {
            let moment = Timestamp(micros);
            prop_assert_eq!(parse_time(&format_utc(moment), None).unwrap(), moment);
        }

        #[test]
        fn no_text_panics(text in "(?s).*|[0-9:T.+\\[ é-]*") {
            parse_time(&text, Some(&TimeZone::UTC)).ok();
        }
    }
}
