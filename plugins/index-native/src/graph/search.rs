//! Walking a graph towards a query.

use super::{EXPANDED, Graph};
use crate::int8::prefetch;
use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// How much farther, squared, than the last row that is wanted a walk looks for nearer ones, where it keeps five times as
/// many in view as are wanted.
const SLACK: f32 = 0.15;

/// A walk of a graph with fewer rows than so many for each in view goes on to its end: it has seen most of them anyway, and
/// of few rows a near one may be linked with far ones only.
const LARGE: usize = 16;

/// How many of a layer above are where the search of the layer below begins.
const BEAM: usize = 4;

/// A row and how far it is from the query, by what a [`Scorer`] measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// Smaller is nearer.
    pub(crate) distance: f32,
    /// The row.
    pub(crate) row: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What measures how far rows are from a query.
pub(crate) trait Scorer {
    /// Writes a number for each row of `rows`, less for the nearer; it must be finite.
    fn score(&mut self, rows: &[u32], out: &mut [f32]);

    /// What is to be added to such a number for half of a squared distance; `None` where they are no distances.
    fn zero(&self) -> Option<f32>;
}

/// The room that one search after the other needs; one a thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    /// A bit a row that was seen.
    seen: Vec<u64>,
    /// The words of `seen` that are not 0.
    touched: Vec<u32>,
    /// The nearest so far, sorted; their neighbours have been looked at where [`EXPANDED`] is set.
    pool: Vec<Candidate>,
    /// Neighbours that were not seen before: their places in the layer, and their rows.
    places: Vec<u32>,
    rows: Vec<u32>,
    scores: Vec<f32>,
    /// What is left to expand, in a search with a filter.
    frontier: BinaryHeap<Reverse<Candidate>>,
    found: Vec<Candidate>,
}

impl Scratch {
    /// Forgets what was seen, for a layer of `n` places.
    fn begin(&mut self, n: usize) {
        for &word in &self.touched {
            self.seen[word as usize] = 0;
        }
        self.touched.clear();
        // All words are 0 now; those that a larger graph needed stay.
        if self.seen.len() < n.div_ceil(64) {
            self.seen.resize(n.div_ceil(64), 0);
        }
    }

    /// Notes that a place below `n` is seen; whether it was not before.
    #[inline]
    fn see(&mut self, n: usize, place: u32) -> bool {
        let (word, bit) = (place / 64, 1 << (place % 64));
        let Some(seen) = self.seen.get_mut(word as usize) else { return false };
        if *seen & bit != 0 || place as usize >= n {
            return false;
        }
        if *seen == 0 {
            self.touched.push(word);
        }
        *seen |= bit;
        true
    }
}

/// A layer as the search sees it.
#[derive(Clone, Copy)]
struct Layer<'a> {
    /// `[n, degree]`.
    neighbors: &'a [u32],
    degree: usize,
    /// The row of each place; none where they are the same.
    rows: Option<&'a [u32]>,
}

impl Layer<'_> {
    fn len(&self) -> usize {
        self.neighbors.len() / self.degree
    }

    fn row(&self, place: u32) -> Option<u32> {
        self.rows.map_or(Some(place), |rows| rows.get(place as usize).copied())
    }

    fn place(&self, row: u32) -> Option<u32> {
        self.rows.map_or(Some(row), |rows| rows.binary_search(&row).ok().map(|at| at as u32))
    }

    #[inline]
    fn neighbors(&self, place: u32) -> &[u32] {
        &self.neighbors[place as usize * self.degree..][..self.degree]
    }

    /// Collects the neighbours of `place` that were not seen and scores them.
    #[inline]
    fn look(&self, place: u32, scorer: &mut impl Scorer, scratch: &mut Scratch) {
        let n = self.len();
        scratch.places.clear();
        for &next in self.neighbors(place) {
            // Beyond its neighbours a row is its own.
            if next == place {
                break;
            }
            // A damaged file may name what is not there; `see` leaves that out.
            if scratch.see(n, next) {
                scratch.places.push(next);
            }
        }
        self.score(scorer, scratch);
    }

    /// Scores `scratch.places`.
    #[inline]
    fn score(&self, scorer: &mut impl Scorer, scratch: &mut Scratch) {
        scratch.scores.resize(scratch.places.len(), 0.0);
        if let Some(rows) = self.rows {
            scratch.rows.clear();
            scratch.rows.extend(scratch.places.iter().map(|&place| rows[place as usize]));
            scorer.score(&scratch.rows, &mut scratch.scores);
        } else {
            scorer.score(&scratch.places, &mut scratch.scores);
        }
    }
}

impl Graph<'_> {
    /// The `ef` rows nearest to what `scorer` measures, as far as the walk finds them, the nearest
    /// first, of which `k` are wanted.
    pub(crate) fn search<'s>(
        &self,
        scorer: &mut impl Scorer,
        k: usize,
        ef: usize,
        scratch: &'s mut Scratch,
    ) -> &'s [Candidate] {
        let k = k.max(1);
        let ef = ef.max(k);
        let layer = self.descend(scorer, ef, scratch);
        let is_large = layer.len() > LARGE * ef;
        let reach = scorer.zero().filter(|_| is_large).map(|zero| Reach { k, slack: slack(k, ef), zero });
        walk(layer, scorer, ef, reach, scratch);
        scratch.found.clear();
        for candidate in &scratch.pool {
            let row = candidate.row & !EXPANDED;
            scratch.found.push(Candidate { row, ..*candidate });
            scratch.found.extend(self.twins(row).map(|row| Candidate { row, ..*candidate }));
            if scratch.found.len() >= ef {
                break;
            }
        }
        scratch.found.truncate(ef);
        &scratch.found
    }

    /// As [`Graph::search`], among the rows that `filter` lets through. The walk passes through all
    /// rows, on until none that is left is nearer than the `ef`-th that matches. `None` where it has
    /// compared more than `budget` rows: then few match, or they are far away, and to compare the
    /// query with each of them is the better way.
    pub(crate) fn search_filtered<'s>(
        &self,
        scorer: &mut impl Scorer,
        ef: usize,
        filter: impl Fn(u32) -> bool,
        budget: usize,
        scratch: &'s mut Scratch,
    ) -> Option<&'s [Candidate]> {
        let ef = ef.max(1);
        let layer = self.descend(scorer, ef.max(BEAM), scratch);
        scratch.found.clear();
        scratch.frontier.clear();
        let mut compared = 0;
        let start = std::mem::take(&mut scratch.pool);
        for &candidate in &start {
            self.collect(candidate, ef, &filter, &mut scratch.found);
            scratch.frontier.push(Reverse(candidate));
        }
        scratch.pool = start;
        while let Some(Reverse(nearest)) = scratch.frontier.pop() {
            let worst = |found: &[Candidate]| match found.get(ef - 1) {
                Some(last) => last.distance,
                None => f32::INFINITY,
            };
            if nearest.distance > worst(&scratch.found) {
                break;
            }
            layer.look(nearest.row, scorer, scratch);
            compared += scratch.places.len();
            if compared > budget {
                return None;
            }
            for (&row, &distance) in scratch.places.iter().zip(&scratch.scores) {
                if distance < worst(&scratch.found) {
                    let candidate = Candidate { distance, row };
                    scratch.frontier.push(Reverse(candidate));
                    self.collect(candidate, ef, &filter, &mut scratch.found);
                }
            }
        }
        Some(&scratch.found)
    }

    /// Puts a candidate and its twins into the `ef` best, where they match.
    fn collect(
        &self,
        candidate: Candidate,
        ef: usize,
        filter: &impl Fn(u32) -> bool,
        found: &mut Vec<Candidate>,
    ) {
        for row in std::iter::once(candidate.row).chain(self.twins(candidate.row)) {
            if filter(row) && (found.len() < ef || candidate.distance < found[ef - 1].distance) {
                let at = found.partition_point(|other| other.distance <= candidate.distance);
                found.truncate(ef - 1);
                found.insert(at, Candidate { row, ..candidate });
            }
        }
    }

    /// Walks down to layer 0: its pool has the rows to begin with, sorted and seen.
    fn descend(&self, scorer: &mut impl Scorer, ef: usize, scratch: &mut Scratch) -> Layer<'_> {
        let bottom = Layer { neighbors: self.neighbors, degree: self.degree, rows: None };
        let upper = self.upper.iter().map(|upper| Layer {
            neighbors: upper.neighbors,
            degree: self.degree,
            rows: Some(upper.rows),
        });
        let mut layers = upper.rev().chain(std::iter::once(bottom));
        // All of the top layer.
        let mut layer = layers.next().unwrap_or(bottom);
        scratch.begin(layer.len());
        scratch.places.clear();
        for place in 0..layer.len() as u32 {
            scratch.see(layer.len(), place);
            scratch.places.push(place);
        }
        layer.score(scorer, scratch);
        scratch.pool.clear();
        let scored = scratch.places.iter().zip(&scratch.scores);
        scratch.pool.extend(scored.map(|(&row, &distance)| Candidate { distance, row }));
        scratch.pool.sort_unstable();
        let mut first = true;
        for below in layers {
            if !std::mem::take(&mut first) {
                walk(layer, scorer, BEAM, None, scratch);
            }
            scratch.begin(below.len());
            let mut pool = std::mem::take(&mut scratch.pool);
            pool.retain_mut(|candidate| {
                let row = layer.row(candidate.row & !EXPANDED);
                let place = row.and_then(|row| below.place(row));
                candidate.row = place.unwrap_or(0);
                place.is_some_and(|place| scratch.see(below.len(), place))
            });
            scratch.pool = pool;
            layer = below;
        }
        scratch.pool.truncate(ef);
        layer
    }
}

/// How far from the query a walk goes.
#[derive(Clone, Copy)]
struct Reach {
    /// So many are wanted, and the last of them, as it is known so far, is what the reach is measured by.
    k: usize,
    /// How much greater the squared distance may be.
    slack: f32,
    /// See [`Scorer::zero`].
    zero: f32,
}

impl Reach {
    /// The distance, as it is measured, beyond which no neighbours are looked at.
    fn end(self, pool: &[Candidate]) -> f32 {
        pool.get(self.k - 1)
            .map_or(f32::INFINITY, |last| last.distance + (last.distance + self.zero).max(0.0) * self.slack)
    }
}

/// The slack of a walk that keeps `ef` rows in view: rows beyond it hardly lead to nearer ones, wherever they stand in
/// the order (Al-Jazzazi et al., Distance Adaptive Beam Search, 2025).
fn slack(k: usize, ef: usize) -> f32 {
    SLACK * (ef as f32 / (5 * k) as f32).powf(0.3)
}

/// From the pool on, looks at the neighbours of the nearest that was not expanded, until the `ef`
/// nearest within reach all are.
fn walk(layer: Layer<'_>, scorer: &mut impl Scorer, ef: usize, reach: Option<Reach>, scratch: &mut Scratch) {
    scratch.pool.truncate(ef);
    let mut at = 0;
    while let Some(candidate) = scratch.pool.get(at) {
        if candidate.row & EXPANDED != 0 {
            at += 1;
            continue;
        }
        if reach.is_some_and(|reach| candidate.distance > reach.end(&scratch.pool)) {
            break;
        }
        let candidate = &mut scratch.pool[at];
        let place = candidate.row;
        candidate.row |= EXPANDED;
        at += 1;
        // What is the second now will most likely be the next, and what comes before it is asked for
        // as soon as it is found.
        if let Some(next) = scratch.pool[at..].iter().find(|next| next.row & EXPANDED == 0) {
            prefetch(layer.neighbors(next.row));
        }
        layer.look(place, scorer, scratch);
        for (&row, &distance) in scratch.places.iter().zip(&scratch.scores) {
            let pool = &mut scratch.pool;
            if pool.len() < ef || distance < pool[pool.len() - 1].distance {
                let place = pool.partition_point(|other| other.distance < distance);
                if pool.len() == ef {
                    pool.pop();
                }
                pool.insert(place, Candidate { distance, row });
                if place <= at {
                    prefetch(layer.neighbors(row));
                    at = place;
                }
            }
        }
    }
}
