//! The files: which are read, and what becomes of damaged ones.
use super::{
    super::{segment, snapshot, snapshot::Snapshot, trust},
    *,
};
use std::fs;

#[test]
fn opening_hashes_nothing_that_was_hashed_before() {
    let mut world = World::new("flat", small());
    world.add(100);
    world.sync(Extent::All);
    let listed = snapshot::newest(&world.dir()).unwrap().segments;
    let hashed = |care| -> u64 {
        listed.iter().map(|listed| segment::check(&Cx::free(), &world.dir(), listed, care).unwrap()).sum()
    };
    let all = hashed(segment::Care::Hash);
    assert_eq!(all, listed.iter().map(|listed| listed.bytes).sum::<u64>());
    // As if it had been checked a while after it was written.
    for listed in &listed {
        trust::age(&listed.path(&world.dir()));
    }
    assert_eq!(hashed(segment::Care::Trust), if cfg!(unix) { 0 } else { all });
    let file = listed[0].path(&world.dir()).join("vectors.bin");
    fs::write(&file, fs::read(&file).unwrap()).unwrap();
    assert_eq!(hashed(segment::Care::Trust), listed[0].bytes);
}

/// Whoever can write a manifest can write its digest too: whatever it says, nothing overflows and nothing outside of
/// the segment is read.
#[test]
fn a_forged_manifest_is_damage() {
    let mut world = World::new("flat", small());
    world.add(50);
    world.sync(Extent::All);
    let listed = snapshot::newest(&world.dir()).unwrap().segments.remove(0);
    let path = listed.path(&world.dir()).join(segment::MANIFEST);
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let forge = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = manifest.clone();
        for file in manifest["files"].as_array_mut().unwrap() {
            change(file);
        }
        let json = serde_json::to_vec(&manifest).unwrap();
        fs::write(&path, &json).unwrap();
        segment::Listed { manifest: segment::digest(&json), ..listed.clone() }
    };
    let digests = |count: usize| serde_json::json!(vec!["00"; count]);
    for change in [
        &(|file: &mut serde_json::Value| file["chunks"] = digests(0)) as &dyn Fn(&mut serde_json::Value),
        &|file| file["chunks"] = digests(3),
        &|file| file["len"] = u64::MAX.into(),
        &|file| file["name"] = "../../lock".into(),
    ] {
        let forged = forge(change);
        assert!(segment::check(&Cx::free(), &world.dir(), &forged, segment::Care::Hash).is_err());
        assert!((0..4).all(|pick| segment::scrub(&world.dir(), &forged, pick).is_err()));
        assert!(segment::Ids::open(&world.dir(), &forged).is_err());
    }
    let forged = segment::Listed { rows: u64::MAX / 4, dead: u64::MAX, bytes: u64::MAX, ..forge(&|_| {}) };
    assert!(segment::Ids::open(&world.dir(), &forged).is_err());
    let snapshot = Snapshot { segments: vec![forged; 2], ..Snapshot::default() };
    assert_eq!((snapshot.dead(), snapshot.bytes()), (u64::MAX, u64::MAX));
}

#[test]
fn damage_to_any_file_of_an_index_costs_no_record() {
    let mut world = World::new("flat", small());
    world.add(100);
    world.sync(Extent::All);
    world.forget(20, 5);
    world.add(20);
    world.sync(DUE);
    let files = |dir: &Path| -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().unwrap().flatten() {
                match entry.metadata().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false if entry.file_name() != "lock" => found.push(entry.path()),
                    false => {}
                }
            }
        }
        found.sort();
        found
    };
    let count = files(&world.dir()).len();
    assert!(count >= 10, "{count} files");
    for number in 0..3 * count {
        let present = files(&world.dir());
        let file = &present[number % present.len()];
        let mut bytes = fs::read(file).unwrap();
        let at = bytes.len() * (number + 1) / (3 * count + 1);
        match number % 3 {
            0 => bytes[at] ^= 0x10,
            1 => bytes.truncate(at),
            _ => {}
        }
        if number % 3 == 2 {
            fs::remove_file(file).unwrap();
        } else {
            fs::write(file, bytes).unwrap();
        }
        world.reopen();
        world.check();
        world.sync(DUE);
        world.check();
        world.reopen();
        world.check();
        world.verify();
        assert!(world.stats().tail < 10, "{:?} after {}", world.stats(), file.display());
    }
}

#[test]
fn rot_is_found_by_a_look_at_each_part() {
    let mut world = World::new("flat", small());
    world.add(50);
    world.sync(Extent::All);
    world.check();
    let listed = snapshot::newest(&world.dir()).unwrap().segments.remove(0);
    let looks: u64 = (0..30).map(|pick| world.indexes.scrub(pick)).sum();
    assert!(looks >= listed.bytes, "{looks} of {}", listed.bytes);
    let file = listed.path(&world.dir()).join("vectors.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    fs::write(&file, bytes).unwrap();
    for pick in 0..30 {
        world.indexes.scrub(pick);
    }
    assert!(!file.exists());
    world.check();
    world.sync(DUE);
    assert_eq!(world.stats().sealed, 50);
    world.verify();
}

#[test]
fn an_index_of_the_format_before_is_built_anew() {
    let mut world = World::new("flat", small());
    world.add(30);
    let old = world.dir().join("30");
    fs::create_dir_all(&old).unwrap();
    fs::write(old.join("manifest.json"), "{}").unwrap();
    world.check();
    world.sync(DUE);
    assert!(!old.exists());
    assert_eq!(world.stats().sealed, 30);
    // So is one of a format that is not known.
    let file = snapshot::path(&world.dir(), 1);
    let text = fs::read_to_string(&file).unwrap().replace("\"format\": 2", "\"format\": 3");
    fs::write(&file, text).unwrap();
    world.reopen();
    world.check();
    world.sync(DUE);
    assert_eq!(world.stats().sealed, 30);
    world.verify();
}

#[test]
fn verification_says_what_is_wrong() {
    let mut world = World::new("flat", small());
    let verdict = |world: &World| world.indexes.verify(&Cx::free(), Some(LAYER)).unwrap().remove(0);
    assert!(verdict(&world).notes[0].contains("nothing is sealed"));
    world.add(40);
    world.sync(Extent::All);
    let well = verdict(&world);
    assert_eq!(well.recall.map(|recall| recall.recall), Some(1.0));
    assert!(well.bytes > 0 && well.rows == 40 && well.findings.is_empty(), "{well:?}");

    // A row that the log never told of.
    let head = world.store.head(world.space, LAYER).unwrap();
    world.add(1);
    let listed = snapshot::newest(&world.dir()).unwrap();
    let identity = world
        .indexes
        .shared
        .layers
        .iter()
        .find(|index| index.settings.layer == LAYER)
        .unwrap()
        .identity()
        .unwrap();
    let later = Snapshot { generation: 2, covered_seq: head + 1, ..listed.clone() };
    snapshot::write(&world.dir(), &identity, &later).unwrap();
    assert_eq!(verdict(&world).findings, ["1 vectors of the store are not in the index"]);
    snapshot::write(&world.dir(), &identity, &Snapshot { generation: 3, ..listed.clone() }).unwrap();
    assert_eq!(verdict(&world).findings, Vec::<String>::new());

    let file = listed.segments[0].path(&world.dir()).join("vectors.bin");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let found = verdict(&world).findings;
    assert!(found.len() == 1 && found[0].contains("vectors.bin does not match its digest"), "{found:?}");
    world.sync(Extent::Rebuild);
    world.verify();
}
