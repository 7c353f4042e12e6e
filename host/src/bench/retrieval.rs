//! How well `magray search` finds what is known to answer: by words, by meaning and by both, on data sets in BEIR's
//! layout, through the very search of the engine.
use super::{
    BenchError, DataSets, Limit,
    data::{self, Document, Question, Retrieval},
    metrics::{DEPTH, Ranking},
};
use crate::{
    config::{FusionKind, Search as Settings, SearchMode},
    engine::{Engine, NewMemory, SearchRequest, Setup, Validity},
    store::{Filter, Layer, RecordId},
};
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// Documents that are stored together.
const BATCH: usize = 500;
/// Weights of the words that are tried, in tenths.
const WEIGHTS: std::ops::RangeInclusive<u8> = 1..=9;

/// A way of searching.
#[derive(Clone, Debug)]
pub struct Way {
    /// What it is called.
    pub name: String,
    settings: Settings,
}

impl Way {
    /// The two legs and their fusions, the second with the weight in force; to tune it, with every weight.
    pub fn all(settings: &Settings, tune: bool) -> Vec<Self> {
        let way = |name: &str, mode, fusion, keyword_weight| Self {
            name: name.to_owned(),
            settings: Settings { mode, fusion, keyword_weight, ..settings.clone() },
        };
        let weight = settings.keyword_weight;
        let mut ways = vec![
            way("keyword", SearchMode::Keyword, FusionKind::Convex, weight),
            way("vector", SearchMode::Vector, FusionKind::Convex, weight),
            way("hybrid rrf", SearchMode::Hybrid, FusionKind::Rrf, weight),
            way("hybrid", SearchMode::Hybrid, FusionKind::Convex, weight),
        ];
        if tune {
            ways.extend(WEIGHTS.map(|tenths| {
                let weight = f64::from(tenths) / 10.0;
                way(&format!("hybrid {weight:.1}"), SearchMode::Hybrid, FusionKind::Convex, weight)
            }));
        }
        ways
    }
}

/// How well one way of searching found the answers of one split.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The data set and its split.
    pub set: String,
    /// The way, as [`Way::name`].
    pub way: String,
    /// Questions.
    pub questions: usize,
    /// How good the answers are.
    #[serde(flatten)]
    pub ranking: Ranking,
    /// Share of the right sessions among the first five and ten, where documents are turns of conversations.
    pub session_recall_5: Option<f64>,
    #[expect(missing_docs, reason = "as above")]
    pub session_recall_10: Option<f64>,
    /// Mean time of a search, in milliseconds.
    pub ms: f64,
}

/// Retrieval sets in memory.
#[derive(Clone, Debug)]
pub struct RetrievalData(Vec<Retrieval>);

impl RetrievalData {
    /// Reads the sets in BEIR's layout.
    ///
    /// # Errors
    /// [`BenchError::Data`] for the first that is not as it should be, or where there is none.
    pub fn read(sets: &DataSets, limit: Limit) -> Result<Self, BenchError> {
        let sets = sets.retrieval.iter().map(|dir| data::read_retrieval(dir, limit));
        Ok(Self(sets.collect::<Result<_, _>>()?))
    }

    /// Whether there is no set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Documents to store, and questions to ask in `ways` ways, in all.
    pub fn steps(&self, ways: usize) -> usize {
        let questions =
            |set: &Retrieval| set.splits.iter().map(|(_, questions)| questions.len()).sum::<usize>();
        self.0.iter().map(|set| set.documents.len() + ways * questions(set)).sum()
    }
}

/// Stores each set in a database of its own, which is gone afterwards, and asks its questions. `done` is told how many
/// of the steps are done.
///
/// Where all ids of documents are `CONVERSATION/SESSION:TURN` and those of questions begin with `CONVERSATION/`, a
/// question is asked of its own conversation, and sessions are judged too: a session is where its best turn is.
///
/// # Errors
/// [`BenchError`].
pub fn measure_retrieval(
    cx: &dyn CallContext,
    setup: &Setup,
    data: &RetrievalData,
    ways: &[Way],
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Found>, BenchError> {
    let mut all = Vec::new();
    for set in &data.0 {
        let engine = Engine::open_detached(setup.clone())?;
        let stored = Stored::store(cx, &engine, set, done)?;
        for (split, questions) in &set.splits {
            for way in ways {
                all.push(stored.ask(cx, &engine, way, &format!("{}/{split}", set.name), questions, done)?);
            }
        }
    }
    Ok(all)
}

/// A set in a database.
struct Stored<'a> {
    set: &'a Retrieval,
    /// The documents of each record, by their number: several may say the same.
    documents: HashMap<RecordId, Vec<usize>>,
    is_conversation: bool,
}

impl<'a> Stored<'a> {
    fn store(
        cx: &dyn CallContext,
        engine: &Engine,
        set: &'a Retrieval,
        done: &mut dyn FnMut(usize),
    ) -> Result<Self, BenchError> {
        let is_conversation = is_conversation(set);
        let mut documents: HashMap<RecordId, Vec<usize>> = HashMap::new();
        // A document without a word cannot be stored, and cannot be found either.
        let mut numbered = (0..).zip(&set.documents).filter(|(_, document)| !document.whole().is_empty());
        loop {
            let batch: Vec<(usize, &Document)> = numbered.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(Self { set, documents, is_conversation });
            }
            let memory = |(_, document): &(usize, &Document)| {
                let (conversation, session) = turn(&document.id).filter(|_| is_conversation).unzip();
                // What has a title alone says that.
                let (title, text) = match document.text.trim() {
                    "" => ("", document.title.as_str()),
                    text => (document.title.trim(), text),
                };
                NewMemory {
                    title: Some(title.to_owned()).filter(|title| !title.is_empty()),
                    text: text.to_owned(),
                    project: conversation.map(str::to_owned),
                    session: session.map(str::to_owned),
                    layer: Some(Layer::Assets),
                    ..NewMemory::default()
                }
            };
            let added = engine.add(cx, batch.iter().map(memory).collect())?;
            for (added, (number, _)) in added.iter().zip(&batch) {
                documents.entry(added.id).or_default().push(*number);
            }
            done(batch.len());
        }
    }

    fn ask(
        &self,
        cx: &dyn CallContext,
        engine: &Engine,
        way: &Way,
        set: &str,
        questions: &[Question],
        done: &mut dyn FnMut(usize),
    ) -> Result<Found, BenchError> {
        let (mut turns, mut sessions, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
        for question in questions {
            let conversation = question.id.split_once('/').filter(|_| self.is_conversation);
            let request = SearchRequest {
                query: question.text.clone(),
                // One more, for a question that is a document itself does not answer itself.
                k: DEPTH + 1,
                filter: Filter {
                    project: conversation.map(|(conversation, _)| conversation.to_owned()),
                    ..Filter::default()
                },
                validity: Validity::Now,
                min_score: None,
                settings: way.settings.clone(),
            };
            let start = Instant::now();
            let order = engine.rank(cx, &request)?.order;
            took += start.elapsed();
            let numbers =
                order.iter().flat_map(|ranked| self.documents.get(&ranked.id).into_iter().flatten());
            let ids = numbers.map(|&number| self.set.documents[number].id.as_str());
            let ids: Vec<&str> = ids.filter(|id| *id != question.id).collect();
            turns.push(question.rank(ids.iter().copied()));
            if self.is_conversation {
                sessions.push(judge_sessions(&ids, question));
            }
            done(1);
        }
        let sessions = (!sessions.is_empty()).then(|| Ranking::mean(&sessions));
        Ok(Found {
            set: set.to_owned(),
            way: way.name.clone(),
            questions: questions.len(),
            ranking: Ranking::mean(&turns),
            session_recall_5: sessions.map(|sessions| sessions.recall_5),
            session_recall_10: sessions.map(|sessions| sessions.recall_10),
            ms: took.as_secs_f64() * 1e3 / questions.len() as f64,
        })
    }
}

fn judge_sessions(ids: &[&str], question: &Question) -> Ranking {
    let session = |id: &str| turn(id).map(|(_, session)| session.to_owned());
    let right: HashSet<String> = question.judged.keys().filter_map(|id| session(id)).collect();
    let mut seen = HashSet::new();
    let order = ids.iter().filter_map(|id| session(id)).filter(|session| seen.insert(session.clone()));
    let found: Vec<u32> = order.map(|session| u32::from(right.contains(&session))).collect();
    Ranking::of(&found, &vec![1; right.len()])
}

/// Conversation and session of the id of a turn.
fn turn(id: &str) -> Option<(&str, &str)> {
    let (conversation, rest) = id.split_once('/')?;
    let (session, _) = rest.rsplit_once(':')?;
    Some((conversation, &id[..conversation.len() + 1 + session.len()]))
}

fn is_conversation(set: &Retrieval) -> bool {
    let conversations: HashSet<&str> = set
        .documents
        .iter()
        .filter_map(|document| turn(&document.id))
        .map(|(conversation, _)| conversation)
        .collect();
    let mut questions = set.splits.iter().flat_map(|(_, questions)| questions);
    set.documents.iter().all(|document| turn(&document.id).is_some())
        && questions.all(|question| {
            question.id.split_once('/').is_some_and(|(first, _)| conversations.contains(first))
        })
}
