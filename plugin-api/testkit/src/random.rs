/// SplitMix64 (Steele, Lea, Flood 2014): a report is the same whenever and wherever it is made.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below `end`, which is at least 1.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Evenly in -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `[n, dim]` row-major, each number evenly in -1..1.
    pub(crate) fn vectors(&mut self, n: usize, dim: usize) -> Vec<f32> {
        (0..n * dim).map(|_| self.unit()).collect()
    }

    /// `[n, dim]` row-major: points about `clusters` centres, as embeddings lie.
    pub(crate) fn clustered(&mut self, n: usize, dim: usize, clusters: usize) -> Vec<f32> {
        let centres = self.vectors(clusters, dim);
        let mut vectors = self.vectors(n, dim);
        for vector in vectors.chunks_exact_mut(dim) {
            let centre = self.below(clusters as u64) as usize;
            for (v, c) in vector.iter_mut().zip(&centres[centre * dim..]) {
                *v = c + *v * 0.4;
            }
        }
        vectors
    }

    /// Up to 60 characters, most of them common ones of many scripts.
    pub(crate) fn text(&mut self) -> String {
        const RANGES: [(u32, u32); 8] = [
            (0x20, 0x7e),
            (0x61, 0x7a),
            (0x61, 0x7a),
            (0xa0, 0x17f),
            (0x400, 0x45f),
            (0x5d0, 0x6ff),
            (0x4e00, 0x4fff),
            (0x1f300, 0x1f6ff),
        ];
        let length = self.below(61);
        let any = |random: &mut Self| {
            let (first, last) = RANGES[random.below(RANGES.len() as u64) as usize];
            let code = first + random.below(u64::from(last - first + 1)) as u32;
            char::from_u32(if random.below(6) == 0 { 0x20 } else { code }).unwrap_or(' ')
        };
        (0..length).map(|_| any(self)).collect()
    }
}
