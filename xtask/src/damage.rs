//! Index files flipped and cut at random. Whatever is hit, the answers stay those of before, nothing
//! crashes, and what was rebuilt is said.
use crate::{
    home::{Found, Home, describe, field, files_below},
    random::Random,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

const RECORDS: usize = 400;
const QUERIES: usize = 3;
const HITS: &str = "5";

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Cut,
    Zero,
    Append,
    Remove,
}

const DAMAGES: [Damage; 6] =
    [Damage::Flip, Damage::Flip, Damage::Cut, Damage::Zero, Damage::Append, Damage::Remove];

pub(crate) fn run(program: &Path, indexes: &[String], seed: u64, rounds: u32) -> Found<()> {
    let started = Instant::now();
    for (turn, index) in indexes.iter().enumerate() {
        let share = rounds / indexes.len() as u32 + u32::from((rounds % indexes.len() as u32) > turn as u32);
        let mut random = Random::new(seed.wrapping_add(turn as u64));
        let (warned, quiet) = campaign(program, index, &mut random, share)
            .map_err(|found| format!("index {index}, seed {seed}: {found}"))?;
        println!(
            "{index:8} {share} damaged files, {warned} rebuilt with a warning, no answer changed; in silence: {quiet:?}"
        );
    }
    println!("{rounds} damaged files in {} s", started.elapsed().as_secs());
    Ok(())
}

fn campaign(
    program: &Path,
    index: &str,
    random: &mut Random,
    rounds: u32,
) -> Found<(u32, BTreeMap<String, u32>)> {
    let home = Home::new(program, index)?;
    let lines: Vec<String> = (0..RECORDS)
        .map(|n| format!("record {n} tells of {} and of {}", n * 7919 % 10007, n * 31 % 97))
        .collect();
    // In two calls, and a few forgotten: several segments, some of them with dead rows.
    let (first, second) = lines.split_at(RECORDS * 3 / 4);
    let mut ids = Vec::new();
    for part in [first, second] {
        let output = home.feed(&["add", "--lines", "-", "--json"], &part.join("\n"))?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let answer: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
            ids.push(field(&answer, "id")?);
        }
        home.expect(&["sync", "--all"])?;
    }
    let forgotten: Vec<&str> = ids.iter().step_by(40).map(String::as_str).collect();
    home.expect(&[&["forget"], &forgotten[..]].concat())?;
    home.expect(&["sync", "--all"])?;
    let queries: Vec<&String> = (0..QUERIES).map(|at| &lines[1 + at * 131]).collect();
    let expected: Vec<Hits> =
        queries.iter().map(|query| hits(&home, query).map(|(hits, _)| hits)).collect::<Found<_>>()?;

    let folder = home.index_folder();
    let sound: Vec<(PathBuf, Vec<u8>)> = files_below(&folder)
        .into_iter()
        .filter(|file| file.file_name().is_some_and(|name| name != "lock"))
        .map(|file| fs::read(&file).map(|bytes| (file, bytes)))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if sound.is_empty() {
        return Err("there are no index files".into());
    }
    let (mut warned, mut quiet) = (0, BTreeMap::new());
    for _ in 0..rounds {
        let (file, bytes) = random.pick(&sound);
        let damage = *random.pick(&DAMAGES);
        let said = apply(file, bytes, damage, random)?;
        let name = file.strip_prefix(&folder).unwrap_or(file).display();
        let at = random.below(queries.len());
        let (found, stderr) = hits(&home, queries[at]).map_err(|found| format!("{name}, {said}: {found}"))?;
        if !agree(&found, &expected[at]) {
            return Err(format!("{name}, {said}: {found:?} instead of {:?}", expected[at]));
        }
        if stderr.contains("rebuilt") {
            warned += 1;
        } else {
            *quiet.entry(file_name(file)).or_default() += 1;
        }
        restore(&folder, &sound)?;
    }
    Ok((warned, quiet))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Hurts a file, and says how.
fn apply(file: &Path, sound: &[u8], damage: Damage, random: &mut Random) -> Found<String> {
    let mut bytes = sound.to_vec();
    let at = random.below(bytes.len().max(1));
    let said = match damage {
        Damage::Flip if !bytes.is_empty() => {
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
        Damage::Cut => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        Damage::Zero => {
            let end = bytes.len().min(at + 512);
            bytes[at..end].fill(0);
            format!("bytes {at} to {end} zeroed")
        }
        Damage::Flip | Damage::Append => {
            bytes.extend(b"more than there was");
            "more bytes appended".into()
        }
        Damage::Remove => {
            fs::remove_file(file).map_err(|error| error.to_string())?;
            return Ok("removed".into());
        }
    };
    fs::write(file, bytes).map_err(|error| error.to_string())?;
    Ok(said)
}

/// Puts all files back as they were, and nothing else. Files that are sound stay untouched, so that
/// what the program remembers of them holds.
fn restore(folder: &Path, sound: &[(PathBuf, Vec<u8>)]) -> Found<()> {
    let failed = |error: io::Error| error.to_string();
    for file in files_below(folder) {
        if file.file_name().is_some_and(|name| name != "lock") && !sound.iter().any(|(kept, _)| *kept == file)
        {
            fs::remove_file(file).map_err(failed)?;
        }
    }
    for (file, bytes) in sound {
        if fs::read(file).is_ok_and(|now| now == *bytes) {
            continue;
        }
        fs::create_dir_all(file.parent().ok_or("no folder")?).map_err(failed)?;
        fs::write(file, bytes).map_err(failed)?;
    }
    Ok(())
}

/// Ids and scores, best first.
type Hits = Vec<(String, f64)>;

/// The same scores, but for their last digits: what is searched exactly instead of by an index is added
/// up in another order. Only the last hit may be another one that is as near.
fn agree(found: &Hits, expected: &Hits) -> bool {
    let is_near = |a: f64, b: f64| (a - b).abs() < 1e-4;
    let last = expected.last().map_or(0.0, |(_, score)| *score);
    found.len() == expected.len()
        && found.iter().zip(expected).all(|((_, a), (_, b))| is_near(*a, *b))
        && found
            .iter()
            .all(|(id, score)| is_near(*score, last) || expected.iter().any(|(known, _)| known == id))
}

/// What a search of the index finds, and what it said besides.
fn hits(home: &Home, query: &str) -> Found<(Hits, String)> {
    let output = home.run(&["search", query, "-k", HITS, "--mode", "vector", "--json"])?;
    if !output.status.success() {
        return Err(describe(&output));
    }
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let hits = answer["hits"].as_array().ok_or("no hits")?;
    let found = hits
        .iter()
        .map(|hit| Ok((field(hit, "id")?, hit["score"].as_f64().ok_or("no score")?)))
        .collect::<Found<_>>()?;
    Ok((found, String::from_utf8_lossy(&output.stderr).into_owned()))
}
