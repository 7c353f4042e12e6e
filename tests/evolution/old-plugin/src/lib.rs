//! One component of each kind, built against plugin API 1.0.
use magray_plugin_api::{
    CachePolicy, CallContext, Capabilities, CreateCachePolicy, CreateEmbedder, CreateVectorIndex,
    DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Hit, Host, IdFilter, IndexSpec, IndexStats,
    Result, Role, SearchParams, VectorIndex,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::Path,
    sync::RwLock,
};

magray_plugin_api::export_plugin! {
    id: "old-plugin",
    summary: "built against plugin API 1.0",
    embedders: { "old-letters" => Letters },
    indexes: { "old-map" => Map },
    cache_policies: { "old-fifo" => Fifo },
}

#[derive(serde::Deserialize)]
pub struct NoOptions {}

/// How often each letter stands in a text.
pub struct Letters(EmbedderInfo);

impl CreateEmbedder for Letters {
    type Options = NoOptions;
    fn create(_: NoOptions, host: &'static dyn Host) -> Result<Self> {
        host.count("created", 1);
        let info = EmbedderInfo {
            dim: 27,
            max_tokens: usize::MAX,
            max_batch: 64,
            model: "letters".into(),
            space: [7; 32],
        };
        Ok(Self(info))
    }
}

impl Embedder for Letters {
    fn info(&self) -> &EmbedderInfo {
        &self.0
    }
    fn device(&self) -> DeviceReport {
        DeviceReport { device: "cpu".into(), ..DeviceReport::default() }
    }
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        for (text, out) in texts.iter().zip(out) {
            *out = text.len() as u32;
        }
        Ok(())
    }
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], _: Role, out: &mut [f32]) -> Result<()> {
        cx.check()?;
        for (text, row) in texts.iter().zip(out.chunks_exact_mut(27)) {
            row.fill(0.0);
            for letter in text.bytes() {
                row[if letter.is_ascii_alphabetic() {
                    usize::from(letter.to_ascii_lowercase() - b'a')
                } else {
                    26
                }] += 1.0;
            }
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm.max(1.0));
        }
        Ok(())
    }
}

/// Vectors in a map.
pub struct Map {
    spec: IndexSpec,
    rows: RwLock<BTreeMap<u64, Vec<f32>>>,
}

impl CreateVectorIndex for Map {
    type Options = NoOptions;
    fn create(_: NoOptions, spec: IndexSpec, _: &'static dyn Host) -> Result<Self> {
        Ok(Self { spec, rows: RwLock::default() })
    }
    fn open(_: NoOptions, spec: IndexSpec, dir: &Path, _: &'static dyn Host) -> Result<Self> {
        let corrupt = |_| Error::new(ErrorCode::CORRUPT_DATA, "rows.txt");
        let text = fs::read_to_string(dir.join("rows.txt")).map_err(corrupt)?;
        let mut rows = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let id = words.next().and_then(|id| id.parse().ok()).unwrap_or(0);
            rows.insert(id, words.filter_map(|word| word.parse().ok()).collect());
        }
        Ok(Self { spec, rows: RwLock::new(rows) })
    }
}

impl VectorIndex for Map {
    fn spec(&self) -> IndexSpec {
        self.spec
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: true, concurrent_write: true, filtered: true, mapped: false }
    }
    fn stats(&self) -> IndexStats {
        IndexStats { live: self.rows.read().unwrap().len() as u64, ..IndexStats::default() }
    }
    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        cx.check()?;
        self.spec.check_upsert(ids, vectors)?;
        let rows = vectors.chunks_exact(self.spec.dim).map(<[f32]>::to_vec);
        self.rows.write().unwrap().extend(ids.iter().copied().zip(rows));
        Ok(())
    }
    fn remove(&self, _: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        let mut rows = self.rows.write().unwrap();
        Ok(ids.iter().filter(|id| rows.remove(id).is_some()).count())
    }
    fn search(
        &self,
        _: &dyn CallContext,
        queries: &[f32],
        k: usize,
        _: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        self.spec.check_search(queries, k, out)?;
        let rows = self.rows.read().unwrap();
        for (query, out) in queries.chunks_exact(self.spec.dim).zip(out.chunks_exact_mut(k.max(1))) {
            let passes = rows.iter().filter(|(id, _)| filter.is_none_or(|filter| filter.contains(**id)));
            let dot = |row: &[f32]| row.iter().zip(query).map(|(a, b)| a * b).sum();
            let mut hits: Vec<Hit> = passes.map(|(&id, row)| Hit::new(id, dot(row))).collect();
            hits.sort_by(|a, b| b.score.total_cmp(&a.score));
            hits.resize(k, Hit::NONE);
            out.copy_from_slice(&hits);
        }
        Ok(())
    }
    fn save(&self, _: &dyn CallContext, dir: &Path) -> Result<()> {
        let mut text = String::new();
        for (id, row) in self.rows.read().unwrap().iter() {
            text += &id.to_string();
            row.iter().for_each(|v| text += &format!(" {v}"));
            text += "\n";
        }
        fs::write(dir.join("rows.txt"), text).map_err(|error| Error::from_source(ErrorCode::IO, &error))
    }
}

/// Drops the oldest.
#[derive(Default)]
pub struct Fifo(VecDeque<(u64, u64)>);

impl CreateCachePolicy for Fifo {
    type Options = NoOptions;
    fn create(_: NoOptions, _: &'static dyn Host) -> Result<Self> {
        Ok(Self::default())
    }
}

impl CachePolicy for Fifo {
    fn on_insert(&mut self, key: u64, weight: u64, _: u64) {
        self.on_remove(key);
        self.0.push_back((key, weight));
    }
    fn on_hit(&mut self, _: u64, _: u64) {}
    fn on_remove(&mut self, key: u64) {
        self.0.retain(|&(held, _)| held != key);
    }
    fn evict(&mut self, weight: u64, _: u64, victims: &mut Vec<u64>) {
        let mut freed = 0;
        while freed < weight
            && let Some((key, weight)) = self.0.pop_front()
        {
            freed += weight;
            victims.push(key);
        }
    }
}
