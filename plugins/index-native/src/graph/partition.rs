//! Near rows: the space is cut into random parts small enough to compare all rows of a part with one
//! another, several times over (ball carving, as in PiPNN, Rubel et al. 2025).

use super::{
    build::{Space, Work, mix},
    prune::Near,
};
use crate::{
    container::in_large_pages,
    int8::{Panels, Queries, prefetch},
    parallel,
};
use magray_plugin_api::Result;
use std::sync::atomic::{AtomicU64, Ordering};

/// Leaders of one cut at most.
const LEADERS: usize = 48;

/// A part with fewer rows than this finds no near rows; they join the largest part.
const SMALLEST: usize = 24;

/// Rows that are multiplied at a time.
const BLOCK: usize = 8;

/// Rows that a thread assigns to leaders at a time.
const ROWS: usize = 4096;

/// For each of `rows` the near ones of every pass, `[m, passes, nearest]`: places in `rows`.
///
/// Each place is in one part of a pass, so every number is written by one thread; the atomics are
/// there to say so without `unsafe` and cost nothing.
pub(super) fn candidates(work: &Work<'_>, rows: &[u32]) -> Result<Vec<AtomicU64>> {
    let params = work.params;
    // One part with all of them needs no second look.
    let passes = if rows.len() <= params.leaf { 1 } else { params.passes };
    let per_row = passes * params.nearest;
    let mut found = Vec::with_capacity(rows.len() * per_row);
    in_large_pages(&mut found);
    found.extend((0..rows.len() * per_row).map(|_| AtomicU64::new(Near::NONE.bits())));
    for pass in 0..passes {
        let seed = mix(params.seed ^ mix(pass as u64));
        let mut parts = first_cut(work, rows, seed)?;
        // The largest first, so that no thread is left with one at the end.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        let tasks = parts.into_iter().enumerate();
        parallel::each(
            work.threads,
            tasks,
            || Room::new(work.space, params.nearest),
            |room, (number, part)| {
                carve(room, rows, part, params.leaf, mix(seed ^ number as u64), |room, leaf| {
                    room.compare(rows, leaf, |place, near| {
                        let out = &found[place as usize * per_row + pass * params.nearest..];
                        for (out, near) in out.iter().zip(near) {
                            out.store(near.bits(), Ordering::Relaxed);
                        }
                    });
                    work.done(leaf.len())
                })
            },
        )?;
    }
    Ok(found)
}

/// All places, near ones one after the other: who works on the rows in this order finds most of what a row is compared
/// with in the cache, for the row before was compared with it too.
pub(super) fn order(work: &Work<'_>, rows: &[u32]) -> Result<Vec<u32>> {
    let seed = mix(work.params.seed);
    let parts = first_cut(work, rows, seed)?.into_iter().enumerate().collect();
    let ordered = parallel::map(work.threads, parts, |(number, part): (usize, Vec<u32>)| {
        let mut order = Vec::with_capacity(part.len());
        let mut room = Room::new(work.space, 1);
        carve(&mut room, rows, part, work.params.leaf / 4, mix(seed ^ number as u64), |_, leaf| {
            order.extend(leaf);
            Ok(())
        })?;
        Ok(order)
    })?;
    Ok(ordered.concat())
}

/// Cuts a part until no part of it has more rows than `most`.
fn carve<'a>(
    room: &mut Room<'a>,
    rows: &[u32],
    part: Vec<u32>,
    most: usize,
    mut seed: u64,
    mut leaf: impl FnMut(&mut Room<'a>, &[u32]) -> Result<()>,
) -> Result<()> {
    let mut stack = vec![part];
    while let Some(part) = stack.pop() {
        if part.len() <= most {
            leaf(room, &part)?;
            continue;
        }
        let leaders = leaders(rows, &part, most, &mut seed);
        let mut to = vec![0; part.len()];
        room.assign(rows, &part, &leaders, &mut to);
        stack.extend(group(&part, &to, leaders.len()));
    }
    Ok(())
}

/// All places cut once, by all threads.
fn first_cut(work: &Work<'_>, rows: &[u32], seed: u64) -> Result<Vec<Vec<u32>>> {
    let all: Vec<u32> = (0..rows.len() as u32).collect();
    if all.len() <= work.params.leaf {
        return Ok(vec![all]);
    }
    let leaders = leaders(rows, &all, work.params.leaf, &mut { seed });
    let mut to = vec![0; all.len()];
    parallel::each(
        work.threads,
        all.chunks(ROWS).zip(to.chunks_mut(ROWS)),
        || Room::new(work.space, 1),
        |room, (part, to)| {
            room.assign(rows, part, &leaders, to);
            Ok(())
        },
    )?;
    Ok(group(&all, &to, leaders.len()))
}

/// Random rows of a part, so many that what they attract tends to fit a leaf.
fn leaders(rows: &[u32], part: &[u32], leaf: usize, seed: &mut u64) -> Vec<u32> {
    let count = (part.len() * 2 / leaf.max(1) + 1).clamp(2, LEADERS);
    let random = (0..count).map(|_| {
        *seed = mix(*seed);
        rows[part[(*seed % part.len() as u64) as usize] as usize]
    });
    random.collect()
}

/// The parts of `part`, of which row `i` goes to part `to[i]`.
fn group(part: &[u32], to: &[u16], count: usize) -> Vec<Vec<u32>> {
    let mut groups = vec![Vec::new(); count];
    for (&place, &to) in part.iter().zip(to) {
        groups[to as usize].push(place);
    }
    let (mut groups, small): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.len() >= SMALLEST);
    if let Some(largest) = groups.iter_mut().max_by_key(|group| group.len()) {
        largest.extend(small.into_iter().flatten());
    }
    if groups.len() < 2 {
        // All rows are at one leader, or lie so far apart that each has a few: cut anywhere.
        groups = part.chunks(part.len().div_ceil(2)).map(<[u32]>::to_vec).collect();
    }
    groups
}

/// The room that one thread needs for one part after the other.
struct Room<'a> {
    space: &'a Space<'a>,
    panels: Panels,
    queries: Queries,
    /// The rows that are the columns of `panels`.
    columns: Vec<u32>,
    half: Vec<i32>,
    dots: Vec<i32>,
    nearest: Vec<(i32, u32)>,
    near: Vec<Near>,
}

impl<'a> Room<'a> {
    fn new(space: &'a Space<'a>, nearest: usize) -> Self {
        let stride = space.codes.stride();
        Self {
            space,
            panels: Panels::new(stride),
            queries: Queries::new(stride),
            columns: Vec::new(),
            half: Vec::new(),
            dots: Vec::new(),
            nearest: vec![(0, 0); nearest],
            near: Vec::new(),
        }
    }

    /// Writes which of the rows `leaders` is nearest to each place of `part`.
    fn assign(&mut self, rows: &[u32], part: &[u32], leaders: &[u32], to: &mut [u16]) {
        self.columns.clear();
        self.columns.extend(leaders);
        self.pack();
        let k = std::mem::replace(&mut self.nearest, vec![(0, 0)]);
        for (at, (block, to)) in part.chunks(BLOCK).zip(to.chunks_mut(BLOCK)).enumerate() {
            for &place in part.iter().skip((at + 1) * BLOCK).take(BLOCK) {
                prefetch(self.space.codes.row(rows[place as usize] as usize));
            }
            self.queries.clear();
            for &place in block {
                let row = rows[place as usize] as usize;
                self.space.codes.push_query(self.space.kernel, row, &mut self.queries);
            }
            self.multiply(0..block.len());
            for (at, to) in to.iter_mut().enumerate() {
                self.find(at, rows[block[at] as usize], usize::MAX);
                *to = self.nearest[0].1 as u16;
            }
        }
        self.nearest = k;
    }

    /// Compares all places of `part` with one another and hands out the near ones of each.
    fn compare(&mut self, rows: &[u32], part: &[u32], mut found: impl FnMut(u32, &[Near])) {
        self.columns.clear();
        self.columns.extend(part.iter().map(|&place| rows[place as usize]));
        self.pack();
        self.queries.clear();
        for at in 0..part.len() {
            self.space.codes.push_query(self.space.kernel, self.columns[at] as usize, &mut self.queries);
        }
        for begin in (0..part.len()).step_by(BLOCK) {
            let end = part.len().min(begin + BLOCK);
            self.multiply(begin..end);
            for at in begin..end {
                let row = self.columns[at];
                self.find(at - begin, row, at);
                let half = self.space.codes.half()[row as usize];
                self.near.clear();
                let nearest = self.nearest.iter().filter(|&&(_, column)| column != u32::MAX);
                self.near.extend(
                    nearest.map(|&(less, column)| Near::new(half.wrapping_add(less), part[column as usize])),
                );
                found(part[at], &self.near);
            }
        }
    }

    fn pack(&mut self) {
        self.panels.pack(&self.space.codes, &self.columns);
        self.half.clear();
        self.half.extend(self.columns.iter().map(|&row| self.space.codes.half()[row as usize]));
        self.half.resize(self.panels.padded(), 0);
    }

    /// The dot products of some queries with all columns.
    fn multiply(&mut self, queries: std::ops::Range<usize>) {
        self.dots.resize(queries.len() * self.panels.padded(), 0);
        self.panels.dots(self.space.kernel, &self.queries, queries, &mut self.dots);
    }

    /// Finds the columns nearest to `row`, whose products are the `at`-th row of `dots`; `own` is its
    /// own column. The distances are less by half the squared length of `row`.
    fn find(&mut self, at: usize, row: u32, own: usize) {
        let padded = self.panels.padded();
        let dots = &mut self.dots[at * padded..][..padded];
        if self.space.lift.is_some() {
            for (dot, &column) in dots.iter_mut().zip(&self.columns) {
                *dot = dot.saturating_sub(self.space.lifted(row as usize, column as usize));
            }
        }
        let (half, count) = (&self.half, self.columns.len());
        self.space.kernel.nearest(dots, half, count, own, &mut self.nearest);
    }
}
