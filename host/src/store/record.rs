use super::Layer;
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The id of a record inside one database; an index stores vectors under it. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub i64);

impl RecordId {
    /// The id as an index takes it.
    pub const fn index_id(self) -> u64 {
        self.0.cast_unsigned()
    }

    /// The record of an id that an index returned.
    pub const fn from_index_id(id: u64) -> Self {
        Self(id.cast_signed())
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ToSql for RecordId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0))
    }
}

impl FromSql for RecordId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self)
    }
}

/// The lines of a file that a text was taken from, counted from 1, both included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRef {
    /// The file.
    pub path: String,
    /// First line.
    pub line_start: u32,
    /// Last line.
    pub line_end: u32,
}

/// What the store remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The id for indexes.
    pub id: RecordId,
    /// The id for people: 26 characters that sort by time.
    pub ulid: String,
    /// How long it matters.
    pub layer: Layer,
    /// What it is: `note`, `chunk`, ...
    pub kind: String,
    /// Where in its document it stands, or what it is called.
    pub title: Option<String>,
    /// The text itself.
    pub text: String,
    /// Labels, sorted, without duplicates.
    pub tags: Vec<String>,
    /// The project that it belongs to.
    pub project: Option<String>,
    /// The session that it was made in.
    pub session: Option<String>,
    /// The file that it was taken from.
    pub source: Option<SourceRef>,
    /// When it was stored, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was last stored again, or touched. Up to some seconds behind.
    pub last_access_ms: u64,
    /// How often it was stored again or touched. Up to some seconds behind.
    pub access_count: u64,
    /// How much it matters to whoever stored it, from 0 to 1.
    pub importance: f32,
    /// What promotion made of its use, from 0 to 1.
    pub score: f32,
    /// How it came to its layer.
    pub arrival: Arrival,
    /// When it may be deleted; `None` for never.
    pub expires_ms: Option<u64>,
    /// Since when it is true, in milliseconds since 1970; `None` where that is not known.
    pub valid_from_ms: Option<u64>,
    /// From when on it is not true any more; `None` where no end is known.
    pub valid_to_ms: Option<u64>,
    /// Id for people of the record that replaced it; `None` where none did, or where that one is gone.
    pub superseded_by: Option<String>,
}

/// How a record came to its layer. The default is that of one that was made there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Arrival {
    /// How often it had been stored again or touched until then.
    pub moved_count: u64,
    /// The uses that it brought along, from 0.
    pub carried: f32,
    /// When that was, in milliseconds since 1970; `None` where it was made there.
    pub moved_ms: Option<u64>,
}

/// The kind of a record that was given none.
pub(super) const DEFAULT_KIND: &str = "note";

/// A record to store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// How long it matters.
    pub layer: Layer,
    /// What it is: `note`, `chunk`, ...
    pub kind: String,
    /// Where in its document it stands, or what it is called.
    pub title: Option<String>,
    /// The text itself.
    pub text: String,
    /// Labels; spaces around them are dropped, and so are empty ones and duplicates.
    pub tags: Vec<String>,
    /// The project that it belongs to; an empty name is none.
    pub project: Option<String>,
    /// The session that it was made in.
    pub session: Option<String>,
    /// The file that it was taken from.
    pub source: Option<SourceRef>,
    /// How much it matters, from 0 to 1.
    pub importance: f32,
    /// When it may be deleted, in milliseconds since 1970; `None` for never.
    pub expires_ms: Option<u64>,
    /// Since when it is true, in milliseconds since 1970; `None` where that is not known, but for one that replaces
    /// others: then it is now.
    pub valid_from_ms: Option<u64>,
    /// From when on it is not true any more; `None` where no end is known.
    pub valid_to_ms: Option<u64>,
    /// The records that it replaces: they are not true any more once it is.
    pub supersedes: Vec<RecordId>,
    /// Its vector, as wide as the space of the call; stored as f16. One of zeros has no direction:
    /// the record then counts as embedded, and no index hears of it.
    pub vector: Option<Vec<f32>>,
}

impl NewRecord {
    /// A note of middling importance that belongs nowhere and never expires.
    pub fn new(layer: Layer, text: impl Into<String>) -> Self {
        Self {
            layer,
            kind: DEFAULT_KIND.to_owned(),
            title: None,
            text: text.into(),
            tags: Vec::new(),
            project: None,
            session: None,
            source: None,
            importance: 0.5,
            expires_ms: None,
            valid_from_ms: None,
            valid_to_ms: None,
            supersedes: Vec::new(),
            vector: None,
        }
    }

    /// The project as the database has it.
    pub(super) fn project(&self) -> &str {
        self.project.as_deref().unwrap_or_default()
    }

    /// Equal for records that say the same.
    pub(super) fn content_hash(&self) -> [u8; 32] {
        content_hash(self.title.as_deref(), &self.text)
    }
}

/// Equal for records that say the same.
pub(super) fn content_hash(title: Option<&str>, text: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let title = title.unwrap_or_default();
    // The length keeps title and text apart.
    hasher.update(&(title.len() as u64).to_le_bytes());
    hasher.update(title.as_bytes());
    hasher.update(text.as_bytes());
    *hasher.finalize().as_bytes()
}
