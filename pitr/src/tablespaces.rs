//! Where the tablespaces of a backup go (pure): reading and writing `tablespace_map`, and the user's mappings.
//!
//! Source: `read_tablespace_map` and `do_pg_backup_start` in `src/backend/access/transam`, majors 14 to 18: a line for each, the OID, a
//! space, the path; a newline, carriage return or backslash in the path has a backslash before it.

use crate::error::{Error, Result};
use crate::tar_slice::check_path;

/// The file's name, in the data directory.
pub const TABLESPACE_MAP: &str = "tablespace_map";

/// One tablespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it is: absolute, or (in place) relative to the data directory.
    pub location: String,
}

/// Reads a `tablespace_map`.
///
/// # Errors
/// `Corrupt`: not such a file.
pub fn parse_tablespace_map(bytes: &[u8]) -> Result<Vec<Tablespace>> {
    let fail = |reason: &str| Error::Integrity {
        object: TABLESPACE_MAP.into(),
        reason: reason.into(),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| fail("has a path that is not UTF-8"))?;
    let mut lines = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, lines.last_mut()) {
            ('\\', Some(line)) => line.extend(characters.next()),
            ('\n' | '\r', _) => lines.push(String::new()),
            (other, Some(line)) => line.push(other),
            (_, None) => {}
        }
    }
    lines.retain(|line| !line.is_empty());
    let mut found: Vec<Tablespace> = Vec::new();
    for line in lines {
        let (oid, location) = line
            .split_once(' ')
            .ok_or_else(|| fail("has a line without a path"))?;
        let oid = oid
            .parse()
            .ok()
            .filter(|oid| *oid > 0)
            .ok_or_else(|| fail("has a line without an OID"))?;
        let in_place = location == format!("pg_tblspc/{oid}");
        let absolute = location
            .strip_prefix('/')
            .is_some_and(|path| check_path(path).is_ok());
        if !in_place && !absolute {
            return Err(fail("has a path that is neither absolute nor in place"));
        }
        if found
            .iter()
            .any(|tablespace| tablespace.oid == oid || tablespace.location == location)
        {
            return Err(fail("names a tablespace twice"));
        }
        found.push(Tablespace {
            oid,
            location: location.to_owned(),
        });
    }
    Ok(found)
}

/// Writes a `tablespace_map`.
pub fn encode_tablespace_map(tablespaces: &[Tablespace]) -> String {
    let mut text = String::new();
    for tablespace in tablespaces {
        text.push_str(&tablespace.oid.to_string());
        text.push(' ');
        for character in tablespace.location.chars() {
            if matches!(character, '\n' | '\r' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
        text.push('\n');
    }
    text
}

/// Moves tablespaces as the user asks: pairs of the location on the source and the new one.
///
/// # Errors
/// `Config`: a mapping of a tablespace that the backup does not have, or a new location that is not absolute or used twice.
pub fn map_tablespaces(
    tablespaces: &[Tablespace],
    mappings: &[(String, String)],
) -> Result<Vec<Tablespace>> {
    let mut mapped = tablespaces.to_vec();
    for (old, new) in mappings {
        let fail = |reason: String| Error::InvalidRequest {
            what: format!("tablespace mapping {old}={new}"),
            reason,
        };
        let known: Vec<&str> = tablespaces
            .iter()
            .map(|tablespace| tablespace.location.as_str())
            .collect();
        let index = known
            .iter()
            .position(|location| location == old)
            .ok_or_else(|| {
                fail(format!(
                    "the backup has no tablespace there; its tablespaces are at: {}",
                    known.join(", ")
                ))
            })?;
        let clean = new.trim_end_matches('/');
        if clean
            .strip_prefix('/')
            .is_none_or(|path| check_path(path).is_err())
        {
            return Err(fail(
                "the new location must be an absolute path without . and ..".into(),
            ));
        }
        if let Some(tablespace) = mapped.get_mut(index) {
            tablespace.location = clean.to_owned();
        }
    }
    for (index, tablespace) in mapped.iter().enumerate() {
        if mapped
            .iter()
            .skip(index + 1)
            .any(|other| other.location == tablespace.location)
        {
            return Err(Error::InvalidRequest {
                what: format!("tablespace location {}", tablespace.location),
                reason: "two tablespaces would share it".into(),
            });
        }
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_server_writes() {
        let found = parse_tablespace_map(
            b"16384 /srv/a b\n16385 /srv/a\\\nb\\\\c\n16386 pg_tblspc/16386\n",
        )
        .unwrap();
        let shown: Vec<(u32, &str)> = found
            .iter()
            .map(|tablespace| (tablespace.oid, tablespace.location.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (16384, "/srv/a b"),
                (16385, "/srv/a\nb\\c"),
                (16386, "pg_tblspc/16386")
            ]
        );
        assert_eq!(parse_tablespace_map(b"").unwrap(), []);
        for text in [
            "x /a\n",
            "1\n",
            "0 /a\n",
            "1 a\n",
            "1 /a/../b\n",
            "1 /\n",
            "1 /a\n1 /b\n",
            "1 /a\n2 /a\n",
            "1 pg_tblspc/2\n",
        ] {
            assert_eq!(
                parse_tablespace_map(text.as_bytes()).unwrap_err().class(),
                repository::ErrorClass::Corrupt,
                "{text}"
            );
        }
    }

    #[test]
    fn mappings_move_only_what_is_there() {
        let found = parse_tablespace_map(b"1 /a\n2 /b\n").unwrap();
        let map = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> = pairs
                .iter()
                .map(|(old, new)| ((*old).into(), (*new).into()))
                .collect();
            map_tablespaces(&found, &pairs).map(|mapped| encode_tablespace_map(&mapped))
        };
        assert_eq!(map(&[]).unwrap(), "1 /a\n2 /b\n");
        assert_eq!(map(&[("/b", "/new/b/")]).unwrap(), "1 /a\n2 /new/b\n");
        assert_eq!(map(&[("/a", "/b"), ("/b", "/a")]).unwrap(), "1 /b\n2 /a\n");
        for pairs in [
            [("/c", "/d")],
            [("/a", "d")],
            [("/a", "/d/../e")],
            [("/a", "/b")],
            [("/a", "/")],
        ] {
            assert_eq!(
                map(&pairs).unwrap_err().class(),
                repository::ErrorClass::Config,
                "{pairs:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_written_map_reads_back(paths in proptest::collection::btree_set("/[a-z \\\\\n\r'é]{1,20}", 0..5)) {
            let tablespaces: Vec<Tablespace> = paths.into_iter().enumerate()
                .map(|(index, location)| Tablespace { oid: index as u32 + 1, location })
                .collect();
            prop_assert_eq!(parse_tablespace_map(encode_tablespace_map(&tablespaces).as_bytes()).unwrap(), tablespaces);
        }
    }
}
