//! Plain WAL segments of a folder like `pg_wal`, as pieces for the log. Reads files and changes none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use repository::descriptor::WalDescriptor;
use wal_format::{SegmentName, SegmentSize, TimelineId};

use crate::error::{Error, Result};
use crate::plan::{Piece, PieceSource};
use crate::search::{PieceBytes, WalSource};

/// Most files of a folder that are looked at.
const MAX_FILES: usize = 1_000_000;

/// A folder of plain segments.
pub struct WalDir {
    folder: PathBuf,
    /// The size of its segments.
    pub size: SegmentSize,
    /// The timeline that is read.
    pub timeline: TimelineId,
    /// Its segments in WAL order.
    pub pieces: Vec<Piece>,
    /// What is missing before a piece, by its index.
    pub holes: BTreeMap<usize, String>,
}

impl WalDir {
    /// Looks through the folder for segments of the timeline asked for, or the newest one.
    ///
    /// # Errors
    /// `Io`; `Config`: no segment is there, or they have different sizes.
    pub async fn open(folder: &Path, timeline: Option<TimelineId>) -> Result<Self> {
        let io = |action, source| {
            Error::from(repository::Error::Io {
                action,
                path: folder.to_owned(),
                source,
            })
        };
        let unusable = |reason: String| Error::InvalidRequest {
            what: folder.display().to_string(),
            reason,
        };
        let mut files: BTreeMap<SegmentName, u64> = BTreeMap::new();
        let mut entries = tokio::fs::read_dir(folder)
            .await
            .map_err(|error| io("read", error))?;
        while let Some(entry) = entries
            .next_entry()
            .await
            .map_err(|error| io("read", error))?
        {
            let name = entry.file_name();
            if let Some(name) = name.to_str().and_then(|name| name.parse().ok())
                && files.len() < MAX_FILES
            {
                let data = entry.metadata().await;
                files.insert(name, data.map_err(|error| io("look at", error))?.len());
            }
        }
        let newest = files.keys().map(|name| name.timeline).max();
        let timeline = timeline
            .or(newest)
            .ok_or_else(|| unusable("there is no WAL segment in it".into()))?;
        files.retain(|name, _| name.timeline == timeline);
        let bytes =
            files.values().next().copied().ok_or_else(|| {
                unusable(format!("there is no segment of timeline {timeline} in it"))
            })?;
        let size = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| SegmentSize::new(bytes).ok())
            .filter(|_| files.values().all(|other| *other == bytes))
            .ok_or_else(|| unusable("its files are no whole segments of one cluster".to_owned()))?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut holes = BTreeMap::new();
        for name in files.keys() {
            let Some(start) = name.start(size) else {
                continue;
            };
            if let Some(before) = pieces.last()
                && before.start.saturating_add(bytes) != start
            {
                let hole = format!("segments between {} and {name} are not there", before.name);
                holes.insert(pieces.len(), hole);
            }
            pieces.push(Piece {
                name: *name,
                start,
                source: PieceSource::Sealed,
                cut: None,
            });
        }
        Ok(Self {
            folder: folder.to_owned(),
            size,
            timeline,
            pieces,
            holes,
        })
    }
}

impl WalSource for WalDir {
    async fn descriptor(&self, piece: &Piece) -> Result<WalDescriptor> {
        Ok(WalDescriptor {
            start_lsn: piece.start,
            end_lsn: piece.start.saturating_add(u64::from(self.size.bytes())),
            lineage: String::new(),
            first_record: None,
            first_record_prev: None,
            first_record_overwrites: None,
            last_record: None,
            transactions: None,
            time_min: None,
            time_max: None,
            incomplete: true,
            invalid_at: None,
        })
    }

    async fn bytes(&self, piece: &Piece) -> Result<PieceBytes> {
        let path = self.folder.join(piece.name.to_string());
        let bytes = tokio::fs::read(&path).await;
        let bytes = bytes.map_err(|source| repository::Error::Io {
            action: "read",
            path,
            source,
        })?;
        Ok(PieceBytes {
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            bytes,
            // The server may be writing: what is not valid is where it has not written yet.
            may_end_torn: self.pieces.last() == Some(piece),
        })
    }
}
