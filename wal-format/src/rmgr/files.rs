//! Main data of the resource managers Storage, Database, Tablespace and RelMap: what happened to files and folders.
//!
//! Source: `storage_xlog.h`, `relmapper.h`, `dbcommands_xlog.h`, `tablespace.h`, majors 14 to 18. Little-endian.
//!
//! | kind | `xl_info` | fields |
//! |---|---|---|
//! | Storage create | 0x10 | relation (12), fork (4) |
//! | Storage truncate | 0x20 | blocks (4), relation (12), flags (4: 1 main, 2 visibility map, 4 free space map) |
//! | Database create by copy | 0x00 | database (4), tablespace (4), source database (4), source tablespace (4) |
//! | Database create by WAL, since 15 | 0x10 | database (4), tablespace (4) |
//! | Database drop | 0x20, in 14 0x10 | database (4), number of tablespaces (4), tablespaces (4 each) |
//! | Tablespace create | 0x00 | tablespace (4), path up to its zero byte |
//! | Tablespace drop | 0x10 | tablespace (4) |
//! | RelMap update | 0x00 | database (4), tablespace (4), length (4), map |

use super::Action;
use crate::cursor::Cursor;
use crate::{Error, Fork, Major, RelationLocator};

const KIND_MASK: u8 = 0xF0;

const TRUNCATE_MAIN: u32 = 1 << 0;
const TRUNCATE_VISIBILITY_MAP: u32 = 1 << 1;
const TRUNCATE_FREE_SPACE_MAP: u32 = 1 << 2;

pub(super) fn parse_storage(info: u8, mut cursor: Cursor<'_>) -> Result<Action<'_>, Error> {
    Ok(match info & KIND_MASK {
        0x10 => Action::CreateFile {
            relation: RelationLocator::read(&mut cursor)?,
            fork: Fork::from_number(cursor.u32("fork")?)
                .ok_or(Error::RecordBody { problem: "fork" })?,
        },
        0x20 => {
            let blocks = cursor.u32("blocks")?;
            let relation = RelationLocator::read(&mut cursor)?;
            let flags = cursor.u32("flags")?;
            Action::TruncateFile {
                relation,
                blocks,
                main: flags & TRUNCATE_MAIN != 0,
                visibility_map: flags & TRUNCATE_VISIBILITY_MAP != 0,
                free_space_map: flags & TRUNCATE_FREE_SPACE_MAP != 0,
            }
        }
        _ => Action::Other,
    })
}

pub(super) fn parse_database<'a>(
    info: u8,
    mut cursor: Cursor<'a>,
    major: Major,
) -> Result<Action<'a>, Error> {
    Ok(match (info & KIND_MASK, major.has_database_wal_log()) {
        (0x00, _) => Action::CreateDatabase {
            database: cursor.u32("database")?,
            tablespace: cursor.u32("tablespace")?,
            copied_from: Some((cursor.u32("source")?, cursor.u32("source tablespace")?)),
        },
        (0x10, true) => Action::CreateDatabase {
            database: cursor.u32("database")?,
            tablespace: cursor.u32("tablespace")?,
            copied_from: None,
        },
        (0x10, false) | (0x20, true) => {
            let database = cursor.u32("database")?;
            let count = cursor.u32("number of tablespaces")?;
            Action::DropDatabase {
                database,
                tablespaces: cursor.list(count, "tablespaces")?,
            }
        }
        _ => Action::Other,
    })
}

pub(super) fn parse_tablespace(info: u8, mut cursor: Cursor<'_>) -> Result<Action<'_>, Error> {
    Ok(match info & KIND_MASK {
        0x00 => Action::CreateTablespace {
            tablespace: cursor.u32("tablespace")?,
            path: cursor.text("path")?,
        },
        0x10 => Action::DropTablespace {
            tablespace: cursor.u32("tablespace")?,
        },
        _ => Action::Other,
    })
}

pub(super) fn parse_relation_map(info: u8, mut cursor: Cursor<'_>) -> Result<Action<'_>, Error> {
    Ok(match info & KIND_MASK {
        0x00 => Action::UpdateRelationMap {
            database: cursor.u32("database")?,
            tablespace: cursor.u32("tablespace")?,
            length: cursor.u32("length")?,
        },
        _ => Action::Other,
    })
}
