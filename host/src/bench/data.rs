//! Reads evaluation data: scored pairs, retrieval sets in BEIR's layout, reference vectors.
use super::{BenchError, metrics::Ranking};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

/// The data sets to measure on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSets {
    /// Files of scored pairs: score, sentence, sentence, separated by tabs.
    pub pairs: Vec<PathBuf>,
    /// Folders in BEIR's layout.
    pub retrieval: Vec<PathBuf>,
    /// Files of reference vectors.
    pub references: Vec<PathBuf>,
}

/// How much of each set is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit(pub Option<usize>);

impl Limit {
    fn cut<T>(self, items: &mut Vec<T>) {
        items.truncate(self.0.unwrap_or(usize::MAX));
    }
}

impl DataSets {
    /// What a folder holds: it is a retrieval set itself, or has folders that are, and a folder `sts` of scored
    /// pairs and a folder `ref` of reference vectors.
    ///
    /// # Errors
    /// Where the folder cannot be read or holds none of these.
    pub fn find(dir: &Path) -> Result<Self, BenchError> {
        let mut found = Self::default();
        if find_file(dir, CORPUS).is_some() {
            found.retrieval.push(dir.to_owned());
            return Ok(found);
        }
        for path in entries(dir)? {
            match path.file_name().and_then(|name| name.to_str()) {
                Some("sts") => {
                    found.pairs.extend(entries(&path)?.into_iter().filter(|path| has_stem(path, ".tsv")))
                }
                Some("ref") => {
                    found
                        .references
                        .extend(entries(&path)?.into_iter().filter(|path| has_stem(path, ".json")));
                }
                _ if find_file(&path, CORPUS).is_some() => found.retrieval.push(path),
                _ => {}
            }
        }
        if found == Self::default() {
            let fault =
                "no evaluation data here: it has no corpus.jsonl, and no folder with one, nor `sts` or `ref`";
            return Err(fault_of(dir, fault));
        }
        Ok(found)
    }
}

/// Two sentences and how alike people find them.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) score: f64,
    pub(super) first: String,
    pub(super) second: String,
}

pub(super) fn read_pairs(path: &Path, limit: Limit) -> Result<Vec<Pair>, BenchError> {
    let text = read(path)?;
    let pairs = text.lines().enumerate().filter(|(_, line)| !line.is_empty()).map(|(at, line)| {
        let mut fields = line.split('\t');
        match (fields.next().and_then(|score| score.parse().ok()), fields.next(), fields.next()) {
            (Some(score), Some(first), Some(second)) => {
                Ok(Pair { score, first: first.to_owned(), second: second.to_owned() })
            }
            _ => Err(fault_of(path, format!("line {}: not a score and two sentences, by tabs", at + 1))),
        }
    });
    let mut pairs: Vec<Pair> = pairs.collect::<Result<_, _>>()?;
    limit.cut(&mut pairs);
    if pairs.len() < 2 {
        return Err(fault_of(path, "fewer than two pairs"));
    }
    Ok(pairs)
}

/// Documents, and questions with what answers them.
#[derive(Clone, Debug)]
pub(super) struct Retrieval {
    pub(super) name: String,
    pub(super) documents: Vec<Document>,
    /// By name of the split.
    pub(super) splits: Vec<(String, Vec<Question>)>,
}

#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) text: String,
}

impl Document {
    /// Title and text as one.
    pub(super) fn whole(&self) -> String {
        format!("{} {}", self.title, self.text).trim().to_owned()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) id: String,
    pub(super) text: String,
    /// Relevance by id of the document; those above 0.
    pub(super) judged: HashMap<String, u32>,
}

impl Question {
    /// How good a ranking of documents is that answers it.
    pub(super) fn rank<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Ranking {
        // A question that is a document itself does not answer itself.
        let ids = ids.into_iter().filter(|&id| id != self.id);
        let found: Vec<u32> = ids.map(|id| self.judged.get(id).copied().unwrap_or(0)).collect();
        Ranking::of(&found, &self.judged.values().copied().collect::<Vec<_>>())
    }
}

const CORPUS: &str = "corpus.jsonl";

#[derive(Deserialize)]
struct Line {
    _id: String,
    #[serde(default)]
    title: String,
    text: String,
}

/// Reads a set in BEIR's layout. A limit keeps the first questions of each split, the documents judged for them,
/// and as many other documents, evenly drawn.
pub(super) fn read_retrieval(dir: &Path, limit: Limit) -> Result<Retrieval, BenchError> {
    let file = |name: &str| find_file(dir, name).ok_or_else(|| fault_of(dir, format!("there is no {name}")));
    let corpus: Vec<Line> = read_lines(&file(CORPUS)?)?;
    let mut documents: Vec<Document> = corpus
        .into_iter()
        .map(|line| Document { id: line._id, title: line.title, text: line.text })
        .collect();
    let queries: Vec<Line> = read_lines(&file("queries.jsonl")?)?;

    let mut splits = Vec::new();
    for path in entries(&dir.join("qrels"))?.into_iter().filter(|path| has_stem(path, ".tsv")) {
        let mut judged = read_judgements(&path)?;
        let questions = queries.iter().filter_map(|line| {
            let judged = judged.remove(&line._id)?;
            Some(Question { id: line._id.clone(), text: line.text.clone(), judged })
        });
        let mut questions: Vec<Question> = questions.collect();
        limit.cut(&mut questions);
        if questions.is_empty() {
            return Err(fault_of(&path, "it judges none of the queries"));
        }
        splits.push((stem(&path), questions));
    }
    if splits.is_empty() {
        return Err(fault_of(&dir.join("qrels"), "there is no TSV file of judgements"));
    }
    if let Limit(Some(others)) = limit {
        let questions = splits.iter().flat_map(|(_, questions)| questions);
        let kept: HashSet<&String> = questions.flat_map(|question| question.judged.keys()).collect();
        let every = documents.len().div_ceil(others.max(1)).max(1);
        let mut at = 0;
        documents.retain(|document| {
            at += 1;
            kept.contains(&document.id) || at % every == 0
        });
    }
    Ok(Retrieval { name: stem(dir), documents, splits })
}

/// Relevance above 0 by query and document.
fn read_judgements(path: &Path) -> Result<BTreeMap<String, HashMap<String, u32>>, BenchError> {
    let mut judged: BTreeMap<String, HashMap<String, u32>> = BTreeMap::new();
    // The first line is a header.
    for (at, line) in read(path)?.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty()) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [query, document, score] = fields[..] else {
            return Err(fault_of(
                path,
                format!("line {}: not a query, a document and a score, by tabs", at + 1),
            ));
        };
        let score: i64 = score
            .trim()
            .parse()
            .map_err(|_| fault_of(path, format!("line {}: the score is no whole number", at + 1)))?;
        let judged = judged.entry(query.to_owned()).or_default();
        if let Ok(score @ 1..) = u32::try_from(score) {
            judged.insert(document.to_owned(), score);
        }
    }
    judged.retain(|_, documents| !documents.is_empty());
    Ok(judged)
}

/// Vectors of one model that were computed elsewhere.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct References {
    /// Name of the model.
    pub(super) model: String,
    pub(super) items: Vec<Reference>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Reference {
    pub(super) text: String,
    pub(super) n_tokens: u32,
    pub(super) embedding: Vec<f32>,
}

pub(super) fn read_references(path: &Path, limit: Limit) -> Result<References, BenchError> {
    let mut references: References =
        serde_json::from_str(&read(path)?).map_err(|error| fault_of(path, error.to_string()))?;
    limit.cut(&mut references.items);
    Ok(references)
}

/// The lines of a JSONL file.
pub(super) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, BenchError> {
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| fault_of(path, format!("line {}: {error}", at + 1)))
    };
    read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// The text of a file, decompressed by its ending.
pub(super) fn read(path: &Path) -> Result<String, BenchError> {
    String::from_utf8(read_bytes(path)?).map_err(|_| fault_of(path, "it is no text in UTF-8"))
}

/// The bytes of a file, decompressed by its ending.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, BenchError> {
    let failed = |fault: &dyn std::fmt::Display| fault_of(path, fault.to_string());
    let mut file = BufReader::new(File::open(path).map_err(|error| failed(&error))?);
    let mut bytes = Vec::new();
    match path.extension().and_then(|ending| ending.to_str()) {
        // It may be of several frames, one after the other.
        Some("zst") => {
            while !file.fill_buf().map_err(|error| failed(&error))?.is_empty() {
                let frame = ruzstd::decoding::StreamingDecoder::new(&mut file);
                let mut frame = frame.map_err(|error| failed(&error))?;
                frame.read_to_end(&mut bytes).map_err(|error| failed(&error))?;
            }
            Ok(0)
        }
        Some("gz") => flate2::bufread::MultiGzDecoder::new(file).read_to_end(&mut bytes),
        _ => file.read_to_end(&mut bytes),
    }
    .map_err(|error| failed(&error))?;
    Ok(bytes)
}

const PACKED: [&str; 3] = ["", ".zst", ".gz"];

fn find_file(dir: &Path, name: &str) -> Option<PathBuf> {
    PACKED.iter().map(|ending| dir.join(format!("{name}{ending}"))).find(|path| path.is_file())
}

/// Whether a file has this ending, packed or not.
fn has_stem(path: &Path, ending: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    PACKED.iter().any(|packed| name.ends_with(&format!("{ending}{packed}")))
}

/// The name of a file or folder up to its first dot.
pub(super) fn stem(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// What lies in a folder, sorted by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let paths = fs::read_dir(dir).and_then(|files| files.map(|file| Ok(file?.path())).collect());
    let mut paths: Vec<PathBuf> = paths.map_err(|error| fault_of(dir, error.to_string()))?;
    paths.sort();
    Ok(paths)
}

pub(super) fn fault_of(path: &Path, fault: impl Into<String>) -> BenchError {
    BenchError::Data { path: path.to_owned(), fault: fault.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("its folder");
        fs::write(&path, text).expect("the file");
        path
    }

    fn beir(dir: &Path) {
        let corpus: Vec<String> =
            (0..10).map(|i| format!(r#"{{"_id":"d{i}","title":"T","text":"text {i} "}}"#)).collect();
        write(dir, "corpus.jsonl", &corpus.join("\n"));
        write(dir, "queries.jsonl", "{\"_id\":\"q1\",\"text\":\"one\"}\n{\"_id\":\"q2\",\"text\":\"two\"}\n");
        write(
            dir,
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td3\t2\nq1\td4\t0\nq2\td7\t1\nq9\td7\t1\n",
        );
    }

    #[test]
    fn a_retrieval_set_is_read_with_what_is_judged_relevant() {
        let dir = tempfile::tempdir().expect("a folder");
        beir(dir.path());
        let set = read_retrieval(dir.path(), Limit(None)).expect("it is whole");
        assert_eq!(set.documents.len(), 10);
        assert_eq!(set.documents[3].whole(), "T text 3");
        let [(split, questions)] = &set.splits[..] else { panic!("{:?}", set.splits) };
        assert_eq!((split.as_str(), questions.len()), ("test", 2));
        assert_eq!(questions[0].judged, HashMap::from([("d3".to_owned(), 2)]));
    }

    #[test]
    fn a_limit_keeps_the_judged_documents_and_draws_others() {
        let dir = tempfile::tempdir().expect("a folder");
        beir(dir.path());
        let set = read_retrieval(dir.path(), Limit(Some(1))).expect("it is whole");
        let ids: Vec<_> = set.documents.iter().map(|document| document.id.as_str()).collect();
        assert_eq!((ids.as_slice(), set.splits[0].1.len()), (["d3", "d9"].as_slice(), 1));
    }

    #[test]
    fn packed_files_are_read_by_their_ending() {
        let dir = tempfile::tempdir().expect("a folder");
        let line = "2.5\tA girl.\tA boy.\n";
        let gz = dir.path().join("a.tsv.gz");
        let mut packer = flate2::write::GzEncoder::new(
            fs::File::create(&gz).expect("a file"),
            flate2::Compression::fast(),
        );
        packer.write_all(line.repeat(2).as_bytes()).expect("it packs");
        packer.finish().expect("it packs");
        let zst = dir.path().join("a.tsv.zst");
        let packed = ruzstd::encoding::compress_to_vec(
            line.repeat(2).as_bytes(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        fs::write(&zst, packed).expect("a file");
        let frames = dir.path().join("b.tsv.zst");
        let frame =
            ruzstd::encoding::compress_to_vec(line.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        fs::write(&frames, frame.repeat(2)).expect("a file");
        for path in [gz, zst, frames] {
            let pairs = read_pairs(&path, Limit(None)).expect("it is whole");
            assert_eq!((pairs.len(), pairs[1].score, pairs[1].second.as_str()), (2, 2.5, "A boy."));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = write(dir.path(), "a.tsv", "1.0\ta\tb\nx\ta\tb\n");
        let error = read_pairs(&path, Limit(None)).expect_err("the score is no number").to_string();
        assert!(error.contains("a.tsv: line 2"), "{error}");
        let path = write(dir.path(), "a.jsonl", "{}\n{\n");
        let error = read_lines::<serde_json::Value>(&path).expect_err("no JSON").to_string();
        assert!(error.contains("a.jsonl: line 2"), "{error}");
        let path = write(dir.path(), "a.tsv.zst", "not packed");
        assert!(read_pairs(&path, Limit(None)).is_err());
        assert!(DataSets::find(dir.path()).is_err());
    }

    #[test]
    fn a_folder_of_sets_is_searched() {
        let dir = tempfile::tempdir().expect("a folder");
        beir(&dir.path().join("mine"));
        write(dir.path(), "sts/en.tsv.zst", "");
        write(dir.path(), "sts/README.md", "");
        write(dir.path(), "ref/vectors.json", "");
        let path = |name: &str| vec![dir.path().join(name)];
        let wanted = DataSets {
            pairs: path("sts/en.tsv.zst"),
            retrieval: path("mine"),
            references: path("ref/vectors.json"),
        };
        assert_eq!(DataSets::find(dir.path()).expect("there are sets"), wanted);
        let alone = DataSets::find(&dir.path().join("mine")).expect("it is one");
        assert_eq!(alone.retrieval, path("mine"));
    }
}
