//! Timelines and their history files. Which timeline a recovery should follow is not decided here.
//!
//! Source: `src/backend/access/transam/timeline.c`, majors 14 to 18. A history file is text, one line for each ancestor, oldest first:
//!
//! | part | meaning |
//! |---|---|
//! | decimal number | the ancestor |
//! | tab, `X/X` | its switch point: the first byte that belongs to the next timeline |
//! | tab, text to the end of the line | why it ended; for people |
//!
//! Empty lines and lines that begin with `#` are skipped. Timeline 1 has no history file.

use crate::{Error, Lsn};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use core::num::NonZeroU32;

/// The largest history file that is read: some 30,000 ancestors. PostgreSQL's own have one short line for each promotion.
const MAX_HISTORY_BYTES: usize = 1 << 20;

/// The number of a timeline, from 1. Prints in decimal; file names carry it as 8 hexadecimal digits.
#[doc(alias = "TimeLineID")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline that initdb makes.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// Timeline `number`; `None` for 0, which PostgreSQL uses for "none".
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One ancestor in a timeline's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where it ended on this path: the first byte that belongs to the next timeline.
    pub switch_point: Lsn,
    /// Why it ended, as the server wrote it, for people; bytes that are not UTF-8 are replaced.
    pub reason: String,
}

/// A timeline and the ancestors from which it descends: one unbroken path through WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
}

impl TimelineHistory {
    /// The history of timeline 1: no ancestors.
    #[must_use]
    pub const fn first() -> Self {
        Self {
            timeline: TimelineId::FIRST,
            entries: Vec::new(),
        }
    }

    /// Reads the content of `timeline`'s history file.
    ///
    /// An empty file gives a timeline without ancestors, as PostgreSQL reads it.
    ///
    /// # Errors
    /// [`Error::History`] if a line is not `number X/X reason`, numbers do not increase up to below `timeline`, switch points decrease or are
    /// `0/0`, or the file is larger than 1 MiB.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_HISTORY_BYTES {
            return Err(Error::History {
                line: 0,
                problem: "larger than 1 MiB",
            });
        }
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (line, text) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            let fail = |problem| Error::History { line, problem };
            let text = text.trim_ascii_start();
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let entry = parse_entry(text).map_err(fail)?;
            if let Some(before) = entries.last() {
                if entry.timeline <= before.timeline {
                    return Err(fail("timelines do not increase"));
                }
                if entry.switch_point < before.switch_point {
                    return Err(fail("switch points decrease"));
                }
            }
            if entry.timeline >= timeline {
                return Err(fail("an ancestor's number is not below the timeline's own"));
            }
            entries.push(entry);
        }
        Ok(Self { timeline, entries })
    }

    /// The content of the history file as PostgreSQL writes it (an empty line before each entry but the first).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = String::new();
        for entry in &self.entries {
            let separator = if text.is_empty() { "" } else { "\n" };
            // Writing to a string cannot fail.
            let _infallible = writeln!(
                text,
                "{separator}{}\t{}\t{}",
                entry.timeline, entry.switch_point, entry.reason
            );
        }
        text.into_bytes()
    }

    /// The history of `timeline`, which leaves this one at `switch_point`.
    ///
    /// # Errors
    /// [`Error::History`] if `timeline` is not above this one or the switch point lies before this timeline's begin or is `0/0`.
    pub fn child(
        &self,
        timeline: TimelineId,
        switch_point: Lsn,
        reason: &str,
    ) -> Result<Self, Error> {
        let fail = |problem| Error::History { line: 0, problem };
        if timeline <= self.timeline {
            return Err(fail("a child's number is not above its parent's"));
        }
        let begin = self
            .entries
            .last()
            .map_or(Lsn::INVALID, |entry| entry.switch_point);
        if switch_point < begin || !switch_point.is_valid() {
            return Err(fail("a child leaves its parent before the parent's begin"));
        }
        let mut entries = self.entries.clone();
        let reason = reason
            .chars()
            .map(|c| if c == '\n' { ' ' } else { c })
            .collect();
        entries.push(HistoryEntry {
            timeline: self.timeline,
            switch_point,
            reason,
        });
        Ok(Self { timeline, entries })
    }

    /// The timeline whose history this is.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The ancestors, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// Whether `timeline` is this timeline or one of its ancestors.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.entries.iter().any(|entry| entry.timeline == timeline)
    }

    /// Where that ancestor ended on this path; `None` for the timeline itself and for one that is not on the path.
    #[must_use]
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.entries
            .iter()
            .find(|entry| entry.timeline == timeline)
            .map(|entry| entry.switch_point)
    }

    /// Where that timeline begins on this path (`0/0` for the oldest); `None` for one that is not on the path.
    #[must_use]
    pub fn begin(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut begin = Lsn::INVALID;
        for entry in &self.entries {
            if entry.timeline == timeline {
                return Some(begin);
            }
            begin = entry.switch_point;
        }
        (timeline == self.timeline).then_some(begin)
    }

    /// The timeline that owns the byte at `lsn` on this path.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.entries
            .iter()
            .find(|entry| lsn < entry.switch_point)
            .map_or(self.timeline, |entry| entry.timeline)
    }

    /// The timeline from which this one was made, if any.
    #[must_use]
    pub fn parent(&self) -> Option<TimelineId> {
        self.entries.last().map(|entry| entry.timeline)
    }
}

/// Reads `number X/X reason`; any white space separates, as `sscanf` has it.
fn parse_entry(line: &[u8]) -> Result<HistoryEntry, &'static str> {
    let (number, rest) = take_word(line);
    let (position, reason) = take_word(rest);
    let timeline = str::from_utf8(number)
        .ok()
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .and_then(TimelineId::new)
        .ok_or("does not begin with a timeline number")?;
    let switch_point = str::from_utf8(position)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|lsn: &Lsn| lsn.is_valid())
        .ok_or("has no switch point")?;
    Ok(HistoryEntry {
        timeline,
        switch_point,
        reason: String::from_utf8_lossy(reason.trim_ascii()).into_owned(),
    })
}

/// Splits off the first word and the white space after it.
fn take_word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end).unwrap_or((text, &[]));
    (word, rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::{TimelineHistory, TimelineId};
    use crate::{Error, Lsn};
    use proptest::prelude::*;
    use std::vec::Vec;

    const REAL: &[u8] = b"1\t0/5000148\tno recovery target specified\n\n2\t0/7000060\tbefore 2026-01-23 14:28:11.5+00\n";

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn reads_and_writes_what_postgresql_wrote() {
        let history = TimelineHistory::parse(timeline(4), REAL).unwrap();
        assert_eq!(history.encode(), REAL);
        assert_eq!(history.parent(), Some(timeline(2)));
        assert_eq!(
            history.entries()[1].reason,
            "before 2026-01-23 14:28:11.5+00"
        );
        assert_eq!(history.switch_point(timeline(1)), Some(Lsn(0x5000148)));
        assert_eq!(history.switch_point(timeline(4)), None);
        assert_eq!(history.begin(timeline(1)), Some(Lsn(0)));
        assert_eq!(history.begin(timeline(2)), Some(Lsn(0x5000148)));
        assert_eq!(history.begin(timeline(4)), Some(Lsn(0x7000060)));
        assert_eq!(history.begin(timeline(3)), None);
        assert!(
            history.contains(timeline(4))
                && history.contains(timeline(1))
                && !history.contains(timeline(3))
        );
        for (lsn, owner) in [
            (0, 1),
            (0x5000147, 1),
            (0x5000148, 2),
            (0x700005F, 2),
            (0x7000060, 4),
            (u64::MAX, 4),
        ] {
            assert_eq!(history.timeline_at(Lsn(lsn)), timeline(owner), "{lsn:X}");
        }
    }

    #[test]
    fn skips_comments_and_empty_lines_and_takes_any_blank() {
        let history = TimelineHistory::parse(
            timeline(3),
            b"# c\r\n\n  1 0/10\r\n\n2   0/00000010 x  y \n#9\n",
        )
        .unwrap();
        let reasons: Vec<_> = history
            .entries()
            .iter()
            .map(|entry| entry.reason.as_str())
            .collect();
        assert_eq!(reasons, ["", "x  y"]);
        assert_eq!(
            TimelineHistory::parse(TimelineId::FIRST, b"").unwrap(),
            TimelineHistory::first()
        );
    }

    #[test]
    fn refuses_contradictions_and_names_the_line() {
        let cases: [(&[u8], usize); 10] = [
            (b"x\t0/1\n", 1),
            (b"\n1\n", 2),
            (b"1\t0/0\tr\n", 1),
            (b"1\t0\tr\n", 1),
            (b"0\t0/1\tr\n", 1),
            (b"+1\t0/1\tr\n", 1),
            (b"4294967296\t0/1\tr\n", 1),
            (b"1\t0/9\tr\n1\t0/A\tr\n", 2),
            (b"1\t0/9\tr\n2\t0/8\tr\n", 2),
            (b"1\t0/9\tr\n5\t0/A\tr\n", 2),
        ];
        for (bytes, expected) in cases {
            match TimelineHistory::parse(timeline(5), bytes) {
                Err(Error::History { line, .. }) => assert_eq!(line, expected, "{bytes:?}"),
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
        let huge = std::vec![b'#'; (1 << 20) + 1];
        assert!(matches!(
            TimelineHistory::parse(timeline(5), &huge),
            Err(Error::History { line: 0, .. })
        ));
    }

    #[test]
    fn a_child_extends_its_parent() {
        let parent = TimelineHistory::parse(timeline(4), REAL).unwrap();
        let child = parent
            .child(timeline(6), Lsn(0x7000060), "two\nlines")
            .unwrap();
        assert_eq!(child.parent(), Some(timeline(4)));
        assert_eq!(
            TimelineHistory::parse(timeline(6), &child.encode()).unwrap(),
            child
        );
        assert!(parent.child(timeline(4), Lsn(0x8000000), "").is_err());
        assert!(parent.child(timeline(5), Lsn(0x700005F), "").is_err());
        assert!(
            TimelineHistory::first()
                .child(timeline(2), Lsn(0), "")
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn what_is_read_reads_the_same_again(bytes: Vec<u8>, number in 1_u32..) {
            if let Ok(history) = TimelineHistory::parse(timeline(number), &bytes) {
                prop_assert_eq!(TimelineHistory::parse(timeline(number), &history.encode()).unwrap(), history);
            }
        }

        #[test]
        fn written_histories_read_back(steps in proptest::collection::vec((1_u32..1000, 1_u64..1 << 40, "[ -~]{0,40}"), 0..20)) {
            let mut history = TimelineHistory::first();
            for (number, bytes, reason) in steps {
                let (next, point) = (history.timeline().get() + number, history.begin(history.timeline()).unwrap().0 + bytes);
                history = history.child(timeline(next), Lsn(point), reason.trim()).unwrap();
            }
            prop_assert_eq!(TimelineHistory::parse(history.timeline(), &history.encode()).unwrap(), history);
        }
    }
}
