//! The links of a graph, laid out for search: what `hnsw_rs` keeps in an allocation a link is here one
//! array of row numbers, which is saved as it is and mapped when the index is opened.
//!
//! `links.u32` holds, as u32 in the order of bytes of the machine:
//!
//! | words | content |
//! |---|---|
//! | 2 | the number of levels, the row that searches enter by |
//! | 2 a level, lowest first | its points, and the places for links that each has |
//! | a level's part, lowest first | its rows, ascending (the lowest has all and does not say so); then `[points, places]` row numbers, [`NONE`] where there is no link |
//!
//! A search believes none of it: a row that does not exist is passed over, so a damaged file gives
//! wrong answers at worst.
use crate::{distance::RowDistance, graph::LAYERS};
use memmap2::Mmap;
use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

/// In place of a link.
pub(crate) const NONE: u32 = u32::MAX;

/// The links of each point of a graph by level, to be laid out.
#[derive(Default)]
pub(crate) struct Neighbours {
    /// The row that searches enter by.
    pub(crate) entry: u32,
    /// For each level, lowest first: rows with those that each links to. The lowest has every row.
    pub(crate) levels: Vec<Vec<(u32, Vec<u32>)>>,
}

enum Words {
    Owned(Vec<u32>),
    Mapped(Mmap),
}

impl Words {
    fn get(&self) -> &[u32] {
        match self {
            Self::Owned(words) => words,
            Self::Mapped(map) => bytemuck::cast_slice(map),
        }
    }
}

/// A part of the words.
struct Level {
    /// Rows of the points, ascending; empty for the lowest level, whose point `i` is row `i`.
    rows: Range<usize>,
    links: Range<usize>,
    points: usize,
    places: usize,
}

/// See the head of this file.
///
/// Threads: any number of searches at once.
pub(crate) struct Links {
    words: Words,
    levels: Vec<Level>,
}

impl Links {
    /// The links of no row.
    pub(crate) fn empty() -> Self {
        Self { words: Words::Owned(vec![0, NONE]), levels: Vec::new() }
    }

    pub(crate) fn new(neighbours: Neighbours) -> Self {
        let Neighbours { entry, levels } = neighbours;
        let mut words = vec![levels.len() as u32, entry];
        for level in &levels {
            let places = level.iter().map(|(_, links)| links.len()).max().unwrap_or(0);
            words.extend([level.len() as u32, places as u32]);
        }
        for (at, mut level) in levels.into_iter().enumerate() {
            level.sort_unstable_by_key(|&(row, _)| row);
            if at > 0 {
                words.extend(level.iter().map(|(row, _)| row));
            }
            let places = words[2 + 2 * at + 1] as usize;
            for (_, links) in level {
                let missing = places - links.len();
                words.extend(links.into_iter().chain(std::iter::repeat_n(NONE, missing)));
            }
        }
        let levels = levels_of(&words).unwrap_or_default();
        Self { words: Words::Owned(words), levels }
    }

    /// What [`Links::bytes`] gave, mapped; `None` where the lengths do not fit.
    pub(crate) fn mapped(map: Mmap) -> Option<Self> {
        let levels = levels_of(bytemuck::try_cast_slice(&map).ok()?)?;
        Some(Self { words: Words::Mapped(map), levels })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.words.get())
    }

    /// Bytes of memory, and bytes mapped.
    pub(crate) fn memory(&self) -> (usize, usize) {
        match &self.words {
            Words::Owned(words) => (words.capacity() * size_of::<u32>(), 0),
            Words::Mapped(map) => (0, map.len()),
        }
    }

    /// Reads what is mapped into memory, where the system can be asked to.
    pub(crate) fn warm_up(&self) {
        #[cfg(target_os = "linux")]
        if let Words::Mapped(map) = &self.words {
            // A wish: an old kernel does not know it, and the first searches read the file then.
            let _ = map.advise(memmap2::Advice::PopulateRead);
        }
    }

    /// How many rows are linked: they are `0..len`.
    pub(crate) fn len(&self) -> usize {
        self.levels.first().map_or(0, |level| level.points)
    }

    /// Points in each level, lowest first: a point is in every level below its highest.
    pub(crate) fn points(&self) -> Vec<usize> {
        self.levels.iter().map(|level| level.points).collect()
    }

    /// Links of a row in the lowest level, the mean.
    pub(crate) fn mean_connections(&self) -> f64 {
        let Some(lowest) = self.levels.first() else { return 0.0 };
        let links = self.words.get()[lowest.links.clone()].iter().filter(|&&row| row != NONE).count();
        links as f64 / lowest.points.max(1) as f64
    }

    /// What was laid out.
    pub(crate) fn neighbours(&self) -> Neighbours {
        let of_level = |at: usize| {
            let rows = (0..self.levels[at].points).filter_map(|point| self.row(at, point));
            rows.map(|row| (row, self.of(at, row).collect())).collect()
        };
        Neighbours { entry: self.entry(), levels: (0..self.levels.len()).map(of_level).collect() }
    }

    /// The row that searches enter by.
    pub(crate) fn entry(&self) -> u32 {
        self.words.get()[1]
    }

    fn row(&self, level: usize, point: usize) -> Option<u32> {
        match level {
            0 => u32::try_from(point).ok(),
            _ => self.words.get()[self.levels[level].rows.clone()].get(point).copied(),
        }
    }

    /// The rows that `row` links to in a level; none where it is not in it.
    #[inline]
    fn of(&self, level: usize, row: u32) -> impl Iterator<Item = u32> {
        let words = self.words.get();
        let Level { rows, links, points, places } = &self.levels[level];
        let point = if level == 0 { Ok(row as usize) } else { words[rows.clone()].binary_search(&row) };
        let point = point.ok().filter(|point| point < points);
        let links = point.map_or(&[][..], |point| &words[links.start + point * places..][..*places]);
        let len = self.len();
        links.iter().copied().take_while(|&row| row != NONE).filter(move |&row| (row as usize) < len)
    }

    /// At most `ef` rows near `query` that pass, with their distances, in no order; the nearest of
    /// those that a beam of breadth `ef` meets (algorithms 2 and 5 of Malkov and Yashunin,
    /// arXiv:1603.09320). Rows that do not pass are walked over.
    pub(crate) fn search(
        &self,
        distance: &RowDistance,
        query: &[f32],
        ef: usize,
        passes: impl Fn(u32) -> bool,
    ) -> Vec<(u32, f32)> {
        let entry = self.entry();
        if entry as usize >= self.len() {
            return Vec::new();
        }
        let between = |row: u32| distance.between(query, distance.rows().get(row));
        let mut nearest = Step::new(between(entry), entry);
        for level in (1..self.levels.len()).rev() {
            loop {
                let here = nearest;
                let around = self.of(level, here.row());
                nearest = around.map(|row| Step::new(between(row), row)).fold(here, Step::min);
                if nearest == here {
                    break;
                }
            }
        }

        let mut seen = vec![0u64; self.len().div_ceil(64)];
        let mut first_sight = |row: u32| {
            let (word, bit) = (&mut seen[row as usize / 64], 1 << (row % 64));
            let first = *word & bit == 0;
            *word |= bit;
            first
        };
        let mut ahead = BinaryHeap::with_capacity(2 * ef);
        let mut best = BinaryHeap::with_capacity(ef + 1);
        let mut fresh = Vec::new();
        first_sight(nearest.row());
        ahead.push(Reverse(nearest));
        if passes(nearest.row()) {
            best.push(nearest);
        }
        while let Some(Reverse(here)) = ahead.pop() {
            if best.len() >= ef && best.peek().is_some_and(|worst| here > *worst) {
                break;
            }
            fresh.clear();
            fresh.extend(self.of(0, here.row()).filter(|&row| first_sight(row)));
            for (at, &row) in fresh.iter().enumerate() {
                if let Some(&next) = fresh.get(at + 1) {
                    distance.prefetch(next);
                }
                let step = Step::new(between(row), row);
                if best.len() < ef || best.peek().is_some_and(|worst| step < *worst) {
                    ahead.push(Reverse(step));
                    if passes(row) {
                        best.push(step);
                        if best.len() > ef {
                            best.pop();
                        }
                    }
                }
            }
        }
        best.into_iter().map(|step| (step.row(), step.distance())).collect()
    }
}

/// A row with its distance, in one word: distances are not negative, and the bits of such numbers
/// are in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step(u64);

impl Step {
    fn new(distance: f32, row: u32) -> Self {
        Self(u64::from(distance.to_bits()) << 32 | u64::from(row))
    }

    fn row(self) -> u32 {
        self.0 as u32
    }

    fn distance(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }
}

/// Where the levels lie in `words`; `None` where they end elsewhere than the words do.
fn levels_of(words: &[u32]) -> Option<Vec<Level>> {
    let (&[count, _entry], rest) = words.split_first_chunk::<2>()?;
    let count = usize::try_from(count).ok().filter(|&count| count <= LAYERS)?;
    let (sizes, _) = rest.as_chunks::<2>();
    let mut end = 2 + 2 * count;
    let mut levels = Vec::with_capacity(count);
    for (at, &[points, places]) in sizes.get(..count)?.iter().enumerate() {
        let (points, places) = (points as usize, places as usize);
        let rows = end..end.checked_add(if at == 0 { 0 } else { points })?;
        let links = rows.end..rows.end.checked_add(points.checked_mul(places)?)?;
        end = links.end;
        levels.push(Level { rows, links, points, places });
    }
    (end == words.len()).then_some(levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Rows;
    use magray_plugin_api::Metric;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// The numbers `0..n` on a line, each linked to the next ones on both sides, every tenth also on
    /// a level above.
    fn line(n: u32) -> (RowDistance, Neighbours) {
        let rows = Rows::new(1);
        rows.reserve(n as usize).expect("memory");
        for at in 0..n {
            rows.push(&[at as f32]);
        }
        let level = |step: u32| {
            let near = |at: u32| [at.checked_sub(step), at.checked_add(step).filter(|&at| at < n)];
            (0..n).step_by(step as usize).map(|at| (at, near(at).into_iter().flatten().collect())).collect()
        };
        (
            RowDistance::new(Arc::new(rows), Metric::L2),
            Neighbours { entry: 0, levels: vec![level(1), level(10)] },
        )
    }

    fn found(
        links: &Links,
        distance: &RowDistance,
        query: f32,
        ef: usize,
        pass: fn(u32) -> bool,
    ) -> Vec<u32> {
        let mut found = links.search(distance, &[query], ef, pass);
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        found.into_iter().map(|(row, _)| row).collect()
    }

    #[test]
    fn walks_down_and_past_what_does_not_pass() {
        let (distance, neighbours) = line(100);
        let links = Links::new(neighbours);
        assert_eq!((links.len(), links.points()), (100, vec![100, 10]));
        assert!((links.mean_connections() - 1.98).abs() < 1e-9);
        assert_eq!(found(&links, &distance, 57.2, 4, |_| true), [57, 58, 56, 59]);
        assert_eq!(found(&links, &distance, 57.2, 3, |row| row % 7 == 0), [56, 63, 49]);
        assert!(found(&links, &distance, 57.2, 3, |_| false).is_empty());
        assert!(found(&Links::empty(), &distance, 57.2, 3, |_| true).is_empty());
    }

    #[test]
    fn what_was_laid_out_comes_back() {
        let (_, neighbours) = line(33);
        let levels = neighbours.levels.clone();
        let again = Links::new(neighbours).neighbours();
        assert_eq!((again.entry, again.levels), (0, levels));
    }

    fn map(bytes: &[u8]) -> Option<Links> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).expect("memory");
        map[..bytes.len()].copy_from_slice(bytes);
        Links::mapped(map.make_read_only().expect("memory"))
    }

    proptest! {
        #[test]
        fn damage_is_refused_or_walked_over(words in prop::collection::vec((0usize..400, any::<u32>()), 1..9)) {
            let (distance, neighbours) = line(60);
            let links = Links::new(neighbours);
            let mut damaged = links.bytes().to_vec();
            for (at, word) in words {
                let at = at * 4 % damaged.len();
                damaged[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            }
            if let Some(links) = map(&damaged) {
                // Fewer rows than points: the caller compares their numbers.
                if links.len() <= 60 {
                    links.search(&distance, &[31.0], 8, |row| row < 60);
                    links.neighbours();
                }
            }
        }

        #[test]
        fn another_length_is_refused(cut in 1usize..300) {
            let bytes = Links::new(line(60).1).bytes().to_vec();
            prop_assert!(map(&bytes).is_some());
            prop_assert!(map(&bytes[..bytes.len() - cut.min(bytes.len())]).is_none());
        }
    }
}
