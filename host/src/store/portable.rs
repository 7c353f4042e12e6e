//! Records as they travel between databases: all that is known of them, as JSON.
use super::{Arrival, Layer, SourceRef, StoreError, vectors};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use half::f16;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A record with every field, under names and not under ids of one database. Read from a file, it may
/// lack all but its text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortableRecord {
    /// [`Record::ulid`](super::Record::ulid).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How long it matters; the default where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// What it is; `note` where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Where in its document it stands, or what it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The text itself.
    pub text: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The project that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The session that it was made in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The file that it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRef>,
    /// When it was stored, in milliseconds since 1970; now where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_ms: Option<u64>,
    /// When it was last touched, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_access_ms: Option<u64>,
    /// How often it was touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_count: Option<u64>,
    /// How much it matters, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<f32>,
    /// What promotion made of its use, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// [`Arrival::moved_count`]. Where this, `carried` and `moved_ms` are all missing, how it came to its
    /// layer is not known; where one of them is there, the others are as of a record that was made there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_count: Option<u64>,
    /// [`Arrival::carried`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<f32>,
    /// [`Arrival::moved_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_ms: Option<u64>,
    /// When it may be deleted, in milliseconds since 1970; `null` for never. Where it is not given, a new
    /// record lives as long as its layer lets it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<Option<u64>>,
    /// Since when it is true, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from_ms: Option<u64>,
    /// From when on it is not true any more, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_to_ms: Option<u64>,
    /// Id of the record that replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<String>,
    /// Its vector in the space that the file names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<PortableVector>,
}

impl PortableRecord {
    /// How it came to its layer, where that is said.
    pub(super) fn arrival(&self) -> Option<Arrival> {
        let Self { moved_count, carried, moved_ms, .. } = *self;
        let is_said = moved_count.is_some() || carried.is_some() || moved_ms.is_some();
        is_said.then(|| Arrival {
            moved_count: moved_count.unwrap_or(0),
            carried: carried.unwrap_or(0.0),
            moved_ms,
        })
    }
}

/// A vector as the database has it: `[dim]` little-endian f16, or nothing where all are zero. In JSON it
/// is these bytes in base64; an array of numbers is read too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortableVector(pub(super) Vec<u8>);

impl PortableVector {
    /// The vector of these numbers.
    ///
    /// # Errors
    /// `InvalidInput` for numbers that f16 cannot hold.
    pub fn new(numbers: &[f32]) -> Result<Self, StoreError> {
        Ok(Self(vectors::encode(numbers, numbers.len())?))
    }

    /// Its numbers, where vectors are `dim` wide.
    pub fn numbers(&self, dim: usize) -> Vec<f32> {
        if self.0.is_empty() {
            return vec![0.0; dim];
        }
        self.0.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
    }

    /// As the database has it.
    ///
    /// # Errors
    /// `InvalidInput` for another width than `dim`, or numbers that are not finite.
    pub(super) fn encoded(&self, dim: usize) -> Result<Vec<u8>, StoreError> {
        if !self.0.len().is_multiple_of(2) {
            return Err(StoreError::invalid("a vector has half a number at its end"));
        }
        vectors::encode(&self.numbers(dim), dim)
    }
}

impl Serialize for PortableVector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for PortableVector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a vector is a string of base64 or an array of numbers")]
        enum Form {
            Base64(String),
            Numbers(Vec<f32>),
        }
        match Form::deserialize(deserializer)? {
            Form::Base64(text) => {
                let bytes = STANDARD.decode(text);
                bytes
                    .map(Self)
                    .map_err(|error| de::Error::custom(format!("the vector is no base64: {error}")))
            }
            Form::Numbers(numbers) => Self::new(&numbers).map_err(de::Error::custom),
        }
    }
}

/// Tells `null` from a field that is not there.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
