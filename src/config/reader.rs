//! Reading a TOML document key by key, with a line number in every complaint. What has not been asked for when a table is
//! finished is an unknown key; the keys that were asked for are what it is compared with. Knows TOML, not our settings.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use crate::units::{exact_duration, parse_duration};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A complaint about a file: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// Line, from 1; `None` when it is about the file as a whole.
    pub(crate) line: Option<usize>,
    /// What is wrong, a sentence fragment that names the key.
    pub(crate) message: String,
    /// The next step.
    pub(crate) hint: Option<String>,
}

/// A value and the line on which it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At<T> {
    /// Line, from 1.
    pub(crate) line: usize,
    /// The value.
    pub(crate) value: T,
}

impl<T> At<T> {
    /// A complaint about this value.
    pub(crate) fn complain(&self, message: impl Into<String>) -> Complaint {
        Complaint {
            line: Some(self.line),
            message: message.into(),
            hint: None,
        }
    }
}

impl Complaint {
    /// Adds the next step.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Parses `text` and hands its top table to `read`.
///
/// # Errors
/// Text that is not TOML, and what `read` complains about.
pub(crate) fn read_document<T>(
    text: &str,
    read: impl FnOnce(&mut Table<'_>) -> Result<T, Complaint>,
) -> Result<T, Complaint> {
    let document = DeTable::parse(text).map_err(|error| Complaint {
        line: error.span().map(|span| line_of(text, span.start)),
        message: error.message().lines().collect::<Vec<_>>().join(", "),
        hint: None,
    })?;
    let mut table = Table::new(text, String::new(), 1, document.get_ref());
    let value = read(&mut table)?;
    table.finish()?;
    Ok(value)
}

/// A table being read.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    text: &'a str,
    /// Dotted name of the table, empty at the top.
    name: String,
    line: usize,
    entries: &'a DeTable<'a>,
    asked: BTreeSet<&'static str>,
}

impl<'a> Table<'a> {
    fn new(text: &'a str, name: String, line: usize, entries: &'a DeTable<'a>) -> Self {
        Self {
            text,
            name,
            line,
            entries,
            asked: BTreeSet::new(),
        }
    }

    /// A string.
    pub(crate) fn string(&mut self, key: &'static str) -> Result<Option<At<String>>, Complaint> {
        self.scalar(key, "a string in quotes", |value| {
            value.as_str().map(str::to_owned)
        })
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, key: &'static str) -> Result<Option<At<bool>>, Complaint> {
        self.scalar(key, "true or false", DeValue::as_bool)
    }

    /// A whole number.
    pub(crate) fn integer(&mut self, key: &'static str) -> Result<Option<At<i64>>, Complaint> {
        self.scalar(key, "a whole number", |value| {
            let number = value.as_integer()?;
            i64::from_str_radix(number.as_str(), number.radix()).ok()
        })
    }

    /// A time such as `1m30s`, within bounds.
    pub(crate) fn duration(
        &mut self,
        key: &'static str,
        bounds: &RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, Complaint> {
        let Some(text) = self.string(key)? else {
            return Ok(None);
        };
        let time = parse_duration(&text.value).map_err(|message| text.complain(message))?;
        if !bounds.contains(&time) {
            let (low, high) = (
                exact_duration(*bounds.start()),
                exact_duration(*bounds.end()),
            );
            let message = format!("`{key}` of {} is outside {low} to {high}", text.value);
            return Err(text.complain(message));
        }
        Ok(Some(time))
    }

    /// A list of strings; absent reads as empty.
    pub(crate) fn strings(&mut self, key: &'static str) -> Result<Vec<At<String>>, Complaint> {
        const EXPECTED: &str = "a list of strings in quotes";
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let items = value
            .get_ref()
            .as_array()
            .ok_or_else(|| self.mistyped(key, value, EXPECTED))?;
        items
            .iter()
            .map(|item| {
                let text = item
                    .get_ref()
                    .as_str()
                    .ok_or_else(|| self.mistyped(key, item, EXPECTED))?;
                Ok(At {
                    line: self.line_at(item.span()),
                    value: text.to_owned(),
                })
            })
            .collect()
    }

    /// A table `[key]`.
    pub(crate) fn table(&mut self, key: &'static str) -> Result<Option<Table<'a>>, Complaint> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let entries = value.get_ref().as_table().ok_or_else(|| {
            self.mistyped(key, value, &format!("a table: [{}]", self.dotted(key)))
        })?;
        Ok(Some(Table::new(
            self.text,
            self.dotted(key),
            self.line_at(value.span()),
            entries,
        )))
    }

    /// The tables `[[key]]`; absent reads as empty.
    pub(crate) fn tables(&mut self, key: &'static str) -> Result<Vec<Table<'a>>, Complaint> {
        let Some(value) = self.take(key) else {
            return Ok(Vec::new());
        };
        let expected = format!("tables, each headed [[{}]]", self.dotted(key));
        let items = value
            .get_ref()
            .as_array()
            .ok_or_else(|| self.mistyped(key, value, &expected))?;
        items
            .iter()
            .map(|item| {
                let entries = item
                    .get_ref()
                    .as_table()
                    .ok_or_else(|| self.mistyped(key, item, &expected))?;
                Ok(Table::new(
                    self.text,
                    self.dotted(key),
                    self.line_at(item.span()),
                    entries,
                ))
            })
            .collect()
    }

    /// Whether `key` is there and is a string: for settings that are either a word or a table.
    pub(crate) fn is_string(&self, key: &str) -> bool {
        self.entries
            .get(key)
            .is_some_and(|value| value.get_ref().is_str())
    }

    /// A complaint about the table as a whole.
    pub(crate) fn complain(&self, message: impl Into<String>) -> Complaint {
        Complaint {
            line: Some(self.line),
            message: message.into(),
            hint: None,
        }
    }

    /// Refuses whatever has not been asked for.
    pub(crate) fn finish(self) -> Result<(), Complaint> {
        let unknown = self
            .entries
            .iter()
            .filter(|(key, _)| !self.asked.contains(key.get_ref().as_ref()))
            .min_by_key(|(key, _)| key.span().start);
        let Some((key, _)) = unknown else {
            return Ok(());
        };
        let place = if self.name.is_empty() {
            "at the top".to_owned()
        } else {
            format!("in [{}]", self.name)
        };
        let hint = match closest(key.get_ref(), self.asked.iter().copied()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!(
                "known here: {}",
                self.asked.iter().copied().collect::<Vec<_>>().join(", ")
            ),
        };
        Err(Complaint {
            line: Some(self.line_at(key.span())),
            message: format!("unknown key `{}` {place}", key.get_ref()),
            hint: Some(hint),
        })
    }

    fn scalar<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        convert: impl FnOnce(&DeValue<'a>) -> Option<T>,
    ) -> Result<Option<At<T>>, Complaint> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let line = self.line_at(value.span());
        match convert(value.get_ref()) {
            Some(converted) => Ok(Some(At {
                line,
                value: converted,
            })),
            None => Err(self.mistyped(key, value, expected)),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.insert(key);
        let entries = self.entries;
        entries.get(key)
    }

    fn mistyped(&self, key: &str, value: &Spanned<DeValue<'a>>, expected: &str) -> Complaint {
        Complaint {
            line: Some(self.line_at(value.span())),
            message: format!(
                "`{}` must be {expected}, not {}",
                self.dotted(key),
                with_article(value.get_ref().type_str())
            ),
            hint: None,
        }
    }

    fn dotted(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn line_at(&self, span: Range<usize>) -> usize {
        line_of(self.text, span.start)
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

/// The known word that `word` is most likely a slip of, if any is near enough.
pub(crate) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other (optimal string alignment).
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    let mut previous = None;
    for (row, character) in left.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let replaced = last[column] + usize::from(character != *other);
            let mut best = replaced.min(last[column + 1] + 1).min(current[column] + 1);
            if column > 0 && previous == Some(*other) && right[column - 1] == character {
                best = best.min(before_last[column - 1] + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
        previous = Some(character);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn every_complaint_names_its_line() {
        let check = |text: &str, line: usize, message: &str| {
            let complaint = read_document(text, |top| {
                top.string("name")?;
                top.boolean("flag")?;
                top.strings("list")?;
                if let Some(mut table) = top.table("part")? {
                    table.string("name")?;
                    table.finish()?;
                }
                for mut table in top.tables("many")? {
                    table.string("name")?;
                    table.finish()?;
                }
                Ok(())
            })
            .unwrap_err();
            assert_eq!(complaint.line, Some(line), "{text:?}: {complaint:?}");
            assert!(
                complaint.message.contains(message),
                "{text:?}: {complaint:?}"
            );
        };
        check(
            "\n\nname = 7",
            3,
            "`name` must be a string in quotes, not an integer",
        );
        check("flag = 'yes'", 1, "true or false");
        check("list = 'one'", 1, "a list of strings");
        check("list = [\n'one',\n2]", 3, "a list of strings");
        check("part = 3", 1, "[part]");
        check("[part]\nname = true", 2, "`part.name`");
        check("[part]\n\nnmae = ''", 3, "unknown key `nmae` in [part]");
        check(
            "[[many]]\nname='a'\n[[many]]\nnam = 'a'",
            4,
            "unknown key `nam` in [many]",
        );
        check("many = [1]", 1, "[[many]]");
        check("name = 'a'\nother = 1", 2, "unknown key `other` at the top");
        check("name = 'a'\nname = 'b'", 2, "duplicate");
        check("name = 'a", 1, "");
        check("a = 1\nz = 1", 1, "unknown key `a`");
    }

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["conninfo", "slot", "system_identifier"];
        let check = |word: &str, expected: Option<&str>| {
            assert_eq!(closest(word, known.into_iter()), expected, "{word}")
        };
        check("coninfo", Some("conninfo"));
        check("connifno", Some("conninfo"));
        check("slots", Some("slot"));
        check("sysid", None);
        check("system-identifier", Some("system_identifier"));
        check("", None);
        check("password", None);
    }

    #[test]
    fn edit_distance_counts_a_swap_once() {
        for (left, right, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
            ("slot", "slot", 0),
        ] {
            assert_eq!(edit_distance(left, right), expected, "{left} {right}");
            assert_eq!(edit_distance(right, left), expected, "{right} {left}");
        }
    }
}
