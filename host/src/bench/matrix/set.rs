//! The texts and questions that a matrix is measured on.
use super::super::{
    BenchError, Limit,
    data::{Document, Question, fault_of, read_retrieval},
};
use std::{collections::HashMap, path::Path};

/// Documents, and questions with what answers them.
#[derive(Clone, Debug)]
pub struct MatrixSet {
    pub(super) name: String,
    /// Where the questions and their answers come from, for the report.
    pub(super) origin: String,
    pub(super) documents: Vec<Document>,
    pub(super) questions: Vec<Question>,
}

/// A record of the user's as a document.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct OwnRecord {
    pub id: String,
    pub title: Option<String>,
    pub text: String,
}

/// A sentence is a question where it has so many words.
const SENTENCE: std::ops::RangeInclusive<usize> = 5..=40;

impl MatrixSet {
    /// A retrieval set in BEIR's layout: the questions of its split `test`, else of its first one, at most `limit`
    /// of them, and with a limit, besides the documents judged for them, about as many others.
    ///
    /// # Errors
    /// [`BenchError::Data`].
    pub fn from_data(dir: &Path, limit: Option<usize>) -> Result<Self, BenchError> {
        let set = read_retrieval(dir, Limit(limit))?;
        let mut splits = set.splits;
        let place = splits.iter().position(|(split, _)| split == "test").unwrap_or(0);
        let (split, questions) = splits.swap_remove(place);
        let origin = format!("{} questions of the split {split}, judged by people", questions.len());
        Ok(Self { name: set.name, origin, documents: set.documents, questions })
    }

    /// The user's own records, with questions whose answer is known: a title that one record alone has asks for its
    /// text; else one sentence of a text, or half of a single one, asks for the rest of it (the inverse cloze task of
    /// Lee et al., ACL 2019).
    /// At most `limit` questions, evenly drawn.
    ///
    /// # Errors
    /// [`BenchError::Data`] where no record makes a question.
    pub fn from_records(
        folder: &Path,
        records: Vec<OwnRecord>,
        limit: Option<usize>,
    ) -> Result<Self, BenchError> {
        let mut titles: HashMap<String, u32> = HashMap::new();
        records.iter().filter_map(|record| record.title.clone()).for_each(|title| {
            *titles.entry(title).or_default() += 1;
        });
        let made: Vec<Option<(String, String)>> = records
            .iter()
            .map(|OwnRecord { title, text, .. }| match title {
                Some(title) if titles.get(title) == Some(&1) && title.split_whitespace().count() > 1 => {
                    Some((title.clone(), text.clone()))
                }
                _ => without_a_sentence(text),
            })
            .collect();
        let places: Vec<usize> = (0..made.len()).filter(|&at| made[at].is_some()).collect();
        let count = places.len().min(limit.unwrap_or(usize::MAX));
        if count == 0 {
            let fault = "no record is long enough to ask for it; give --data, a set in BEIR's layout";
            return Err(fault_of(folder, fault));
        }
        let chosen: std::collections::HashSet<usize> =
            (0..count).map(|at| places[at * places.len() / count]).collect();
        let (mut documents, mut questions) = (Vec::new(), Vec::new());
        for (at, (record, made)) in records.into_iter().zip(made).enumerate() {
            let text = match made.filter(|_| chosen.contains(&at)) {
                Some((question, rest)) => {
                    let titled = record.title.as_ref().filter(|title| **title != question);
                    let judged = HashMap::from([(record.id.clone(), 1)]);
                    // No document's id, since a question that is a document does not answer itself.
                    questions.push(Question { id: format!("q-{}", record.id), text: question, judged });
                    with_title(titled, rest)
                }
                None => with_title(record.title.as_ref(), record.text),
            };
            documents.push(Document { id: record.id, title: String::new(), text });
        }
        let origin =
            format!("{count} questions made of the records: a title, or a sentence, asks for its record");
        Ok(Self { name: "own records".into(), origin, documents, questions })
    }

    /// The texts that are searched.
    pub fn texts(self) -> Vec<String> {
        self.documents.into_iter().map(|document| document.whole()).collect()
    }

    /// The questions.
    pub fn questions(&self) -> impl Iterator<Item = &str> {
        self.questions.iter().map(|question| question.text.as_str())
    }

    /// Documents and questions.
    pub fn counts(&self) -> (usize, usize) {
        (self.documents.len(), self.questions.len())
    }

    /// What tells it from another set.
    pub(super) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        for document in &self.documents {
            add(&document.id);
            add(&document.whole());
        }
        for Question { id, text, judged } in &self.questions {
            add(id);
            add(text);
            let mut judged: Vec<_> = judged.iter().collect();
            judged.sort();
            judged.into_iter().for_each(|(id, grade)| add(&format!("{id} {grade}")));
        }
        hasher.finalize()
    }
}

/// As a record is embedded.
fn with_title(title: Option<&String>, text: String) -> String {
    title.map_or(text.clone(), |title| format!("{title}\n{text}"))
}

/// The longest sentence of a text that can ask, and the text without it; of a text of one sentence its first half, and
/// the other. None where either is too short.
fn without_a_sentence(text: &str) -> Option<(String, String)> {
    let sentences = text.split_inclusive(['.', '!', '?', '\n']);
    let words = |sentence: &str| sentence.split_whitespace().count();
    let fitting = sentences.filter(|sentence| SENTENCE.contains(&words(sentence)));
    if let Some(chosen) = fitting.max_by_key(|sentence| words(sentence)) {
        let rest = text.replacen(chosen, " ", 1);
        if words(&rest) >= *SENTENCE.start() {
            return Some((chosen.trim().to_owned(), rest.trim().to_owned()));
        }
    }
    let all: Vec<&str> = text.split_whitespace().collect();
    let (first, second) = all.split_at((all.len() / 2).min(*SENTENCE.end()));
    (first.len() >= *SENTENCE.start()).then(|| (first.join(" "), second.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, title: Option<&str>, text: &str) -> OwnRecord {
        OwnRecord { id: id.into(), title: title.map(str::to_owned), text: text.into() }
    }

    const TWO: &str = "Backups run each night at two. The key of the staging server rotates on Mondays.";

    #[test]
    fn a_title_or_a_sentence_asks_for_its_record() {
        let records = vec![
            record("a", Some("How keys rotate"), TWO),
            record("b", Some("Notes of today"), TWO),
            record("c", Some("Notes of today"), "Short."),
            record("d", None, TWO),
        ];
        let set = MatrixSet::from_records(Path::new("home"), records.clone(), None).expect("questions");
        assert_eq!(set.counts(), (4, 3));
        let asked: Vec<_> = set.questions.iter().map(|question| question.text.as_str()).collect();
        let sentence = "The key of the staging server rotates on Mondays.";
        assert_eq!(asked, ["How keys rotate", sentence, sentence]);
        assert_eq!(set.documents[0].text, TWO);
        assert_eq!(set.documents[1].text, "Notes of today\nBackups run each night at two.");
        assert_eq!(set.documents[2].text, "Notes of today\nShort.");
        assert_eq!(set.documents[3].text, "Backups run each night at two.");
        assert!(set.questions.iter().all(|question| question.judged.len() == 1));
        let one = MatrixSet::from_records(Path::new("home"), records, Some(1)).expect("a question");
        assert_eq!((one.counts(), one.documents[3].text.as_str()), ((4, 1), TWO));
        assert_ne!(one.digest(), set.digest());
    }

    #[test]
    fn the_first_half_of_a_single_sentence_asks_for_the_other() {
        let halves = without_a_sentence("the key of the staging server rotates on mondays only");
        let (first, second) = halves.expect("ten words");
        assert_eq!(
            (first.as_str(), second.as_str()),
            ("the key of the staging", "server rotates on mondays only")
        );
        assert_eq!(without_a_sentence("the key rotates on mondays and tuesdays"), None);
    }

    #[test]
    fn records_that_cannot_be_asked_for_are_an_error() {
        let error = MatrixSet::from_records(Path::new("home"), vec![record("a", None, "Too short.")], None);
        assert!(error.expect_err("nothing to ask").to_string().contains("home: no record is long enough"));
    }
}
