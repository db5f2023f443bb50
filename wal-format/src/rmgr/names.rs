//! The names of resource managers and of their kinds of records, as `pg_waldump` prints them.
//!
//! Source: `src/include/access/rmgrlist.h` and the `*_identify` functions of `src/backend/access/rmgrdesc`, majors 14 to 18.

use crate::Major;

/// The name of a built-in resource manager, as `pg_waldump` prints it.
///
/// `None` for a number that no known major has, and for those of extensions (128 to 255).
#[must_use]
pub const fn resource_manager_name(id: u8) -> Option<&'static str> {
    Some(match id {
        0 => "XLOG",
        1 => "Transaction",
        2 => "Storage",
        3 => "CLOG",
        4 => "Database",
        5 => "Tablespace",
        6 => "MultiXact",
        7 => "RelMap",
        8 => "Standby",
        9 => "Heap2",
        10 => "Heap",
        11 => "Btree",
        12 => "Hash",
        13 => "Gin",
        14 => "Gist",
        15 => "Sequence",
        16 => "SPGist",
        17 => "BRIN",
        18 => "CommitTs",
        19 => "ReplicationOrigin",
        20 => "Generic",
        21 => "LogicalMessage",
        _ => return None,
    })
}

/// The name of a record's kind within its resource manager, from the bits that its header carries.
///
/// `None` for kinds that the major does not have, and for those of extensions.
#[must_use]
pub const fn record_kind_name(
    resource_manager: u8,
    info: u8,
    major: Major,
) -> Option<&'static str> {
    // The low half belongs to the WAL machinery.
    let kind = info >> 4;
    match resource_manager {
        0 => xlog(kind, major),
        1 => transaction(kind),
        2 => nth(&["", "CREATE", "TRUNCATE"], kind),
        3 | 18 => nth(&["ZEROPAGE", "TRUNCATE"], kind),
        4 if major.has_database_wal_log() => {
            nth(&["CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"], kind)
        }
        4 | 5 => nth(&["CREATE", "DROP"], kind),
        6 => nth(
            &["ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"],
            kind,
        ),
        7 => nth(&["UPDATE"], kind),
        8 => nth(&["LOCK", "RUNNING_XACTS", "INVALIDATIONS"], kind),
        9 => heap2(kind, major),
        10 => heap(kind),
        11 => nth(BTREE, kind),
        12 => nth(HASH, kind),
        13 => nth(GIN, kind),
        14 => nth(GIST, kind),
        15 => nth(&["LOG"], kind),
        16 => nth(SPGIST, kind),
        17 => brin(kind),
        19 => nth(&["SET", "DROP"], kind),
        20 => Some("Generic"),
        21 => nth(&["MESSAGE"], kind),
        _ => None,
    }
}

/// The name at that place of a table; an empty one stands for none.
const fn nth(names: &[&'static str], kind: u8) -> Option<&'static str> {
    let mut names = names;
    let mut left = kind;
    while let [first, rest @ ..] = names {
        if left == 0 {
            return if first.is_empty() { None } else { Some(first) };
        }
        left = left.saturating_sub(1);
        names = rest;
    }
    None
}

const fn xlog(kind: u8, major: Major) -> Option<&'static str> {
    const NAMES: &[&str] = &[
        "CHECKPOINT_SHUTDOWN",
        "CHECKPOINT_ONLINE",
        "NOOP",
        "NEXTOID",
        "SWITCH",
        "BACKUP_END",
        "PARAMETER_CHANGE",
        "RESTORE_POINT",
        "FPW_CHANGE",
        "END_OF_RECOVERY",
        "FPI_FOR_HINT",
        "FPI",
        "",
        "OVERWRITE_CONTRECORD",
        "CHECKPOINT_REDO",
    ];
    if kind == 14 && !major.has_checkpoint_redo() {
        return None;
    }
    nth(NAMES, kind)
}

const fn transaction(kind: u8) -> Option<&'static str> {
    const NAMES: &[&str] = &[
        "COMMIT",
        "PREPARE",
        "ABORT",
        "COMMIT_PREPARED",
        "ABORT_PREPARED",
        "ASSIGNMENT",
        "INVALIDATION",
    ];
    // The highest bit only says that more follows.
    nth(NAMES, kind & 7)
}

const fn heap(kind: u8) -> Option<&'static str> {
    const NAMES: &[&str] = &[
        "INSERT",
        "DELETE",
        "UPDATE",
        "TRUNCATE",
        "HOT_UPDATE",
        "HEAP_CONFIRM",
        "LOCK",
        "INPLACE",
        "INSERT+INIT",
        "",
        "UPDATE+INIT",
        "",
        "HOT_UPDATE+INIT",
    ];
    nth(NAMES, kind)
}

const fn heap2(kind: u8, major: Major) -> Option<&'static str> {
    const NAMES: &[&str] = &[
        "REWRITE",
        "PRUNE",
        "VACUUM",
        "FREEZE_PAGE",
        "VISIBLE",
        "MULTI_INSERT",
        "LOCK_UPDATED",
        "NEW_CID",
        "",
        "",
        "",
        "",
        "",
        "MULTI_INSERT+INIT",
    ];
    const PRUNES: &[&str] = &[
        "",
        "PRUNE_ON_ACCESS",
        "PRUNE_VACUUM_SCAN",
        "PRUNE_VACUUM_CLEANUP",
    ];
    if major.has_one_prune_record() && matches!(kind, 1..=3) {
        return nth(PRUNES, kind);
    }
    nth(NAMES, kind)
}

const fn brin(kind: u8) -> Option<&'static str> {
    const NAMES: &[&str] = &[
        "CREATE_INDEX",
        "INSERT",
        "UPDATE",
        "SAMEPAGE_UPDATE",
        "REVMAP_EXTEND",
        "DESUMMARIZE",
        "",
        "",
        "",
        "INSERT+INIT",
        "UPDATE+INIT",
    ];
    nth(NAMES, kind)
}

const BTREE: &[&str] = &[
    "INSERT_LEAF",
    "INSERT_UPPER",
    "INSERT_META",
    "SPLIT_L",
    "SPLIT_R",
    "INSERT_POST",
    "DEDUP",
    "DELETE",
    "UNLINK_PAGE",
    "UNLINK_PAGE_META",
    "NEWROOT",
    "MARK_PAGE_HALFDEAD",
    "VACUUM",
    "REUSE_PAGE",
    "META_CLEANUP",
];

const HASH: &[&str] = &[
    "INIT_META_PAGE",
    "INIT_BITMAP_PAGE",
    "INSERT",
    "ADD_OVFL_PAGE",
    "SPLIT_ALLOCATE_PAGE",
    "SPLIT_PAGE",
    "SPLIT_COMPLETE",
    "MOVE_PAGE_CONTENTS",
    "SQUEEZE_PAGE",
    "DELETE",
    "SPLIT_CLEANUP",
    "UPDATE_META_PAGE",
    "VACUUM_ONE_PAGE",
];

const GIN: &[&str] = &[
    "",
    "CREATE_PTREE",
    "INSERT",
    "SPLIT",
    "VACUUM_PAGE",
    "DELETE_PAGE",
    "UPDATE_META_PAGE",
    "INSERT_LISTPAGE",
    "DELETE_LISTPAGE",
    "VACUUM_DATA_LEAF_PAGE",
];

const GIST: &[&str] = &[
    "PAGE_UPDATE",
    "DELETE",
    "PAGE_REUSE",
    "PAGE_SPLIT",
    "",
    "",
    "PAGE_DELETE",
    "ASSIGN_LSN",
];

const SPGIST: &[&str] = &[
    "",
    "ADD_LEAF",
    "MOVE_LEAFS",
    "ADD_NODE",
    "SPLIT_TUPLE",
    "PICKSPLIT",
    "VACUUM_LEAF",
    "VACUUM_ROOT",
    "VACUUM_REDIRECT",
];

#[cfg(test)]
mod tests {
    use super::{record_kind_name, resource_manager_name};
    use crate::Major;

    #[test]
    fn names_follow_the_major() {
        for (manager, info, major, expected) in [
            (0, 0xE0, Major::V16, None),
            (0, 0xE0, Major::V17, Some("CHECKPOINT_REDO")),
            (0, 0xC0, Major::V18, None),
            (1, 0x80, Major::V14, Some("COMMIT")),
            (1, 0x90, Major::V14, Some("PREPARE")),
            (4, 0x10, Major::V14, Some("DROP")),
            (4, 0x10, Major::V15, Some("CREATE_WAL_LOG")),
            (4, 0x20, Major::V14, None),
            (9, 0x10, Major::V16, Some("PRUNE")),
            (9, 0x10, Major::V17, Some("PRUNE_ON_ACCESS")),
            (9, 0xD0, Major::V17, Some("MULTI_INSERT+INIT")),
            (10, 0xC0, Major::V18, Some("HOT_UPDATE+INIT")),
            (10, 0x90, Major::V18, None),
            (11, 0xF0, Major::V18, None),
            (13, 0x00, Major::V18, None),
            (20, 0x00, Major::V18, Some("Generic")),
            (128, 0x00, Major::V18, None),
        ] {
            assert_eq!(
                record_kind_name(manager, info, major),
                expected,
                "{manager} {info:02X} {major}"
            );
            // The low half is not the resource manager's.
            assert_eq!(record_kind_name(manager, info | 0x03, major), expected);
        }
        assert_eq!(resource_manager_name(22), None);
    }
}
