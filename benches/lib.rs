//! What the benches share.

use half::f16;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// The folder of evaluation data: `$MAGRAY_DATA`, else `shared/data` beside the repository.
pub fn data_dir() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    env::var_os("MAGRAY_DATA").map_or_else(beside, PathBuf::from)
}

/// Vectors, queries and the ids of the nearest vectors of each query.
#[derive(Clone, Debug)]
pub struct Ann {
    /// Width of the vectors.
    pub dim: usize,
    /// `[n, dim]` row-major; the id of a vector is its row.
    pub base: Vec<f32>,
    /// `[m, dim]` row-major.
    pub queries: Vec<f32>,
    /// `[m, truth_len]` row-major, nearest first.
    pub truth: Vec<u32>,
    /// How many neighbours `truth` names for each query.
    pub truth_len: usize,
}

impl Ann {
    /// Reads `base.f16.npy`, `query.f16.npy` and `gt100.i32.npy` of the set `name`.
    ///
    /// # Errors
    /// Where a file is missing or is no array of that type.
    pub fn read(name: &str) -> io::Result<Self> {
        let base = floats(&data_dir().join("ann").join(name).join("base.f16.npy"))?.1;
        Ok(Self { base, ..Self::questions(name)? })
    }

    /// The same without the vectors.
    ///
    /// # Errors
    /// As [`Ann::read`].
    pub fn questions(name: &str) -> io::Result<Self> {
        let dir = data_dir().join("ann").join(name);
        let (dim, queries) = floats(&dir.join("query.f16.npy"))?;
        let (truth_len, bytes) = npy(&dir.join("gt100.i32.npy"), "<i4")?;
        let truth = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Self { dim, base: Vec::new(), queries, truth, truth_len })
    }

    /// The share of `found`, `[m, k]` row-major, that is as near by cosine as the k-th nearest vector,
    /// over the first m queries. Less than the rounding of f32 apart (1e-6) is as near.
    pub fn recall(&self, k: usize, found: &[u64]) -> f64 {
        let rows = found.chunks_exact(k).zip(self.truth.chunks_exact(self.truth_len));
        let hits = rows.zip(self.queries.chunks_exact(self.dim)).map(|((found, truth), query)| {
            let cosine = |id: usize| {
                let row = &self.base[id * self.dim..][..self.dim];
                dot(query, row) / dot(row, row).sqrt() / dot(query, query).sqrt()
            };
            let enough = cosine(truth[k - 1] as usize) - 1e-6;
            found.iter().filter(|&&id| cosine(id as usize) >= enough).count()
        });
        hits.sum::<usize>() as f64 / found.len() as f64
    }
}

/// The width and the numbers of an array of f16.
fn floats(path: &Path) -> io::Result<(usize, Vec<f32>)> {
    let (width, bytes) = npy(path, "<f2")?;
    let numbers = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
    Ok((width, numbers.collect()))
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The second dimension and the content of a two-dimensional array of `dtype` in NumPy's format 1.0.
fn npy(path: &Path, dtype: &str) -> io::Result<(usize, Vec<u8>)> {
    let wrong =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    let bytes = fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let Some((b"\x93NUMPY\x01\x00", [a, b, rest @ ..])) = bytes.split_at_checked(8) else {
        return Err(wrong("not a NumPy array, format 1.0"));
    };
    let length = usize::from(u16::from_le_bytes([*a, *b]));
    let (header, content) = rest.split_at_checked(length).ok_or_else(|| wrong("truncated"))?;
    let header = String::from_utf8_lossy(header);
    if !header.contains(&format!("'descr': '{dtype}', 'fortran_order': False")) {
        return Err(wrong(&format!("not an array of {dtype}: {header}")));
    }
    let shape = header.split_once("'shape': (").and_then(|(_, shape)| shape.split_once(')'));
    let width = shape.and_then(|(shape, _)| shape.split(',').nth(1)?.trim().parse().ok());
    Ok((width.ok_or_else(|| wrong("not two-dimensional"))?, content.to_vec()))
}
