//! The rounds in which all contestants take turns.
use super::{
    super::{
        BenchError,
        throughput::{interruptible, quantile},
    },
    At, Curve, Filter, Filtered, Histogram, IndexRequest, Point, Setting, Speed, Steps,
    contestant::{Opened, Time},
    curve::{Cost, RECALLS, cheapest, pareto_front, speed_at},
    set::{Neighbours, VectorSet},
};
use magray_plugin_api::CallContext;

/// A setting that can only cost more than one of this recall is not measured.
const ENOUGH: f64 = 0.9995;
/// A setting is left out after the first round where another one finds as much and is so many times as fast.
const SUPERIOR: f64 = 1.3;

/// Adds a curve to each of the opened ones.
pub(super) fn measure_sweep(
    cx: &dyn CallContext,
    request: &IndexRequest,
    set: &mut VectorSet,
    truth: &Neighbours,
    opened: &mut [Opened<'_>],
    batch: usize,
    steps: &mut Steps<'_>,
) -> Result<(), BenchError> {
    // The first round warms up, and shows the recall and which settings are worth more rounds.
    let mut tried: Vec<Vec<Tried>> = opened.iter().map(|_| Vec::new()).collect();
    let longest = opened.iter().map(|opened| opened.settings.len()).max().unwrap_or(0);
    steps.settings(opened.iter().map(|opened| opened.settings.len()).sum(), 1);
    for place in 0..longest {
        for (opened, tried) in opened.iter_mut().zip(&mut tried) {
            let Some(setting) = opened.settings.get(place).cloned() else { continue };
            steps.told(&opened.running.contestant.name);
            if !tried.iter().any(|tried| tried.recall >= ENOUGH && costs_no_less(&setting, &tried.setting)) {
                let found = interruptible(cx, opened.search(set, &setting, batch, None))?;
                let recall = set.recall(truth, &found.ids)?;
                let ndcg_10 = request.judged.as_ref().map(|judged| judged.rank(&found.ids).ndcg_10);
                let (warm_up, runs) = (found.time.cpu_s, Vec::new());
                tried.push(Tried { setting, recall, ndcg_10, warm_up, runs });
            }
            steps.done();
        }
    }
    tried.iter_mut().for_each(drop_inferior);
    let longest = tried.iter().map(Vec::len).max().unwrap_or(0);
    steps.settings(tried.iter().map(Vec::len).sum(), request.runs);
    for _ in 0..request.runs {
        for place in 0..longest {
            for (opened, tried) in opened.iter_mut().zip(&mut tried) {
                let Some(tried) = tried.get_mut(place) else { continue };
                steps.told(&opened.running.contestant.name);
                tried.runs.push(interruptible(cx, opened.search(set, &tried.setting, batch, None))?.time);
                steps.done();
            }
        }
    }
    for (opened, tried) in opened.iter_mut().zip(tried) {
        let point = |Tried { setting, recall, ndcg_10, runs, .. }: Tried| {
            let speed = speed_of(&runs, set.query_count());
            Point { setting, recall, ndcg_10, speed, calls: histogram(&runs) }
        };
        let points: Vec<Point> = tried.into_iter().map(point).collect();
        let costs =
            points.iter().map(|point| Cost { recall: point.recall, speed: point.speed.queries_per_cpu_s });
        let costs: Vec<Cost> = costs.collect();
        let chosen = cheapest(&costs, request.recall).unwrap_or(0);
        let front = pareto_front(costs);
        let at = RECALLS.map(|recall| At { recall, queries_per_cpu_s: speed_at(&front, recall) }).to_vec();
        opened.curves.push(Curve { batch, points, at, chosen });
    }
    Ok(())
}

/// A setting in the sweep.
struct Tried {
    setting: Setting,
    recall: f64,
    ndcg_10: Option<f64>,
    /// CPU-seconds of the first round.
    warm_up: f64,
    runs: Vec<Time>,
}

/// Whether every knob is at least as far up.
fn costs_no_less(setting: &Setting, than: &Setting) -> bool {
    let no_less = |(name, than): (&String, &String)| {
        setting.get(name).is_some_and(|value| match (value.parse::<f64>(), than.parse::<f64>()) {
            (Ok(value), Ok(than)) => value >= than,
            _ => value == than,
        })
    };
    setting.len() == than.len() && than.iter().all(no_less)
}

/// Drops what another one leaves far behind, by the first round.
fn drop_inferior(tried: &mut Vec<Tried>) {
    let costs: Vec<(f64, f64)> = tried.iter().map(|tried| (tried.recall, tried.warm_up)).collect();
    tried.retain(|tried| {
        let superior =
            |&(recall, cpu_s): &(f64, f64)| recall >= tried.recall && cpu_s * SUPERIOR < tried.warm_up;
        !costs.iter().any(superior)
    });
}

/// Adds the figures under a filter to each of the opened ones.
pub(super) fn measure_filter(
    cx: &dyn CallContext,
    request: &IndexRequest,
    set: &mut VectorSet,
    filter: &Filter,
    opened: &mut [Opened<'_>],
    batch: usize,
    steps: &mut Steps<'_>,
) -> Result<(), BenchError> {
    let mut runs: Vec<Vec<Time>> = opened.iter().map(|_| Vec::new()).collect();
    let mut recalls = vec![0.0; opened.len()];
    for round in 0..=request.runs {
        for ((opened, runs), recall) in opened.iter_mut().zip(&mut runs).zip(&mut recalls) {
            steps.told(&opened.running.contestant.name);
            if opened.filters {
                let setting = opened.chosen();
                let found = interruptible(cx, opened.search(set, &setting, batch, Some(filter)))?;
                match round {
                    0 => *recall = set.recall(&filter.truth, &found.ids)?,
                    _ => runs.push(found.time),
                }
            }
            steps.done();
        }
    }
    for ((opened, runs), recall) in opened.iter_mut().zip(runs).zip(recalls) {
        if opened.filters {
            let speed = speed_of(&runs, set.query_count());
            opened.filtered.push(Filtered { share: filter.share, recall, speed });
        }
    }
    Ok(())
}

fn histogram(runs: &[Time]) -> Histogram {
    let mut histogram = Histogram::new();
    for seconds in runs.iter().flat_map(|run| &run.calls) {
        let place = ((seconds * 1e6).log10() * 20.0).floor() as i32;
        *histogram.entry(place).or_default() += 1;
    }
    histogram
}

fn speed_of(runs: &[Time], queries: usize) -> Speed {
    let median = |of: fn(&Time) -> f64| quantile(runs.iter().map(of).collect(), 0.5);
    let cpu_s: Vec<f64> = runs.iter().map(|run| run.cpu_s).collect();
    let calls: Vec<f64> = runs.iter().flat_map(|run| run.calls.iter().copied()).collect();
    let ms = |share: f64| quantile(calls.clone(), share) * 1000.0;
    Speed {
        queries_per_cpu_s: queries as f64 / median(|run| run.cpu_s),
        queries_per_s: queries as f64 / median(|run| run.wall_s),
        p50_ms: ms(0.5),
        p95_ms: ms(0.95),
        p99_ms: ms(0.99),
        spread: (quantile(cpu_s.clone(), 1.0) - quantile(cpu_s, 0.0)) / median(|run| run.cpu_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(knobs: &[(&str, &str)]) -> Setting {
        knobs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_setting_costs_no_less_where_every_knob_is_as_far_up() {
        let least = setting(&[("ef", "16"), ("kind", "a")]);
        assert!(costs_no_less(&least, &least));
        assert!(costs_no_less(&setting(&[("ef", "128"), ("kind", "a")]), &least));
        assert!(!costs_no_less(&setting(&[("ef", "9"), ("kind", "a")]), &least));
        assert!(!costs_no_less(&setting(&[("ef", "128"), ("kind", "b")]), &least));
        assert!(!costs_no_less(&setting(&[("ef", "128")]), &least));
        assert!(!costs_no_less(&setting(&[("ef", "128"), ("rescore", "9")]), &least));
    }

    #[test]
    fn what_another_one_leaves_far_behind_is_dropped() {
        let tried = |recall, warm_up| Tried {
            setting: Setting::new(),
            recall,
            ndcg_10: None,
            warm_up,
            runs: Vec::new(),
        };
        let mut all =
            vec![tried(0.9, 1.0), tried(0.95, 1.9), tried(0.95, 1.5), tried(0.94, 2.0), tried(0.99, 3.0)];
        drop_inferior(&mut all);
        let kept: Vec<_> = all.iter().map(|tried| (tried.recall, tried.warm_up)).collect();
        assert_eq!(kept, [(0.9, 1.0), (0.95, 1.9), (0.95, 1.5), (0.99, 3.0)]);
    }

    #[test]
    fn calls_are_counted_by_twentieths_of_a_power_of_ten() {
        let run = Time { cpu_s: 1.0, wall_s: 1.0, calls: vec![1e-6, 1.05e-6, 1e-3, 1.2e-3] };
        assert_eq!(histogram(&[run]), Histogram::from([(0, 2), (60, 1), (61, 1)]));
    }

    #[test]
    fn speed_is_the_median_of_the_runs_and_latency_of_all_calls() {
        let run = |cpu_s, wall_s, call: f64| Time { cpu_s, wall_s, calls: vec![call; 4] };
        let speed = speed_of(&[run(2.0, 1.0, 0.1), run(4.0, 2.0, 0.2), run(3.0, 1.5, 0.3)], 12);
        assert_eq!((speed.queries_per_cpu_s, speed.queries_per_s), (4.0, 8.0));
        assert_eq!((speed.p50_ms, speed.p99_ms), (200.0, 300.0));
        assert!((speed.spread - 2.0 / 3.0).abs() < 1e-12);
    }
}
