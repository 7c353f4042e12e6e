//! How well records answer words: BM25 over what FTS5 finds.
//!
//! FTS5 has a `bm25()` of its own. It is called for each row that has a term, sorts the positions of all terms in it, and
//! reads its length by a statement: half of the time of a whole search. Here an auxiliary function, called once, walks the
//! rows of each term by itself, and lengths are kept in memory. The scores are those of `bm25()`.
use super::{
    RecordId,
    error::{Fault, StoreError},
};
use arc_swap::ArcSwap;
use rusqlite::{Connection, ffi};
use std::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The auxiliary function: `term_rows(records_fts, texts_changed)`, the same for every row of a query, is a blob that
/// [`scores`] reads.
const TERM_ROWS: &CStr = c"term_rows";
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
    /// What is known of the texts after so many changes of them; what was known of those before is over. None where
    /// others have seen a later state already.
    fn at(&self, texts_changed: i64) -> Option<Arc<Known>> {
        let known = self.0.load_full();
        if known.texts_changed >= texts_changed {
            return (known.texts_changed == texts_changed).then_some(known);
        }
        let known = Arc::new(Known::new(texts_changed));
        self.0.store(Arc::clone(&known));
        Some(known)
    }
}

/// Gives the connection the function whose answer [`scores`] reads.
pub(super) fn register(db: &Connection, lengths: &Lengths) -> Result<(), Fault> {
    let fault = |code| Fault::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
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
    })
    .map_err(fault)?;
    // SAFETY: what is not null is the interface, as above.
    let create = unsafe { api.as_ref() }.and_then(|api| api.xCreateFunction);
    let Some(create) = create else {
        return Err(StoreError::invalid("SQLite was built without FTS5").into());
    };
    let lengths = Box::into_raw(Box::new(lengths.clone())).cast();
    // SAFETY: `term_rows` and `drop_lengths` take what they are registered with. The latter is called once, where the
    // connection ends; where this call fails it is not, and some bytes stay.
    ok(unsafe { create(api, TERM_ROWS.as_ptr(), lengths, Some(term_rows), Some(drop_lengths)) })
        .map_err(fault)
}

unsafe extern "C" fn drop_lengths(lengths: *mut c_void) {
    // SAFETY: it was made by `Box::into_raw` of this type, and is given back once.
    drop(unsafe { Box::from_raw(lengths.cast::<Lengths>()) });
}

unsafe extern "C" fn term_rows(
    api: *const ffi::Fts5ExtensionApi,
    fts: *mut ffi::Fts5Context,
    context: *mut ffi::sqlite3_context,
    count: c_int,
    values: *mut *mut ffi::sqlite3_value,
) {
    // SAFETY: FTS5 calls it with its interface, and all else for as long as the call lasts.
    unsafe {
        let texts_changed = if count == 1 { ffi::sqlite3_value_int64(*values) } else { -1 };
        match all_rows(&*api, fts, texts_changed) {
            Ok(blob) => {
                let (bytes, length) = (blob.as_ptr().cast(), blob.len() as u64);
                ffi::sqlite3_result_blob64(context, bytes, length, ffi::SQLITE_TRANSIENT());
            }
            Err(code) => ffi::sqlite3_result_error_code(context, code),
        }
    }
}

/// What [`take_row`] needs and makes.
struct Rows {
    blob: Vec<u8>,
    known: Option<Arc<Known>>,
}

/// Numbers of 8 bytes: rows and terms of all the index; then for each term how many rows have it, and those by id, each
/// its id, and in one number how often it has the term and, in the lower half, its length.
///
/// # Safety
/// `api` and `fts` are those of a call of an auxiliary function that was registered with [`Lengths`].
unsafe fn all_rows(
    api: &ffi::Fts5ExtensionApi,
    fts: *mut ffi::Fts5Context,
    texts_changed: i64,
) -> Result<Vec<u8>, c_int> {
    let (Some(user_data), Some(row_count), Some(total_size), Some(phrase_count), Some(query_phrase)) =
        (api.xUserData, api.xRowCount, api.xColumnTotalSize, api.xPhraseCount, api.xQueryPhrase)
    else {
        return Err(ffi::SQLITE_MISUSE);
    };
    // SAFETY: these are functions of the interface with the context that it gave; every pointer is to a local that outlives
    // the call. The user data is what `register` gave, alive while the connection is.
    unsafe {
        let known = (*user_data(fts).cast::<Lengths>()).at(texts_changed);
        let mut rows = Rows { blob: Vec::new(), known };
        let (mut count, mut terms) = (0, 0);
        ok(row_count(fts, &mut count))?;
        ok(total_size(fts, -1, &mut terms))?;
        rows.blob.extend(count.to_le_bytes());
        rows.blob.extend(terms.to_le_bytes());
        for phrase in 0..phrase_count(fts) {
            let place = rows.blob.len();
            rows.blob.extend([0; 8]);
            let taker: *mut Rows = &mut rows;
            ok(query_phrase(fts, phrase, taker.cast(), Some(take_row)))?;
            let of_term = (rows.blob.len() - place - 8) / 16;
            rows.blob[place..place + 8].copy_from_slice(&(of_term as i64).to_le_bytes());
        }
        Ok(rows.blob)
    }
}

/// Takes a row of a query of one term.
unsafe extern "C" fn take_row(
    api: *const ffi::Fts5ExtensionApi,
    fts: *mut ffi::Fts5Context,
    rows: *mut c_void,
) -> c_int {
    // SAFETY: FTS5 calls it with its interface, a context for the row, and the `Rows` of `all_rows`, which nobody else
    // uses meanwhile. Every other pointer is to a local.
    unsafe {
        let (api, rows) = (&*api, &mut *rows.cast::<Rows>());
        let (Some(row_id), Some(column_size), Some(first), Some(next)) =
            (api.xRowid, api.xColumnSize, api.xPhraseFirst, api.xPhraseNext)
        else {
            return ffi::SQLITE_MISUSE;
        };
        let id = row_id(fts);
        let mut place = ffi::Fts5PhraseIter { a: ptr::null(), b: ptr::null() };
        let (mut column, mut offset, mut times) = (0, 0, 0_i64);
        let found = first(fts, 0, &mut place, &mut column, &mut offset);
        if found != ffi::SQLITE_OK {
            return found;
        }
        while column >= 0 {
            times += 1;
            next(fts, &mut place, &mut column, &mut offset);
        }
        let known = rows.known.as_ref().and_then(|known| known.of(id));
        let mut length = known.map_or(0, |known| known.load(Ordering::Relaxed));
        if length == 0 {
            let mut terms = 0;
            let read = column_size(fts, -1, &mut terms);
            if read != ffi::SQLITE_OK {
                return read;
            }
            length = u32::try_from(terms).unwrap_or(0);
            if let Some(known) = known {
                known.store(length, Ordering::Relaxed);
            }
        }
        rows.blob.extend(id.to_le_bytes());
        rows.blob.extend((times << 32 | i64::from(length)).to_le_bytes());
        ffi::SQLITE_OK
    }
}

fn ok(code: c_int) -> Result<(), c_int> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(code) }
}

/// The BM25 of each record that has one of the terms, by id; none where it is no blob of `term_rows`.
pub(super) fn scores(blob: &[u8]) -> Option<Vec<(RecordId, f64)>> {
    let mut numbers = blob.as_chunks().0.iter().map(|&number| i64::from_le_bytes(number));
    let (rows, terms) = (numbers.next()? as f64, numbers.next()? as f64);
    let average = terms / rows.max(1.0);
    let mut scores = Vec::with_capacity(blob.len() / 16);
    while let Some(count) = numbers.next() {
        let idf = ((rows - count as f64 + 0.5) / (count as f64 + 0.5)).ln();
        // A term of more than half of the rows, as FTS5 has it.
        let idf = if idf <= 0.0 { 1e-6 } else { idf };
        for _ in 0..count {
            let (id, counts) = (numbers.next()?, numbers.next()?);
            let (times, length) = ((counts >> 32) as f64, f64::from(counts as u32));
            let norm = K1 * (1.0 - B + B * length / average);
            scores.push((RecordId(id), idf * times * (K1 + 1.0) / (times + norm)));
        }
    }
    // The rows of each term are in order already, which is what this sort is quick with.
    scores.sort_by_key(|score| score.0);
    scores.dedup_by(|next, score| {
        let same = next.0 == score.0;
        score.1 += if same { next.1 } else { 0.0 };
        same
    });
    Some(scores)
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
