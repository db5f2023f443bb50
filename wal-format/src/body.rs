//! What follows a record's header: references to blocks, origin, top-level transaction, main data. What the main data means is `rmgr`'s business.
//!
//! Source: `src/include/access/xlogrecord.h` and `DecodeXLogRecord` in `xlogreader.c`, majors 14 to 18. Little-endian, nothing is aligned.
//! A body is a head of parts, then the images and data of the blocks in the order of their parts, then the main data:
//!
//! | first byte | part of the head |
//! |---|---|
//! | 0 to 32 | a block: flags (1), length of its data (2), image header if bit 0x10, relation (12) unless bit 0x80, block number (4) |
//! | 253 | replication origin (2) |
//! | 252 | top-level transaction (4) |
//! | 255 or 254 | length of the main data (1 or 4): the last part |
//!
//! The flags are the fork (low half), 0x10 image, 0x20 data, 0x40 page is made anew, 0x80 relation of the block before. An image header is
//! length (2), offset of the hole (2), flags (1), and if the image has a hole and is compressed the length of the hole (2).

use crate::cursor::{Cursor, index, length, split};
use crate::{Action, Error, Major, RecordHeader, TransactionId};
use core::fmt;

/// No head is longer: 33 blocks of at most 25 bytes, the origin, the transaction, the length of the main data.
pub(crate) const MAX_HEAD_BYTES: usize = 1024;

const MAX_BLOCK_ID: u8 = 32;
const MAIN_DATA_SHORT: u8 = 255;
const MAIN_DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const MAX_FORK: u8 = 3;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

/// The size of a block that images are held against: the one that nearly all servers are compiled with.
const BLOCK_BYTES: u16 = 8192;

/// The file that holds a relation: what WAL knows instead of a name or an OID.
#[doc(alias = "RelFileLocator")]
#[doc(alias = "RelFileNode")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationLocator {
    /// The OID of the tablespace.
    pub tablespace: u32,
    /// The OID of the database; 0 for relations that all databases share.
    pub database: u32,
    /// The number of the file (`relfilenode`). A rewrite of the relation gives it a new one: this is not the relation's OID.
    pub relation: u32,
}

impl fmt::Display for RelationLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relation)
    }
}

/// Which of a relation's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The rows.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// What an unlogged relation is reset to.
    Init,
}

impl Fork {
    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Main),
            1 => Some(Self::FreeSpaceMap),
            2 => Some(Self::VisibilityMap),
            3 => Some(Self::Init),
            _ => None,
        }
    }
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::FreeSpaceMap => "fsm",
            Self::VisibilityMap => "vm",
            Self::Init => "init",
        })
    }
}

/// A block that a record changes or needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockReference {
    /// The block's number in the record, 0 to 32; kinds give them meanings.
    pub id: u8,
    /// The relation's file.
    pub relation: RelationLocator,
    /// Which of its files.
    pub fork: Fork,
    /// The number of the block in the file.
    pub block: u32,
    /// The page as a whole, if the record holds it.
    #[doc(alias = "FPW")]
    pub image: Option<BlockImage>,
    /// Whether the record holds data of the block (`has_data`).
    pub has_data: bool,
    /// The length of that data in bytes.
    pub data_length: u16,
    /// Whether replay makes the page anew and does not need what was there.
    pub will_init: bool,
}

/// The image of a page in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockImage {
    /// Its length in the record in bytes.
    pub length: u16,
    /// Where the page's hole, which is left out, begins; 0 if it has none.
    pub hole_offset: u16,
    /// The length of the hole in bytes; of an uncompressed image the difference to a block of 8 KiB.
    pub hole_length: u16,
    /// How it is compressed.
    pub compression: Option<ImageCompression>,
    /// Whether replay writes it (else it only checks pages: `wal_consistency_checking`).
    pub apply: bool,
}

/// How a page image is compressed: `wal_compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageCompression {
    /// PostgreSQL's own.
    Pglz,
    /// LZ4, since 15.
    Lz4,
    /// Zstandard, since 15.
    Zstd,
}

impl fmt::Display for ImageCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pglz => "pglz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// The body of a record whose CRC was found right; nothing of it is read before it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct RecordBody<'a> {
    header: &'a RecordHeader,
    major: Major,
    /// The body, or its beginning with at least the head.
    beginning: &'a [u8],
    /// The main data, or as much of it as is kept; `None` if it is the end of `beginning`.
    main: Option<&'a [u8]>,
}

impl<'a> RecordBody<'a> {
    /// A body that lies in one piece.
    #[inline]
    pub(crate) const fn whole(header: &'a RecordHeader, major: Major, body: &'a [u8]) -> Self {
        Self {
            header,
            major,
            beginning: body,
            main: None,
        }
    }

    /// A body of which the beginning and the main data (at least as much as [`kept_main_bytes`] says) are known.
    pub(crate) const fn kept(
        header: &'a RecordHeader,
        major: Major,
        beginning: &'a [u8],
        main: &'a [u8],
    ) -> Self {
        Self {
            header,
            major,
            beginning,
            main: Some(main),
        }
    }

    /// The record's header.
    #[must_use]
    pub const fn header(&self) -> &'a RecordHeader {
        self.header
    }

    /// The major that wrote it.
    #[must_use]
    pub const fn major(&self) -> Major {
        self.major
    }

    /// The relation of the first block, read without a look at what follows it; `None` if there is no block.
    ///
    /// Of a body that [`RecordBody::parse`] accepts, the same as [`BodyParts::first_block`] tells; of others it may still tell one.
    #[inline(always)]
    #[must_use]
    pub fn first_relation(&self) -> Option<RelationLocator> {
        let (&[id, flags, _, _], after) = self.beginning.split_first_chunk()?;
        if id > MAX_BLOCK_ID {
            return match id {
                // The main data is the last part.
                MAIN_DATA_SHORT | MAIN_DATA_LONG => None,
                // Servers write blocks first, readers do not insist on it.
                _ => self.relation_behind_other_parts(),
            };
        }
        if flags & SAME_RELATION != 0 {
            return None;
        }
        let after = if flags & HAS_IMAGE != 0 {
            skim_image(after, self.major)?.1
        } else {
            after
        };
        let (relation, _) = after.split_first_chunk::<12>()?;
        let [t0, t1, t2, t3, d0, d1, d2, d3, r0, r1, r2, r3] = *relation;
        Some(RelationLocator {
            tablespace: u32::from_le_bytes([t0, t1, t2, t3]),
            database: u32::from_le_bytes([d0, d1, d2, d3]),
            relation: u32::from_le_bytes([r0, r1, r2, r3]),
        })
    }

    #[cold]
    #[inline(never)]
    fn relation_behind_other_parts(self) -> Option<RelationLocator> {
        Some(self.parse().ok()?.first_block()?.relation)
    }

    /// Reads the head.
    ///
    /// # Errors
    /// [`Error::RecordBody`] (corrupt) if it contradicts itself although the CRC is right: show the record by its header alone.
    #[inline(always)]
    pub fn parse(&self) -> Result<BodyParts<'a>, Error> {
        let head = split(self.beginning, MAX_HEAD_BYTES).0;
        let Some(layout) = skim_head(head, self.header.body_length(), self.major) else {
            return Err(Error::RecordBody {
                problem: "parts that contradict each other or the record's length",
            });
        };
        let main = match self.main {
            Some(main) => main,
            None => {
                let before = self
                    .beginning
                    .len()
                    .saturating_sub(index(layout.main_length));
                split(self.beginning, before).1
            }
        };
        let kept = kept_main_bytes(self.header.resource_manager).min(index(layout.main_length));
        Ok(BodyParts {
            header: self.header,
            major: self.major,
            head,
            main: split(main, kept).0,
            layout,
        })
    }
}

/// The parts of a record's body.
#[derive(Debug, Clone, Copy)]
pub struct BodyParts<'a> {
    header: &'a RecordHeader,
    major: Major,
    head: &'a [u8],
    main: &'a [u8],
    layout: Layout,
}

impl<'a> BodyParts<'a> {
    /// The record's header.
    #[must_use]
    pub const fn header(&self) -> &'a RecordHeader {
        self.header
    }

    /// The major that wrote it.
    #[must_use]
    pub const fn major(&self) -> Major {
        self.major
    }

    /// The blocks, by their numbers in the record.
    #[inline]
    #[must_use]
    pub const fn blocks(&self) -> Blocks<'a> {
        Blocks {
            head: Cursor::new(self.head),
            left: self.layout.blocks,
            relation: None,
            major: self.major,
        }
    }

    /// The first of them: of most kinds, the relation that the record is about.
    #[inline(always)]
    #[must_use]
    pub fn first_block(&self) -> Option<BlockReference> {
        self.blocks().next()
    }

    /// The data of the first block, if it lies within the bytes that are kept of every body; `None` also if the record has none.
    pub(crate) fn first_block_data(&self) -> Option<&'a [u8]> {
        let block = self.first_block().filter(|block| block.has_data)?;
        let image = block.image.map_or(0, |image| usize::from(image.length));
        let from = index(self.layout.head_length).saturating_add(image);
        split(split(self.head, from).1, usize::from(block.data_length))
            .0
            .get(..usize::from(block.data_length))
    }

    /// The main data, which each kind has its own layout of; see [`BodyParts::is_main_data_cut`].
    #[must_use]
    pub const fn main_data(&self) -> &'a [u8] {
        self.main
    }

    /// The length of the main data in the record, in bytes.
    #[must_use]
    pub const fn main_data_length(&self) -> u32 {
        self.layout.main_length
    }

    /// Whether the main data is longer than is kept of its kind (64 KiB; 16 MiB of transactions, locks and truncates), and therefore cut.
    #[must_use]
    pub const fn is_main_data_cut(&self) -> bool {
        self.main.len() < index(self.layout.main_length)
    }

    /// The replication origin that the change came from.
    #[must_use]
    pub const fn origin(&self) -> Option<u16> {
        self.layout.origin
    }

    /// The transaction that the record's own transaction is a subtransaction of, if the record says so (`wal_level = logical`).
    #[must_use]
    pub const fn top_level_xid(&self) -> Option<TransactionId> {
        self.layout.top_level_xid
    }

    /// What the record did.
    ///
    /// # Errors
    /// [`Error::MainDataCut`] if that is in the main data that was not kept; [`Error::Truncated`] or [`Error::RecordBody`] (corrupt) if the main data
    /// is not what the record's kind requires.
    #[inline(always)]
    pub fn action(&self) -> Result<Action<'a>, Error> {
        match Action::parse(self.header, self.main, self.major) {
            Err(_) if self.is_main_data_cut() => Err(Error::MainDataCut {
                length: self.layout.main_length,
            }),
            action => action,
        }
    }
}

/// The blocks of a record.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    head: Cursor<'a>,
    left: u8,
    relation: Option<RelationLocator>,
    major: Major,
}

impl Iterator for Blocks<'_> {
    type Item = BlockReference;

    #[inline(always)]
    fn next(&mut self) -> Option<BlockReference> {
        while self.left > 0 {
            // The head was read before: nothing in it can be wrong any more.
            match self.head.u8("part").ok()? {
                ORIGIN => self.head.u16("origin").map(drop).ok()?,
                TOP_LEVEL_XID => self.head.u32("transaction").map(drop).ok()?,
                id => {
                    self.left = self.left.saturating_sub(1);
                    let block = parse_block(id, &mut self.head, self.relation, self.major).ok()?;
                    self.relation = Some(block.relation);
                    return Some(block);
                }
            }
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Blocks<'_> {}

/// How much of the main data of that resource manager's records is kept, in bytes: all that can be of interest, within bounds.
pub(crate) const fn kept_main_bytes(resource_manager: u8) -> usize {
    if crate::rmgr::has_long_lists(resource_manager) {
        16 << 20
    } else {
        64 << 10
    }
}

/// Where the main data begins in a body of that length with that head, if the head can be read.
pub(crate) fn main_data_offset(head: &[u8], body_length: u32, major: Major) -> Option<u32> {
    let layout = skim_head(head, body_length, major)?;
    Some(body_length.saturating_sub(layout.main_length))
}

/// What a head says, but for the blocks.
#[derive(Debug, Clone, Copy)]
struct Layout {
    blocks: u8,
    main_length: u32,
    /// The length of the head.
    head_length: u32,
    origin: Option<u16>,
    top_level_xid: Option<TransactionId>,
}

/// Checks a whole head, and that the body has the length that its parts add up to. What the blocks are is read when it is asked for.
#[inline(always)]
fn skim_head(head: &[u8], body_length: u32, major: Major) -> Option<Layout> {
    let mut rest = head;
    let mut layout = Layout {
        blocks: 0,
        main_length: 0,
        head_length: 0,
        origin: None,
        top_level_xid: None,
    };
    let mut last_id = None;
    // The bytes after the head that the parts so far promise.
    let mut promised = 0_u32;
    let left =
        |rest: &[u8]| body_length.saturating_sub(length(head.len().saturating_sub(rest.len())));
    while left(rest) > promised {
        let (&id, after) = rest.split_first()?;
        if id <= MAX_BLOCK_ID {
            if last_id.is_some_and(|last_id| id <= last_id) {
                return None;
            }
            let (bytes, after) = skim_block(after, last_id.is_none(), major)?;
            promised = promised.saturating_add(bytes);
            layout.blocks = layout.blocks.saturating_add(1);
            last_id = Some(id);
            rest = after;
        } else if id == MAIN_DATA_SHORT {
            // The main data is the last part.
            let (&main, after) = after.split_first()?;
            layout.main_length = u32::from(main);
            promised = promised.saturating_add(layout.main_length);
            rest = after;
            break;
        } else {
            let mut cursor = Cursor::new(after);
            match id {
                ORIGIN => layout.origin = Some(cursor.u16("origin").ok()?),
                TOP_LEVEL_XID => {
                    let xid = cursor.u32("transaction").ok()?;
                    layout.top_level_xid = Some(TransactionId(xid));
                }
                MAIN_DATA_LONG => layout.main_length = cursor.u32("main data length").ok()?,
                _ => return None,
            }
            rest = cursor.rest();
            if id == MAIN_DATA_LONG {
                promised = promised.saturating_add(layout.main_length);
                break;
            }
        }
    }
    layout.head_length = body_length.saturating_sub(promised);
    (left(rest) == promised).then_some(layout)
}

/// Checks a block's part after its first byte; gives the bytes after the head that it promises, and what follows the part.
#[inline(always)]
fn skim_block(part: &[u8], is_first: bool, major: Major) -> Option<(u32, &[u8])> {
    let (&[flags, low, high], after) = part.split_first_chunk()?;
    let data_length = u32::from(u16::from_le_bytes([low, high]));
    if (flags & HAS_DATA != 0) != (data_length > 0) || flags & FORK_MASK > MAX_FORK {
        return None;
    }
    let (image_length, after) = if flags & HAS_IMAGE != 0 {
        skim_image(after, major)?
    } else {
        (0, after)
    };
    let after = if flags & SAME_RELATION == 0 {
        after.split_first_chunk::<16>()?.1
    } else if is_first {
        return None;
    } else {
        after.split_first_chunk::<4>()?.1
    };
    Some((data_length.saturating_add(image_length), after))
}

fn skim_image(part: &[u8], major: Major) -> Option<(u32, &[u8])> {
    let mut cursor = Cursor::new(part);
    let image = parse_image(&mut cursor, major).ok()?;
    Some((u32::from(image.length), cursor.rest()))
}

/// Reads a block's part after its first byte.
#[inline(always)]
fn parse_block(
    id: u8,
    cursor: &mut Cursor<'_>,
    before: Option<RelationLocator>,
    major: Major,
) -> Result<BlockReference, Error> {
    let [flags, low, high] = cursor.take_array("block flags and data length")?;
    let image = if flags & HAS_IMAGE != 0 {
        Some(parse_image(cursor, major)?)
    } else {
        None
    };
    let relation = if flags & SAME_RELATION == 0 {
        RelationLocator::read(cursor)?
    } else {
        before.ok_or(problem("block of the relation before the first"))?
    };
    Ok(BlockReference {
        id,
        relation,
        fork: Fork::from_number(u32::from(flags & FORK_MASK)).ok_or(problem("fork"))?,
        block: cursor.u32("block number")?,
        image,
        has_data: flags & HAS_DATA != 0,
        data_length: u16::from_le_bytes([low, high]),
        will_init: flags & WILL_INIT != 0,
    })
}

fn parse_image(cursor: &mut Cursor<'_>, major: Major) -> Result<BlockImage, Error> {
    let length = cursor.u16("image length")?;
    let hole_offset = cursor.u16("hole offset")?;
    let info = cursor.u8("image flags")?;
    let flags = major.image_flags();
    let compression = if info & flags.pglz != 0 {
        Some(ImageCompression::Pglz)
    } else if info & flags.lz4 != 0 {
        Some(ImageCompression::Lz4)
    } else if info & flags.zstd != 0 {
        Some(ImageCompression::Zstd)
    } else {
        None
    };
    let has_hole = info & flags.has_hole != 0;
    let hole_length = match (compression, has_hole) {
        (Some(_), true) => cursor.u16("hole length")?,
        (Some(_), false) => 0,
        (None, _) => BLOCK_BYTES.saturating_sub(length),
    };
    if has_hole != (hole_offset != 0) {
        return Err(problem("image with a hole at no place, or the reverse"));
    }
    Ok(BlockImage {
        length,
        hole_offset,
        hole_length,
        compression,
        apply: info & flags.apply != 0,
    })
}

impl RelationLocator {
    #[inline]
    pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        Ok(Self {
            tablespace: cursor.u32("tablespace")?,
            database: cursor.u32("database")?,
            relation: cursor.u32("relation")?,
        })
    }
}

const fn problem(problem: &'static str) -> Error {
    Error::RecordBody { problem }
}
