//! Quantities as users write and read them: byte sizes and durations. Parsing is exact and refuses what is ambiguous;
//! printing rounds for people (JSON carries plain numbers).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written `50MiB` or `100MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(u64);

impl ByteSize {
    /// Bytes in a KiB.
    pub(crate) const KIB: u64 = 1 << 10;
    /// Bytes in a MiB.
    pub(crate) const MIB: u64 = 1 << 20;

    /// From a count of bytes.
    pub(crate) const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The count of bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.0
    }
}

/// `1 part`, `2 parts`: for nouns whose plural takes an `s`.
pub(crate) fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    match count.try_into() {
        Ok(1) => format!("1 {noun}"),
        Ok(count) => format!("{count} {noun}s"),
        Err(_) => format!("countless {noun}s"),
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let advice = || {
            format!(
                "`{text}` is not a size; write a whole number and a unit, such as 50MiB or 100MB"
            )
        };
        let split = text
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let factor: u64 = match unit.trim_start() {
            "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(advice()),
        };
        let number: u64 = digits.parse().map_err(|_| advice())?;
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl fmt::Display for ByteSize {
    /// At most four significant digits and a binary unit: `1.5 MiB`, `812 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1023.95 would print as "1024.0".
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = if unit == 0 {
            format!("{} B", self.0)
        } else {
            format!("{value:.1} {}", UNITS[unit])
        };
        f.pad(&text)
    }
}

/// Reads `500ms`, `5s`, `1m`, `2h`, `7d` and sums of them in falling order (`1m30s`). A number without a unit is refused.
///
/// # Errors
/// What is wrong with the text, as a sentence fragment.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let advice = || {
        format!(
            "`{text}` is not a duration; write a number and a unit (ms, s, m, h, d), such as 5s or 1m30s"
        )
    };
    const UNITS: [(&str, u64); 5] = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(advice)?;
        let number: u64 = rest[..digits].parse().map_err(|_| advice())?;
        let after = &rest[digits..];
        let length = after
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(after.len());
        let name = &after[..length];
        // Consuming the iterator keeps the order falling and each unit single.
        let (_, millis) = units.find(|(unit, _)| *unit == name).ok_or_else(advice)?;
        total = number
            .checked_mul(*millis)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| format!("`{text}` is too long"))?;
        rest = &after[length..];
    }
    if text.is_empty() {
        Err(advice())
    } else {
        Ok(Duration::from_millis(total))
    }
}

/// A duration exactly, in the form that [`parse_duration`] reads (to the millisecond).
pub(crate) fn exact_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ] {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

/// A duration for people: two units at most (`3d 4h`, `2m 05s`, `1.3s`, `12ms`).
pub(crate) fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.subsec_millis()),
        1..60 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        let texts = [0_u64, 1, 2].map(|count| counted(count, "part"));
        assert_eq!(texts, ["0 parts", "1 part", "2 parts"]);
    }

    #[test]
    fn sizes_parse_exactly() {
        let check =
            |text: &str, bytes: u64| assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        check("0B", 0);
        check("50MiB", 50 << 20);
        check("50 MiB", 50 << 20);
        check("100MB", 100_000_000);
        check("1kB", 1000);
        for bad in [
            "",
            "50",
            "MiB",
            "1.5MiB",
            "-1B",
            "1mib",
            "1 Mi B",
            "99999999999TiB",
            "18446744073709551616B",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_for_people() {
        let check = |bytes: u64, text: &str| assert_eq!(ByteSize(bytes).to_string(), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1_572_864, "1.5 MiB");
        check((1 << 30) - 1, "1.0 GiB");
        check(u64::MAX, "16.0 EiB");
        assert_eq!(format!("{:>10}", ByteSize(1024)), "   1.0 KiB");
    }

    #[test]
    fn durations_parse_and_print_back() {
        let check = |text: &str, millis: u64| {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
            assert_eq!(exact_duration(Duration::from_millis(millis)), text);
        };
        check("5s", 5_000);
        check("500ms", 500);
        check("1m", 60_000);
        check("1m30s", 90_000);
        check("2h", 7_200_000);
        check("7d", 604_800_000);
        check("1s500ms", 1_500);
        assert_eq!(exact_duration(Duration::ZERO), "0s");
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "5S",
            "-5s",
            "1.5s",
            "5s1m",
            "5s5s",
            "5min",
            "99999999999999999999s",
            "18446744073709551615d",
            "５s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_print_for_people() {
        let check = |millis: u64, text: &str| {
            assert_eq!(human_duration(Duration::from_millis(millis)), text)
        };
        check(0, "0ms");
        check(12, "12ms");
        check(1_399, "1.3s");
        check(125_000, "2m 05s");
        check(3_600_000, "1h 00m");
        check(273_600_000, "3d 04h");
    }
}
