use std::collections::HashMap;

/// Which ids hold which row of a segment. A row without an id is dead.
#[derive(Default)]
pub(crate) struct Ids {
    of_row: Vec<Vec<u64>>,
    row_of: HashMap<u64, u32>,
    dead_rows: usize,
}

impl Ids {
    /// Every id with its row, of `rows` rows; `None` where a row does not exist or an id is there
    /// twice.
    pub(crate) fn from_entries(rows: usize, entries: impl IntoIterator<Item = (u64, u32)>) -> Option<Self> {
        let mut ids = Self::default();
        ids.grow(rows);
        for (id, row) in entries {
            if row as usize >= rows || ids.row_of.contains_key(&id) {
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
    pub(crate) fn of(&self, row: u32) -> &[u64] {
        self.of_row.get(row as usize).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn row(&self, id: u64) -> Option<u32> {
        self.row_of.get(&id).copied()
    }

    /// Every id with its row, by row.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u64, u32)> {
        (0..).zip(&self.of_row).flat_map(|(row, ids)| ids.iter().map(move |&id| (id, row)))
    }

    /// Makes rows known up to `rows`, dead until they get an id.
    pub(crate) fn grow(&mut self, rows: usize) {
        self.dead_rows += rows.saturating_sub(self.of_row.len());
        self.of_row.resize(rows.max(self.of_row.len()), Vec::new());
    }

    /// Gives `id` this row in place of the one that it has. The row must be known.
    pub(crate) fn set(&mut self, id: u64, row: u32) {
        self.remove(id);
        let ids = &mut self.of_row[row as usize];
        self.dead_rows -= usize::from(ids.is_empty());
        ids.push(id);
        self.row_of.insert(id, row);
    }

    /// Whether `id` was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let Some(row) = self.row_of.remove(&id) else { return false };
        let ids = &mut self.of_row[row as usize];
        ids.retain(|&held| held != id);
        self.dead_rows += usize::from(ids.is_empty());
        true
    }

    /// Bytes on the heap, estimated.
    pub(crate) fn bytes(&self) -> usize {
        // A list with room for four ids; a slot of a map that is between half and wholly full.
        let row = size_of::<Vec<u64>>() + 4 * size_of::<u64>() + 16;
        self.of_row.len() * row + self.row_of.len() * 24
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
        assert_eq!((ids.dead_rows(), ids.of(0)), (1, [8, 7].as_slice()));
        ids.set(8, 1);
        assert_eq!((ids.dead_rows(), ids.len()), (0, 2));
        assert!(ids.remove(7) && !ids.remove(7));
        assert_eq!((ids.dead_rows(), ids.row(7), ids.row(8)), (1, None, Some(1)));
        assert!(ids.of(9).is_empty());
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
        assert!(Ids::from_entries(3, [(1, 0), (1, 1)]).is_none());
    }
}
