//! What backends of one space must agree on.
use super::{SpaceId, Store, StoreError, error::Fault};
use rusqlite::{Connection, OptionalExtension};

/// The vectors that the first backend of a space gave the probes.
#[derive(Clone, Debug, PartialEq)]
pub struct ParityReference {
    /// The backend, for people.
    pub backend: String,
    /// What it computed in.
    pub precision: String,
    /// Digest of the probes.
    pub probes: [u8; 32],
    /// `[probes, dim]` row-major.
    pub vectors: Vec<f32>,
}

impl Store {
    /// Whether a backend, by the digest of all that decides how it computes, was found to agree with the
    /// reference of `space`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn has_parity(&self, space: SpaceId, backend: &[u8; 32]) -> Result<bool, StoreError> {
        self.read(|db| {
            let mut known =
                db.prepare_cached("SELECT 1 FROM parity_verdicts WHERE space_id = ?1 AND backend = ?2")?;
            Ok(known.exists((space, backend))?)
        })
    }

    /// The reference of `space`; `own` becomes it where there is none of the same probes.
    ///
    /// # Errors
    /// `ReadOnly` where there is none and it cannot be stored.
    pub fn parity_reference(
        &self,
        space: SpaceId,
        own: &ParityReference,
    ) -> Result<ParityReference, StoreError> {
        let probes = own.probes;
        if let Some(known) = self.read(|db| reference(db, space, &probes))? {
            return Ok(known);
        }
        let own = own.clone();
        self.write(move |db| {
            // Another process may have been first.
            if let Some(known) = reference(db, space, &own.probes)? {
                return Ok(known);
            }
            let vectors: Vec<u8> = own.vectors.iter().flat_map(|v| v.to_le_bytes()).collect();
            db.execute(
                "INSERT INTO parity_references (space_id, backend, precision, probes, vectors)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET backend = excluded.backend, precision = excluded.precision,
                     probes = excluded.probes, vectors = excluded.vectors",
                (space, &own.backend, &own.precision, &own.probes, &vectors),
            )?;
            // They were reached by comparison with other probes.
            db.execute("DELETE FROM parity_verdicts WHERE space_id = ?1", [space])?;
            Ok(own)
        })
    }

    /// Remembers that a backend agrees with the reference of `space`; `cosine` is the least over the probes.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn put_parity(&self, space: SpaceId, backend: [u8; 32], cosine: f32) -> Result<(), StoreError> {
        self.write(move |db| {
            db.execute(
                "INSERT OR REPLACE INTO parity_verdicts (space_id, backend, cosine) VALUES (?1, ?2, ?3)",
                (space, &backend, cosine),
            )?;
            Ok(())
        })
    }
}

fn reference(db: &Connection, space: SpaceId, probes: &[u8; 32]) -> Result<Option<ParityReference>, Fault> {
    let mut known = db.prepare_cached(
        "SELECT backend, precision, vectors FROM parity_references WHERE space_id = ?1 AND probes = ?2",
    )?;
    let known = known.query_row((space, probes), |row| {
        let vectors = row.get_ref(2)?.as_blob()?;
        Ok(ParityReference {
            backend: row.get(0)?,
            precision: row.get(1)?,
            probes: *probes,
            vectors: vectors.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect(),
        })
    });
    Ok(known.optional()?)
}

#[cfg(test)]
mod tests {
    use super::super::{StoreOptions, fixture::*};
    use super::*;

    fn of(backend: &str, probes: u8) -> ParityReference {
        let (backend, precision) = (backend.to_owned(), "f32".to_owned());
        ParityReference { backend, precision, probes: [probes; 32], vectors: vec![0.5, -0.25] }
    }

    #[test]
    fn the_first_backend_is_the_reference_until_the_probes_change() {
        let f = Fixture::new();
        let space = f.space(2);
        assert_eq!(f.store.parity_reference(space, &of("first", 1)), Ok(of("first", 1)));
        assert_eq!(f.store.parity_reference(space, &of("second", 1)), Ok(of("first", 1)));
        f.store.put_parity(space, [7; 32], 1.0).unwrap();
        assert_eq!(f.store.has_parity(space, &[7; 32]), Ok(true));
        assert_eq!(f.store.has_parity(space, &[8; 32]), Ok(false));
        assert_eq!(f.store.parity_reference(space, &of("third", 2)), Ok(of("third", 2)));
        assert_eq!(f.store.has_parity(space, &[7; 32]), Ok(false));
    }

    #[test]
    fn a_read_only_store_knows_what_was_stored_and_takes_nothing() {
        let f = Fixture::new();
        let space = f.space(2);
        f.store.parity_reference(space, &of("first", 1)).unwrap();
        let f = f.reopen(&StoreOptions { read_only: true, ..StoreOptions::default() });
        assert_eq!(f.store.parity_reference(space, &of("second", 1)), Ok(of("first", 1)));
        let error = f.store.parity_reference(space, &of("second", 2)).unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    }
}
