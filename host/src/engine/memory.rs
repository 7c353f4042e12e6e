//! Whose memory it is, and giving back what can be computed or read again.
use super::{Engine, Loaded, Vectors};
use crate::{
    resources::{
        gpu,
        leak::Holding,
        pressure::{Pressure, ProcessMemory},
    },
    store,
};
use magray_plugin_api::MemoryUse;
use serde::Serialize;
use std::{collections::BTreeMap, iter};

/// Bytes that an index may hold beside each vector and not count as a leak.
const INDEX_SLACK: u64 = 1024;
/// Bytes that a policy may hold for each entry.
const POLICY_SLACK: u64 = 256;
/// What SQLite's caches come to: the writer's and those of idle readers, of two databases.
const SQLITE_SLACK: u64 = 96 << 20;

/// What one part of the process holds, by its own account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComponentMemory {
    /// Such as `embedder cpu`, `index insights`, `cached embeddings`.
    pub name: String,
    /// Bytes that it allocated.
    pub resident: u64,
    /// Bytes of files that it maps, of which as much is in memory as the system likes.
    pub mapped: u64,
    /// Bytes of a GPU.
    pub device: u64,
    /// So many of `resident` may be, by what it was given to hold.
    #[serde(skip)]
    pub explained: u64,
}

/// Memory of one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuMemory {
    /// Its name.
    pub name: String,
    /// Bytes that there are.
    pub total: u64,
    /// Bytes that somebody uses; none where the driver does not say.
    pub used: Option<u64>,
}

/// Whose memory it is.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// What each part tells of.
    pub components: Vec<ComponentMemory>,
    /// What it allocated and nobody tells of: the program's own, plugins that do not say, and what the allocator keeps.
    pub unaccounted: u64,
    /// The memory that all of it is part of.
    pub pressure: Pressure,
    /// The GPUs, where a component uses one.
    pub gpus: Vec<GpuMemory>,
}

impl Engine {
    /// Whose memory the memory of this process is. Loads nothing.
    pub fn memory(&self) -> MemoryReport {
        self.memory_at(Pressure::sample())
    }

    pub(super) fn memory_at(&self, pressure: Pressure) -> MemoryReport {
        let mut components: Vec<ComponentMemory> = self.loaded().flat_map(of_vectors).collect();
        components.push(ComponentMemory::own("SQLite", store::sqlite_memory(), SQLITE_SLACK));
        let told: u64 = components.iter().map(|component| component.resident).sum();
        let ProcessMemory { anonymous, .. } = pressure.process;
        let uses_gpu = components.iter().any(|component| component.device > 0);
        let gpus = if uses_gpu { gpus() } else { Vec::new() };
        MemoryReport { components, unaccounted: anonymous.saturating_sub(told), pressure, gpus }
    }

    /// Gives back at once what can be computed or read again: cached embeddings in memory, indexes that are open, caches
    /// and idle connections of the database, and what the allocator keeps. Nothing that is stored is lost, and the next
    /// searches read again what they need. Returns by how many bytes the process became smaller.
    pub fn force_cleanup(&self) -> u64 {
        let before = Pressure::sample().process.resident;
        for vectors in self.loaded() {
            vectors.embedding.cache().empty_memory();
            vectors.indexes.close_all();
        }
        self.give_back();
        before.saturating_sub(Pressure::sample().process.resident)
    }

    /// The part of it that no search notices.
    pub(super) fn give_back(&self) {
        if let Err(error) = self.store.release_memory() {
            tracing::debug!("the database keeps its memory: {error}");
        }
        trim_heap();
    }

    /// The models that are loaded.
    pub(super) fn loaded(&self) -> impl Iterator<Item = &Vectors> {
        let first = self.services.get::<Loaded>().ok().and_then(|loaded| loaded.0.get());
        iter::successors(first, |vectors| vectors.next.0.get()).map(|vectors| &**vectors)
    }
}

impl MemoryReport {
    /// For the leak detector.
    pub(super) fn holdings(&self) -> BTreeMap<String, Holding> {
        let mut holdings = BTreeMap::<String, Holding>::new();
        // Two models that are loaded may have parts of the same name.
        for ComponentMemory { name, resident, explained, .. } in &self.components {
            let holding = holdings.entry(name.clone()).or_default();
            holding.bytes += resident;
            holding.explained += explained;
        }
        holdings
    }
}

impl ComponentMemory {
    fn own(name: &str, resident: u64, explained: u64) -> Self {
        Self { name: name.to_owned(), resident, mapped: 0, device: 0, explained }
    }

    fn of_plugin(name: String, memory: MemoryUse, explained: u64) -> Self {
        let MemoryUse { resident, mapped, device } = memory;
        Self { name, resident, mapped, device, explained }
    }
}

fn of_vectors(vectors: &Vectors) -> Vec<ComponentMemory> {
    let (embedding, cache) = (&vectors.embedding, vectors.embedding.cache());
    let width = 4 * embedding.info().dim as u64;
    let backends = embedding.memory().into_iter();
    // What a backend holds is known once it has warmed up, so all that comes after is to be explained.
    let mut all: Vec<_> = backends
        .map(|(profile, memory)| ComponentMemory::of_plugin(format!("embedder {profile}"), memory, 0))
        .collect();
    for layer in vectors.indexes.memory() {
        let explained = layer.rows * (width + INDEX_SLACK);
        all.push(ComponentMemory::of_plugin(format!("index {}", layer.layer), layer.segments, explained));
        all.push(ComponentMemory::own(&format!("changes {}", layer.layer), layer.delta, explained));
    }
    let held = cache.memory();
    let policy = cache.policy_memory();
    all.push(ComponentMemory::own("cached embeddings", held.bytes, held.bytes));
    all.push(ComponentMemory::of_plugin("cache policy".into(), policy, held.entries * POLICY_SLACK));
    all
}

fn gpus() -> Vec<GpuMemory> {
    let found = gpu::probe().map(|gpus| gpus.gpus).unwrap_or_default().into_iter();
    let memory = |gpu: gpu::Gpu| GpuMemory {
        used: gpu.now.map(|now| gpu.total_bytes.saturating_sub(now.free_bytes)),
        total: gpu.total_bytes,
        name: gpu.name,
    };
    found.map(memory).collect()
}

/// Has the allocator return free pages to the system.
fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
