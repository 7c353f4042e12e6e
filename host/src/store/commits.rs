//! What the writer hands to the indexes of its own process: the changes of each transaction, collected
//! while they are logged, so that nobody has to read them back.
use super::{Changes, Layer, RecordId, SpaceId, vectors};
use half::f16;
use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
};

/// What one transaction changed in one space and layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The space.
    pub space: SpaceId,
    /// The layer.
    pub layer: Layer,
    /// The sequence number of the change before, by whatever process: who is at it is complete with
    /// [`Commit::changes`].
    pub before: u64,
    /// What changed.
    pub changes: Arc<Changes>,
}

/// Is told of commits; false ends it.
type Listener = Box<dyn Fn(&Commit) -> bool + Send>;

/// Who is told of commits.
#[derive(Default)]
pub(super) struct Listeners(Mutex<Vec<Listener>>);

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listeners")
    }
}

impl Listeners {
    pub(super) fn add(&self, listener: Listener) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn tell(&self, commits: &[Commit]) {
        if commits.is_empty() {
            return;
        }
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| commits.iter().all(listener));
    }
}

/// The changes of a transaction in one space and layer, in the order in which they were made.
struct Collected {
    space: SpaceId,
    layer: Layer,
    before: u64,
    head: u64,
    /// Ids, and where their vector begins in `vectors`; none for one that is gone.
    changes: Vec<(u64, Option<usize>)>,
    vectors: Vec<f16>,
    dim: usize,
}

enum Collection {
    /// Nobody wants to know, or a part was undone: then the change log has the truth.
    Off,
    On(Vec<Collected>),
}

thread_local! {
    /// Of the transaction of this thread, which is a store's writer.
    static COLLECTION: RefCell<Collection> = const { RefCell::new(Collection::Off) };
}

/// A transaction begins.
pub(super) fn begin(wanted: bool) {
    COLLECTION.set(if wanted { Collection::On(Vec::new()) } else { Collection::Off });
}

/// A part of the transaction is undone.
pub(super) fn spoil() {
    COLLECTION.set(Collection::Off);
}

/// Whether a change will be the first of its space and layer that is collected.
pub(super) fn is_first(space: SpaceId, layer: Layer) -> bool {
    COLLECTION.with_borrow(|collection| match collection {
        Collection::Off => false,
        Collection::On(all) => !all.iter().any(|known| (known.space, known.layer) == (space, layer)),
    })
}

/// A change is logged under `seq`; `before` counts only for the first one of its space and layer.
pub(super) fn record(space: SpaceId, layer: Layer, before: u64, seq: u64, id: RecordId, vector: &[u8]) {
    COLLECTION.with_borrow_mut(|collection| {
        let Collection::On(all) = collection else { return };
        let at = all.iter().position(|known| (known.space, known.layer) == (space, layer));
        let at = at.unwrap_or_else(|| {
            let (changes, vectors) = (Vec::new(), Vec::new());
            all.push(Collected { space, layer, before, head: seq, changes, vectors, dim: 0 });
            all.len() - 1
        });
        let collected = &mut all[at];
        collected.head = seq;
        let row = (!vector.is_empty()).then_some(collected.vectors.len());
        if row.is_some() {
            collected.dim = vector.len() / 2;
            collected.vectors.extend(vectors::halves(vector));
        }
        collected.changes.push((id.index_id(), row));
    });
}

/// What the transaction has changed.
pub(super) fn end() -> Vec<Commit> {
    match COLLECTION.replace(Collection::Off) {
        Collection::Off => Vec::new(),
        Collection::On(all) => all.into_iter().map(Collected::into_commit).collect(),
    }
}

impl Collected {
    fn into_commit(mut self) -> Commit {
        let mut changes = Changes { head: self.head, complete: true, ..Changes::default() };
        let is_ordered = self.changes.is_sorted_by(|a, b| a.0 < b.0);
        if !is_ordered {
            // The last change of a record counts.
            self.changes.reverse();
            self.changes.sort_by_key(|change| change.0);
            self.changes.dedup_by_key(|change| change.0);
        }
        for (id, row) in &self.changes {
            match row {
                None => changes.removed.push(*id),
                Some(_) => changes.upserts.push(*id),
            }
        }
        changes.vectors = if is_ordered {
            self.vectors
        } else {
            let rows = self.changes.iter().filter_map(|change| change.1);
            rows.flat_map(|row| &self.vectors[row..row + self.dim]).copied().collect()
        };
        Commit { space: self.space, layer: self.layer, before: self.before, changes: Arc::new(changes) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NewRecord, fixture::*};
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_listener_hears_what_the_log_says() {
        let f = Fixture::new();
        let space = f.space(2);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        f.store.on_commit(move |commit| {
            sink.lock().unwrap().push(commit.clone());
            true
        });
        let record = |n: u8| NewRecord { vector: Some(vec![f32::from(n), 1.0]), ..note(&n.to_string()) };
        let ids: Vec<_> = f
            .store
            .add(Some(space), vec![record(1), record(2)])
            .unwrap()
            .iter()
            .map(|added| added.id)
            .collect();
        f.store.put_vectors(space, &[(ids[1], vec![9.0, 1.0]), (ids[0], vec![0.0; 2])]).unwrap();
        f.store.forget(&ids[1..]).unwrap();
        // What failed is not heard of, and nothing without a vector is.
        f.store.add(None, vec![note("silent")]).unwrap();
        let mut seq = 0;
        for commit in heard.lock().unwrap().iter() {
            assert_eq!((commit.space, commit.layer, commit.before), (space, Layer::Insights, seq));
            seq = commit.changes.head;
        }
        assert_eq!(Ok(seq), f.store.head(space, Layer::Insights));
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), 3);
        assert_eq!((&heard[1].changes.upserts, &heard[1].changes.removed), (&vec![2], &vec![1]));
        assert_eq!(heard[1].changes.vectors, [9.0, 1.0].map(f16::from_f32));
        assert_eq!(heard[2].changes.removed, [2]);
    }

    #[test]
    fn what_was_undone_is_not_handed_over_and_who_says_so_is_asked_no_more() {
        let f = Fixture::new();
        let space = f.space(2);
        let (tell, told) = mpsc::channel();
        f.store.on_commit(move |commit| {
            tell.send(commit.changes.upserts.clone()).unwrap();
            false
        });
        let record = |text: &str| NewRecord { vector: Some(vec![1.0, 1.0]), ..note(text) };
        let prepared = f.store.prepare(Some(space), vec![record("a")]).unwrap();
        let undone: Result<(), _> = f.store.write(move |db| {
            let added = super::super::add::insert(db, &prepared[0], 0)?;
            prepared[0].put_vector(db, Some(space), added.id)?;
            Err(super::super::StoreError::invalid("no").into())
        });
        assert!(undone.is_err());
        f.store.add(Some(space), vec![record("b")]).unwrap();
        f.store.add(Some(space), vec![record("c")]).unwrap();
        // The listener is gone with its sender.
        assert_eq!(told.iter().collect::<Vec<_>>(), [[1]]);
    }
}
