//! The keyword index over titles and texts.
use super::{Filter, RecordId, Store, StoreError};
use rusqlite::{Connection, params_from_iter, types::Value};

/// One record that a keyword search found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeywordHit {
    /// The record.
    pub id: RecordId,
    /// BM25 over title and text; greater is better.
    pub score: f32,
}

impl Store {
    /// The `limit` best records by BM25 that fit `filter` and hold at least one of `words`, best
    /// first. A word that is several to the index ("node.js") is found as a phrase. Nothing in a
    /// word is query syntax.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn find_words(
        &self,
        words: &[&str],
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<KeywordHit>, StoreError> {
        // FTS5 ends a query at a NUL, and no index entry has one.
        let words = words.iter().filter(|word| !word.contains('\0'));
        let phrases: Vec<String> = words.map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect();
        if phrases.is_empty() {
            return Ok(Vec::new());
        }
        let mut values = vec![Value::Text(phrases.join(" OR "))];
        let sql = if *filter == Filter::default() {
            "SELECT rowid, rank FROM records_fts WHERE records_fts MATCH ? ORDER BY rank LIMIT ?".to_owned()
        } else {
            let (condition, filter_values) = filter.condition();
            values.extend(filter_values);
            // CROSS JOIN keeps SQLite from walking the records and asking the index about each.
            format!(
                "SELECT records.id, rank FROM records_fts CROSS JOIN records ON records.id = records_fts.rowid
                 WHERE records_fts MATCH ? AND {condition} ORDER BY rank LIMIT ?"
            )
        };
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        self.read(|db| {
            let mut hits = db.prepare_cached(&sql)?;
            let hits = hits.query_map(params_from_iter(values), |row| {
                Ok(KeywordHit { id: row.get(0)?, score: -row.get::<_, f32>(1)? })
            })?;
            Ok(hits.collect::<Result<_, _>>()?)
        })
    }
}

/// Enters a new record.
pub(super) fn insert(db: &Connection, id: RecordId, title: Option<&str>, text: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO records_fts (rowid, title, text) VALUES (?1, ?2, ?3)")?
        .execute((id, title, text))?;
    Ok(())
}

/// Takes a record out; title and text are those that it was entered with.
pub(super) fn remove(db: &Connection, id: RecordId, title: Option<&str>, text: &str) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO records_fts (records_fts, rowid, title, text) VALUES ('delete', ?1, ?2, ?3)",
    )?
    .execute((id, title, text))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Layer, NewRecord, fixture::*};
    use super::*;

    fn find(f: &Fixture, words: &[&str], filter: &Filter) -> Vec<i64> {
        f.store.find_words(words, filter, 10).unwrap().iter().map(|hit| hit.id.0).collect()
    }

    #[test]
    fn the_record_with_more_of_the_words_comes_first() {
        let f = Fixture::new();
        let records = vec![
            note("the moon over the sea"),
            note("the tide follows the moon"),
            NewRecord { title: Some("Tide".to_owned()), layer: Layer::Assets, ..note("a table of hours") },
            note("nothing of that"),
        ];
        f.store.add(None, records).unwrap();
        assert_eq!(find(&f, &["tide", "moon"], &Filter::default())[0], 2);
        assert_eq!(find(&f, &["TIDE"], &Filter { layers: vec![Layer::Assets], ..Filter::default() }), [3]);
        assert_eq!(find(&f, &["mo"], &Filter::default()), [0i64; 0]);
        let hits = f.store.find_words(&["moon", "sea"], &Filter::default(), 1).unwrap();
        assert_eq!((hits.len(), hits[0].id), (1, RecordId(1)));
        assert!(hits[0].score > 0.0);
        f.store.forget(&[RecordId(2)]).unwrap();
        assert_eq!(find(&f, &["follows"], &Filter::default()), [0i64; 0]);
    }

    #[test]
    fn accents_do_not_matter_and_nothing_is_syntax() {
        let f = Fixture::new();
        f.store.add(None, vec![note("Crème brûlée with node.js"), note("Привет, мир")]).unwrap();
        assert_eq!(find(&f, &["creme"], &Filter::default()), [1]);
        assert_eq!(find(&f, &["node.js"], &Filter::default()), [1]);
        assert_eq!(find(&f, &["мир"], &Filter::default()), [2]);
        let odd = ["\"", "AND", "text:", "(", "*", "^", "NEAR(", "-", "a\0b", "", "💥", "'"];
        assert_eq!(find(&f, &odd, &Filter::default()), [0i64; 0]);
        for word in odd {
            assert_eq!(find(&f, &[word, "creme"], &Filter::default()), [1], "{word}");
        }
        assert_eq!(find(&f, &[], &Filter::default()), [0i64; 0]);
    }
}
