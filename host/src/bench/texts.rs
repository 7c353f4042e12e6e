//! Texts to measure speed on.
use super::{
    BenchError, DataSets, Limit,
    data::{Document, read, read_pairs, read_retrieval},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
};

/// One text, and the kind of text that it is, as a line of JSON: what every worker reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShapedText {
    pub(super) shape: String,
    pub(super) text: String,
}

/// A line of JSONL.
#[derive(Deserialize)]
struct TextLine {
    text: String,
}

/// Texts by their kind.
#[derive(Clone, Debug, Default)]
pub struct BenchTexts(pub(super) Vec<ShapedText>);

/// Sentences; documents; and a mix of both, as real stores hold it.
const SHAPES: [(&str, usize); 3] = [("short", 512), ("mixed", 256), ("long", 128)];

impl BenchTexts {
    /// Real texts from a folder of data sets: `short` are the sentences of its first file of scored pairs, `long`
    /// the documents, with their titles, of that retrieval set whose documents are the longest, and `mixed` two of
    /// these to one sentence and one document of another set. `count` of each, evenly drawn; 512, 256 and 128
    /// where there is none.
    ///
    /// # Errors
    /// [`BenchError::Data`] where the folder lacks one of these.
    pub fn from_data(dir: &Path, count: Option<usize>) -> Result<Self, BenchError> {
        let sets = DataSets::find(dir)?;
        let lacks =
            |what: &str| BenchError::Data { path: dir.to_owned(), fault: format!("there is no {what}") };
        let pairs =
            read_pairs(sets.pairs.first().ok_or_else(|| lacks("file of scored pairs"))?, Limit(None))?;
        let short: Vec<String> = pairs.into_iter().flat_map(|pair| [pair.first, pair.second]).collect();
        let documents = sets.retrieval.iter().map(|set| {
            let documents = read_retrieval(set, Limit(None))?.documents;
            Ok(documents.iter().map(Document::whole).collect())
        });
        let mut documents: Vec<Vec<String>> = documents.collect::<Result<_, BenchError>>()?;
        let mean = |texts: &Vec<String>| texts.iter().map(String::len).sum::<usize>() / texts.len().max(1);
        documents.sort_by_key(|texts| std::cmp::Reverse(mean(texts)));
        let mut documents = documents.into_iter();
        let long = documents.next().ok_or_else(|| lacks("retrieval set"))?;
        let others = documents.flatten().collect::<Vec<_>>();
        let others = if others.is_empty() { &short } else { &others };

        let mut texts = Self::default();
        for (shape, usual) in SHAPES {
            let count = count.unwrap_or(usual);
            let drawn = match shape {
                "short" => drawn(&short, count),
                "long" => drawn(&long, count),
                _ => mixed(&drawn(&long, count / 2), &drawn(&short, count / 4), &drawn(others, count / 4)),
            };
            texts.0.extend(
                drawn.into_iter().map(|text| ShapedText { shape: shape.to_owned(), text: text.to_owned() }),
            );
        }
        Ok(texts)
    }

    /// The lines of a file, as the one kind `own`; where a line is a JSON object, its `text`.
    ///
    /// # Errors
    /// [`BenchError::Data`].
    pub fn from_lines(path: &Path, count: Option<usize>) -> Result<Self, BenchError> {
        let text = read(path)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let of = |line: &str| match serde_json::from_str(line) {
            Ok(TextLine { text }) => text,
            Err(_) => line.to_owned(),
        };
        let lines: Vec<String> = lines.map(of).collect();
        if lines.is_empty() {
            return Err(BenchError::Data { path: path.to_owned(), fault: "there is no text in it".into() });
        }
        let lines = drawn(&lines, count.unwrap_or(lines.len()));
        let shaped = |text: &str| ShapedText { shape: "own".to_owned(), text: text.to_owned() };
        Ok(Self(lines.into_iter().map(shaped).collect()))
    }

    /// The texts, of all kinds.
    pub fn into_texts(self) -> Vec<String> {
        self.0.into_iter().map(|text| text.text).collect()
    }

    /// The kinds that there are, in order.
    pub fn shapes(&self) -> Vec<String> {
        let mut shapes: Vec<String> = self.0.iter().map(|text| text.shape.clone()).collect();
        shapes.dedup();
        shapes
    }

    /// Keeps the texts of these kinds.
    pub fn retain(&mut self, shapes: &[String]) {
        self.0.retain(|text| shapes.contains(&text.shape));
    }

    pub(super) fn of(&self, shape: &str) -> Vec<&str> {
        self.0.iter().filter(|text| text.shape == shape).map(|text| text.text.as_str()).collect()
    }

    /// Writes them for the workers.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for text in &self.0 {
            serde_json::to_writer(&mut file, text)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}

/// `count` texts, evenly drawn; all where there are no more.
fn drawn(texts: &[String], count: usize) -> Vec<&str> {
    let count = count.min(texts.len());
    (0..count).map(|at| texts[at * texts.len() / count].as_str()).collect()
}

/// Two of the first to one of each of the others, in turn, as far as each reaches.
fn mixed<'a>(two: &[&'a str], one: &[&'a str], other: &[&'a str]) -> Vec<&'a str> {
    let (mut two, mut one, mut other) = (two.iter(), one.iter(), other.iter());
    let mut texts = Vec::new();
    loop {
        let round = [two.next(), one.next(), two.next(), other.next()];
        let before = texts.len();
        texts.extend(round.into_iter().flatten());
        if texts.len() == before {
            return texts;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_drawn_evenly_and_mixed_in_turn() {
        let texts: Vec<String> = (0..10).map(|i| i.to_string()).collect();
        assert_eq!(drawn(&texts, 3), ["0", "3", "6"]);
        assert_eq!(drawn(&texts, 99).len(), 10);
        assert_eq!(mixed(&["a", "b", "c"], &["x"], &["y"]), ["a", "x", "b", "y", "c"]);
    }

    #[test]
    fn documents_come_with_their_titles() {
        let data = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| {
            let path = data.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("its folder");
            std::fs::write(path, text).expect("the file");
        };
        put("sts/en.tsv", "1.0\ta girl\ta boy\n2.0\ta cat\ta dog\n");
        for (set, title, text) in [("tides", "Tides", "The moon draws the sea."), ("fish", "", "Cod.")] {
            put(
                &format!("{set}/corpus.jsonl"),
                &format!(r#"{{"_id":"d","title":"{title}","text":"{text}"}}"#),
            );
            put(&format!("{set}/queries.jsonl"), r#"{"_id":"q","text":"why"}"#);
            put(&format!("{set}/qrels/test.tsv"), "query-id\tcorpus-id\tscore\nq\td\t1\n");
        }
        let texts = BenchTexts::from_data(data.path(), None).expect("all kinds");
        assert_eq!(texts.of("long"), ["Tides The moon draws the sea."]);
        assert_eq!(texts.of("short"), ["a girl", "a boy", "a cat", "a dog"]);
        assert!(texts.of("mixed").contains(&"Tides The moon draws the sea."), "{:?}", texts.of("mixed"));
        assert!(texts.of("mixed").contains(&"Cod."), "{:?}", texts.of("mixed"));
    }

    #[test]
    fn lines_of_a_file_survive_the_way_to_a_worker() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("own.txt");
        std::fs::write(&path, "one \"quoted\"\n\n zwei\\ \n").expect("a file");
        let texts = BenchTexts::from_lines(&path, None).expect("two texts");
        assert_eq!(
            (texts.shapes(), texts.of("own")),
            (vec!["own".to_owned()], vec!["one \"quoted\"", " zwei\\ "])
        );
        let sent = dir.path().join("sent.jsonl");
        texts.write(&sent).expect("it is written");
        let read: Vec<ShapedText> = super::super::data::read_lines(&sent).expect("it is read");
        assert_eq!(read, texts.0);
        std::fs::write(&path, "\n").expect("a file");
        assert!(BenchTexts::from_lines(&path, None).is_err());
    }
}
