//! A backend that finds what it does not hold.
use super::*;
use crate::indexing::snapshot;
use magray_index_flat::{Flat, Options};
use magray_plugin_api::{
    Capabilities, Component, CreateVectorIndex, Host, IndexSpec, IndexStats, Plugin, Result, VectorIndex,
};

pub(super) const PLUGIN: Plugin = Plugin {
    id: "liar",
    version: "1.0.0",
    summary: "an index whose best hits are made up",
    components: &[Component::index::<Liar>("liar")],
};

/// Exact, but that an id that it does not hold, the same once more, and the best row twice come first.
struct Liar(Flat);

impl CreateVectorIndex for Liar {
    type Options = Options;

    fn create(options: Options, spec: IndexSpec, host: &'static dyn Host) -> Result<Self> {
        Ok(Self(Flat::create(options, spec, host)?))
    }

    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        Ok(Self(Flat::open(options, spec, dir, host)?))
    }
}

impl VectorIndex for Liar {
    fn spec(&self) -> IndexSpec {
        self.0.spec()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn stats(&self) -> IndexStats {
        self.0.stats()
    }

    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        self.0.upsert(cx, ids, vectors)
    }

    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        self.0.remove(cx, ids)
    }

    fn search(
        &self,
        cx: &dyn CallContext,
        queries: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        self.0.search(cx, queries, k, params, filter, out)?;
        for hits in out.chunks_exact_mut(k) {
            let made_up = Hit::new(999_999, 1.0);
            let lies = [made_up, made_up, hits[0], hits[0]];
            hits.rotate_right(lies.len().min(k));
            hits.iter_mut().zip(lies).for_each(|(hit, lie)| *hit = lie);
        }
        Ok(())
    }

    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        self.0.save(cx, dir)
    }
}

#[test]
fn what_a_backend_makes_up_costs_no_hit() {
    let mut world = World::new("liar", small());
    world.add(50);
    world.sync(Extent::All);
    assert_eq!(snapshot::newest(&world.dir()).unwrap().segments.len(), 1);
    // Of one segment, of a dead row among them, and beside what is not sealed.
    world.check();
    world.forget(7, 2);
    world.add(3);
    world.check();
}
