//! Which combination to take, and the configuration that takes it.
use super::combine::{Matrix, Row, row};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;

/// What matters most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Objective {
    /// The mean time of a query.
    Latency,
    /// The best answers by nDCG@10, then by recall, then the quickest.
    Recall,
    /// The least memory, then the quickest.
    Memory,
    /// A balance: time and memory by their ratio to the best, and answers by the fourth power of theirs, since they
    /// differ less.
    Balanced,
}

/// What must hold.
#[derive(Clone, Copy, Debug)]
pub struct Constraints {
    /// The least share of the nearest vectors that is found.
    pub min_recall: f64,
    /// The most bytes of memory.
    pub max_memory: Option<u64>,
}

/// How the configuration in force names things.
#[expect(missing_debug_implementations, reason = "functions have nothing to show")]
pub struct Names<'a> {
    /// The model where a backend is not named with one.
    pub model: &'a str,
    /// The component of an index profile.
    pub component: &'a dyn Fn(&str) -> String,
    /// Whether an index profile has an option of this name.
    pub takes: &'a dyn Fn(&str, &str) -> bool,
}

/// What to take, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    /// A file of configuration, with the reasons as comments.
    pub toml: String,
    /// The combination.
    pub row: Row,
}

/// The best combination of any setting that was measured; none where no one fits. Peers are left out, since no
/// configuration names them.
pub fn recommend(
    matrix: &Matrix,
    objective: Objective,
    constraints: Constraints,
    names: &Names<'_>,
) -> Option<Recommendation> {
    let mut rows = Vec::new();
    for backend in &matrix.backends {
        for index in matrix.indexes.iter().filter(|index| !index.peer) {
            for point in &index.points {
                rows.extend(matrix.caches.iter().filter_map(|cache| row(backend, index, point, cache)));
            }
        }
    }
    let fits = |row: &Row| {
        row.recall >= constraints.min_recall
            && constraints.max_memory.is_none_or(|most| row.memory_bytes <= most as f64)
    };
    let all = rows.len();
    rows.retain(fits);
    let best = |of: fn(&Row) -> f64| rows.iter().map(of).fold(f64::INFINITY, f64::min);
    let (quickest, smallest) = (best(|row| row.mean_ms), best(|row| row.memory_bytes));
    let most_right = -best(|row| -row.ndcg_10);
    let cost = |row: &Row| match objective {
        Objective::Latency => [row.mean_ms, row.memory_bytes, 0.0],
        Objective::Recall => [-row.ndcg_10, -row.recall, row.mean_ms],
        Objective::Memory => [row.memory_bytes, row.mean_ms, 0.0],
        Objective::Balanced => {
            let right = if row.ndcg_10 > 0.0 { (most_right / row.ndcg_10).powi(4) } else { f64::INFINITY };
            [row.mean_ms / quickest * (row.memory_bytes / smallest) * right, row.mean_ms, 0.0]
        }
    };
    let fitting = rows.len();
    let chosen = rows.into_iter().min_by(|a, b| {
        let (a, b) = (cost(a), cost(b));
        a.iter()
            .zip(&b)
            .map(|(a, b)| a.total_cmp(b))
            .find(|order| order.is_ne())
            .unwrap_or(std::cmp::Ordering::Equal)
    })?;
    let toml = config(matrix, &chosen, objective, constraints, (fitting, all), names);
    Some(Recommendation { toml, row: chosen })
}

/// `cpu` and `all-MiniLM-L6-v2` of `cpu@all-MiniLM-L6-v2`.
pub fn with_model(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(profile, model)| (profile, Some(model)))
}

fn config(
    matrix: &Matrix,
    row: &Row,
    objective: Objective,
    constraints: Constraints,
    (fitting, all): (usize, usize),
    names: &Names<'_>,
) -> String {
    let name = objective.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mib = |bytes: f64| bytes / (1 << 20) as f64;
    let mut why = format!(
        "Chosen by `magray bench matrix` for {name}, on {} texts and {} questions of {}.\n\
         Of {all} combinations with a setting, {fitting} find {} of the nearest or more",
        matrix.documents, matrix.questions, matrix.set, constraints.min_recall
    );
    if let Some(most) = constraints.max_memory {
        let _ = write!(why, " in {:.0} MiB of memory or less", mib(most as f64));
    }
    let _ = write!(
        why,
        ".\nThis one: nDCG@10 {:.4}, recall {:.4}, {:.3} ms for a query that no cache answers and {:.3} ms in the\n\
         mean with {:.0}% of the queries answered by the cache, {:.0} MiB of memory, {:.1} MiB of index files;\n\
         {:.0} texts/s embedded, {:.0} vectors/s built into the index.",
        row.ndcg_10,
        row.recall,
        row.p50_ms,
        row.mean_ms,
        row.hit_ratio * 100.0,
        mib(row.memory_bytes),
        mib(row.disk_bytes),
        row.texts_per_s,
        row.build_per_s
    );
    let mut text: String = why.lines().map(|line| format!("# {line}\n")).collect();
    let (profile, model) = with_model(&row.backend);
    let quoted = |value: &str| toml::Value::from(value).to_string();
    let model = model.unwrap_or(names.model);
    let _ = write!(text, "\n[ai.embedding]\nprofile = {}\nmodel_name = {}\n", quoted(profile), quoted(model));
    let _ = write!(
        text,
        "\n[memory.index]\nprofile = {}\nrecall_target = {:?}\n",
        quoted(&row.index),
        constraints.min_recall
    );
    let mut options: toml::Table = matrix
        .indexes
        .iter()
        .find(|index| index.name == row.index)
        .and_then(|index| serde_json::from_str(&index.options).ok())
        .unwrap_or_default();
    let before = options.clone();
    for (knob, value) in
        row.setting.iter().filter(|(knob, _)| *knob != "ef" && (names.takes)(&row.index, knob))
    {
        let number = value.parse::<i64>().map(toml::Value::from);
        let number = number.or_else(|_| value.parse::<f64>().map(toml::Value::from));
        let value = number.or_else(|_| value.parse::<bool>().map(toml::Value::from));
        options.insert(knob.clone(), value.unwrap_or_else(|_| row.setting[knob].clone().into()));
    }
    if options != before {
        let _ = write!(
            text,
            "\n[memory.index.profiles.{}]\nplugin = {}\noptions = {}\n",
            quoted(&row.index),
            quoted(&(names.component)(&row.index)),
            toml::Value::Table(options)
        );
    }
    if let Some(ef) = row.setting.get("ef").and_then(|ef| ef.parse::<u64>().ok()) {
        for layer in ["interact", "insights", "assets"] {
            let _ = write!(text, "\n[memory.layers.{layer}]\nef_search = {}\n", ef.clamp(1, 10_000));
        }
    }
    let _ = write!(text, "\n[memory.cache]\nprofile = {}\n", quoted(&row.cache));
    // Where sizes were compared, the size is part of what was chosen.
    let mut sizes = matrix.caches.iter().filter(|cache| cache.name == row.cache);
    if let Some(chosen) = sizes.clone().find(|cache| cache.share == row.cache_share)
        && sizes.any(|cache| cache.share != row.cache_share)
    {
        let _ = writeln!(text, "max_entries = {}", chosen.capacity);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{
        super::combine::{CacheSummary, EmbedFigures, Figure, IndexSummary, PointSummary},
        *,
    };
    use crate::bench::{Histogram, Ran, Setting, metrics::Ranking};

    fn figure(median: f64) -> Figure {
        Figure { median, low: median, high: median }
    }

    fn backend(name: &str, ms: f64, memory: f64) -> EmbedFigures {
        let ran = Ran {
            model: "small".into(),
            device: "cpu".into(),
            engine: "portable".into(),
            precision: "f32".into(),
        };
        EmbedFigures {
            name: name.into(),
            ran,
            space: "s".into(),
            dim: 2,
            start_s: figure(0.1),
            texts_per_s: figure(100.0),
            tokens_per_s: figure(1000.0),
            p50_ms: figure(ms),
            p95_ms: figure(ms),
            p99_ms: figure(ms),
            resident_bytes: Some(memory),
            held: Default::default(),
            exact: Ranking::default(),
        }
    }

    /// Points by recall, nDCG and milliseconds of a query.
    fn index(name: &str, memory: f64, points: &[(&str, f64, f64, f64)], peer: bool) -> IndexSummary {
        let point = |&(ef, recall, ndcg_10, ms): &(&str, f64, f64, f64)| PointSummary {
            setting: match ef {
                "" => Setting::new(),
                ef => Setting::from([("ef".into(), ef.into()), ("rescore".into(), "40".into())]),
            },
            recall,
            ndcg_10,
            queries_per_s: figure(1000.0 / ms),
            queries_per_cpu_s: figure(1000.0 / ms),
            p50_ms: figure(ms),
            p95_ms: figure(ms),
            p99_ms: figure(ms),
            calls: Histogram::new(),
        };
        IndexSummary {
            space: "s".into(),
            vectors_of: "cpu".into(),
            name: name.into(),
            engine: String::new(),
            options: r#"{"layout":"auto"}"#.into(),
            build_per_s: figure(1000.0),
            build_per_cpu_s: figure(1000.0),
            disk_bytes: 1e6,
            open_ms: figure(1.0),
            resident_bytes: Some(memory),
            held: None,
            points: points.iter().map(point).collect(),
            front: vec![0],
            chosen: 0,
            peer,
        }
    }

    fn matrix() -> Matrix {
        Matrix {
            set: "mine".into(),
            questions_from: String::new(),
            documents: 10,
            questions: 2,
            threads: 1,
            runs: 1,
            recall: 0.95,
            backends: vec![backend("cpu", 1.0, 200e6), backend("onnx@large", 4.0, 100e6)],
            indexes: vec![
                index("flat", 40e6, &[("", 1.0, 0.70, 5.0)], false),
                index("native", 20e6, &[("16", 0.90, 0.60, 0.2), ("64", 0.97, 0.69, 0.5)], false),
                index("foreign", 1e6, &[("", 1.0, 0.70, 0.1)], true),
            ],
            caches: vec![CacheSummary {
                name: "lru".into(),
                share: 0.1,
                capacity: 1,
                hit_ratio: 0.5,
                ns: figure(500.0),
                bytes: 1e6,
                held: Default::default(),
            }],
            rows: Vec::new(),
            faults: Vec::new(),
            noise: crate::bench::matrix::combine::Noise {
                load: [0.0; 2],
                mhz: None,
                throttled: None,
                widest: None,
                note: String::new(),
            },
        }
    }

    fn chosen(objective: Objective, min_recall: f64, max_memory: Option<u64>) -> Option<Recommendation> {
        let names = Names {
            model: "small",
            component: &|name| format!("{name}-index"),
            takes: &|_, option| option == "rescore",
        };
        recommend(&matrix(), objective, Constraints { min_recall, max_memory }, &names)
    }

    #[test]
    fn each_objective_chooses_by_its_own_measure_and_never_a_peer() {
        let row = |objective, recall, memory| chosen(objective, recall, memory).map(|chosen| chosen.row);
        let parts =
            |row: Option<Row>| row.map(|row| (row.backend, row.index, row.setting.get("ef").cloned()));
        let is = |backend: &str, index: &str, ef: Option<&str>| {
            Some((backend.to_owned(), index.to_owned(), ef.map(str::to_owned)))
        };
        assert_eq!(parts(row(Objective::Latency, 0.95, None)), is("cpu", "native", Some("64")));
        assert_eq!(parts(row(Objective::Latency, 0.5, None)), is("cpu", "native", Some("16")));
        assert_eq!(parts(row(Objective::Recall, 0.95, None)), is("cpu", "flat", None));
        assert_eq!(parts(row(Objective::Memory, 0.95, None)), is("onnx@large", "native", Some("64")));
        assert_eq!(parts(row(Objective::Balanced, 0.95, None)), is("cpu", "native", Some("64")));
        assert_eq!(parts(row(Objective::Latency, 0.99, Some(150_000_000))), is("onnx@large", "flat", None));
        assert_eq!(parts(row(Objective::Latency, 0.99, Some(1_000))), None);
        assert_eq!(parts(row(Objective::Latency, 1.1, None)), None);
    }

    #[test]
    fn the_configuration_sets_what_was_chosen_and_nothing_that_an_index_lacks() {
        let toml = chosen(Objective::Memory, 0.95, None).expect("one fits").toml;
        let table: toml::Table = toml.parse().expect("it is TOML");
        assert_eq!(table["ai"]["embedding"]["profile"].as_str(), Some("onnx"));
        assert_eq!(table["ai"]["embedding"]["model_name"].as_str(), Some("large"));
        let native = &table["memory"]["index"]["profiles"]["native"];
        assert_eq!(native["plugin"].as_str(), Some("native-index"));
        assert_eq!(native["options"]["rescore"].as_integer(), Some(40));
        assert_eq!(native["options"]["layout"].as_str(), Some("auto"));
        assert_eq!(table["memory"]["layers"]["assets"]["ef_search"].as_integer(), Some(64));
        assert_eq!(table["memory"]["index"]["recall_target"].as_float(), Some(0.95));
        let toml = chosen(Objective::Recall, 1.0, None).expect("one fits").toml;
        let table: toml::Table = toml.parse().expect("it is TOML");
        assert_eq!(table["ai"]["embedding"]["model_name"].as_str(), Some("small"));
        assert!(table["memory"]["index"].get("profiles").is_none(), "{toml}");
        assert!(table["memory"].get("layers").is_none(), "{toml}");
        assert!(table["memory"]["cache"].get("max_entries").is_none(), "one size was measured: {toml}");
    }
}
