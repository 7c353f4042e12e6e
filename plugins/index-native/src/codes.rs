//! The codes of rows, one after the other, by which candidates are compared.

use crate::{
    graph::Scorer,
    int4,
    int8::{self, Kernel, Quantizer, prefetch},
    rabitq,
};
use magray_plugin_api::Metric;

/// Eight bits a number, or four where these are enough.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Codes<'a> {
    Bytes(int8::Codes<'a>),
    Nibbles(int4::Codes<'a>),
}

impl Codes<'_> {
    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        match self {
            Self::Bytes(codes) => codes.stride(),
            Self::Nibbles(codes) => codes.stride(),
        }
    }
}

/// A query as it is compared with [`Codes`].
#[derive(Clone, Debug)]
pub(crate) struct Query {
    coded: Coded,
    /// What makes half of a squared distance of a score; `None` under the dot product.
    zero: Option<f32>,
}

#[derive(Clone, Debug)]
enum Coded {
    /// With what makes a score of a product.
    Bytes(int8::Queries, f32),
    Nibbles(int4::Query),
}

impl Query {
    /// Of `query`, of length 1 under cosine; `step` is that of codes of four bits.
    pub(crate) fn new(
        kernel: rabitq::Kernel,
        metric: Metric,
        query: &[f32],
        quantizer: &Quantizer,
        step: Option<f32>,
    ) -> Self {
        let center = quantizer.center();
        let zero = match metric {
            // Rows and queries are of length 1, and the rows are centred.
            Metric::Cosine => Some(1.0 - kernel.score(Metric::Dot, query, center, 1.0)),
            Metric::L2 => Some(-0.5 * kernel.score(Metric::L2, query, center, 1.0)),
            Metric::Dot => None,
        };
        let coded = if let Some(step) = step {
            Coded::Nibbles(int4::Query::new(metric, query, center, step))
        } else {
            let mut queries = int8::Queries::new(int8::stride(query.len()));
            let scale = quantizer.push_query(metric, query, &mut queries);
            Coded::Bytes(queries, scale)
        };
        Self { coded, zero }
    }
}

/// Measures by codes, half the squared distance, or the dot product with its sign turned, but for what codes are off by
/// and a term that is the same for all rows.
#[derive(Debug)]
pub(crate) struct ByCodes<'a> {
    codes: Codes<'a>,
    kernel: Kernel,
    query: &'a Query,
    /// Whether by distance, and not by the dot product.
    distance: bool,
    dots: Vec<i32>,
}

impl<'a> ByCodes<'a> {
    /// The query is one for such codes.
    pub(crate) fn new(kernel: Kernel, codes: Codes<'a>, query: &'a Query, metric: Metric) -> Self {
        Self { codes, kernel, query, distance: metric == Metric::L2, dots: Vec::new() }
    }
}

impl Scorer for ByCodes<'_> {
    fn zero(&self) -> Option<f32> {
        self.query.zero
    }

    #[inline]
    fn score(&mut self, rows: &[u32], out: &mut [f32]) {
        match (self.codes, &self.query.coded) {
            (Codes::Nibbles(codes), Coded::Nibbles(query)) => {
                codes.score(self.kernel, query, self.distance, rows, &mut self.dots, out);
            }
            (Codes::Bytes(codes), Coded::Bytes(queries, scale)) => {
                self.dots.resize(rows.len(), 0);
                if self.distance {
                    rows.iter().for_each(|&row| prefetch(&codes.half()[row as usize..=row as usize]));
                }
                self.kernel.dots(&codes, queries.get(0), rows, &mut self.dots);
                for ((out, &dot), &row) in out.iter_mut().zip(&self.dots).zip(rows) {
                    let half = if self.distance { codes.half()[row as usize] } else { 0 };
                    *out = half.wrapping_sub(dot) as f32 * scale;
                }
            }
            _ => unreachable!("a query is made for the codes"),
        }
    }
}
