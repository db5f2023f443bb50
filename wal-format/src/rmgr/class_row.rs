//! A row that was inserted into `pg_class`: the name that a new relation got. Owns the layout of the row's beginning; that a file is
//! `pg_class`'s is the caller's to know.
//!
//! Source: `xl_heap_header` in `heapam_xlog.h`, `HeapTupleHeaderData` in `htup_details.h`, `pg_class.h`, majors 14 to 18. Little-endian. The data of
//! the block is
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `t_infomask2`, `t_infomask` |
//! | 4 | 1 | `t_hoff`: where the row begins, counted from 23 bytes before offset 5 |
//! | 5 | `t_hoff` - 23 | which columns are null, padding |
//!
//! and then the row, whose first columns are never null:
//!
//! | offset | size | column |
//! |---|---|---|
//! | 0 | 4 | `oid` |
//! | 4 | 64 | `relname`, up to its zero byte |
//! | 68 | 4 | `relnamespace` |
//! | 72 | 16 | `reltype`, `reloftype`, `relowner`, `relam` |
//! | 88 | 4 | `relfilenode` |
//! | 92 | 4 | `reltablespace` |
//! | 96 | 12, since 18 16 | `relpages`, `reltuples`, `relallvisible`, `relallfrozen` |
//! | | 4 | `reltoastrelid` |
//! | | 1 + 1 + 1 + 1 | `relhasindex`, `relisshared`, `relpersistence`, `relkind` |

use crate::cursor::{Cursor, split};
use crate::{BodyParts, Error, Glance, Major, RowChange};

/// What precedes the bits of a row's header that the record holds.
const FIXED_TUPLE_HEADER_BYTES: u8 = 23;
const NAME_BYTES: usize = 64;

/// The beginning of a row of `pg_class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassRow<'a> {
    /// The relation's OID.
    pub oid: u32,
    /// Its name, in the encoding of the database.
    pub name: &'a [u8],
    /// The OID of its schema.
    pub namespace: u32,
    /// The number of its file; 0 if it has none, or one that is found without `pg_class`.
    pub file: u32,
    /// The OID of its tablespace; 0: the database's.
    pub tablespace: u32,
    /// `relkind`.
    pub kind: u8,
}

impl<'a> BodyParts<'a> {
    /// The row that was inserted, of a record that inserts one row and whose first block is of `pg_class`. `None` if the record holds the whole page
    /// instead, or is of another kind.
    #[must_use]
    pub fn inserted_class_row(&self) -> Option<ClassRow<'a>> {
        if self.header().glance() != Glance::Row(RowChange::Inserted) {
            return None;
        }
        read_row(self.first_block_data()?, self.major()).ok()
    }
}

fn read_row(data: &[u8], major: Major) -> Result<ClassRow<'_>, Error> {
    let problem = Error::RecordBody {
        problem: "row of pg_class",
    };
    let mut cursor = Cursor::new(data);
    cursor.u32("row flags")?;
    let begins = cursor.u8("row header length")?;
    let nulls = begins.checked_sub(FIXED_TUPLE_HEADER_BYTES);
    cursor.take(usize::from(nulls.ok_or(problem.clone())?), "nulls")?;
    let oid = cursor.u32("oid")?;
    let name = Cursor::new(cursor.take(NAME_BYTES, "relname")?).text("relname")?;
    let namespace = cursor.u32("relnamespace")?;
    cursor.take(16, "type, owner and access method")?;
    let file = cursor.u32("relfilenode")?;
    let tablespace = cursor.u32("reltablespace")?;
    cursor.take(major.class_statistics_bytes(), "pages and rows")?;
    cursor.u32("reltoastrelid")?;
    cursor.take(3, "flags")?;
    let kind = cursor.u8("relkind")?;
    match split(name, 1).0.is_empty() || oid == 0 || !kind.is_ascii_alphabetic() {
        true => Err(problem),
        false => Ok(ClassRow {
            oid,
            name,
            namespace,
            file,
            tablespace,
            kind,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn row(major: Major, nulls: usize) -> Vec<u8> {
        let mut data = std::vec![0, 0, 0, 0];
        data.push(u8::try_from(23 + nulls).unwrap());
        data.resize(data.len() + nulls, 0xFF);
        data.extend(16390_u32.to_le_bytes());
        let mut name = b"orders".to_vec();
        name.resize(64, 0);
        data.extend(name);
        data.extend(2200_u32.to_le_bytes());
        data.extend([7; 16]);
        data.extend(16391_u32.to_le_bytes());
        data.extend(0_u32.to_le_bytes());
        data.resize(data.len() + if major == Major::V18 { 16 } else { 12 }, 0);
        data.extend([0, 0, 0, 0, 1, 0, b'p', b'r', 9, 9, 9]);
        data
    }

    #[test]
    fn a_row_says_what_a_relation_is_called() {
        for major in Major::ALL {
            for nulls in [1, 9] {
                let data = row(major, nulls);
                let expected = ClassRow {
                    oid: 16390,
                    name: b"orders",
                    namespace: 2200,
                    file: 16391,
                    tablespace: 0,
                    kind: b'r',
                };
                assert_eq!(read_row(&data, major), Ok(expected), "{major}");
                for length in 0..data.len() - 3 {
                    assert!(read_row(&data[..length], major).is_err(), "{length}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_such_a_row_is_none() {
        let good = row(Major::V17, 1);
        // Header too short, no OID, no name, name without an end.
        for (at, bytes) in [
            (4, &[22_u8][..]),
            (6, &[0; 4]),
            (10, &[0]),
            (10, &[b'x'; 64]),
        ] {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            assert!(read_row(&bad, Major::V17).is_err(), "{at}");
        }
    }
}
