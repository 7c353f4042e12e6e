//! How well records answer words: BM25 over what FTS5 finds.
//!
//! FTS5 has a `bm25()` of its own. For each term it counts the rows anew, and for each row it sorts the positions of all
//! terms and reads the length by a statement: half of the time of a whole search. Here FTS5 says, through an auxiliary
//! function, which terms a row has and how often. All rows with a term are visited anyway, so they are counted as they
//! come, and lengths are kept in memory. The scores are those of `bm25()`.
use super::{
    RecordId,
    error::{Fault, StoreError},
};
use arc_swap::ArcSwap;
use rusqlite::{Connection, ffi};
use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The auxiliary function: `term_hits(records_fts, texts_changed)` of the row at hand is a blob that [`Row`] reads.
const TERM_HITS: &std::ffi::CStr = c"term_hits";
/// The parameters of BM25, those of FTS5.
const K1: f64 = 1.2;
const B: f64 = 0.75;
/// Lengths that are allotted at once.
const CHUNK: usize = 1 << 16;
/// Lengths of records of higher ids are not kept.
const CHUNKS: usize = 1 << 12;

/// The lengths of records in terms, as far as they were needed, for all connections of a store.
#[derive(Clone, Debug)]
pub(super) struct Lengths(Arc<ArcSwap<Known>>);

/// The lengths of one state of the texts.
#[derive(Debug)]
struct Known {
    /// How often the text of a record that was there had changed.
    texts_changed: i64,
    /// By id; 0 is one that is not known.
    chunks: Box<[OnceLock<Box<[AtomicU32]>>]>,
}

impl Known {
    fn new(texts_changed: i64) -> Self {
        Self { texts_changed, chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect() }
    }

    fn of(&self, id: i64) -> Option<&AtomicU32> {
        let id = usize::try_from(id).ok()?;
        let chunk = self.chunks.get(id / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU32::new(0)).collect()).get(id % CHUNK)
    }
}

impl Default for Lengths {
    fn default() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Known::new(0))))
    }
}

impl Lengths {
    /// Forgets what is known where texts have changed since.
    pub(super) fn at(&self, texts_changed: i64) {
        if self.0.load().texts_changed < texts_changed {
            self.0.store(Arc::new(Known::new(texts_changed)));
        }
    }
}

/// Gives the connection the function that [`Matches`] needs.
pub(super) fn register(db: &Connection, lengths: &Lengths) -> Result<(), Fault> {
    let ok = |code: c_int| match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(Fault::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))),
    };
    let mut api: *mut ffi::fts5_api = ptr::null_mut();
    let mut statement = ptr::null_mut();
    // SAFETY: the handle is of an open connection that no other thread uses meanwhile, and the statement is finalized
    // before its pointer to `api` goes. FTS5 writes its interface there, which lives as long as the connection.
    ok(unsafe {
        let sql = c"SELECT fts5(?1)";
        let prepared =
            ffi::sqlite3_prepare_v2(db.handle(), sql.as_ptr(), -1, &mut statement, ptr::null_mut());
        if prepared == ffi::SQLITE_OK {
            let place: *mut *mut ffi::fts5_api = &mut api;
            ffi::sqlite3_bind_pointer(statement, 1, place.cast(), c"fts5_api_ptr".as_ptr(), None);
            ffi::sqlite3_step(statement);
        }
        ffi::sqlite3_finalize(statement);
        prepared
    })?;
    // SAFETY: what is not null is the interface, as above.
    let create = unsafe { api.as_ref() }.and_then(|api| api.xCreateFunction);
    let Some(create) = create else {
        return Err(StoreError::invalid("SQLite was built without FTS5").into());
    };
    let lengths = Box::into_raw(Box::new(lengths.clone())).cast();
    // SAFETY: `term_hits` and `drop_lengths` take what they are registered with. The latter is called once, where the
    // connection ends; where this call fails it is not, and some bytes stay.
    ok(unsafe { create(api, TERM_HITS.as_ptr(), lengths, Some(term_hits), Some(drop_lengths)) })
}

unsafe extern "C" fn drop_lengths(lengths: *mut c_void) {
    // SAFETY: it was made by `Box::into_raw` of this type, and is given back once.
    drop(unsafe { Box::from_raw(lengths.cast::<Lengths>()) });
}

unsafe extern "C" fn term_hits(
    api: *const ffi::Fts5ExtensionApi,
    fts: *mut ffi::Fts5Context,
    context: *mut ffi::sqlite3_context,
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: FTS5 calls it with its interface, and all else for as long as the call lasts.
    unsafe {
        let texts_changed = if count == 1 { ffi::sqlite3_value_int64(*values) } else { -1 };
        match row(&*api, fts, texts_changed) {
            Ok(blob) => {
                let bytes = c_int::try_from(blob.len()).unwrap_or(0);
                ffi::sqlite3_result_blob(context, blob.as_ptr().cast(), bytes, ffi::SQLITE_TRANSIENT());
            }
            Err(code) => ffi::sqlite3_result_error_code(context, code),
        }
    }
}

/// The row at hand as [`Row`] reads it.
///
/// # Safety
/// `api` and `fts` are those of a call of an auxiliary function that was registered with [`Lengths`].
unsafe fn row(
    api: &ffi::Fts5ExtensionApi,
    fts: *mut ffi::Fts5Context,
    texts_changed: i64,
) -> Result<Vec<u8>, c_int> {
    let ok = |code| if code == ffi::SQLITE_OK { Ok(()) } else { Err(code) };
    let (Some(user_data), Some(row_id), Some(column_size)) = (api.xUserData, api.xRowid, api.xColumnSize)
    else {
        return Err(ffi::SQLITE_MISUSE);
    };
    let (Some(row_count), Some(total_size)) = (api.xRowCount, api.xColumnTotalSize) else {
        return Err(ffi::SQLITE_MISUSE);
    };
    let (Some(phrases), Some(first), Some(next)) = (api.xPhraseCount, api.xPhraseFirst, api.xPhraseNext)
    else {
        return Err(ffi::SQLITE_MISUSE);
    };
    let (Some(auxiliary), Some(set_auxiliary)) = (api.xGetAuxdata, api.xSetAuxdata) else {
        return Err(ffi::SQLITE_MISUSE);
    };
    let mut blob = Vec::with_capacity(64);
    // SAFETY: these are functions of the interface with the context that it gave; every pointer is to a local. The user
    // data is what `register` gave, alive while the connection is.
    unsafe {
        let known = (*user_data(fts).cast::<Lengths>()).0.load();
        let known = if known.texts_changed == texts_changed { known.of(row_id(fts)) } else { None };
        let mut length = known.map_or(0, |known| known.load(Ordering::Relaxed));
        if length == 0 {
            let mut terms = 0;
            ok(column_size(fts, -1, &mut terms))?;
            length = u32::try_from(terms).unwrap_or(0);
            if let Some(known) = known {
                known.store(length, Ordering::Relaxed);
            }
        }
        // FTS5 reads the totals whenever it is asked, so the first row alone has them. What is kept says that it was.
        let (mut rows, mut terms) = (0, 0);
        if auxiliary(fts, 0).is_null() {
            ok(row_count(fts, &mut rows))?;
            ok(total_size(fts, -1, &mut terms))?;
            ok(set_auxiliary(fts, user_data(fts), None))?;
        }
        blob.extend(rows.to_le_bytes());
        blob.extend(terms.to_le_bytes());
        blob.extend(length.to_le_bytes());
        for phrase in 0..phrases(fts) {
            let mut place = ffi::Fts5PhraseIter { a: ptr::null(), b: ptr::null() };
            let (mut column, mut offset, mut times) = (0, 0, 0u32);
            ok(first(fts, phrase, &mut place, &mut column, &mut offset))?;
            while column >= 0 {
                times += 1;
                next(fts, &mut place, &mut column, &mut offset);
            }
            if times > 0 {
                blob.extend(phrase.to_le_bytes());
                blob.extend(times.to_le_bytes());
            }
        }
    }
    Ok(blob)
}

/// The records that have one of the terms.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Rows of the index, and terms of all of them.
    totals: (i64, i64),
    rows: Vec<Row>,
    /// Which term and how often, row after row.
    terms: Vec<(u32, u32)>,
    /// How many rows have each term.
    rows_with: Vec<u32>,
}

#[derive(Debug)]
struct Row {
    id: RecordId,
    length: u32,
    /// Where its terms end in those of all.
    end: usize,
    is_wanted: bool,
}

impl Matches {
    /// Of a question of so many terms.
    pub(super) fn new(terms: usize) -> Self {
        Self { rows_with: vec![0; terms], ..Self::default() }
    }

    /// Takes a row as `term_hits` gives it. One that is not wanted counts for how common its terms are.
    ///
    /// # Errors
    /// Where it is no such row.
    pub(super) fn add(&mut self, id: RecordId, blob: &[u8], is_wanted: bool) -> Result<(), Fault> {
        let fault = || Fault::from(rusqlite::Error::InvalidQuery);
        let (rows, blob) = blob.split_first_chunk().ok_or_else(fault)?;
        let (terms, blob) = blob.split_first_chunk().ok_or_else(fault)?;
        let (length, blob) = blob.split_first_chunk().ok_or_else(fault)?;
        if self.rows.is_empty() {
            self.totals = (i64::from_le_bytes(*rows), i64::from_le_bytes(*terms));
        }
        for pair in blob.as_chunks::<8>().0 {
            let [a, b, c, d, times @ ..] = *pair;
            let (term, times) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(times));
            *self.rows_with.get_mut(term as usize).ok_or_else(fault)? += 1;
            self.terms.push((term, times));
        }
        let (length, end) = (u32::from_le_bytes(*length), self.terms.len());
        self.rows.push(Row { id, length, end, is_wanted });
        Ok(())
    }

    /// The score of each that is wanted, in the order in which they came.
    pub(super) fn scores(&self) -> Vec<(RecordId, f32)> {
        let (rows, terms) = (self.totals.0 as f64, self.totals.1 as f64);
        let average = terms / rows.max(1.0);
        let rarity = |&with: &u32| {
            let idf = ((rows - f64::from(with) + 0.5) / (f64::from(with) + 0.5)).ln();
            // A term of more than half of the rows, as FTS5 has it.
            if idf <= 0.0 { 1e-6 } else { idf }
        };
        let rarities: Vec<f64> = self.rows_with.iter().map(rarity).collect();
        let mut scores = Vec::with_capacity(self.rows.len());
        let mut begin = 0;
        for row in &self.rows {
            let terms = &self.terms[std::mem::replace(&mut begin, row.end)..row.end];
            if row.is_wanted {
                let norm = K1 * (1.0 - B + B * f64::from(row.length) / average);
                let of = |&(term, times): &(u32, u32)| {
                    let times = f64::from(times);
                    rarities[term as usize] * times * (K1 + 1.0) / (times + norm)
                };
                scores.push((row.id, terms.iter().map(of).sum::<f64>() as f32));
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, Store, fixture::*};
    use proptest::prelude::*;

    /// What FTS5 itself says, best first.
    fn by_fts5(store: &Store, query: &str) -> Vec<(i64, f32)> {
        let sql = "SELECT rowid, -bm25(records_fts) AS score FROM records_fts WHERE records_fts MATCH ?1
                   ORDER BY score DESC, rowid";
        let read = store.read(|db| {
            let mut rows = db.prepare(sql)?;
            let rows = rows.query_map([query], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        });
        read.unwrap()
    }

    fn assert_same(store: &Store, terms: &[String]) {
        let wanted = by_fts5(store, &terms.join(" OR "));
        let found = store.find_words(terms, None, usize::MAX).unwrap();
        let found: Vec<(i64, f32)> = found.iter().map(|(id, score)| (id.0, *score)).collect();
        assert_eq!(found.len(), wanted.len());
        for ((_, found), (_, wanted)) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() <= 1e-6 * wanted.max(1.0), "{found} {wanted}");
        }
        let of = |hits: &[(i64, f32)]| {
            let mut ids: Vec<i64> = hits.iter().map(|hit| hit.0).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(of(&found), of(&wanted));
    }

    fn word(n: u8) -> String {
        // Some are in nearly every text, most in few.
        format!("word{}", char::from(b'a' + n.trailing_zeros() as u8))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn scores_are_those_of_fts5(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..12), 1..20),
            asked in prop::collection::btree_set(any::<u8>().prop_map(word), 1..5),
            forgotten in 0usize..20,
        ) {
            let f = Fixture::new();
            let text = |words: &Vec<u8>| words.iter().map(|&n| word(n)).collect::<Vec<_>>().join(" ");
            let asked: Vec<String> = asked.into_iter().collect();
            let mut records: Vec<_> = texts.iter().map(|words| note(&text(words))).collect();
            records[0].title = Some(word(1));
            f.store.add(None, records).unwrap();
            assert_same(&f.store, &asked);
            // Lengths are known now.
            assert_same(&f.store, &asked);
            let listed = f.store.list(&Filter::default(), 1, forgotten).unwrap();
            f.store.forget(&listed.iter().map(|record| record.id).collect::<Vec<_>>()).unwrap();
            assert_same(&f.store, &asked);
        }
    }
}
