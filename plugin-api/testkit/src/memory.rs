use crate::{Checked, Outcome, Settings, ensure};
use std::{
    fs,
    time::{Duration, Instant},
};

/// What may come and go between two looks: pages of the allocator, buffers that are kept.
const SLACK: u64 = 2 << 20;
/// How often each of the three stretches repeats the work, where there is time for it.
const ROUNDS: usize = 200;
const STRETCH: Duration = Duration::from_secs(3);

/// That work, repeated, does not take more and more memory: a first stretch fills caches, then two of the
/// same length must not both end higher than they began.
pub(crate) fn stays(settings: Settings, mut round: impl FnMut() -> Checked) -> Checked {
    if !settings.alone {
        return Err(Outcome::Skipped("it takes a process of its own; see `magray plugin check`".into()));
    }
    let Some(mut before) = resident() else {
        return Err(Outcome::Skipped("this system does not say how much memory a process has".into()));
    };
    let (began, mut rounds) = (Instant::now(), 0);
    while rounds < ROUNDS && began.elapsed() < STRETCH {
        round()?;
        rounds += 1;
    }
    let mut growth = Vec::new();
    for _ in 0..3 {
        let now = resident().unwrap_or(before);
        growth.push(now.saturating_sub(before));
        before = now;
        if growth.len() < 3 {
            (0..rounds).try_for_each(|_| round())?;
        }
    }
    let least = growth[1..].iter().min().copied().unwrap_or_default();
    ensure!(least <= SLACK, "{rounds} rounds of the same work take {} KiB more each time", least / 1024);
    Ok(())
}

/// Bytes of main memory of this process that no file stands behind.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
