//! The keyword index over titles and texts.
use super::{IdSet, RecordId, Store, StoreError, bm25, terms::Terms};
use rusqlite::Connection;

impl Store {
    /// The records that have at least one of `terms` and are in `within`, with their BM25 over title and text: first the
    /// `limit` best, best first and of equals the older, then the others in any order. Terms are those of
    /// [`query_terms`](super::query_terms).
    ///
    /// # Errors
    /// What SQLite says.
    pub fn find_words(
        &self,
        terms: &[String],
        within: Option<&IdSet>,
        limit: usize,
    ) -> Result<Vec<(RecordId, f32)>, StoreError> {
        if terms.is_empty() {
            return Ok(Vec::new());
        }
        // Quoted, so that none is an operator.
        let query = terms.iter().map(|term| format!("\"{term}\"")).collect::<Vec<_>>().join(" OR ");
        let found = self.read(|db| {
            // All of them: for each that is asked for by its id FTS5 would count all of them anew.
            let mut rows = db.prepare_cached(
                "SELECT term_rows(records_fts, (SELECT texts_changed FROM meta))
                 FROM records_fts WHERE records_fts MATCH ?1 LIMIT 1",
            )?;
            let mut rows = rows.query([query])?;
            let Some(row) = rows.next()? else { return Ok(Vec::new()) };
            let blob = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            Ok(bm25::scores(blob).ok_or(rusqlite::Error::InvalidQuery)?)
        })?;
        let is_wanted = |id: &RecordId| within.is_none_or(|within| within.contains(id.index_id()));
        let found = found.into_iter().filter(|(id, _)| is_wanted(id));
        let mut hits: Vec<_> = found.map(|(id, score)| (id, score as f32)).collect();
        let better = |a: &(RecordId, f32), b: &(RecordId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if hits.len() > limit {
            hits.select_nth_unstable_by(limit, better);
        }
        let best = limit.min(hits.len());
        hits[..best].sort_unstable_by(better);
        Ok(hits)
    }
}

/// Enters a new record.
pub(super) fn insert(db: &Connection, id: RecordId, terms: &Terms) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO records_fts (rowid, title, text) VALUES (?1, ?2, ?3)")?.execute((
        id,
        &terms.title,
        &terms.text,
    ))?;
    Ok(())
}

/// Takes a record out.
pub(super) fn remove(db: &Connection, id: RecordId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM records_fts WHERE rowid = ?1")?.execute([id])?;
    Ok(())
}

/// Enters every record into an empty index.
pub(super) fn fill(db: &Connection) -> rusqlite::Result<()> {
    let count: u64 = db.query_row("SELECT count(*) FROM records", [], |row| row.get(0))?;
    if count >= 10_000 {
        tracing::warn!("the keyword index of {count} records is built anew, once; this takes a moment");
    }
    let mut records = db.prepare("SELECT id, title, text FROM records")?;
    let mut rows = records.query([])?;
    while let Some(row) = rows.next()? {
        let terms = Terms::of(row.get_ref(1)?.as_str_or_null()?, row.get_ref(2)?.as_str()?);
        insert(db, row.get(0)?, &terms)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, Layer, NewRecord, fixture::*, query_terms};
    use super::*;

    fn find(f: &Fixture, query: &str, filter: &Filter) -> Vec<i64> {
        let within = f.store.matching_ids(filter).unwrap();
        let hits = f.store.find_words(&query_terms(query), Some(&within), 10).unwrap();
        hits.iter().map(|hit| hit.0.0).collect()
    }

    #[test]
    fn the_record_with_more_of_the_words_comes_first() {
        let f = Fixture::new();
        let records = vec![
            note("the moon over the sea"),
            note("the tides follow the moon"),
            NewRecord { title: Some("Tide".to_owned()), layer: Layer::Assets, ..note("a table of hours") },
            note("nothing of that"),
        ];
        f.store.add(None, records).unwrap();
        assert_eq!(find(&f, "tide moon", &Filter::default())[0], 2);
        assert_eq!(find(&f, "TIDES", &Filter { layers: vec![Layer::Assets], ..Filter::default() }), [3]);
        assert_eq!(find(&f, "mo", &Filter::default()), [0i64; 0]);
        let hits = f.store.find_words(&query_terms("moon sea"), None, 1).unwrap();
        assert_eq!(hits.iter().map(|hit| hit.0.0).collect::<Vec<_>>(), [1, 2]);
        assert!(hits[0].1 > 0.0);
        f.store.forget(&[RecordId(2)]).unwrap();
        assert_eq!(find(&f, "follows", &Filter::default()), [0i64; 0]);
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn accents_and_endings_do_not_matter_and_nothing_is_syntax() {
        let f = Fixture::new();
        f.store
            .add(None, vec![note("Crème brûlée with node.js"), note("Привет, миры"), note("the cat")])
            .unwrap();
        assert_eq!(find(&f, "creme", &Filter::default()), [1]);
        assert_eq!(find(&f, "node.js", &Filter::default()), [1]);
        assert_eq!(find(&f, "NodeJS", &Filter::default()), [1]);
        assert_eq!(find(&f, "мир", &Filter::default()), [2]);
        // Nothing but words that say nothing.
        assert_eq!(find(&f, "the", &Filter::default()), [3]);
        let odd = ["\"", "AND", "text:", "(", "*", "^", "NEAR(", "-", "b\0c", "", "💥", "'", "OR"];
        let many: String = (0..3000).map(|n| format!("w{n} ")).collect();
        for word in odd.into_iter().chain([many.as_str()]) {
            assert_eq!(find(&f, word, &Filter::default()), [0i64; 0], "{word}");
            assert_eq!(find(&f, &format!("{word} creme"), &Filter::default()), [1], "{word}");
        }
    }
}
