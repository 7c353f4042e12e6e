use crate::{container::in_large_pages, exact::store};
use magray_plugin_api::IndexSpec;
use std::collections::HashMap;

/// Rows that were written and are not sealed yet; they are compared with one by one.
#[derive(Debug)]
pub(crate) struct Staged {
    spec: IndexSpec,
    ids: Vec<u64>,
    /// What makes each row's length 1 under cosine, else 1.
    scales: Vec<f32>,
    /// `[ids.len(), dim]` row-major.
    vectors: Vec<f32>,
    /// Where each of `ids` stands in them.
    places: HashMap<u64, usize>,
}

impl Staged {
    pub(crate) fn new(spec: IndexSpec) -> Self {
        Self { spec, ids: Vec::new(), scales: Vec::new(), vectors: Vec::new(), places: HashMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn id(&self, row: usize) -> u64 {
        self.ids[row]
    }

    /// Vector and scale of a row.
    pub(crate) fn row(&self, row: usize) -> (&[f32], f32) {
        (&self.vectors[row * self.spec.dim..][..self.spec.dim], self.scales[row])
    }

    pub(crate) fn find(&self, id: u64) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// All vectors, `[n, dim]` row-major.
    pub(crate) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Stores one vector that was checked.
    pub(crate) fn upsert(&mut self, id: u64, vector: &[f32]) {
        let room = self.vectors.capacity();
        let scale = store(self.spec, vector, &mut self.vectors);
        if self.vectors.capacity() != room {
            in_large_pages(&mut self.vectors);
        }
        let place = *self.places.entry(id).or_insert(self.ids.len());
        if place == self.ids.len() {
            self.ids.push(id);
            self.scales.push(scale);
        } else {
            self.scales[place] = scale;
            self.take_last_vector(place);
        }
    }

    /// Whether `id` was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let Some(place) = self.places.remove(&id) else { return false };
        // The last row moves into the gap.
        self.take_last_vector(place);
        self.scales.swap_remove(place);
        self.ids.swap_remove(place);
        if let Some(&moved) = self.ids.get(place) {
            self.places.insert(moved, place);
        }
        true
    }

    fn take_last_vector(&mut self, place: usize) {
        let last = self.vectors.len() - self.spec.dim;
        self.vectors.copy_within(last.., place * self.spec.dim);
        self.vectors.truncate(last);
    }

    pub(crate) fn bytes(&self) -> usize {
        // A place of the table: key, value and a byte of its own.
        let table = self.places.capacity() * (size_of::<(u64, usize)>() + 1);
        table + self.ids.capacity() * 8 + (self.scales.capacity() + self.vectors.capacity()) * 4
    }
}
