//! The syntax of `postgresql.conf`: reading it line by line, and quoting values for it.
//!
//! Owns no opinion about settings (`recovery_conf`) and does no I/O: included files come from the caller.
//! Source: `src/backend/utils/misc/guc-file.l`, unchanged from PostgreSQL 14 to 18.

use std::collections::BTreeMap;
use std::ops::Range;

/// Deepest nesting of `include` that is followed; the server's own limit (`CONF_FILE_MAX_DEPTH`).
const MAX_INCLUDE_DEPTH: usize = 10;
/// Most files read for one configuration. More is not a configuration.
const MAX_FILES: usize = 1000;

/// What a line of a configuration file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `name = value`: the name in lower case, the value with its quotes and escapes undone.
    Setting {
        /// Name, lower case (the server compares names without case).
        name: String,
        /// Value as the server sees it.
        value: String,
    },
    /// `include 'path'`, `include_if_exists 'path'` or `include_dir 'path'`.
    Include {
        /// Which of the three.
        kind: IncludeKind,
        /// Path as written: absolute, or relative to the file that names it.
        path: String,
    },
    /// Something the server would refuse to start with.
    Invalid,
}

/// The three directives that read other files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeKind {
    /// The server does not start when the file is missing.
    File,
    /// A missing file is passed over.
    FileIfExists,
    /// Every `*.conf` in a folder; the server does not start when the folder is missing.
    Folder,
}

/// A line that is neither empty nor only a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Line number, from 1.
    pub number: usize,
    /// Where the line stands in the text, in bytes, without its line end.
    pub range: Range<usize>,
    /// What it says.
    pub statement: Statement,
}

/// Reads every line of a configuration file. Comments and empty lines are left out.
pub fn parse_lines(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut start = 0;
    for (index, raw) in text.split('\n').enumerate() {
        let range = start..start + raw.len();
        start = range.end + 1;
        if let Some(statement) = parse_statement(raw.trim_end_matches('\r')) {
            lines.push(Line {
                number: index + 1,
                range,
                statement,
            });
        }
    }
    lines
}

/// The value in single quotes, as `postgresql.conf` and `postgresql.auto.conf` want it.
///
/// The result is one line whatever the value holds. A NUL cannot be written in such a file: `None`.
pub fn quote_value(value: &str) -> Option<String> {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for character in value.chars() {
        match character {
            '\0' => return None,
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    Some(quoted)
}

/// Where configuration text comes from: the restored data directory in life, a table in tests.
pub trait ConfigSource {
    /// Text of the file `path` (absolute, or relative to the data directory); `None` if there is none or it cannot be read.
    fn read(&self, path: &str) -> Option<String>;
    /// Paths of the `*.conf` files in the folder `path`, in the order of their names; `None` if there is no such folder.
    fn list(&self, path: &str) -> Option<Vec<String>>;
}

/// One file of a configuration, as read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Path as given to [`ConfigSource`].
    pub path: String,
    /// Its text.
    pub text: String,
    /// Its statements.
    pub lines: Vec<Line>,
}

/// The files of a configuration and the values that win.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Every file read, in order.
    pub files: Vec<ConfigFile>,
    /// Last value of each setting, by its lower-case name.
    pub values: BTreeMap<String, String>,
    /// `include` and `include_dir` lines whose file or folder is missing: path of the file, line number.
    pub missing_includes: Vec<(String, usize)>,
}

impl Configuration {
    /// Reads `roots` one after the other, following includes; a missing root is passed over.
    pub fn read(source: &dyn ConfigSource, roots: &[&str]) -> Self {
        let mut configuration = Configuration::default();
        for root in roots {
            configuration.read_file(source, root, 0);
        }
        configuration
    }

    /// The winning value of a setting, if any file sets it.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether the file was there. Files that nest too deep or are too many are passed over.
    fn read_file(&mut self, source: &dyn ConfigSource, path: &str, depth: usize) -> bool {
        if depth > MAX_INCLUDE_DEPTH || self.files.len() >= MAX_FILES {
            return true;
        }
        let Some(text) = source.read(path) else {
            return false;
        };
        let lines = parse_lines(&text);
        self.files.push(ConfigFile {
            path: path.to_owned(),
            text,
            lines: lines.clone(),
        });
        for line in lines {
            match line.statement {
                Statement::Setting { name, value } => {
                    self.values.insert(name, value);
                }
                Statement::Include { kind, path: target } => {
                    let target = beside(path, &target);
                    let found = match kind {
                        IncludeKind::File => self.read_file(source, &target, depth + 1),
                        IncludeKind::FileIfExists => {
                            self.read_file(source, &target, depth + 1);
                            true
                        }
                        IncludeKind::Folder => match source.list(&target) {
                            Some(files) => {
                                for file in files {
                                    self.read_file(source, &file, depth + 1);
                                }
                                true
                            }
                            None => false,
                        },
                    };
                    if !found {
                        self.missing_includes.push((path.to_owned(), line.number));
                    }
                }
                Statement::Invalid => {}
            }
        }
        true
    }
}

/// A path named in `file`: absolute ones as they are, others relative to the folder of `file`.
fn beside(file: &str, target: &str) -> String {
    match file.rsplit_once('/') {
        _ if target.starts_with('/') => target.to_owned(),
        Some((folder, _)) => format!("{folder}/{target}"),
        None => target.to_owned(),
    }
}

fn parse_statement(line: &str) -> Option<Statement> {
    let rest = skip_blank(line);
    if rest.is_empty() || rest.starts_with('#') {
        return None;
    }
    Some(parse_assignment(rest).unwrap_or(Statement::Invalid))
}

fn parse_assignment(line: &str) -> Option<Statement> {
    let name_end = line
        .find(|c: char| !is_name_character(c))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    if name.is_empty() || !name.starts_with(|c: char| is_name_start(c)) {
        return None;
    }
    let rest = skip_blank(rest);
    let rest = skip_blank(rest.strip_prefix('=').unwrap_or(rest));
    let (value, rest) = parse_value(rest)?;
    let rest = skip_blank(rest);
    if !(rest.is_empty() || rest.starts_with('#')) {
        return None;
    }
    let name = name.to_ascii_lowercase();
    let kind = match name.as_str() {
        "include" => Some(IncludeKind::File),
        "include_if_exists" => Some(IncludeKind::FileIfExists),
        "include_dir" => Some(IncludeKind::Folder),
        _ => None,
    };
    Some(match kind {
        Some(kind) => Statement::Include { kind, path: value },
        None => Statement::Setting { name, value },
    })
}

/// A quoted string or a bare word, and what stands behind it.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text
            .find(|c: char| c.is_ascii_whitespace() || c == '#' || c == '\'' || c == '=')
            .unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        return (!word.is_empty()).then(|| (word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut rest = quoted;
    loop {
        let mut characters = rest.chars();
        match characters.next()? {
            '\'' => {
                rest = characters.as_str();
                match rest.strip_prefix('\'') {
                    Some(behind) => {
                        value.push('\'');
                        rest = behind;
                    }
                    None => return Some((value, rest)),
                }
            }
            '\\' => rest = parse_escape(characters.as_str(), &mut value)?,
            other => {
                value.push(other);
                rest = characters.as_str();
            }
        }
    }
}

/// What follows a backslash: `b f n r t`, up to three octal digits, or a character that stands for itself.
fn parse_escape<'t>(text: &'t str, value: &mut String) -> Option<&'t str> {
    let octal: usize = text
        .bytes()
        .take(3)
        .take_while(|b| (b'0'..=b'7').contains(b))
        .count();
    if octal > 0 {
        let (digits, rest) = text.split_at(octal);
        let code = u32::from_str_radix(digits, 8).ok()? & 0xff;
        // Bytes above 127 come from encodings that are not UTF-8; nothing we look at holds them.
        value.push(
            char::from_u32(code)
                .filter(char::is_ascii)
                .unwrap_or('\u{fffd}'),
        );
        return Some(rest);
    }
    let mut characters = text.chars();
    value.push(match characters.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        other => other,
    });
    Some(characters.as_str())
}

fn skip_blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\r', '\u{b}', '\u{c}'])
}

fn is_name_start(character: char) -> bool {
    character.is_ascii_alphabetic() || character == '_' || !character.is_ascii()
}

fn is_name_character(character: char) -> bool {
    is_name_start(character) || character.is_ascii_digit() || character == '$' || character == '.'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setting(name: &str, value: &str) -> Option<Statement> {
        Some(Statement::Setting {
            name: name.into(),
            value: value.into(),
        })
    }

    #[test]
    fn reads_lines_as_the_server_does() {
        let check = |line: &str, expected: Option<Statement>| {
            assert_eq!(parse_statement(line), expected, "{line}");
        };
        check("", None);
        check("   \t# port = 1", None);
        check("port = 5432", setting("port", "5432"));
        check("port 5432", setting("port", "5432"));
        check("Port=5432# comment", setting("port", "5432"));
        check(
            "shared_buffers = 128MB\t\t\t# min 128kB",
            setting("shared_buffers", "128MB"),
        );
        check("a = 'it''s'", setting("a", "it's"));
        check(r"a = 'it\'s\n\\ \101'", setting("a", "it's\n\\ A"));
        check("a = ''", setting("a", ""));
        check("a = 'x # y' # z", setting("a", "x # y"));
        check(
            "walden.restored_from = 'x'",
            setting("walden.restored_from", "x"),
        );
        check("a = 'open", Some(Statement::Invalid));
        check("a = 'x' y", Some(Statement::Invalid));
        check("= 3", Some(Statement::Invalid));
        check("a =", Some(Statement::Invalid));
        check(
            "include 'conf.d/x.conf'",
            Some(Statement::Include {
                kind: IncludeKind::File,
                path: "conf.d/x.conf".into(),
            }),
        );
    }

    struct Table(&'static [(&'static str, &'static str)]);

    impl ConfigSource for Table {
        fn read(&self, path: &str) -> Option<String> {
            let found = self.0.iter().find(|(name, _)| *name == path)?;
            Some(found.1.to_owned())
        }

        fn list(&self, path: &str) -> Option<Vec<String>> {
            let prefix = format!("{path}/");
            let files: Vec<String> = self
                .0
                .iter()
                .filter(|(name, _)| name.starts_with(&prefix) && name.ends_with(".conf"))
                .map(|(name, _)| (*name).to_owned())
                .collect();
            (!files.is_empty()).then_some(files)
        }
    }

    #[test]
    fn follows_includes_and_the_last_value_wins() {
        let source = Table(&[
            (
                "postgresql.conf",
                "port = 1\ninclude_dir 'conf.d'\ninclude 'gone'\ninclude_if_exists 'gone2'\n",
            ),
            (
                "conf.d/a.conf",
                "port = 2\ninclude 'more/b'\ninclude_dir '/etc/none'",
            ),
            ("conf.d/more/b", "work_mem = 3"),
            ("postgresql.auto.conf", "work_mem = '4'"),
        ]);
        let read = Configuration::read(&source, &["postgresql.conf", "postgresql.auto.conf"]);
        assert_eq!(read.value("port"), Some("2"));
        assert_eq!(read.value("work_mem"), Some("4"));
        assert_eq!(read.files.len(), 4);
        assert_eq!(
            read.missing_includes,
            [
                ("conf.d/a.conf".to_owned(), 3),
                ("postgresql.conf".to_owned(), 3)
            ]
        );
    }

    #[test]
    fn a_file_that_includes_itself_ends() {
        let read = Configuration::read(&Table(&[("a", "include 'a'")]), &["a"]);
        assert_eq!(read.files.len(), MAX_INCLUDE_DEPTH + 1);
    }

    proptest! {
        #[test]
        fn a_quoted_value_reads_back_and_stays_on_its_line(value in "\\PC*|[ '\\\\\n\r\t%a]*") {
            let quoted = quote_value(&value).unwrap();
            prop_assert!(!quoted.contains(['\n', '\r']));
            prop_assert_eq!(parse_statement(&format!("a = {quoted} # b")), setting("a", &value));
        }

        #[test]
        fn no_text_panics(text in "(?s).*") {
            parse_lines(&text);
        }
    }
}
