//! Which of the rows near to a row become its neighbours.

use super::build::Space;
use crate::int8::{Queries, prefetch};

/// Candidates that are asked of memory ahead.
const AHEAD: usize = 4;

/// A distance and a place, so that sorting sorts by distance first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Near(u64);

impl Near {
    /// Farther than all.
    pub(super) const NONE: Self = Self(u64::MAX);

    pub(super) fn new(distance: i32, place: u32) -> Self {
        Self(u64::from(distance as u32 ^ 1 << 31) << 32 | u64::from(place))
    }

    pub(super) fn distance(self) -> i32 {
        ((self.0 >> 32) as u32 ^ 1 << 31) as i32
    }

    pub(super) fn place(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// Picks neighbours; the room that it needs for one row after the other.
pub(super) struct Pruner<'a> {
    space: &'a Space<'a>,
    /// Those kept so far, or the one that others are compared with.
    queries: Queries,
    rows: Vec<u32>,
    dots: Vec<i32>,
}

impl<'a> Pruner<'a> {
    pub(super) fn new(space: &'a Space<'a>) -> Self {
        let queries = Queries::new(space.codes.stride());
        Self { space, queries, rows: Vec::new(), dots: Vec::new() }
    }

    /// Writes up to `out.len()` of `candidates`, sorted and each once, into `out`: from the nearest on
    /// those that are nearer to the row than to any picked before, so that they lie in many directions
    /// (the rule of HNSW, Malkov and Yashunin 2016, algorithm 4).
    pub(super) fn prune(&mut self, rows: &[u32], candidates: &[Near], out: &mut [u32]) {
        self.rows.clear();
        self.queries.clear();
        for (at, candidate) in candidates.iter().enumerate() {
            let kept = self.rows.len();
            if kept == out.len() {
                break;
            }
            if let Some(next) = candidates.get(at + AHEAD) {
                let next = rows[next.place() as usize] as usize;
                prefetch(self.space.codes.row(next));
                prefetch(&self.space.codes.half()[next..=next]);
            }
            let row = rows[candidate.place() as usize];
            if self.is_new_direction(row, candidate.distance()) {
                out[kept] = candidate.place();
                self.rows.push(row);
                self.space.codes.push_query(self.space.kernel, row as usize, &mut self.queries);
            }
        }
    }

    /// Whether no kept row is nearer to `row` than `distance`.
    fn is_new_direction(&mut self, row: u32, distance: i32) -> bool {
        let space = self.space;
        let code = space.codes.row(row as usize);
        // A few at a time: most of those that are refused are so by the nearest.
        for begin in (0..self.rows.len()).step_by(8) {
            let range = begin..self.rows.len().min(begin + 8);
            self.dots.resize(range.len(), 0);
            space.kernel.against(code, &self.queries, range.clone(), &mut self.dots);
            let mut pairs = self.rows[range].iter().zip(&self.dots);
            if pairs.any(|(&other, &dot)| space.distance(row, other, dot) < distance) {
                return false;
            }
        }
        true
    }

    /// The distances of a row from others, sorted and each once.
    pub(super) fn near(&mut self, rows: &[u32], place: u32, others: &[u32], near: &mut Vec<Near>) {
        let space = self.space;
        let row = rows[place as usize];
        self.queries.clear();
        space.codes.push_query(space.kernel, row as usize, &mut self.queries);
        self.rows.clear();
        self.rows.extend(others.iter().map(|&other| rows[other as usize]));
        self.dots.resize(others.len(), 0);
        space.kernel.dots(&space.codes, self.queries.get(0), &self.rows, &mut self.dots);
        near.clear();
        let pairs = others.iter().zip(&self.rows).zip(&self.dots);
        near.extend(pairs.map(|((&other, &to), &dot)| Near::new(space.distance(row, to, dot), other)));
        near.sort_unstable();
        near.dedup();
    }
}
