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
    cmp::Ordering::{Equal, Greater, Less},
    ffi::{c_int, c_void},
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The auxiliary function: `term_rows(records_fts, texts_changed)` is a blob that [`scores`] reads, the same for every row of
/// a query.
const TERM_ROWS: &std::ffi::CStr = c"term_rows";
/// Bytes of a row of a term: id, how often it has the term, and its length.
const ROW: usize = 16;
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

/// The rows of a term, as they come.
struct Rows {
    blob: Vec<u8>,
    /// What is known of the texts as the query sees them.
    known: Option<Arc<Known>>,
}

/// Rows and terms of all the index, 8 bytes each; then for each term how many rows have it, 8 bytes, and those, [`ROW`]
/// bytes each, by id.
///
/// # Safety
/// `api` and `fts` are those of a call of an auxiliary function that was registered with [`Lengths`].
unsafe fn all_rows(
    api: &ffi::Fts5ExtensionApi,
    fts: *mut ffi::Fts5Context,
    texts_changed: i64,
) -> Result<Vec<u8>, c_int> {
    let (Some(user_data), Some(row_count), Some(total_size)) =
        (api.xUserData, api.xRowCount, api.xColumnTotalSize)
    else {
        return Err(ffi::SQLITE_MISUSE);
    };
    let (Some(phrase_count), Some(query_phrase)) = (api.xPhraseCount, api.xQueryPhrase) else {
        return Err(ffi::SQLITE_MISUSE);
    };
    // SAFETY: these are functions of the interface with the context that it gave; every pointer is to a local that outlives
    // the call. The user data is what `register` gave, alive while the connection is.
    unsafe {
        let known = (*user_data(fts).cast::<Lengths>()).0.load_full();
        let known = (known.texts_changed == texts_changed).then_some(known);
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
            let of_term = (rows.blob.len() - place - 8) / ROW;
            rows.blob[place..place + 8].copy_from_slice(&(of_term as u64).to_le_bytes());
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
    let taken = unsafe {
        let (api, rows) = (&*api, &mut *rows.cast::<Rows>());
        match (api.xRowid, api.xColumnSize, api.xPhraseFirst, api.xPhraseNext) {
            (Some(row_id), Some(column_size), Some(first), Some(next)) => {
                let id = row_id(fts);
                let mut place = ffi::Fts5PhraseIter { a: ptr::null(), b: ptr::null() };
                let (mut column, mut offset, mut times) = (0, 0, 0u32);
                let mut code = first(fts, 0, &mut place, &mut column, &mut offset);
                while code == ffi::SQLITE_OK && column >= 0 {
                    times += 1;
                    next(fts, &mut place, &mut column, &mut offset);
                }
                let known = rows.known.as_ref().and_then(|known| known.of(id));
                let mut length = known.map_or(0, |known| known.load(Ordering::Relaxed));
                if length == 0 && code == ffi::SQLITE_OK {
                    let mut terms = 0;
                    code = column_size(fts, -1, &mut terms);
                    length = u32::try_from(terms).unwrap_or(0);
                    if let Some(known) = known {
                        known.store(length, Ordering::Relaxed);
                    }
                }
                rows.blob.extend(id.to_le_bytes());
                rows.blob.extend(times.to_le_bytes());
                rows.blob.extend(length.to_le_bytes());
                ok(code)
            }
            _ => Err(ffi::SQLITE_MISUSE),
        }
    };
    taken.err().unwrap_or(ffi::SQLITE_OK)
}

fn ok(code: c_int) -> Result<(), c_int> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(code) }
}

/// The BM25 of each record that has one of the terms, by id; none where it is no blob of `term_rows`.
pub(super) fn scores(blob: &[u8]) -> Option<Vec<(RecordId, f64)>> {
    let (rows, blob) = blob.split_first_chunk()?;
    let (terms, mut blob) = blob.split_first_chunk()?;
    let (rows, terms) = (i64::from_le_bytes(*rows) as f64, i64::from_le_bytes(*terms) as f64);
    let average = terms / rows.max(1.0);
    let mut by_term = Vec::new();
    while !blob.is_empty() {
        let (count, rest) = blob.split_first_chunk()?;
        let count = u64::from_le_bytes(*count);
        let (of_term, rest) = rest.split_at_checked(usize::try_from(count).ok()?.checked_mul(ROW)?)?;
        blob = rest;
        let idf = ((rows - count as f64 + 0.5) / (count as f64 + 0.5)).ln();
        // A term of more than half of the rows, as FTS5 has it.
        let idf = if idf <= 0.0 { 1e-6 } else { idf };
        let score = |row: &[u8; ROW]| {
            let [a, b, c, d, e, f, g, h, i, j, k, l, length @ ..] = *row;
            let (times, length) = (f64::from(u32::from_le_bytes([i, j, k, l])), u32::from_le_bytes(length));
            let norm = K1 * (1.0 - B + B * f64::from(length) / average);
            (
                RecordId(i64::from_le_bytes([a, b, c, d, e, f, g, h])),
                idf * times * (K1 + 1.0) / (times + norm),
            )
        };
        by_term.push(of_term.as_chunks().0.iter().map(score).collect());
    }
    Some(sum(by_term))
}

/// One list by id of several, with the sum of the scores of an id.
fn sum(mut lists: Vec<Vec<(RecordId, f64)>>) -> Vec<(RecordId, f64)> {
    // Two by two, so that each score is moved as often as the number of lists can be halved.
    while lists.len() > 1 {
        lists = lists
            .chunks(2)
            .map(|pair| match pair {
                [a, b] => sum_of_two(a, b),
                one => one.concat(),
            })
            .collect();
    }
    lists.pop().unwrap_or_default()
}

fn sum_of_two(mut a: &[(RecordId, f64)], mut b: &[(RecordId, f64)]) -> Vec<(RecordId, f64)> {
    let mut both = Vec::with_capacity(a.len() + b.len());
    while let (Some((first, rest_a)), Some((second, rest_b))) = (a.split_first(), b.split_first()) {
        match first.0.cmp(&second.0) {
            Less => both.push(*first),
            Greater => both.push(*second),
            Equal => both.push((first.0, first.1 + second.1)),
        }
        a = if first.0 <= second.0 { rest_a } else { a };
        b = if second.0 <= first.0 { rest_b } else { b };
    }
    both.extend(a);
    both.extend(b);
    both
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
