use super::{IdSet, Layer, RecordId, Store, StoreError};
use rusqlite::{params_from_iter, types::Value};
use std::path::MAIN_SEPARATOR;

/// Which records are meant: those that fit every field. The default fits all.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Filter {
    /// In one of these layers; empty for any.
    pub layers: Vec<Layer>,
    /// Of this kind.
    pub kind: Option<String>,
    /// With all of these tags.
    pub tags: Vec<String>,
    /// Of this project; the empty name stands for records of none.
    pub project: Option<String>,
    /// Of this session.
    pub session: Option<String>,
    /// Taken from the file at this path, or from one below it.
    pub source: Option<String>,
    /// Stored at this time or later, in milliseconds since 1970.
    pub created_after_ms: Option<u64>,
    /// Stored before this time, in milliseconds since 1970.
    pub created_before_ms: Option<u64>,
    /// Not yet due for deletion at this time, in milliseconds since 1970.
    pub not_expired_at_ms: Option<u64>,
    /// True at this time, as far as is known, in milliseconds since 1970: so not replaced by then.
    pub valid_at_ms: Option<u64>,
}

impl Filter {
    /// The filter as a condition over `records`, and the values of its question marks.
    pub(super) fn condition(&self) -> (String, Vec<Value>) {
        if *self == Self::default() {
            // A layer would make SQLite sort all records to list the newest.
            return ("TRUE".to_owned(), Vec::new());
        }
        // Else a layer always stands there: it leads the index that covers the other columns.
        let layers = if self.layers.is_empty() { &Layer::ALL[..] } else { &self.layers[..] };
        let layers: Vec<String> = layers.iter().map(|&layer| (layer as u8).to_string()).collect();
        let mut sql = format!("records.layer IN ({})", layers.join(","));
        let mut values = Vec::new();
        let mut and = |condition: &str, value: Value| {
            sql.push_str(" AND ");
            sql.push_str(condition);
            values.push(value);
        };
        let text = |text: &String| Value::Text(text.clone());
        if let Some(project) = &self.project {
            and("records.project = ?", text(project));
        }
        if let Some(kind) = &self.kind {
            and("records.kind = ?", text(kind));
        }
        if let Some(session) = &self.session {
            and("records.session = ?", text(session));
        }
        if let Some(time) = self.created_after_ms {
            and("records.created_ms >= ?", time_value(time));
        }
        if let Some(time) = self.created_before_ms {
            and("records.created_ms < ?", time_value(time));
        }
        if let Some(time) = self.not_expired_at_ms {
            and("(records.expires_ms IS NULL OR records.expires_ms > ?)", time_value(time));
        }
        if let Some(time) = self.valid_at_ms {
            and("(records.valid_from_ms IS NULL OR records.valid_from_ms <= ?)", time_value(time));
            and("(records.valid_to_ms IS NULL OR records.valid_to_ms > ?)", time_value(time));
        }
        for tag in &self.tags {
            and("records.id IN (SELECT record_id FROM record_tags WHERE tag = ?)", text(tag));
        }
        if let Some(path) = &self.source {
            let (itself, first, end) = at_and_below(path);
            sql.push_str(
                " AND (records.source_path = ? OR (records.source_path >= ? AND records.source_path < ?))",
            );
            values.extend([itself, first, end].map(Value::Text));
        }
        (sql, values)
    }
}

/// The path, and the range of all paths below it: the first that could be, and the end, which is not.
pub(super) fn at_and_below(path: &str) -> (String, String, String) {
    let path = path.trim_end_matches(MAIN_SEPARATOR);
    let after = char::from(MAIN_SEPARATOR as u8 + 1);
    (path.to_owned(), format!("{path}{MAIN_SEPARATOR}"), format!("{path}{after}"))
}

/// Times beyond what SQLite can hold are later than every record's.
fn time_value(time_ms: u64) -> Value {
    Value::Integer(i64::try_from(time_ms).unwrap_or(i64::MAX))
}

impl Store {
    /// The ids of the records that fit, for the search of an index.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn matching_ids(&self, filter: &Filter) -> Result<IdSet, StoreError> {
        let (condition, values) = filter.condition();
        self.read(|db| {
            let mut ids = db.prepare_cached(&format!("SELECT records.id FROM records WHERE {condition}"))?;
            let ids = ids.query_map(params_from_iter(values), |row| row.get(0).map(RecordId::index_id))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
    }

    /// The ids of all records but those that are due for deletion at `now_ms`, and those that are not true at
    /// `valid_at_ms` where that is given; `None` where these are all. Takes time by how many are left out.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn present_ids(&self, now_ms: u64, valid_at_ms: Option<u64>) -> Result<Option<IdSet>, StoreError> {
        let (now, valid_at) = (time_value(now_ms), valid_at_ms.map(time_value));
        self.read(|db| {
            let mut left_out = db.prepare_cached(
                "SELECT id FROM records WHERE expires_ms <= ?1
                 UNION ALL
                 SELECT id FROM records
                 WHERE (valid_from_ms IS NOT NULL OR valid_to_ms IS NOT NULL)
                   AND (valid_from_ms > ?2 OR valid_to_ms <= ?2)",
            )?;
            let left_out = left_out.query_map((now, valid_at), |row| row.get(0).map(RecordId::index_id))?;
            let left_out = left_out.collect::<Result<Vec<u64>, _>>()?;
            if left_out.is_empty() {
                return Ok(None);
            }
            let mut last = db.prepare_cached("SELECT coalesce(max(id), 0) FROM records")?;
            let last: RecordId = last.query_row([], |row| row.get(0))?;
            Ok(Some(IdSet::all_but(last.index_id(), left_out)))
        })
    }

    /// How many records fit.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn count(&self, filter: &Filter) -> Result<u64, StoreError> {
        let (condition, values) = filter.condition();
        self.read(|db| {
            let mut count = db.prepare_cached(&format!("SELECT count(*) FROM records WHERE {condition}"))?;
            Ok(count.query_row(params_from_iter(values), |row| row.get(0))?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NewRecord, SourceRef, fixture::*};
    use super::*;

    fn texts(f: &Fixture, filter: &Filter) -> Vec<String> {
        let listed = f.store.list(filter, usize::MAX, 0).unwrap();
        let ids: Vec<u64> = listed.iter().rev().map(|record| record.id.index_id()).collect();
        assert_eq!(f.store.matching_ids(filter).unwrap().iter().collect::<Vec<_>>(), ids);
        assert_eq!(f.store.count(filter).unwrap(), ids.len() as u64);
        let mut texts: Vec<String> = listed.into_iter().map(|record| record.text).collect();
        texts.sort();
        texts
    }

    #[test]
    fn each_field_narrows() {
        let f = Fixture::new();
        let source = |path: &str| Some(SourceRef { path: path.to_owned(), line_start: 1, line_end: 1 });
        let records = vec![
            NewRecord { layer: Layer::Assets, tags: strings(&["x", "y"]), ..note("a") },
            NewRecord { kind: "chunk".to_owned(), source: source("/p/100%/x"), ..note("b") },
            NewRecord {
                project: Some("p".to_owned()),
                tags: strings(&["x"]),
                expires_ms: Some(50),
                ..note("c")
            },
            NewRecord {
                session: Some("s".to_owned()),
                source: source("/p/100/x"),
                valid_from_ms: Some(20),
                valid_to_ms: Some(30),
                ..note("d")
            },
        ];
        f.store.add(None, records).unwrap();
        let any = Filter::default;
        let some = |text: &str| Some(text.to_owned());
        let created = f.store.list(&any(), 1, 0).unwrap()[0].created_ms;
        let cases = [
            (any(), "abcd"),
            (Filter { layers: vec![Layer::Assets], ..any() }, "a"),
            (Filter { layers: vec![Layer::Assets, Layer::Insights], ..any() }, "abcd"),
            (Filter { layers: vec![Layer::Interact], ..any() }, ""),
            (Filter { kind: some("chunk"), ..any() }, "b"),
            (Filter { tags: strings(&["x"]), ..any() }, "ac"),
            (Filter { tags: strings(&["x", "y"]), ..any() }, "a"),
            (Filter { tags: strings(&["z"]), ..any() }, ""),
            (Filter { project: some("p"), ..any() }, "c"),
            (Filter { project: some(""), ..any() }, "abd"),
            (Filter { session: some("s"), ..any() }, "d"),
            (Filter { source: some("/p"), ..any() }, "bd"),
            (Filter { source: some("/p/"), ..any() }, "bd"),
            (Filter { source: some("/p/100"), ..any() }, "d"),
            (Filter { source: some("/p/100%/x"), ..any() }, "b"),
            (Filter { source: some("/p/1"), ..any() }, ""),
            (Filter { source: some("/"), ..any() }, "bd"),
            (Filter { source: some("/p"), session: some("s"), ..any() }, "d"),
            (Filter { created_after_ms: Some(created), ..any() }, "abcd"),
            (Filter { created_after_ms: Some(created + 1), ..any() }, ""),
            (Filter { created_before_ms: Some(created + 1), ..any() }, "abcd"),
            (Filter { created_before_ms: Some(created), ..any() }, ""),
            (Filter { created_before_ms: Some(u64::MAX), ..any() }, "abcd"),
            (Filter { not_expired_at_ms: Some(49), ..any() }, "abcd"),
            (Filter { valid_at_ms: Some(19), ..any() }, "abc"),
            (Filter { valid_at_ms: Some(20), ..any() }, "abcd"),
            (Filter { valid_at_ms: Some(30), ..any() }, "abc"),
            (Filter { not_expired_at_ms: Some(50), ..any() }, "abd"),
            (
                Filter { project: some("p"), tags: strings(&["x"]), layers: vec![Layer::Insights], ..any() },
                "c",
            ),
            (Filter { kind: some("' OR 1=1 --"), ..any() }, ""),
        ];
        for (filter, expected) in cases {
            assert_eq!(texts(&f, &filter).concat(), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_filter_is_answered_from_an_index_without_the_texts() {
        let f = Fixture::new();
        let (condition, values) = Filter {
            layers: vec![Layer::Assets],
            kind: Some("chunk".to_owned()),
            project: Some("p".to_owned()),
            session: Some("s".to_owned()),
            created_after_ms: Some(1),
            created_before_ms: Some(2),
            not_expired_at_ms: Some(3),
            valid_at_ms: Some(4),
            ..Filter::default()
        }
        .condition();
        let sql = format!("EXPLAIN QUERY PLAN SELECT records.id FROM records WHERE {condition}");
        let plan: String =
            f.store.read(|db| Ok(db.query_row(&sql, params_from_iter(values), |row| row.get(3))?)).unwrap();
        assert!(plan.contains("USING COVERING INDEX records_by_filter"), "{plan}");
    }

    #[test]
    fn what_is_present_is_all_but_what_is_over_or_not_yet_true() {
        let f = Fixture::new();
        let until = |text: &str, expires_ms, valid_from_ms, valid_to_ms| NewRecord {
            expires_ms,
            valid_from_ms,
            valid_to_ms,
            ..note(text)
        };
        let records = vec![
            note("a"),
            until("b", Some(50), None, None),
            until("c", None, Some(20), Some(30)),
            note("d"),
        ];
        f.store.add(None, records).unwrap();
        for now in [10, 49, 50] {
            for valid_at in [None, Some(19), Some(20), Some(29), Some(30)] {
                let filter =
                    Filter { not_expired_at_ms: Some(now), valid_at_ms: valid_at, ..Filter::default() };
                let wanted: Vec<u64> = f.store.matching_ids(&filter).unwrap().iter().collect();
                let present = f.store.present_ids(now, valid_at).unwrap();
                assert_eq!(present.is_none(), wanted.len() == 4, "{filter:?}");
                if let Some(present) = present {
                    assert_eq!(present.iter().collect::<Vec<_>>(), wanted, "{filter:?}");
                }
            }
        }
    }
}
