//! Checks of `save` and `open`.

use super::{
    DIM, Entry, Index, METRICS, Subject, answers::agrees_with_model, ids, row, search, unchanged,
    unit_vectors,
};
use crate::{Checked, Cx, Outcome, ensure, random::Random, refused};
use magray_plugin_api::{Error, ErrorCode, Hit, IndexSpec, SearchParams, VectorIndex};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

pub(super) const CHECKS: &[Entry] = &[
    ("saves-and-opens", "an opened index gives the answers of the one that was saved", saves_and_opens),
    ("opens-empty", "an index without vectors is saved and opened like any other", opens_empty),
    ("opened-is-writable", "an opened index is written to and saved again", opened_is_writable),
    (
        "agrees-when-reopened",
        "random calls with save() and open() among them change no answer",
        agrees_reopened,
    ),
    ("outlives-its-files", "the folder may be deleted while the index is open", outlives_its_files),
    ("refuses-other-spec", "files of another width or metric give CORRUPT_DATA", refuses_other_spec),
    ("refuses-missing-files", "a folder without a file of the index is an error", refuses_missing_files),
    ("refuses-truncated-files", "a truncated file gives CORRUPT_DATA", refuses_truncated_files),
    ("survives-damaged-files", "no damage of a file makes open() or a search panic", survives_damaged_files),
    ("fuzz", "random calls, wrong ones among them, and save() and open() change no answer", fuzz),
];

impl Subject<'_> {
    fn open(&self, spec: IndexSpec, dir: &Path) -> Checked<magray_plugin_api::Result<Index>> {
        match self.open {
            Some(open) => Ok(open(spec, dir)),
            None => Err(Outcome::Skipped("no way to open an index was given".into())),
        }
    }

    /// Saves `index` and opens it again.
    fn reopened(&self, index: &dyn VectorIndex) -> Checked<Index> {
        Ok(self.open(index.spec(), saved(index)?.path())??)
    }
}

/// The folder of a check is not as it should be; no fault of the plugin's, but nothing passed.
impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("the check could not do its own work on files: {error}"))
    }
}

fn saved(index: &dyn VectorIndex) -> Checked<TempDir> {
    let dir = TempDir::with_prefix("magray-testkit-")?;
    index.save(&Cx::free(), dir.path())?;
    Ok(dir)
}

/// Every file under `dir` with its content.
fn files(dir: &Path) -> Checked<Vec<(PathBuf, Vec<u8>)>> {
    let (mut files, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path)?;
                files.push((path, bytes));
            }
        }
    }
    ensure!(!files.is_empty(), "save() wrote no file");
    Ok(files)
}

fn saves_and_opens(subject: &Subject<'_>) -> Checked {
    for metric in METRICS {
        let index = match subject.make(IndexSpec { dim: DIM, metric }) {
            Err(Outcome::Skipped(_)) => continue,
            made => made?,
        };
        // With replaced and removed ids, in no order.
        let vectors = Random(11).vectors(300, DIM);
        let shuffled: Vec<u64> = (0..300).map(|i| i * 77 % 300 * 1_000).collect();
        index.upsert(&Cx::free(), &shuffled, &vectors)?;
        index.upsert(&Cx::free(), &shuffled[..50], &vectors[50 * DIM..100 * DIM])?;
        index.remove(&Cx::free(), &shuffled[100..150])?;
        let opened = subject.reopened(&*index)?;
        ensure!(opened.spec() == index.spec(), "saved {:?}, opened {:?}", index.spec(), opened.spec());
        let (live, expected) = (opened.stats().live, index.stats().live);
        ensure!(live == expected, "{expected} vectors were saved, {live} are live");
        for query in unit_vectors(12, 20).chunks_exact(DIM) {
            let (before, after) = (search(&*index, query, 10, None)?, search(&*opened, query, 10, None)?);
            let same = before.len() == after.len()
                && before.iter().zip(&after).all(|(a, b)| (a.score - b.score).abs() <= 1e-3);
            ensure!(same, "{metric:?}: {before:?} before, {after:?} after");
        }
    }
    Ok(())
}

fn opens_empty(subject: &Subject<'_>) -> Checked {
    let opened = subject.reopened(&*subject.empty()?)?;
    unchanged(&*opened, &[])?;
    let hits = search(&*opened, &unit_vectors(12, 1), 3, None)?;
    ensure!(hits.is_empty(), "{hits:?}");
    opened.upsert(&Cx::free(), &ids(10), &unit_vectors(12, 10))?;
    unchanged(&*opened, &unit_vectors(12, 10))
}

fn opened_is_writable(subject: &Subject<'_>) -> Checked {
    let (index, mut vectors) = subject.filled(100)?;
    let opened = subject.reopened(&*index)?;
    unchanged(&*opened, &vectors)?;

    let replaced = unit_vectors(13, 20);
    vectors[..20 * DIM].copy_from_slice(&replaced);
    opened.upsert(&Cx::free(), &ids(20), &replaced)?;
    let removed = opened.remove(&Cx::free(), &ids(100)[80..])?;
    ensure!(removed == 20, "20 ids were there, remove() says {removed}");
    vectors.truncate(80 * DIM);
    let added = unit_vectors(14, 20);
    vectors.extend_from_slice(&added);
    opened.upsert(&Cx::free(), &ids(100)[80..], &added)?;
    unchanged(&*opened, &vectors)?;

    let again = subject.reopened(&*opened)?;
    unchanged(&*again, &vectors)?;
    let all = search(&*again, row(&vectors, 0), 200, None)?.len();
    ensure!(all == 100, "100 ids are stored, a search for all finds {all}");
    Ok(())
}

fn agrees_reopened(subject: &Subject<'_>) -> Checked {
    agrees_with_model(subject, 10, 100, |index| subject.reopened(&*index))
}

fn outlives_its_files(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(100)?;
    let dir = saved(&*index)?;
    let opened = subject.open(index.spec(), dir.path())??;
    if let Err(error) = dir.close() {
        return Err(Outcome::Skipped(format!("this system keeps the files of an open index: {error}")));
    }
    unchanged(&*opened, &vectors)
}

fn refuses_other_spec(subject: &Subject<'_>) -> Checked {
    let dir = saved(&*subject.filled(20)?.0)?;
    let spec = subject.spec();
    let widths = [1, DIM / 2, 2 * DIM].map(|dim| IndexSpec { dim, ..spec });
    let metrics = METRICS.map(|metric| IndexSpec { metric, ..spec });
    for other in widths.into_iter().chain(metrics).filter(|&other| other != spec) {
        // What it cannot even make, it need not tell apart.
        if let Err(Outcome::Skipped(_)) = subject.make(other) {
            continue;
        }
        let result = subject.open(other, dir.path())?.map(|_| ());
        refused(&format!("saved as {spec:?}, opened as {other:?}"), ErrorCode::CORRUPT_DATA, result)?;
    }
    Ok(())
}

fn refuses_missing_files(subject: &Subject<'_>) -> Checked {
    let dir = saved(&*subject.filled(20)?.0)?;
    for (path, bytes) in files(dir.path())? {
        fs::remove_file(&path)?;
        match subject.open(subject.spec(), dir.path())? {
            Err(error) => no_panic(&error)?,
            Ok(_) => return Err(Outcome::Failed(format!("it opened without {}", path.display()))),
        }
        fs::write(&path, bytes)?;
    }
    Ok(())
}

fn refuses_truncated_files(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(100)?;
    let dir = saved(&*index)?;
    for (path, bytes) in files(dir.path())? {
        for length in [0, 1, 7, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            if length >= bytes.len() {
                continue;
            }
            fs::write(&path, &bytes[..length])?;
            let what = format!("{length} of {} bytes of {}", bytes.len(), path.display());
            match subject.open(subject.spec(), dir.path())? {
                // A line feed at the end, say, may be lost without a loss.
                Ok(opened) if length + 1 == bytes.len() && unchanged(&*opened, &vectors).is_ok() => {}
                result => refused(&what, ErrorCode::CORRUPT_DATA, result.map(|_| ()))?,
            }
        }
        fs::write(&path, bytes)?;
    }
    Ok(())
}

/// Over the boundary a panic is an error of its own code.
fn no_panic(error: &Error) -> Checked {
    ensure!(error.code() != ErrorCode::PANICKED, "{error}");
    Ok(())
}

fn survives_damaged_files(subject: &Subject<'_>) -> Checked {
    let dir = saved(&*subject.filled(30)?.0)?;
    let mut random = Random(15);
    for (path, bytes) in files(dir.path())?.into_iter().filter(|(_, bytes)| !bytes.is_empty()) {
        // Heads of files hold lengths and offsets, so every byte of them is tried.
        let head = 0..bytes.len().min(128);
        let anywhere = (0..128).map(|_| random.below(bytes.len() as u64) as usize).collect::<Vec<_>>();
        for at in head.chain(anywhere) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 + random.below(255) as u8;
            fs::write(&path, damaged)?;
            // The answer may be wrong or an error.
            match subject.open(subject.spec(), dir.path())? {
                Err(error) => no_panic(&error)?,
                Ok(opened) => {
                    let mut hits = vec![Hit::NONE; 10];
                    let query = unit_vectors(12, 1);
                    let found =
                        opened.search(&Cx::free(), &query, 10, SearchParams::default(), None, &mut hits);
                    found.or_else(|error| no_panic(&error))?;
                }
            }
        }
        fs::write(&path, bytes)?;
    }
    Ok(())
}

fn fuzz(subject: &Subject<'_>) -> Checked {
    let seed = subject.settings.seed;
    let mut random = Random(seed);
    let done = agrees_with_model(subject, seed, 150, |index| {
        let dim = index.spec().dim;
        let ids: Vec<u64> = (0..=random.below(4)).collect();
        let mut rows = random.vectors(ids.len(), dim);
        // One fault in a call that is right but for it.
        match random.below(3) {
            0 => rows[random.below(dim as u64) as usize] = f32::NAN,
            1 => rows.truncate(rows.len() - 1 - random.below(dim as u64 - 1) as usize),
            _ => rows.extend(random.vectors(1, dim)),
        }
        refused("a wrong upsert", ErrorCode::INVALID_INPUT, index.upsert(&Cx::free(), &ids, &rows))?;
        if subject.open.is_some() && random.below(2) == 0 { subject.reopened(&*index) } else { Ok(index) }
    });
    done.map_err(|outcome| match outcome {
        Outcome::Failed(why) => Outcome::Failed(format!("seed {seed}: {why}")),
        outcome => outcome,
    })
}
