//! kill -9 at random points of every command that writes. After each kill every record that was
//! acknowledged must be there, none that was forgotten, and a search must find them.
use crate::{
    home::{Found, Home, describe, field},
    random::Random,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Kills between two complete checks of the index files.
const VERIFY_EVERY: u32 = 10;
/// Files that `index` reads, and their paragraphs: each long enough to be a passage of its own.
const FILES: usize = 12;
const PARAGRAPHS: usize = 6;
/// Records beyond which the oldest are forgotten, so that a long campaign stays quick.
const MAX_RECORDS: usize = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Add,
    Forget,
    Files,
    Sync,
    Compact,
    Rebuild,
    Backup,
}

const OPERATIONS: [Operation; 9] = [
    Operation::Add,
    Operation::Add,
    Operation::Forget,
    Operation::Files,
    Operation::Sync,
    Operation::Sync,
    Operation::Compact,
    Operation::Rebuild,
    Operation::Backup,
];

#[derive(Default)]
struct Tally {
    kills: u32,
    /// The program was done before the kill.
    missed: u32,
    /// Until it ends by itself, smoothed: kills are spread over this.
    usual: Duration,
}

struct Campaign {
    home: Home,
    random: Random,
    /// Acknowledged and not forgotten: id to text.
    live: BTreeMap<String, String>,
    gone: BTreeSet<String>,
    version: usize,
    texts: usize,
    /// Backups made so far.
    backups: usize,
    tally: BTreeMap<Operation, Tally>,
}

pub(crate) fn run(program: &Path, indexes: &[String], seed: u64, kills: u32) -> Found<()> {
    let started = Instant::now();
    for (turn, index) in indexes.iter().enumerate() {
        let share = kills / indexes.len() as u32 + u32::from((kills % indexes.len() as u32) > turn as u32);
        let mut campaign = Campaign {
            home: Home::new(program, index)?,
            random: Random::new(seed.wrapping_add(turn as u64)),
            live: BTreeMap::new(),
            gone: BTreeSet::new(),
            version: 0,
            texts: 0,
            backups: 0,
            tally: BTreeMap::new(),
        };
        let result = campaign.run(share);
        for (operation, Tally { kills, missed, usual }) in &campaign.tally {
            println!(
                "{index:8} {:8} {kills:4} kills, {missed:3} too late, takes {} ms",
                format!("{operation:?}").to_lowercase(),
                usual.as_millis()
            );
        }
        result.map_err(|found| format!("index {index}, seed {seed}: {found}"))?;
        println!(
            "{index:8} {share} kills survived: {} records acknowledged and there, {} forgotten and gone",
            campaign.live.len(),
            campaign.gone.len()
        );
    }
    println!("{kills} kills in {} s", started.elapsed().as_secs());
    Ok(())
}

impl Campaign {
    fn run(&mut self, kills: u32) -> Found<()> {
        let mut hit = 0;
        let mut each = 0;
        while hit < kills {
            // Each operation runs undisturbed first, so that it is known how long it takes.
            let operation = match OPERATIONS.get(each) {
                Some(&operation) => operation,
                None => *self.random.pick(&OPERATIONS),
            };
            let undisturbed = each < OPERATIONS.len();
            each += 1;
            let killed =
                self.one(operation, undisturbed).map_err(|found| format!("{operation:?}: {found}"))?;
            let tally = self.tally.entry(operation).or_default();
            if killed {
                tally.kills += 1;
                hit += 1;
            } else if !undisturbed {
                tally.missed += 1;
            }
            self.check().map_err(|found| format!("after {operation:?} (kill {hit}): {found}"))?;
            if killed && hit % VERIFY_EVERY == 0 {
                self.home.expect(&["index", "verify"])?;
            }
            if self.live.len() > MAX_RECORDS {
                self.forget_most()?;
            }
        }
        self.home.expect(&["index", "verify"]).map(drop)
    }

    /// Runs an operation and kills it at a random point. Whether the kill hit it.
    fn one(&mut self, operation: Operation, undisturbed: bool) -> Found<bool> {
        match operation {
            Operation::Add => self.add(undisturbed),
            Operation::Forget => self.forget(undisturbed),
            Operation::Files => self.files(undisturbed),
            Operation::Sync => {
                self.plain(operation, &["sync", "--all"], undisturbed).map(|(killed, _)| killed)
            }
            Operation::Compact => {
                self.plain(operation, &["index", "compact"], undisturbed).map(|(killed, _)| killed)
            }
            Operation::Rebuild => {
                self.plain(operation, &["index", "rebuild"], undisturbed).map(|(killed, _)| killed)
            }
            Operation::Backup => self.backup(undisturbed),
        }
    }

    fn add(&mut self, undisturbed: bool) -> Found<bool> {
        let count = 20 + self.random.below(300);
        let lines: Vec<String> = (0..count)
            .map(|_| {
                self.texts += 1;
                format!("note {} about {} and what became of it", self.texts, self.texts * 7919 % 10007)
            })
            .collect();
        let mut command = self.home.command(&["add", "--lines", "-", "--json"]);
        command.stdin(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let input = lines.join("\n");
        let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let reader = thread::spawn(move || {
            // A line that the kill cut short acknowledges nothing.
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
                .collect::<Vec<_>>()
        });
        let killed = self.kill(Operation::Add, &mut child, undisturbed)?;
        drop(writer.join());
        let answers = reader.join().map_err(|_| "the reader failed")?;
        if !killed && answers.len() != lines.len() {
            return Err(format!("{} answers to {} lines", answers.len(), lines.len()));
        }
        // Answers come in the order of the lines.
        for (answer, line) in answers.iter().zip(lines) {
            self.live.insert(field(answer, "id")?, line);
        }
        Ok(killed)
    }

    fn forget(&mut self, undisturbed: bool) -> Found<bool> {
        let ids: Vec<String> = self.live.keys().cloned().collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let chosen: BTreeSet<String> =
            (0..1 + self.random.below(60)).map(|_| self.random.pick(&ids).clone()).collect();
        let args: Vec<&str> = ["forget"].into_iter().chain(chosen.iter().map(String::as_str)).collect();
        let (killed, succeeded) = self.plain(Operation::Forget, &args, undisturbed)?;
        let there = if killed { self.home.records_in("data")? } else { BTreeMap::new() };
        if !killed && !succeeded {
            return Err("it failed".into());
        }
        // One that was killed has forgotten all of them or none.
        let left = chosen.iter().filter(|id| there.contains_key(*id)).count();
        if killed && left != 0 && left != chosen.len() {
            return Err(format!("{left} of {} are left", chosen.len()));
        }
        if left == 0 {
            for id in chosen {
                self.live.remove(&id);
                self.gone.insert(id);
            }
        }
        Ok(killed)
    }

    fn forget_most(&mut self) -> Found<()> {
        let ids: Vec<String> = self.live.keys().take(self.live.len() * 3 / 4).cloned().collect();
        for some in ids.chunks(500) {
            let args: Vec<&str> = ["forget"].into_iter().chain(some.iter().map(String::as_str)).collect();
            self.home.expect(&args)?;
            for id in some {
                self.live.remove(id);
                self.gone.insert(id.clone());
            }
        }
        Ok(())
    }

    /// Changes some files and indexes all: each file is there in one version, whole.
    fn files(&mut self, undisturbed: bool) -> Found<bool> {
        self.version += 1;
        let folder = self.home.path("files");
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        for file in 0..FILES {
            if !undisturbed && self.random.below(3) == 0 {
                continue;
            }
            let text: Vec<String> = (0..PARAGRAPHS)
                .map(|part| {
                    let filler =
                        format!("It goes on about {} for a while. ", file * PARAGRAPHS + part).repeat(30);
                    format!("File {file} version {} part {part}. {filler}", self.version)
                })
                .collect();
            fs::write(folder.join(format!("{file}.txt")), text.join("\n\n"))
                .map_err(|error| error.to_string())?;
        }
        let (killed, succeeded) = self.plain(Operation::Files, &["index", "files"], undisturbed)?;
        if !killed && !succeeded {
            return Err("it failed".into());
        }
        let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for text in self.home.records_in("data")?.into_values() {
            if let Some((file, rest)) = text.split_once(" version ") {
                let version = rest.split_whitespace().next().unwrap_or_default();
                versions.entry(file.to_owned()).or_default().insert(version.to_owned());
            }
        }
        match versions.iter().find(|(_, versions)| versions.len() > 1) {
            Some((file, versions)) => Err(format!("{file} is there in versions {versions:?}")),
            None => Ok(killed),
        }
    }

    fn backup(&mut self, undisturbed: bool) -> Found<bool> {
        self.backups += 1;
        let name = format!("backup-{}.magray", self.backups);
        let (killed, succeeded) = self.plain(Operation::Backup, &["backup", &name], undisturbed)?;
        if !killed && !succeeded {
            return Err("it failed".into());
        }
        let file = self.home.path(&name);
        if file.exists() {
            let data = format!("restored-{}", self.backups);
            let output = self
                .home
                .command_in(&data, &["restore", &name])
                .output()
                .map_err(|error| format!("cannot start it: {error}"))?;
            // What a kill left may be refused, but what is restored is whole.
            if output.status.success() {
                if self.home.records_in(&data)? != self.home.records_in("data")? {
                    return Err("the backup holds other records than the store".into());
                }
            } else if !killed || output.status.code().is_none() {
                return Err(format!("cannot restore: {}", describe(&output)));
            }
            let _ = fs::remove_dir_all(self.home.path(&data));
        }
        let _ = fs::remove_file(file);
        Ok(killed)
    }

    /// Whether it was killed, and else whether it succeeded.
    fn plain(&mut self, operation: Operation, args: &[&str], undisturbed: bool) -> Found<(bool, bool)> {
        let mut child = spawn(&mut self.home.command(args))?;
        let killed = self.kill(operation, &mut child, undisturbed)?;
        let status = child.wait().map_err(|error| error.to_string())?;
        let succeeded = status.success();
        if !killed && !succeeded {
            let mut stderr = String::new();
            if let Some(mut pipe) = child.stderr.take() {
                let _ = pipe.read_to_string(&mut stderr);
            }
            return Err(format!("{args:?} failed: {status} {stderr}"));
        }
        Ok((killed, succeeded))
    }

    /// Waits a random part of what the operation usually takes, then kills it. Whether it still ran.
    fn kill(&mut self, operation: Operation, child: &mut Child, undisturbed: bool) -> Found<bool> {
        let started = Instant::now();
        let usual = self.tally.entry(operation).or_default().usual;
        let after = usual.mul_f64(self.random.share());
        if !undisturbed {
            thread::sleep(after);
            if child.try_wait().map_err(|error| error.to_string())?.is_none() {
                child.kill().map_err(|error| error.to_string())?;
                child.wait().map_err(|error| error.to_string())?;
                return Ok(true);
            }
        }
        child.wait().map_err(|error| error.to_string())?;
        let took = started.elapsed();
        let tally = self.tally.entry(operation).or_default();
        tally.usual = if undisturbed { usual.max(took) } else { (usual * 3 + took.min(usual)) / 4 };
        Ok(false)
    }

    fn check(&mut self) -> Found<()> {
        let there = self.home.records_in("data")?;
        for (id, text) in &self.live {
            match there.get(id) {
                Some(found) if found == text => {}
                Some(found) => return Err(format!("{id} says {found:?}, not {text:?}")),
                None => return Err(format!("{id} is lost: {text:?}")),
            }
        }
        if let Some(id) = self.gone.iter().find(|id| there.contains_key(*id)) {
            return Err(format!("{id} was forgotten and is there"));
        }
        let ids: Vec<&String> = self.live.keys().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let id = (*self.random.pick(&ids)).clone();
        let output = self.home.expect(&["search", &self.live[&id], "-k", "3", "--json"])?;
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let hits = answer["hits"].as_array().ok_or("no hits")?;
        match hits.iter().any(|hit| hit["id"] == *id) {
            true => Ok(()),
            false => Err(format!("a search for {:?} finds {hits:?}", self.live[&id])),
        }
    }
}

fn spawn(command: &mut Command) -> Found<Child> {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start it: {error}"))
}
