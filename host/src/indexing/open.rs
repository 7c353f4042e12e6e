//! From files to a state: what a layer's index opens, and what becomes of what cannot be opened. Whatever is
//! missing stands in the delta, read from the store.
use super::{
    delta::{Block, Delta},
    error::{IndexError, Unusable},
    layer::{LayerIndex, LayerSettings, Part, Sealed, State},
    segment::{self, Care, Ids, Listed},
    snapshot::{self, Snapshot},
};
use crate::{
    plugins::{PluginError, is_corrupt},
    store::Changes,
};
use magray_plugin_api::CallContext;
use std::{collections::HashSet, ops::ControlFlow, path::Path, sync::Arc};

/// How often to look for a snapshot that is not being replaced.
const OPEN_ATTEMPTS: usize = 5;
/// Rows of a block that is filled from the store.
const FILL_ROWS: usize = 1 << 16;

/// A snapshot as far as it could be opened.
pub(super) struct Opened {
    pub(super) sealed: Sealed,
    /// Whether a segment is missing from it.
    pub(super) has_holes: bool,
}

impl LayerIndex {
    /// The newest snapshot, as far as it is whole, with what is missing from it in the delta.
    pub(super) fn open(&self, cx: &dyn CallContext, before: Option<&State>) -> Result<State, IndexError> {
        let opened = match self.open_newest(cx, before.map(|state| &state.sealed)) {
            Ok(opened) => opened,
            Err(Unusable::Cancelled(error)) => return Err(self.failed(error)),
            Err(Unusable::Plugin(error @ PluginError::Call { .. })) => {
                tracing::warn!("{}: {error}; searching exactly instead", self.describe());
                None
            }
            Err(Unusable::Plugin(error)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!("{}: {error}; searching exactly instead", self.describe());
                None
            }
        };
        let Some(Opened { sealed, has_holes }) = opened else {
            return Ok(State { sealed: Sealed::default(), delta: Delta::new(self.settings.dim), head: 0 });
        };
        let covered = sealed.covered_seq;
        if has_holes {
            let delta = self.missing(cx, &sealed)?;
            return Ok(State { sealed, delta, head: covered });
        }
        Ok(match before {
            Some(state) => State { delta: state.delta.since(covered), head: state.head.max(covered), sealed },
            None => State { sealed, delta: Delta::new(self.settings.dim), head: covered },
        })
    }

    /// None where there is no snapshot that can be used.
    fn open_newest(&self, cx: &dyn CallContext, before: Option<&Sealed>) -> Result<Option<Opened>, Unusable> {
        let identity = self.identity().map_err(Unusable::Plugin)?;
        let dir = &self.settings.dir;
        // A snapshot that another process replaces while it is opened makes way for a newer one.
        for _ in 0..OPEN_ATTEMPTS {
            let mut is_replaced = false;
            for generation in snapshot::generations(dir) {
                let opened = snapshot::read(dir, generation, &identity)
                    .and_then(|snapshot| self.open_parts(cx, &snapshot, before));
                match opened {
                    Ok(opened) => return Ok(Some(opened)),
                    Err(Unusable::Gone) => is_replaced = true,
                    Err(Unusable::Stale(why)) => {
                        tracing::info!(
                            "{}: snapshot {generation}: {why}; it will be rebuilt",
                            self.describe()
                        );
                    }
                    Err(Unusable::Damaged(why)) => self.set_aside(&snapshot::path(dir, generation), &why),
                    Err(error) => return Err(error),
                }
            }
            if !is_replaced {
                break;
            }
        }
        Ok(None)
    }

    /// Opens each segment that is not open yet. `Gone` where the snapshot is not the newest any more.
    pub(super) fn open_parts(
        &self,
        cx: &dyn CallContext,
        snapshot: &Snapshot,
        before: Option<&Sealed>,
    ) -> Result<Opened, Unusable> {
        let Snapshot { generation, covered_seq, .. } = *snapshot;
        let mut opened =
            Opened { sealed: Sealed { generation, covered_seq, parts: Vec::new() }, has_holes: false };
        for listed in &snapshot.segments {
            match self.open_part(cx, listed, before) {
                Ok(part) => opened.sealed.parts.push(part),
                Err(Unusable::Gone) if snapshot::path(&self.settings.dir, generation).exists() => {
                    tracing::warn!(
                        "{}: segment {} is missing; it will be rebuilt from the store",
                        self.describe(),
                        listed.name
                    );
                    opened.has_holes = true;
                }
                Err(Unusable::Damaged(why)) => {
                    self.set_aside(&listed.path(&self.settings.dir), &why);
                    opened.has_holes = true;
                }
                Err(Unusable::Unreadable(why)) => {
                    tracing::warn!("{}: {why}; searching its part exactly instead", self.describe());
                    opened.has_holes = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    fn open_part(
        &self,
        cx: &dyn CallContext,
        listed: &Listed,
        before: Option<&Sealed>,
    ) -> Result<Part, Unusable> {
        let LayerSettings { backend, options, dir, .. } = &self.settings;
        let dead = Arc::new(snapshot::read_tombstones(dir, listed.tombstones.as_deref())?);
        let open = before.and_then(|sealed| sealed.parts.iter().find(|part| part.listed.name == listed.name));
        if let Some(part) = open {
            let (index, ids) = (Arc::clone(&part.index), Arc::clone(&part.ids));
            return Ok(Part { listed: listed.clone(), index, ids, dead });
        }
        segment::check(cx, dir, listed, Care::Trust)?;
        let path = listed.path(dir);
        let index = self.plugins.index(backend, options, self.settings.spec(), Some(&path));
        let index = index.map_err(|error| {
            if !path.exists() {
                Unusable::Gone
            } else if is_corrupt(&error) {
                Unusable::Damaged(error.to_string())
            } else {
                Unusable::Plugin(error)
            }
        })?;
        let held = index.stats().live;
        if held != listed.rows {
            return Err(Unusable::Damaged(format!("it holds {held} of {} rows", listed.rows)));
        }
        let ids = Arc::new(Ids::open(dir, listed)?);
        Ok(Part { listed: listed.clone(), index: Arc::from(index), ids, dead })
    }

    pub(super) fn set_aside(&self, path: &Path, why: &str) {
        let fate = match snapshot::set_aside(&self.settings.dir, path) {
            Ok(aside) => format!("it was moved to {}", aside.display()),
            Err(error) => format!("it could not be moved away ({error})"),
        };
        tracing::warn!(
            "{}: {} is damaged: {why}; {fate}, and it will be rebuilt from the store",
            self.describe(),
            path.file_name().unwrap_or_default().display()
        );
    }

    /// Every vector that the segments should hold and do not.
    fn missing(&self, cx: &dyn CallContext, sealed: &Sealed) -> Result<Delta, IndexError> {
        let live = |part: &Part| part.ids.iter().filter(|id| part.dead.binary_search(id).is_err()).collect();
        let held: HashSet<u64> = sealed.parts.iter().flat_map::<Vec<u64>, _>(live).collect();
        let (mut ids, _) = self.store.vector_ids(self.settings.space, self.settings.layer)?;
        ids.retain(|id| !held.contains(id));
        self.fill(cx, &ids, sealed.covered_seq)
    }

    /// Everything in the delta, without a segment, until there is a snapshot after `generation`.
    pub(super) fn exact(&self, cx: &dyn CallContext, generation: u64) -> Result<State, IndexError> {
        let (ids, head) = self.store.vector_ids(self.settings.space, self.settings.layer)?;
        let sealed = Sealed { generation, ..Sealed::default() };
        Ok(State { sealed, delta: self.fill(cx, &ids, head)?, head })
    }

    /// A delta of these vectors, which shows them as they were at `head` or later.
    fn fill(&self, cx: &dyn CallContext, ids: &[u64], head: u64) -> Result<Delta, IndexError> {
        let LayerSettings { space, layer, dim, .. } = self.settings;
        let mut delta = Delta::new(dim);
        let (mut done, total) = (0, ids.len() as u64);
        let mut stopped = Ok(());
        self.store.vectors_of(space, layer, ids, FILL_ROWS, |ids, vectors| {
            let (upserts, vectors) = (ids.to_vec(), vectors.to_vec());
            let changes = Changes { head, upserts, vectors, complete: true, ..Changes::default() };
            done += ids.len() as u64;
            delta = delta.with(Block::new(dim, Arc::new(changes)));
            cx.progress(done, total);
            stopped = cx.check();
            if stopped.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        stopped.map_err(|error| self.failed(error))?;
        Ok(delta)
    }
}
