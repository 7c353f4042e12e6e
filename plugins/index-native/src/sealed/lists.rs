//! Scanning those lists of rows that are near a query.

use super::{Request, Sealed};
use crate::{
    candidates::Candidates,
    container::Part,
    int8,
    ivf::Lists,
    rabitq::{self, Accept, Run, Target},
};
use magray_plugin_api::{CallContext, Metric, Result};

/// The share of the nearest rows that the lists which a search scans by default must hold.
const FOUND: f64 = 0.99;

/// The list that others are compared with to see how far they are: the nearest itself may lie around the query.
const COMPARED: usize = 3;

/// So many times the usual number of lists are scanned at most.
const SPREAD: usize = 4;

/// One in so many of the usual number of lists is scanned at least: of a cluster that lies apart few lists are near.
const FEWEST: usize = 8;

impl Sealed {
    /// The slots with the best codes, of the lists near each query.
    ///
    /// # Errors
    /// `CANCELLED`, `DEADLINE`.
    pub(super) fn scan_lists(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        queries: &[Vec<f32>],
        tables: &[rabitq::Query],
    ) -> Result<Vec<Candidates>> {
        let (scan, rows) = (self.scanned(), self.rows() as u32);
        let (starts, slots): (&[u32], &[u32]) =
            (self.container.part(Part::Starts), self.container.part(Part::Slots));
        // A damaged file may name what is not there.
        let accept = request
            .accept
            .map(|accept| move |slot: usize| slots[slot] < rows && accept(slots[slot] as usize));
        let accept = accept.as_ref().map(|accept| accept as Accept<'_>);
        let mut all = Vec::with_capacity(queries.len());
        for (query, table) in queries.iter().zip(tables) {
            cx.check()?;
            // Of most rows it finds two slots, and `k` rows there must be.
            let mut found = Candidates::new((request.rescore + request.rescore / 2).max(2 * request.k));
            let lists = self.nearest_lists(query, request.probes);
            lists.iter().for_each(|&list| int8::prefetch(self.centroid(list as usize)));
            let runs = lists.into_iter().map(|list| Run {
                blocks: starts[list as usize] as usize..starts[list as usize + 1] as usize,
                base: self.base(query, list as usize),
            });
            let target = Target { query: table, found: &mut found };
            scan.run(&runs.collect::<Vec<_>>(), &mut [target], accept);
            all.push(found);
        }
        Ok(all)
    }

    /// The lists to scan, the nearest first, about `probes` of them on average: those that are not much farther than the
    /// [`COMPARED`]-nearest. There are many where a query lies between many lists, and then the nearest rows are scattered
    /// among them. Of 400,000 x 50 (glove) that takes a fifth fewer rows at a recall of .95 than as many lists for every
    /// query do, a ninth fewer at .99 and a third at .998.
    fn nearest_lists(&self, query: &[f32], probes: usize) -> Vec<u32> {
        let near = self.near(query);
        let count = self.lists();
        let probes = probes.clamp(1, count);
        let (mut least, mut most, mut limit) = (probes, probes, i32::MAX);
        if probes < count && self.spec.metric != Metric::Dot {
            let reach: &[f32] = self.container.part(Part::Reach);
            (least, most) = (probes.div_ceil(FEWEST), probes * SPREAD);
            limit = near.offset.saturating_add((near.compared() as f32 * reach[probes - 1]) as i32);
        }
        let mut found = near.within(limit);
        if found.len() < least {
            found = near.within(i32::MAX);
            most = least;
        }
        if found.len() > most {
            found.select_nth_unstable(most - 1);
            found.truncate(most);
        }
        found.sort_unstable();
        found.into_iter().map(|(_, list)| list).collect()
    }

    /// Compares the query with the centroids by their int8 codes.
    fn near(&self, query: &[f32]) -> Near<'_> {
        let half = self.container.part(Part::NearHalf);
        // Rows of length 1 are nearest by the dot product where they are by distance, but centroids are not: the
        // more the rows of a list differ the shorter it is. Of 400,000 x 50 (glove) a fifth to a quarter fewer
        // rows are scanned at any recall when lists are taken by distance.
        let metric = if self.spec.metric == Metric::Dot { Metric::Dot } else { Metric::L2 };
        let mut coded = int8::Queries::new(int8::stride(self.spec.dim));
        self.quantizer.push_query(metric, query, &mut coded);
        let (query, kernel) = (coded.get(0), self.byte_kernel);
        let mut dots = vec![0; half.len()];
        kernel.block_dots(self.container.part(Part::NearCodes), query, &mut dots);
        Near { kernel, count: self.lists(), dots, half, offset: -query.half() }
    }

    /// The term of an estimate that is of the query and the list.
    fn base(&self, query: &[f32], list: usize) -> f32 {
        match self.spec.metric {
            Metric::L2 => 0.5 * self.kernel.score(Metric::L2, query, self.centroid(list), 1.0),
            _ => self.kernel.score(Metric::Dot, query, self.centroid(list), 1.0),
        }
    }

    fn centroid(&self, list: usize) -> &[f32] {
        &self.container.part(Part::Centroids)[list * self.spec.dim..][..self.spec.dim]
    }

    /// How many lists a search must scan on average to find [`FOUND`] of the nearest rows of `queries`, which are rows, and
    /// for each number of lists how far these are then, see [`Sealed::nearest_lists`].
    pub(crate) fn needed_probes(
        &self,
        cx: &dyn CallContext,
        threads: usize,
        queries: &[Vec<f32>],
        lists: &Lists,
    ) -> Result<(usize, Vec<f32>)> {
        // The nearest is the row itself.
        let k = 11.min(self.rows());
        let rescore = (32 * k).min(self.places());
        let request = Request {
            queries,
            k,
            rescore,
            probes: self.lists(),
            breadth: 0,
            passing: self.rows(),
            accept: None,
            threads,
        };
        let found = self.search(cx, &request)?;
        let far: Vec<Vec<f32>> = queries.iter().map(|query| self.far(query)).collect();
        let mut all = far.concat();
        all.sort_unstable_by(f32::total_cmp);
        let reach: Vec<f32> = all.chunks_exact(queries.len().max(1)).map(|far| far[far.len() - 1]).collect();
        let mut needed = Vec::new();
        for (far, hits) in far.iter().zip(found) {
            needed.extend(hits.iter().skip(1).filter_map(|hit| self.find(hit.id)).map(|place| {
                let [first, second] = lists.of_rows[lists.places[place] as usize];
                let nearer = far[first as usize].min(far[second as usize]);
                let rank = far.iter().filter(|&&other| other < nearer).count();
                let reached = reach.partition_point(|&reach| reach < nearer) + 1;
                reached.max((rank + 1).div_ceil(SPREAD)).min(rank * FEWEST + 1)
            }));
        }
        needed.sort_unstable();
        let probes = needed.get((needed.len() as f64 * FOUND) as usize).or(needed.last());
        Ok((probes.map_or(1, |&probes| probes.min(self.lists())), reach))
    }

    /// How far lists are, for a comparison of queries: as many times as far as the [`COMPARED`]-nearest, or how many are nearer
    /// by the dot product.
    fn far(&self, query: &[f32]) -> Vec<f32> {
        let near = self.near(query);
        let distances = near.half.iter().zip(&near.dots).map(|(half, dot)| half - dot).take(near.count);
        if self.spec.metric != Metric::Dot {
            let compared = near.compared() as f32;
            return distances.map(|distance| (distance - near.offset) as f32 / compared).collect();
        }
        let mut order: Vec<(i32, usize)> = distances.zip(0..).collect();
        order.sort_unstable();
        let mut far = vec![0.0; order.len()];
        order.into_iter().enumerate().for_each(|(rank, (_, list))| far[list] = rank as f32);
        far
    }
}

/// How far the lists are from a query.
struct Near<'a> {
    kernel: int8::Kernel,
    count: usize,
    /// Of each list the product with the query.
    dots: Vec<i32>,
    /// Of each list half of the squared length, or 0 under the dot product.
    half: &'a [i32],
    /// `half - dot` of a list at the query.
    offset: i32,
}

impl Near<'_> {
    /// Half of the squared distance of the list that others are compared with; at least 1.
    fn compared(&self) -> i32 {
        let mut nearest = [(0, 0); COMPARED];
        self.kernel.nearest(&self.dots, self.half, self.count, usize::MAX, &mut nearest);
        nearest[self.count.clamp(1, COMPARED) - 1].0.saturating_sub(self.offset).max(1)
    }

    /// The lists whose `half - dot` is at most `limit`, and that.
    fn within(&self, limit: i32) -> Vec<(i32, u32)> {
        let mut found = Vec::new();
        self.kernel.within(&self.dots, self.half, self.count, limit, &mut found);
        found
    }
}
