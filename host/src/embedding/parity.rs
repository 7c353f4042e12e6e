//! The gate to a space: a backend that claims it must compute what the first one there computed.
//!
//! Equal digests say that two backends were given the same model. Whether they compute the same with it is
//! shown by a fixed set of texts: the first backend of a space leaves its vectors in the database, and the
//! vectors of every later one must point the same way. The verdict on a backend is remembered.
use super::{EmbeddingError, check_vectors, member::Made};
use crate::store::{ParityReference, SpaceId, Store, StoreError};
use magray_plugin_api::{CallContext, Embedder, Role};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Least cosine to the reference, of backends that compute in floating point.
const EXACT: f32 = 0.999;
/// Least cosine where either backend computes in 8 bits or fewer.
const COARSE: f32 = 0.99;

/// Short and long, in two alphabets, code, numbers, both roles.
const PROBES: [(Role, &str); 8] = [
    (Role::Passage, "cat"),
    (Role::Passage, "Backups run every night at two and are copied to another city."),
    (
        Role::Passage,
        "The lighthouse keeper wrote down the weather four times a day for thirty-one years. He noted the wind, \
         the height of the waves, the ships that passed and the birds that rested on the rail. When the light \
         was automated, the books went to the museum of the town, where they filled two shelves. A student of \
         climatology found them there by chance, and saw that nobody had ever typed them in. She spent a summer \
         on it. The series showed that storms from the north-west had become rarer and those from the south-west \
         stronger, long before any station in the region had an instrument to measure it. Her paper thanks him \
         by name; he had died the winter before. The museum has since put one of the books under glass, opened \
         at the page of the great flood, where his hand, steady on every other day, shakes a little.",
    ),
    (Role::Passage, "Резервные копии создаются каждую ночь и хранятся в другом городе."),
    (Role::Passage, "fn main() { let total: u64 = (1..=10).map(|n| n * n).sum(); println!(\"{total}\"); }"),
    (Role::Query, "when do we save copies of the data?"),
    (Role::Query, "как восстановить данные из резервной копии"),
    (Role::Query, "3.14159 2026-11-24 0x1F +7 (495) 123-45-67"),
];

/// Admits backends to the spaces of a store.
#[derive(Debug)]
pub struct Gate {
    store: Arc<Store>,
    /// The reference of a space that the store cannot hold, since it may only be read.
    unstored: Mutex<Option<ParityReference>>,
}

impl Gate {
    /// The gate of a store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, unstored: Mutex::default() }
    }

    /// Admits a backend to the space that it claims.
    ///
    /// # Errors
    /// [`EmbeddingError::Disagrees`], what the backend fails with, or what the store says.
    pub(super) fn admit(&self, profile: &str, made: &Made) -> Result<(), EmbeddingError> {
        let (info, device) = (made.embedder.info(), made.embedder.device());
        let space = self.store.space(info.space, &info.model, info.dim)?;
        let identity = format!("{}\n{}\n{}", made.origin, device.engine, device.precision);
        let identity = *blake3::hash(identity.as_bytes()).as_bytes();
        if self.store.has_parity(space, &identity)? {
            return Ok(());
        }
        let own = ParityReference {
            backend: profile.to_owned(),
            precision: device.precision,
            probes: probes_digest(),
            vectors: probe(profile, &*made.embedder)?,
        };
        let reference = self.reference(space, &own)?;
        let (worst, cosine) = worst(&reference.vectors, &own.vectors, info.dim);
        let is_coarse =
            [&reference.precision, &own.precision].into_iter().any(|precision| is_coarse(precision));
        let least = if is_coarse { COARSE } else { EXACT };
        if cosine < least {
            return Err(EmbeddingError::Disagrees {
                backend: profile.to_owned(),
                reference: reference.backend,
                model: info.model.clone(),
                probe: PROBES[worst].1.chars().take(40).collect(),
                cosine,
                least,
            });
        }
        match self.store.put_parity(space, identity, cosine) {
            Err(StoreError::ReadOnly { .. }) => Ok(()),
            put => Ok(put?),
        }
    }

    /// What backends of the space are compared with: `own`, where there is nothing yet.
    fn reference(&self, space: SpaceId, own: &ParityReference) -> Result<ParityReference, EmbeddingError> {
        match self.store.parity_reference(space, own) {
            Err(StoreError::ReadOnly { .. }) => {
                let mut unstored = self.unstored.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(unstored.get_or_insert_with(|| own.clone()).clone())
            }
            reference => Ok(reference?),
        }
    }
}

/// Says which probes a reference is of.
fn probes_digest() -> [u8; 32] {
    *blake3::hash(format!("{PROBES:?}").as_bytes()).as_bytes()
}

/// The vectors of the probes, `[PROBES.len(), dim]` row-major.
fn probe(profile: &str, embedder: &dyn Embedder) -> Result<Vec<f32>, EmbeddingError> {
    let mut vectors = Vec::new();
    // One by one: a backend may take no more than one text.
    for (role, text) in PROBES {
        let mut vector = vec![f32::NAN; embedder.info().dim];
        embedder
            .embed(&Unhurried, &[text], role, &mut vector)
            .map_err(|error| EmbeddingError::Backend { backend: profile.to_owned(), error })?;
        check_vectors(profile, &vector, vector.len())?;
        vectors.extend(vector);
    }
    Ok(vectors)
}

/// The probe whose two vectors, rows of `[n, dim]`, point apart the most, and their cosine.
fn worst(reference: &[f32], own: &[f32], dim: usize) -> (usize, f32) {
    let cosines = reference.chunks_exact(dim).zip(own.chunks_exact(dim)).map(|(a, b)| cosine(a, b));
    cosines.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, f32::NEG_INFINITY))
}

/// Two texts that the model knows no token of agree too.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (aa, bb) = (dot(a, a), dot(b, b));
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    // One that has a direction and one that has none are as far apart as can be.
    if aa * bb == 0.0 { -1.0 } else { (dot(a, b) / (aa * bb).sqrt()) as f32 }
}

/// Whether numbers are kept in 8 bits or fewer.
fn is_coarse(precision: &str) -> bool {
    let mut numbers =
        precision.split(|c: char| !c.is_ascii_digit()).filter_map(|bits| bits.parse::<u32>().ok());
    numbers.any(|bits| bits <= 8)
}

struct Unhurried;

impl CallContext for Unhurried {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}
