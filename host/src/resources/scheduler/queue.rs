//! Which task runs next. Nothing here looks at a clock, a machine or a thread: all of that is told.
use std::time::{Duration, Instant};

/// What kind of work a task is, which decides how its priority follows the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Makes the next searches fast, a small step at a time: before all else.
    Seal,
    /// Large and not urgent, as a rebuild or a merge: medium, whatever the machine does.
    Build,
    /// Makes room: can wait while processors are busy, and comes first when memory is scarce.
    Cleanup,
    /// Makes things better, as promotion does, or looks how good they are: for when the machine has time.
    Refine,
}

/// How the machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Climate {
    /// How busy its processors are, 0 to 1.
    pub load: f64,
    /// How scarce its memory is, 0 to 1.
    pub pressure: f64,
}

/// What a task that has waited as long as it may reaches.
const HIGHEST: f64 = 100.0;

impl Kind {
    /// Where a task that has just become due stands, from 0 to 100.
    fn base(self, climate: Climate) -> f64 {
        let (load, pressure) = (climate.load.clamp(0.0, 1.0), climate.pressure.clamp(0.0, 1.0));
        match self {
            Self::Seal => 70.0,
            Self::Build => 50.0,
            Self::Cleanup => (45.0 - 30.0 * load) * (1.0 - pressure) + 90.0 * pressure,
            Self::Refine => 60.0 - 50.0 * load,
        }
    }

    /// How long a task may wait before it is overdue.
    pub(super) fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Seal => 10,
            Self::Cleanup => 120,
            Self::Build | Self::Refine => 300,
        })
    }
}

/// One of the tasks of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskId(pub(super) usize);

/// What the queue knows of a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) kind: Kind,
    /// How long it may wait: its deadline is so long after it became due.
    pub(super) patience: Duration,
    /// How long after its end it is due again; none where it runs on request only.
    pub(super) every: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Comes by itself at a time, or on request.
    Idle {
        due: Option<Instant>,
    },
    Waiting {
        since: Instant,
    },
    Running {
        again: Option<Instant>,
    },
}

/// A task that was picked, and how long it had waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Picked {
    pub(super) id: TaskId,
    pub(super) waited: Duration,
}

/// Tasks that wait, each of them once at most, and those that will.
///
/// The priority of one that waits grows evenly from that of its kind to the highest, which it has at its
/// deadline; of equal ones the earlier deadline comes first. So a task that is overdue waits only for those
/// whose deadline was before its own, each of them once, and none waits for ever whatever else comes.
#[derive(Debug)]
pub(super) struct Queue(Vec<(Spec, State)>);

impl Queue {
    /// Tasks with a period are due at `now`.
    pub(super) fn new(tasks: impl IntoIterator<Item = Spec>, now: Instant) -> Self {
        Self(tasks.into_iter().map(|spec| (spec, State::Idle { due: spec.every.map(|_| now) })).collect())
    }

    /// The task is due now. One that waits already is not due twice; one that runs will run again.
    pub(super) fn request(&mut self, id: TaskId, now: Instant) {
        let Some((_, state)) = self.0.get_mut(id.0) else { return };
        match state {
            State::Idle { .. } => *state = State::Waiting { since: now },
            State::Waiting { .. } => {}
            State::Running { again } => *again = again.or(Some(now)),
        }
    }

    /// The task does not run until it is due or asked for again.
    pub(super) fn cancel(&mut self, id: TaskId, now: Instant) {
        let Some((spec, state)) = self.0.get_mut(id.0) else { return };
        match state {
            State::Running { again } => *again = None,
            _ => *state = State::Idle { due: spec.every.map(|every| now + every) },
        }
    }

    /// Takes the task that is to run now.
    pub(super) fn pick(&mut self, now: Instant, climate: Climate) -> Option<Picked> {
        for (_, state) in &mut self.0 {
            if let State::Idle { due: Some(due) } = *state
                && due <= now
            {
                *state = State::Waiting { since: due };
            }
        }
        let rank = |&(place, since): &(usize, Instant)| {
            let spec = &self.0[place].0;
            (priority(spec, since, now, climate), since + spec.patience)
        };
        let (place, since) = self.waiting().max_by(|a, b| {
            let ((high, deadline), (other, later)) = (rank(a), rank(b));
            // Of equals the first of the list, which `max_by` would leave for the last.
            high.total_cmp(&other).then(later.cmp(&deadline)).then(b.0.cmp(&a.0))
        })?;
        self.0[place].1 = State::Running { again: None };
        Some(Picked { id: TaskId(place), waited: now.saturating_duration_since(since) })
    }

    /// A picked task has ended. It is not due by itself for `pause`, at least.
    pub(super) fn finish(&mut self, id: TaskId, now: Instant, pause: Duration) {
        let Some((spec, state)) = self.0.get_mut(id.0) else { return };
        if let State::Running { again } = *state {
            *state = match again {
                Some(since) => State::Waiting { since },
                None => State::Idle { due: spec.every.map(|every| now + every.max(pause)) },
            };
        }
    }

    /// When the next of those that do not wait yet is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = |(_, state): &(Spec, State)| match *state {
            State::Idle { due } => due,
            _ => None,
        };
        self.0.iter().filter_map(due).min()
    }

    /// Whether the task waits for its turn.
    pub(super) fn is_waiting(&self, id: TaskId) -> bool {
        matches!(self.0.get(id.0), Some((_, State::Waiting { .. })))
    }

    fn waiting(&self) -> impl Iterator<Item = (usize, Instant)> + '_ {
        self.0.iter().enumerate().filter_map(|(place, (_, state))| match *state {
            State::Waiting { since } => Some((place, since)),
            _ => None,
        })
    }
}

/// From 0 to 100, for a task that is due `since`.
fn priority(spec: &Spec, since: Instant, now: Instant, climate: Climate) -> f64 {
    let waited = now.saturating_duration_since(since);
    if waited >= spec.patience {
        return HIGHEST;
    }
    let base = spec.kind.base(climate);
    base + (HIGHEST - base) * (waited.as_secs_f64() / spec.patience.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    const KINDS: [Kind; 4] = [Kind::Seal, Kind::Build, Kind::Cleanup, Kind::Refine];
    const IDLE: Climate = Climate { load: 0.0, pressure: 0.0 };
    const BUSY: Climate = Climate { load: 1.0, pressure: 0.0 };
    const SCARCE: Climate = Climate { load: 1.0, pressure: 1.0 };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn on_request(kind: Kind) -> Spec {
        Spec { kind, patience: kind.patience(), every: None }
    }

    fn spec() -> impl Strategy<Value = Spec> {
        (0..4usize, 1..400u64, proptest::option::of(0..60u64)).prop_map(|(kind, patience, every)| Spec {
            kind: KINDS[kind],
            patience: seconds(patience),
            every: every.map(seconds),
        })
    }

    fn climate() -> impl Strategy<Value = Climate> {
        (0..=10u8, 0..=10u8).prop_map(|(load, pressure)| Climate {
            load: f64::from(load) / 10.0,
            pressure: f64::from(pressure) / 10.0,
        })
    }

    /// The order in which tasks that become due together run.
    fn order(climate: Climate) -> Vec<Kind> {
        let now = Instant::now();
        let mut queue = Queue::new(KINDS.map(on_request), now);
        (0..4).for_each(|place| queue.request(TaskId(place), now));
        std::iter::from_fn(|| queue.pick(now, climate)).map(|picked| KINDS[picked.id.0]).collect()
    }

    #[test]
    fn kinds_come_in_the_order_that_suits_the_machine() {
        assert_eq!(order(IDLE), [Kind::Seal, Kind::Refine, Kind::Build, Kind::Cleanup]);
        assert_eq!(order(BUSY), [Kind::Seal, Kind::Build, Kind::Cleanup, Kind::Refine]);
        assert_eq!(order(SCARCE), [Kind::Cleanup, Kind::Seal, Kind::Build, Kind::Refine]);
    }

    #[test]
    fn a_periodic_task_is_due_again_after_its_end_and_one_on_request_is_not() {
        let start = Instant::now();
        let periodic = Spec { every: Some(seconds(10)), ..on_request(Kind::Seal) };
        let mut queue = Queue::new([periodic, on_request(Kind::Seal)], start);
        assert_eq!(queue.pick(start, IDLE), Some(Picked { id: TaskId(0), waited: seconds(0) }));
        assert_eq!((queue.pick(start, IDLE), queue.next_due()), (None, None));
        queue.finish(TaskId(0), start + seconds(3), Duration::ZERO);
        assert_eq!(queue.next_due(), Some(start + seconds(13)));
        assert_eq!(queue.pick(start + seconds(12), IDLE), None);
        assert_eq!(queue.pick(start + seconds(15), IDLE), Some(Picked { id: TaskId(0), waited: seconds(2) }));
        // One that failed rests for longer.
        queue.finish(TaskId(0), start + seconds(15), seconds(60));
        assert_eq!(queue.next_due(), Some(start + seconds(75)));
        queue.request(TaskId(1), start + seconds(16));
        assert!(queue.is_waiting(TaskId(1)) && !queue.is_waiting(TaskId(0)));
    }

    proptest! {
        /// One worker, whose tasks take some seconds each, while the machine does what it likes and others ask
        /// for tasks all the time.
        #[test]
        fn no_task_waits_longer_than_it_may_and_each_other_takes_once(
            specs in vec(spec(), 1..12),
            steps in vec((climate(), 0..8u64, 0..12usize), 1..300),
        ) {
            let longest = seconds(7);
            let mut now = Instant::now();
            let mut queue = Queue::new(specs.iter().copied(), now);
            for (climate, takes, asked) in steps {
                queue.request(TaskId(asked % specs.len()), now);
                let Some(Picked { id, waited }) = queue.pick(now, climate) else {
                    now += seconds(1);
                    continue;
                };
                let most = specs[id.0].patience + longest * specs.len() as u32;
                prop_assert!(waited <= most, "{id:?} waited {waited:?} of {most:?}");
                now += seconds(takes).min(longest);
                queue.request(id, now);
                queue.finish(id, now, Duration::ZERO);
            }
        }

        #[test]
        fn the_highest_priority_goes_first_and_of_equals_the_earlier_deadline(
            specs in vec(spec(), 2..12),
            asked in vec((0..12usize, 0..100u64), 1..30),
            climate in climate(),
            later in 0..400u64,
        ) {
            let start = Instant::now();
            let specs: Vec<Spec> = specs.into_iter().map(|spec| Spec { every: None, ..spec }).collect();
            let mut queue = Queue::new(specs.iter().copied(), start);
            for (place, at) in asked {
                queue.request(TaskId(place % specs.len()), start + seconds(at));
            }
            let now = start + seconds(100 + later);
            let waiting: Vec<_> = queue.waiting().collect();
            let rank = |place: usize| {
                let since = waiting.iter().find(|waiting| waiting.0 == place).unwrap().1;
                (priority(&specs[place], since, now, climate), since + specs[place].patience)
            };
            let mut before: Option<(f64, Instant)> = None;
            let mut ran = 0;
            while let Some(picked) = queue.pick(now, climate) {
                let (high, deadline) = rank(picked.id.0);
                if let Some((higher, earlier)) = before {
                    prop_assert!(higher > high || (higher == high && earlier <= deadline));
                }
                before = Some((high, deadline));
                ran += 1;
            }
            prop_assert_eq!(ran, waiting.len());
        }

        #[test]
        fn equal_requests_are_one_run_and_what_is_cancelled_never_runs(
            places in vec(0..6usize, 1..40),
            cancelled in vec(0..6usize, 0..6),
            while_running in 0..6usize,
        ) {
            let now = Instant::now();
            let mut queue = Queue::new([on_request(Kind::Build); 6], now);
            places.iter().for_each(|&place| queue.request(TaskId(place), now));
            cancelled.iter().for_each(|&place| queue.cancel(TaskId(place), now));
            let mut ran = Vec::new();
            while let Some(picked) = queue.pick(now, IDLE) {
                ran.push(picked.id.0);
                // Asked for twice more while it runs: that is one more run, unless it is cancelled.
                if ran.len() == 1 {
                    queue.request(picked.id, now);
                    queue.request(picked.id, now);
                    if picked.id.0 == while_running {
                        queue.cancel(picked.id, now);
                    }
                }
                queue.finish(picked.id, now, Duration::ZERO);
            }
            let mut wanted: Vec<usize> =
                (0..6).filter(|place| places.contains(place) && !cancelled.contains(place)).collect();
            if let Some(&first) = ran.first()
                && first != while_running
            {
                wanted.push(first);
            }
            ran.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(ran, wanted);
        }

        #[test]
        fn priorities_follow_the_machine_and_the_wait(
            (low, high) in (0.0..1.0f64, 0.0..1.0f64).prop_map(|(a, b)| (a.min(b), a.max(b))),
            other in 0.0..1.0f64,
            waits in (0..500u64, 0..500u64),
            place in 0..4usize,
        ) {
            let load = |load| Climate { load, pressure: other };
            let pressure = |pressure| Climate { load: other, pressure };
            prop_assert!(Kind::Refine.base(load(low)) >= Kind::Refine.base(load(high)));
            prop_assert!(Kind::Cleanup.base(load(low)) >= Kind::Cleanup.base(load(high)));
            prop_assert!(Kind::Cleanup.base(pressure(low)) <= Kind::Cleanup.base(pressure(high)));
            prop_assert_eq!(Kind::Build.base(load(low)), Kind::Build.base(load(high)));
            let (spec, start) = (on_request(KINDS[place]), Instant::now());
            let at = |wait| priority(&spec, start, start + seconds(wait), load(low));
            prop_assert!(at(waits.0.min(waits.1)) <= at(waits.0.max(waits.1)));
            prop_assert!((0.0..=HIGHEST).contains(&at(waits.0)));
        }
    }
}
