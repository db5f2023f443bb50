//! What happens when WAL threatens to be lost, or is: `archive.disk_guard` and `backup.on_gap`.
//! Owns reading and showing them. What follows from them is `archiver::receive`'s.

use std::fmt::Write;

use serde_json::{Value, json};

use super::reader::{At, Complaint, Table};
use crate::units::ByteSize;

/// Below this a segment of any size and the server's own habits would raise the alarm.
const LEAST: u64 = ByteSize::MIB;

/// How much WAL the slot may keep on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskGuard {
    /// From here on it is said; at least 1 MiB.
    pub(crate) warn: ByteSize,
    /// From here on the slot is dropped; above `warn`. `None`: never.
    pub(crate) drop_slot: Option<ByteSize>,
}

/// Base backups that are taken without being asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backup {
    /// `walden run` takes one after WAL was lost.
    pub(crate) on_gap: bool,
}

impl DiskGuard {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self, Complaint> {
        let mut size = |key| -> Result<Option<At<ByteSize>>, Complaint> {
            let Some(text) = table.string(key)? else {
                return Ok(None);
            };
            let value: ByteSize = text
                .value
                .parse()
                .map_err(|message: String| text.complain(message))?;
            if value.bytes() < LEAST {
                return Err(text.complain(format!("`{key}` is at least 1MiB")));
            }
            let line = text.line;
            Ok(Some(At { line, value }))
        };
        let (warn, drop_slot) = (size("warn")?, size("drop_slot")?);
        let guard = match (warn, drop_slot) {
            (None, None) => {
                return Err(table.complain(
                    "`disk_guard` is { warn = \"10GB\" }, or { warn = \"10GB\", drop_slot = \"50GB\" }",
                ));
            }
            (Some(warn), Some(drop)) if warn.value >= drop.value => {
                return Err(drop.complain("`drop_slot` is more than `warn`"));
            }
            (Some(warn), drop) => Self {
                warn: warn.value,
                drop_slot: drop.map(|drop| drop.value),
            },
            (None, Some(drop)) => Self {
                warn: ByteSize::new(drop.value.bytes() / 2),
                drop_slot: Some(drop.value),
            },
        };
        table.finish()?;
        Ok(guard)
    }

    pub(super) fn render(self, out: &mut String) {
        out.push_str("# WAL that the slot keeps on the server's disk: from where on to warn, and to give the slot up (a gap).\n");
        let drop = self.drop_slot.map_or_else(String::new, |drop| {
            format!(", drop_slot = \"{}\"", exact(drop))
        });
        writeln!(
            out,
            "disk_guard = {{ warn = \"{}\"{drop} }}",
            exact(self.warn)
        )
        .expect("a String takes every write");
    }

    pub(super) fn to_json(self) -> Value {
        json!({ "warn": self.warn.bytes(), "drop_slot": self.drop_slot.map(ByteSize::bytes) })
    }
}

impl Backup {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self, Complaint> {
        let on_gap = table.boolean("on_gap")?;
        table.finish()?;
        Ok(Self {
            on_gap: on_gap.is_some_and(|on_gap| on_gap.value),
        })
    }

    pub(super) fn render(self, out: &mut String) {
        if self != Self::default() {
            out.push_str(
                "[backup]\n# After WAL was lost `walden run` takes a base backup by itself.\n",
            );
            out.push_str("on_gap = true\n\n");
        }
    }
}

/// A size in the largest unit that says it exactly.
fn exact(size: ByteSize) -> String {
    const UNITS: [(u64, &str); 8] = [
        (1 << 40, "TiB"),
        (1_000_000_000_000, "TB"),
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1_000, "kB"),
    ];
    let bytes = size.bytes();
    let unit = UNITS
        .iter()
        .find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    match unit {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_so_that_they_read_back() {
        for text in ["10GB", "50GiB", "1MiB", "1500kB", "1048577B", "2TiB"] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(exact(size).parse(), Ok(size), "{text}");
        }
        assert_eq!(exact("10GB".parse().unwrap()), "10GB");
    }
}
