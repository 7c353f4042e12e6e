//! Sealing and merging: what the one writer of a layer's index does, under its lock. Every step writes new
//! segments from the store, then a snapshot that lists them, then removes what it no longer lists; killed
//! anywhere, it leaves the snapshot before or the one after.
//!
//! Vectors are read as they are when a segment is written, which may be later than the change that the
//! snapshot covers. That is right: whatever changed after is in the change log, and shadows the segment.
use super::{
    error::{IndexError, Unusable},
    layer::{LayerIndex, LayerSettings},
    merge::{Policy, Size},
    segment::{self, Ids, Listed},
    snapshot::{self, Identity, Snapshot},
};
use crate::store::{Layer, StoreError, free_where_short};
use half::slice::HalfFloatSliceExt;
use magray_plugin_api::{CallContext, Error, ErrorCode};
use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// Changes that the log keeps for a backend that falls behind.
const MAX_LAG: u64 = 100_000;

/// Bytes that a row of a first segment takes beside its numbers.
const FIRST_ROW_BYTES: u64 = 256;

/// How much is brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What the thresholds say is due; merges that would write more than so many rows wait.
    Due {
        /// Rows.
        step_rows: u64,
    },
    /// Every change is sealed, and every merge that is due is done.
    All,
    /// The same, and all segments become as few as can be, without dead rows.
    Compact,
    /// All anew from the store, whatever there is.
    Rebuild,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSync {
    /// The layer.
    pub layer: Layer,
    /// Changes that were sealed.
    pub changes: u64,
    /// Rows that were written, those of merges too.
    pub rows_written: u64,
    /// Segments before and after.
    pub segments_before: usize,
    /// See `segments_before`.
    pub segments: usize,
    /// Whether a new snapshot was written.
    pub synced: bool,
    /// Whether another process holds the lock, and does it.
    pub busy: bool,
    /// How long it took.
    pub took: Duration,
}

/// A segment whose ids are at hand.
struct Held {
    listed: Listed,
    ids: Ids,
    /// Ascending.
    dead: BTreeSet<u64>,
    /// Whether `dead` is other than in its file.
    is_changed: bool,
}

impl Held {
    fn live(&self) -> impl Iterator<Item = u64> + '_ {
        self.ids.iter().filter(|id| !self.dead.contains(id))
    }

    fn kill(&mut self, id: u64) {
        if (self.listed.first..=self.listed.last).contains(&id) && self.ids.contains(id) {
            self.is_changed |= self.dead.insert(id);
            self.listed.dead = self.dead.len() as u64;
        }
    }

    fn size(&self) -> Size {
        Size { live: self.listed.live(), dead: self.listed.dead }
    }
}

/// One run of the writer.
struct Run<'a> {
    index: &'a LayerIndex,
    cx: &'a dyn CallContext,
    identity: Identity,
    snapshot: Snapshot,
    held: Vec<Held>,
    rows_written: u64,
    total: u64,
}

impl LayerIndex {
    /// Brings what is on disk up to date. Where another process is at it, that is left to it.
    pub(super) fn sync(&self, cx: &dyn CallContext, extent: Extent) -> Result<LayerSync, IndexError> {
        let started = Instant::now();
        let mut report = LayerSync {
            layer: self.settings.layer,
            changes: 0,
            rows_written: 0,
            segments_before: 0,
            segments: 0,
            synced: false,
            busy: false,
            took: Duration::ZERO,
        };
        let before = snapshot::newest(&self.settings.dir).unwrap_or_default();
        (report.segments_before, report.segments) = (before.segments.len(), before.segments.len());
        if !self.is_due(&before, extent)? {
            return Ok(report);
        }
        let Some(_lock) = self.lock()? else {
            return Ok(LayerSync { busy: true, took: started.elapsed(), ..report });
        };
        let mut run = Run::begin(self, cx, extent)?;
        report.segments_before = run.held.len();
        let generation = run.snapshot.generation;
        report.changes = run.seal(extent)?;
        run.merge(extent)?;
        report.synced = run.snapshot.generation > generation;
        report.segments = run.held.len();
        report.rows_written = run.rows_written;
        report.took = started.elapsed();
        if report.synced {
            self.prune()?;
            tracing::info!(
                "{}: sealed {} changes; {} vectors in {} segments",
                self.describe(),
                report.changes,
                run.snapshot.live(),
                report.segments
            );
        }
        Ok(report)
    }

    fn policy(&self, step_rows: u64) -> Policy {
        let sync = &self.settings.sync;
        Policy {
            unit: sync.batch_size as u64,
            factor: sync.merge_factor,
            partition_max: sync.partition_max,
            compact_percent: sync.compact_percent,
            step_rows,
        }
    }

    /// Whether there is anything to do. Opens nothing but the list of segments.
    fn is_due(&self, newest: &Snapshot, extent: Extent) -> Result<bool, IndexError> {
        let Extent::Due { step_rows } = extent else { return Ok(true) };
        let is_missing = |listed: &Listed| !listed.path(&self.settings.dir).exists();
        if newest.segments.iter().any(is_missing) {
            return Ok(true);
        }
        let sizes: Vec<Size> =
            newest.segments.iter().map(|listed| Size { live: listed.live(), dead: listed.dead }).collect();
        if self.policy(step_rows).next(&sizes).is_some() {
            return Ok(true);
        }
        // A snapshot that was found stale counts as none.
        Ok(self.are_due(self.waiting(newest)?) || self.scanned() >= self.settings.sync.seal_after)
    }

    /// Changes that `snapshot` does not have.
    pub(super) fn waiting(&self, snapshot: &Snapshot) -> Result<u64, StoreError> {
        let LayerSettings { layer, space, .. } = self.settings;
        match snapshot.generation {
            0 => self.store.vector_count(space, layer),
            _ => self.store.change_count(space, layer, snapshot.covered_seq),
        }
    }

    /// None where somebody else holds it.
    fn lock(&self) -> Result<Option<File>, IndexError> {
        let dir = &self.settings.dir;
        let cannot = |error| IndexError::Write { path: dir.clone(), error };
        fs::create_dir_all(dir).map_err(cannot)?;
        let lock = File::create(dir.join("lock")).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(cannot(error)),
        }
    }

    /// Drops the part of the change log that the snapshots of every backend have covered.
    fn prune(&self) -> Result<(), IndexError> {
        let LayerSettings { layer, space, dir, .. } = &self.settings;
        let backends = dir.parent().and_then(|layer| layer.read_dir().ok()).into_iter().flatten();
        let covered =
            backends.filter_map(|backend| Some(snapshot::newest(&backend.ok()?.path())?.covered_seq));
        let head = self.store.head(*space, *layer)?;
        // A backend that was tried once must not hold the log for ever: it builds its index anew.
        let covered = covered.filter(|&covered_seq| head - covered_seq.min(head) <= MAX_LAG);
        if let Some(covered_seq) = covered.min() {
            self.store.prune_changes(*space, *layer, covered_seq)?;
        }
        Ok(())
    }
}

impl<'a> Run<'a> {
    /// Takes up the newest snapshot that can be used, and removes what is left of others.
    fn begin(index: &'a LayerIndex, cx: &'a dyn CallContext, extent: Extent) -> Result<Self, IndexError> {
        let dir = &index.settings.dir;
        let identity = index.identity()?;
        let generation = snapshot::generations(dir).first().copied().unwrap_or(0);
        let mut found = Snapshot::default();
        for number in snapshot::generations(dir) {
            match snapshot::read(dir, number, &identity) {
                Ok(snapshot) => {
                    snapshot::clean(dir, &snapshot);
                    found = snapshot;
                    break;
                }
                Err(Unusable::Damaged(why)) => index.set_aside(&snapshot::path(dir, number), &why),
                Err(Unusable::Unreadable(why)) => return Err(IndexError::Unreadable(why)),
                Err(why) => {
                    tracing::info!("{}: snapshot {number}: {why}; it will be rebuilt", index.describe())
                }
            }
        }
        let mut run =
            Self { index, cx, identity, snapshot: found, held: Vec::new(), rows_written: 0, total: 0 };
        if extent != Extent::Rebuild {
            run.hold()?;
        } else {
            run.snapshot.segments.clear();
        }
        if run.snapshot.generation == 0 {
            // The number of a snapshot that cannot be used is not given out again.
            run.snapshot.generation = generation;
            run.snapshot.segments.clear();
        }
        Ok(run)
    }

    /// Opens the ids of each segment; one where that fails is lost.
    fn hold(&mut self) -> Result<(), IndexError> {
        let (index, dir) = (self.index, &self.index.settings.dir);
        for listed in &self.snapshot.segments {
            let opened = Ids::open(dir, listed)
                .and_then(|ids| Ok((ids, snapshot::read_tombstones(dir, listed.tombstones.as_deref())?)));
            match opened {
                Ok((ids, dead)) => {
                    let dead = dead.into_iter().collect();
                    self.held.push(Held { listed: listed.clone(), ids, dead, is_changed: false });
                }
                Err(Unusable::Damaged(why)) => index.set_aside(&listed.path(dir), &why),
                Err(Unusable::Unreadable(why)) => return Err(IndexError::Unreadable(why)),
                // A reader has found it damaged and said so.
                Err(why) => tracing::info!("{}: segment {}: {why}", index.describe(), listed.name),
            }
        }
        Ok(())
    }

    /// Builds what changed into new segments. Returns how many changes that were.
    fn seal(&mut self, extent: Extent) -> Result<u64, IndexError> {
        let LayerSettings { layer, space, sync, .. } = &self.index.settings;
        let store = &self.index.store;
        let has_holes = self.held.len() < self.snapshot.segments.len();
        let is_new = self.snapshot.segments.is_empty() && self.snapshot.covered_seq == 0;
        let changed = store.changed_after(*space, *layer, self.snapshot.covered_seq)?;
        let (mut ids, head, changes);
        if extent == Extent::Rebuild || is_new || !changed.complete {
            self.held.clear();
            (ids, head) = store.vector_ids(*space, *layer)?;
            changes = ids.len() as u64;
            if ids.is_empty() && is_new {
                return Ok(0);
            }
        } else {
            let enough = !matches!(extent, Extent::Due { .. }) || self.index.are_due(changed.changes);
            if !has_holes && (changed.changes == 0 || !enough) {
                return Ok(0);
            }
            for held in &mut self.held {
                changed.ids.iter().for_each(|&id| held.kill(id));
            }
            (ids, head, changes) = (changed.ids, changed.head, changed.changes);
            if has_holes {
                let mut all: BTreeSet<u64> = store.vector_ids(*space, *layer)?.0.into_iter().collect();
                for held in &self.held {
                    for id in held.live() {
                        all.remove(&id);
                    }
                }
                all.extend(ids);
                ids = all.into_iter().collect();
            }
            // Small segments are taken in, so that they do not become many.
            let (small, held): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held)
                .into_iter()
                .partition(|held| held.listed.live() < sync.batch_size as u64);
            ids.extend(small.iter().flat_map(Held::live));
            ids.sort_unstable();
            ids.dedup();
            self.held = held;
        }
        self.build(&ids)?;
        self.snapshot.covered_seq = head;
        self.snapshot.syncs += 1;
        self.snapshot.changes += changes;
        self.publish()?;
        Ok(changes)
    }

    /// Merges what is due, or everything.
    fn merge(&mut self, extent: Extent) -> Result<(), IndexError> {
        let policy = self.index.policy(match extent {
            Extent::Due { step_rows } => step_rows,
            _ => u64::MAX,
        });
        let sizes = |held: &[Held]| held.iter().map(Held::size).collect::<Vec<_>>();
        if extent == Extent::Compact
            && let Some(group) = policy.compact(&sizes(&self.held))
        {
            self.rewrite(&group)?;
        }
        while let Some(group) = policy.next(&sizes(&self.held)) {
            self.rewrite(&group)?;
        }
        Ok(())
    }

    /// Writes the live rows of some segments anew.
    fn rewrite(&mut self, group: &[usize]) -> Result<(), IndexError> {
        let taken: BTreeSet<usize> = group.iter().copied().collect();
        let mut ids: Vec<u64> = taken.iter().flat_map(|&place| self.held[place].live()).collect();
        ids.sort_unstable();
        // The segments stay in their place until the new ones are written.
        let old = self.held.len();
        self.build(&ids)?;
        let built = self.held.split_off(old);
        let kept = std::mem::take(&mut self.held).into_iter().enumerate();
        self.held =
            kept.filter(|(place, _)| !taken.contains(place)).map(|(_, held)| held).chain(built).collect();
        self.publish()
    }

    /// Writes segments of these vectors, of those that are still there.
    fn build(&mut self, ids: &[u64]) -> Result<(), IndexError> {
        let most = usize::try_from(self.index.settings.sync.partition_max).unwrap_or(usize::MAX);
        self.ensure_room(ids.len() as u64)?;
        self.total += ids.len() as u64;
        for ids in ids.chunks(most) {
            self.cx.check().map_err(|error| self.index.failed(error))?;
            if let Some(held) = self.build_one(ids)? {
                self.held.push(held);
            }
        }
        Ok(())
    }

    /// Begins no segments that would leave too little of the disk free.
    fn ensure_room(&self, rows: u64) -> Result<(), IndexError> {
        let LayerSettings { dir, dim, sync, .. } = &self.index.settings;
        // As large as those that are there are, and the first as large as the numbers with links beside them.
        let known = self.held.iter().map(|held| held.listed.bytes / held.listed.rows.max(1)).max();
        let needed = rows.saturating_mul(known.unwrap_or(4 * *dim as u64 + FIRST_ROW_BYTES));
        match free_where_short(dir, needed, sync.min_free_bytes) {
            Some(free) => {
                Err(IndexError::NoRoom { dir: dir.clone(), needed, free, reserve: sync.min_free_bytes })
            }
            None => Ok(()),
        }
    }

    fn build_one(&mut self, ids: &[u64]) -> Result<Option<Held>, IndexError> {
        let (index, cx) = (self.index, self.cx);
        let LayerSettings { backend, options, layer, space, dir, sync, .. } = &index.settings;
        let built = index.plugins.index(backend, options, index.settings.spec(), None)?;
        let (mut rows, mut wide) = (Vec::with_capacity(ids.len()), Vec::new());
        let mut failed = None;
        index.store.vectors_of(*space, *layer, ids, sync.batch_size, |ids, vectors| {
            wide.resize(vectors.len(), 0.0);
            vectors.convert_to_f32_slice(&mut wide);
            failed = built.upsert(cx, ids, &wide).err();
            rows.extend_from_slice(ids);
            cx.progress(self.rows_written + rows.len() as u64, self.total);
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(error) = failed {
            return Err(index.failed(error));
        }
        let held = built.stats().live;
        if held != rows.len() as u64 {
            let message = format!("it holds {held} of {} vectors that it was given", rows.len());
            return Err(index.failed(Error::new(ErrorCode::INTERNAL, message)));
        }
        if rows.is_empty() {
            return Ok(None);
        }
        self.rows_written += rows.len() as u64;
        let mut listed = segment::write(cx, dir, backend, &*built, &rows)?;
        drop(built);
        match index.tune(cx, &mut listed, &rows) {
            Err(error) if error.is_cancelled() => return Err(error),
            // A backend that fails to search it is found by searches too, which then do without.
            Err(error) => {
                tracing::warn!("{}: how well it is searched was not measured: {error}", index.describe())
            }
            Ok(()) => {}
        }
        let ids = Ids::open(dir, &listed).map_err(|why| IndexError::Unreadable(why.to_string()))?;
        Ok(Some(Held { listed, ids, dead: BTreeSet::new(), is_changed: false }))
    }

    /// Writes the snapshot of what is held, shows it to the searches of this process, and removes the rest.
    fn publish(&mut self) -> Result<(), IndexError> {
        let dir = &self.index.settings.dir;
        // Where nothing lives in it, it goes.
        self.held.retain(|held| held.listed.live() > 0);
        for held in self.held.iter_mut().filter(|held| held.is_changed) {
            let dead: Vec<u64> = held.dead.iter().copied().collect();
            held.listed.tombstones = snapshot::write_tombstones(dir, &dead)?;
            held.is_changed = false;
        }
        self.snapshot.generation += 1;
        self.snapshot.segments = self.held.iter().map(|held| held.listed.clone()).collect();
        snapshot::write(dir, &self.identity, &self.snapshot)?;
        self.index.switch(self.cx, &self.snapshot);
        snapshot::clean(dir, &self.snapshot);
        Ok(())
    }
}
