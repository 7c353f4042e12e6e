//! Records that others have replaced, and when a record is true.
use super::{RecordId, Store, StoreError};
use rusqlite::Connection;
use std::collections::HashSet;

impl Store {
    /// Says of records, by their ids, which others have replaced them. Returns how many of these links cannot be:
    /// one of the two is not there, or the other was itself replaced by the first in the end.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`.
    pub fn supersede(&self, links: Vec<(String, String)>) -> Result<u64, StoreError> {
        self.write(move |db| {
            let mut find = db.prepare_cached(
                "SELECT records.id, better.id FROM records, records AS better
                 WHERE records.ulid = ?1 AND better.ulid = ?2",
            )?;
            let mut broken = 0;
            for ids in &links {
                let found = find.query_map((&ids.0, &ids.1), |row| Ok((row.get(0)?, row.get(1)?)))?;
                let found: Option<(RecordId, RecordId)> = found.collect::<Result<Vec<_>, _>>()?.pop();
                match found {
                    Some((old, new)) if newest(db, new, Some(old))? != old => link(db, old, new)?,
                    _ => broken += 1,
                }
            }
            Ok(broken)
        })
    }
}

/// Lets `new` replace `old`; where another has replaced that already, the last one that did.
pub(super) fn replace(db: &Connection, old: RecordId, new: RecordId) -> rusqlite::Result<()> {
    let old = newest(db, old, Some(new))?;
    if old == new { Ok(()) } else { link(db, old, new) }
}

/// Where the way from one record to what replaced it ends, or comes to `stop`.
fn newest(db: &Connection, id: RecordId, stop: Option<RecordId>) -> rusqlite::Result<RecordId> {
    let mut next = db.prepare_cached(
        "SELECT better.id FROM records JOIN records AS better ON better.id = records.superseded_by
         WHERE records.id = ?1",
    )?;
    let (mut at, mut seen) = (id, HashSet::new());
    // No way leads in a circle; should one do so, this ends all the same.
    while Some(at) != stop && seen.insert(at) {
        match next.query_map([at], |row| row.get(0))?.next() {
            Some(better) => at = better?,
            None => break,
        }
    }
    Ok(at)
}

/// A record is true until the one that replaces it is, at the latest.
pub(super) fn link(db: &Connection, old: RecordId, new: RecordId) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE records SET
             superseded_by = better.id,
             valid_to_ms = min(coalesce(records.valid_to_ms, coalesce(better.valid_from_ms, better.created_ms)),
                               coalesce(better.valid_from_ms, better.created_ms))
         FROM records AS better WHERE records.id = ?1 AND better.id = ?2",
    )?
    .execute((old, new))?;
    Ok(())
}

/// # Errors
/// `InvalidInput` for an end that is not after the beginning.
pub(super) fn check_validity(from_ms: Option<u64>, to_ms: Option<u64>) -> Result<(), StoreError> {
    match (from_ms, to_ms) {
        (Some(from), Some(to)) if to <= from => {
            Err(StoreError::invalid("a record that is true until a time must be true from an earlier one"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, NewRecord, Outcome, Record, fixture::*, now_ms};
    use super::*;

    fn replacing(text: &str, supersedes: Vec<RecordId>) -> NewRecord {
        NewRecord { supersedes, ..note(text) }
    }

    fn add(f: &Fixture, record: NewRecord) -> RecordId {
        f.store.add(None, vec![record]).unwrap()[0].id
    }

    fn get(f: &Fixture, id: RecordId) -> Record {
        f.store.records(&[id]).unwrap().remove(0)
    }

    fn true_at(f: &Fixture, time: u64) -> String {
        let filter = Filter { valid_at_ms: Some(time), ..Filter::default() };
        let mut texts: Vec<String> =
            f.store.list(&filter, 99, 0).unwrap().into_iter().map(|r| r.text).collect();
        texts.sort();
        texts.concat()
    }

    #[test]
    fn a_record_is_true_until_another_replaces_it() {
        let f = Fixture::new();
        let a = add(&f, note("a"));
        let before = now_ms() - 1;
        let b = add(&f, replacing("b", vec![a]));
        let (old, new) = (get(&f, a), get(&f, b));
        assert_eq!((old.superseded_by.as_ref(), old.valid_to_ms), (Some(&new.ulid), new.valid_from_ms));
        assert_eq!((true_at(&f, before).as_str(), true_at(&f, now_ms()).as_str()), ("a", "b"));
        // One that is to be true later leaves the old one true until then.
        let later = now_ms() + 1_000_000;
        let c = NewRecord { valid_from_ms: Some(later), ..replacing("c", vec![b]) };
        add(&f, c);
        assert_eq!((true_at(&f, now_ms()).as_str(), true_at(&f, later).as_str()), ("b", "c"));
    }

    #[test]
    fn what_was_replaced_before_is_replaced_at_the_end_of_its_chain() {
        let f = Fixture::new();
        let a = add(&f, note("a"));
        let b = add(&f, replacing("b", vec![a]));
        let c = add(&f, replacing("c", vec![a]));
        assert_eq!(get(&f, a).superseded_by, Some(get(&f, b).ulid));
        assert_eq!(get(&f, b).superseded_by, Some(get(&f, c).ulid));
        assert_eq!(true_at(&f, now_ms()), "c");
        // Two at once, of which one is in that chain.
        let other = add(&f, note("x"));
        add(&f, replacing("d", vec![a, other, c]));
        assert_eq!(true_at(&f, now_ms()), "d");
    }

    #[test]
    fn what_is_said_again_is_true_again() {
        let f = Fixture::new();
        let a = add(&f, note("a"));
        let b = add(&f, replacing("b", vec![a]));
        // Back to what was before, which is the same record.
        let again = f.store.add(None, vec![replacing("a", vec![b])]).unwrap().remove(0);
        assert_eq!((again.id, again.outcome), (a, Outcome::Refreshed));
        assert_eq!((get(&f, a).superseded_by, get(&f, a).valid_to_ms), (None, None));
        assert_eq!(true_at(&f, now_ms()), "a");
        // It does not replace itself.
        add(&f, replacing("a", vec![a]));
        assert_eq!(true_at(&f, now_ms()), "a");
        // And without a word on the other.
        add(&f, note("b"));
        assert_eq!(true_at(&f, now_ms()), "ab");
        // But not where it is still true: it stays replaced from then on.
        let later = now_ms() + 1_000_000;
        let c = add(&f, NewRecord { valid_from_ms: Some(later), ..replacing("c", vec![a]) });
        add(&f, note("a"));
        assert_eq!((get(&f, a).superseded_by, get(&f, a).valid_to_ms), (Some(get(&f, c).ulid), Some(later)));
        f.store.forget(&[c]).unwrap();
        // Times that are given count.
        add(&f, NewRecord { valid_to_ms: Some(1), ..note("b") });
        assert_eq!(true_at(&f, now_ms()), "a");
    }

    #[test]
    fn links_by_id_make_no_circle() {
        let f = Fixture::new();
        let ids = [add(&f, note("a")), add(&f, note("b")), add(&f, note("c"))];
        let ulid = |n: usize| get(&f, ids[n]).ulid;
        let link = |from: usize, to: usize| f.store.supersede(vec![(ulid(from), ulid(to))]).unwrap();
        assert_eq!((link(0, 1), link(1, 2)), (0, 0));
        assert_eq!((link(2, 0), link(2, 2), link(0, 1)), (1, 1, 0));
        assert_eq!(f.store.supersede(vec![(ulid(0), "nobody".to_owned())]).unwrap(), 1);
        assert_eq!(true_at(&f, now_ms()), "c");
        // Whose successor is gone stays replaced.
        f.store.forget(&[ids[2]]).unwrap();
        assert_eq!((true_at(&f, now_ms()).as_str(), get(&f, ids[1]).superseded_by), ("", None));
    }
}
