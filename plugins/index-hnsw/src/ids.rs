use std::collections::HashMap;

/// In place of an id: the row has none. No vector can have it ([`magray_plugin_api::VectorIndex`]).
const NONE: u64 = u64::MAX;

/// Which ids hold which row of a segment. A row without an id is dead.
#[derive(Default)]
pub(crate) struct Ids {
    /// One id of each row, or [`NONE`].
    of_row: Vec<u64>,
    /// The other ids of rows that have several, for equal vectors share a row.
    others: HashMap<u32, Vec<u64>>,
    row_of: HashMap<u64, u32>,
    dead_rows: usize,
}

impl Ids {
    /// Every id with its row, of `rows` rows; `None` where a row does not exist or an id is there
    /// twice.
    pub(crate) fn from_entries(rows: usize, entries: impl IntoIterator<Item = (u64, u32)>) -> Option<Self> {
        let entries = entries.into_iter();
        let mut ids = Self { row_of: HashMap::with_capacity(entries.size_hint().0), ..Self::default() };
        ids.grow(rows);
        for (id, row) in entries {
            if row as usize >= rows || id == NONE || ids.row_of.contains_key(&id) {
                return None;
            }
            ids.set(id, row);
        }
        Some(ids)
    }

    /// How many ids there are.
    pub(crate) fn len(&self) -> usize {
        self.row_of.len()
    }

    pub(crate) fn rows(&self) -> usize {
        self.of_row.len()
    }

    pub(crate) fn dead_rows(&self) -> usize {
        self.dead_rows
    }

    /// The ids of `row`; none of a row that [`Ids::grow`] has not yet made known.
    #[inline]
    pub(crate) fn of(&self, row: u32) -> impl Iterator<Item = u64> {
        let one = self.of_row.get(row as usize).copied().filter(|&id| id != NONE);
        let others = if self.others.is_empty() { None } else { self.others.get(&row) };
        one.into_iter().chain(others.into_iter().flatten().copied())
    }

    pub(crate) fn row(&self, id: u64) -> Option<u32> {
        self.row_of.get(&id).copied()
    }

    /// Every id with its row, by row.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, u32)> {
        (0..self.of_row.len() as u32).flat_map(|row| self.of(row).map(move |id| (id, row)))
    }

    /// Makes rows known up to `rows`, dead until they get an id.
    pub(crate) fn grow(&mut self, rows: usize) {
        self.dead_rows += rows.saturating_sub(self.of_row.len());
        self.of_row.resize(rows.max(self.of_row.len()), NONE);
    }

    /// Gives `id` this row in place of the one that it has. The row must be known.
    pub(crate) fn set(&mut self, id: u64, row: u32) {
        self.remove(id);
        let one = &mut self.of_row[row as usize];
        if *one == NONE {
            *one = id;
            self.dead_rows -= 1;
        } else {
            self.others.entry(row).or_default().push(id);
        }
        self.row_of.insert(id, row);
    }

    /// Whether `id` was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let Some(row) = self.row_of.remove(&id) else { return false };
        let one = &mut self.of_row[row as usize];
        let Some(others) = self.others.get_mut(&row) else {
            *one = NONE;
            self.dead_rows += 1;
            return true;
        };
        if *one == id {
            *one = others.pop().unwrap_or(NONE);
        } else {
            others.retain(|&held| held != id);
        }
        if others.is_empty() {
            self.others.remove(&row);
        }
        true
    }

    /// Bytes on the heap, estimated.
    pub(crate) fn bytes(&self) -> usize {
        // A slot of a map that is between half and wholly full; a list with room for four ids.
        self.of_row.len() * size_of::<u64>() + self.row_of.len() * 24 + self.others.len() * 96
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_dead_exactly_while_no_id_holds_it() {
        let mut ids = Ids::default();
        ids.grow(2);
        assert_eq!(ids.dead_rows(), 2);
        ids.set(7, 0);
        ids.set(8, 0);
        ids.set(7, 0);
        assert_eq!((ids.dead_rows(), ids.of(0).collect::<Vec<_>>()), (1, vec![8, 7]));
        ids.set(8, 1);
        assert_eq!((ids.dead_rows(), ids.len()), (0, 2));
        assert!(ids.remove(7) && !ids.remove(7));
        assert_eq!((ids.dead_rows(), ids.row(7), ids.row(8)), (1, None, Some(1)));
        assert_eq!(ids.of(9).count(), 0);
    }

    #[test]
    fn entries_that_cannot_be_are_refused() {
        let mut ids = Ids::default();
        ids.grow(3);
        ids.set(1, 2);
        ids.set(5, 0);
        let again = Ids::from_entries(3, ids.entries()).unwrap();
        assert_eq!((again.row(1), again.row(5), again.dead_rows()), (Some(2), Some(0), 1));
        assert!(Ids::from_entries(3, [(1, 3)]).is_none());
        assert!(Ids::from_entries(3, [(u64::MAX, 1)]).is_none());
        assert!(Ids::from_entries(3, [(1, 0), (1, 1)]).is_none());
    }
}
