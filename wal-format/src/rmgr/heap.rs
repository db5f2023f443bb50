//! Main data of the resource managers Heap and Heap2: what happened to rows.
//!
//! Source: `src/include/access/heapam_xlog.h`, majors 14 to 18. Little-endian. Of most kinds the main data says which rows of the blocks were meant,
//! which is of no interest here. The others:
//!
//! | kind | fields |
//! |---|---|
//! | multi-insert | flags (1), padding (1), number of rows (2) |
//! | truncate | database (4), number of relations (4), flags (1: cascade, 2: restart identity), padding (3), relations (4 each) |
//! | in-place | row (2); since 18 padding (2), database (4), tablespace (4), boolean (1), padding (3), number of messages (4), messages (16 each) |

use super::{Action, Glance, RowChange};
use crate::cursor::Cursor;
use crate::list::List;
use crate::{Error, Major};

/// Without the bit that says that the page is made anew.
const KIND_MASK: u8 = 0x70;

const MULTI_INSERT: u8 = 0x50;

const CASCADE: u8 = 1 << 0;
const RESTART_IDENTITY: u8 = 1 << 1;

/// What the bits of a record of Heap tell.
#[inline]
pub(super) fn glance(info: u8) -> Glance {
    const BY_KIND: [Glance; 8] = [
        Glance::Row(RowChange::Inserted),
        Glance::Row(RowChange::Deleted),
        Glance::Row(RowChange::Updated),
        Glance::Action,
        Glance::Row(RowChange::Updated),
        Glance::Blocks,
        Glance::Blocks,
        Glance::Action,
    ];
    let kind = usize::from((info & KIND_MASK) >> 4);
    BY_KIND.get(kind).copied().unwrap_or(Glance::Action)
}

/// Whether the bits of a record of Heap2 say that it inserted rows.
#[inline]
pub(super) const fn is_multi_insert(info: u8) -> bool {
    info & KIND_MASK == MULTI_INSERT
}

#[inline(always)]
pub(super) fn parse_heap<'a>(
    info: u8,
    mut cursor: Cursor<'a>,
    major: Major,
) -> Result<Action<'a>, Error> {
    Ok(match info & KIND_MASK {
        0x00 => Action::Insert,
        0x10 => Action::Delete,
        0x20 => Action::Update { hot: false },
        0x30 => parse_truncate(&mut cursor)?,
        0x40 => Action::Update { hot: true },
        0x50 => Action::ConfirmInsert,
        0x60 => Action::LockRow,
        _ => parse_in_place(&mut cursor, major)?,
    })
}

fn parse_in_place<'a>(cursor: &mut Cursor<'a>, major: Major) -> Result<Action<'a>, Error> {
    Ok(Action::UpdateInPlace {
        row: cursor.u16("row")?,
        invalidations: if major.inplace_has_invalidations() {
            cursor.take(14, "database and tablespace")?;
            let count = cursor.u32("number of messages")?;
            cursor.list(count, "messages")?
        } else {
            List::EMPTY
        },
    })
}

fn parse_truncate<'a>(cursor: &mut Cursor<'a>) -> Result<Action<'a>, Error> {
    let database = cursor.u32("database")?;
    let count = cursor.u32("number of relations")?;
    let flags = cursor.u8("truncate flags")?;
    cursor.take(3, "padding")?;
    Ok(Action::Truncate {
        database,
        relations: cursor.list(count, "relations")?,
        cascade: flags & CASCADE != 0,
        restart_identity: flags & RESTART_IDENTITY != 0,
    })
}

#[inline(always)]
pub(super) fn parse_heap2(info: u8, mut cursor: Cursor<'_>) -> Result<Action<'_>, Error> {
    Ok(match info & KIND_MASK {
        MULTI_INSERT => {
            cursor.u16("flags")?;
            Action::MultiInsert {
                rows: cursor.u16("number of rows")?,
            }
        }
        0x10..=0x40 => Action::HeapUpkeep,
        0x60 => Action::LockRow,
        // Rewrite mappings and command ids: for logical decoding.
        _ => Action::Other,
    })
}
