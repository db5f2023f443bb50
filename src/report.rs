//! What commands print on stdout: one JSON document (`schema`, `version`) or text for people, with tables, sizes and times.
//! What is said is the command's; here is only how it looks. Nothing here goes to stderr but the final error.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::cli::{ColorChoice, GlobalArgs};
use crate::failure::Failure;

/// Where results go and how they look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    /// Whether text on stdout is coloured.
    pub(crate) color: bool,
    /// Whether text on stderr is coloured.
    pub(crate) color_errors: bool,
}

impl Output {
    /// As the flags say, and as stdout and stderr are.
    pub(crate) fn new(args: &GlobalArgs) -> Self {
        // https://no-color.org: any value but the empty one.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = |terminal: bool| match args.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !no_color,
        };
        Self {
            json: args.json,
            color: color(std::io::stdout().is_terminal()) && !args.json,
            color_errors: color(std::io::stderr().is_terminal()),
        }
    }

    /// Prints a command's result: as the document `schema` under `--json`, else as `text`.
    ///
    /// # Errors
    /// stdout cannot be written (a closed pipe is no error: the reader has seen enough).
    pub(crate) fn print(
        self,
        schema: &'static str,
        body: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let text = if self.json {
            document(schema, body)?
        } else {
            text()
        };
        write_quietly(&mut std::io::stdout().lock(), &text)
    }

    /// Prints the error a command ended with: text on stderr, and under `--json` a document on stdout.
    pub(crate) fn print_failure(self, failure: &Failure) {
        // The exit status still tells of the failure if neither can be written.
        drop(write_quietly(
            &mut std::io::stderr().lock(),
            &failure.to_text(self.color_errors),
        ));
        if self.json {
            let written = document("walden.error", &failure.to_document())
                .and_then(|text| write_quietly(&mut std::io::stdout().lock(), &text));
            drop(written);
        }
    }
}

fn write_quietly(stream: &mut impl Write, text: &str) -> anyhow::Result<()> {
    match stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// One JSON document: `schema` and `version` first, then the fields of `body`.
fn document(schema: &'static str, body: &impl Serialize) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Document<'a, T> {
        schema: &'static str,
        version: u32,
        #[serde(flatten)]
        body: &'a T,
    }
    let mut text = serde_json::to_string_pretty(&Document {
        schema,
        version: 1,
        body,
    })?;
    text.push('\n');
    Ok(text)
}

/// A time in UTC and, where that differs, on this host's clock.
pub(crate) fn time(timestamp: Timestamp) -> String {
    time_in(whole_micros(timestamp), &TimeZone::system())
}

/// PostgreSQL's clock has microseconds, and `--to` takes no more: what is shown can be typed back.
fn whole_micros(timestamp: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(timestamp.as_microsecond()).unwrap_or(timestamp)
}

fn time_in(timestamp: Timestamp, zone: &TimeZone) -> String {
    let local = timestamp.to_zoned(zone.clone());
    if local.offset().is_zero() {
        return timestamp.to_string();
    }
    format!(
        "{timestamp} (local {}{})",
        local.datetime().to_string().replace('T', " "),
        local.strftime("%:z")
    )
}

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns, two spaces between, under a line of headings.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table with these columns.
    pub(crate) fn new(columns: [(&'static str, Align); N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    /// The table as lines, without spaces at their ends.
    pub(crate) fn to_text(&self, color: bool) -> String {
        let widths: [usize; N] = std::array::from_fn(|column| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells
                .chain([self.columns[column].0.chars().count()])
                .max()
                .unwrap_or(0)
        });
        let mut text = String::new();
        let heading = self.columns.map(|(title, _)| title.to_owned());
        for (index, row) in std::iter::once(&heading).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let written = match self.columns[column].1 {
                    Align::Left => write!(line, "{cell:<width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
                written.expect("a String takes every write");
            }
            match (index, color) {
                (0, true) => text.push_str(&format!("\x1b[1m{}\x1b[0m\n", line.trim_end())),
                _ => text.push_str(&format!("{}\n", line.trim_end())),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn shown_times_can_be_typed_back() {
        let time = Timestamp::new(1_769_178_491, 123_456_789).unwrap();
        assert_eq!(
            whole_micros(time).to_string(),
            "2026-01-23T14:28:11.123456Z"
        );
    }

    #[test]
    fn tables_align_and_leave_no_spaces_at_the_end() {
        let mut table = Table::new([
            ("LABEL", Align::Left),
            ("SIZE", Align::Right),
            ("NOTE", Align::Left),
        ]);
        table.push(["a".into(), "1.0 MiB".into(), "".into()]);
        table.push(["größer".into(), "5 B".into(), "x".into()]);
        assert_eq!(
            table.to_text(false),
            "LABEL      SIZE  NOTE\na       1.0 MiB\ngrößer      5 B  x\n"
        );
        assert!(table.to_text(true).starts_with("\x1b[1mLABEL"));
    }

    #[test]
    fn documents_begin_with_schema_and_version() {
        let text = document("walden.list", &serde_json::json!({ "backups": [] })).unwrap();
        assert!(
            text.starts_with("{\n  \"schema\": \"walden.list\",\n  \"version\": 1,\n"),
            "{text}"
        );
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn times_are_shown_in_utc_and_local() {
        let timestamp: Timestamp = "2026-01-23T14:27:00.25Z".parse().unwrap();
        assert!(time(timestamp).starts_with("2026-01-23T14:27:00.25Z"));
        let paris = TimeZone::get("Europe/Paris").unwrap();
        assert_eq!(
            time_in(timestamp, &paris),
            "2026-01-23T14:27:00.25Z (local 2026-01-23 15:27:00.25+01:00)"
        );
        assert_eq!(
            time_in(timestamp, &TimeZone::UTC),
            "2026-01-23T14:27:00.25Z"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        assert!(write_quietly(&mut Closed, "x").is_ok());
    }
}
