//! How much memory there is, and how much of it is taken: of the machine, of every control group around this process
//! (version 2, else 1), and of the process's own limits.
//!
//! What counts as taken is what the system cannot take back by itself: pages of mapped index files are in its cache
//! and go when they are needed elsewhere, so they are left out.
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// What is assumed where the system does not say.
const UNKNOWN: u64 = 8 << 30;

/// Bytes of memory that this process may count on: the least bound of the machine, of its control groups and of its own
/// limits, as they are when it is first asked for.
pub fn total_memory() -> u64 {
    static TOTAL: LazyLock<u64> = LazyLock::new(|| Pressure::sample().total());
    *TOTAL
}

/// A bound on memory, and how near it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// `machine`, `cgroup PATH`, `data size` or `address space`.
    pub name: String,
    /// Bytes that there are.
    pub total: u64,
    /// Bytes of them that are taken and that the system cannot take back.
    pub used: u64,
}

impl Limit {
    /// The share that is taken, 0 to 100 and beyond.
    pub fn percent(&self) -> f64 {
        100.0 * self.used as f64 / self.total.max(1) as f64
    }
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// All that is in memory.
    pub resident: u64,
    /// Of that, what it allocated.
    pub anonymous: u64,
    /// Of that, pages of mapped files, which the system may drop at any time.
    pub file: u64,
}

/// How memory is at a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Every bound that there is; none where the system does not say.
    pub limits: Vec<Limit>,
    /// Share of the last ten seconds in which something waited for memory, in percent ("some avg10" of the kernel's
    /// pressure stall information); none where the kernel does not measure it.
    pub stalled: Option<f64>,
    /// This process.
    pub process: ProcessMemory,
}

impl Pressure {
    /// How it is now. Reads some small files, in less than a millisecond.
    pub fn sample() -> Self {
        Self::read(Path::new("/proc"))
    }

    /// The bound of which most is taken.
    pub fn tightest(&self) -> Option<&Limit> {
        self.limits.iter().max_by(|a, b| a.percent().total_cmp(&b.percent()))
    }

    /// Bytes of the smallest bound; 8 GiB where the system does not say, as on other systems than Linux.
    pub fn total(&self) -> u64 {
        self.limits.iter().map(|limit| limit.total).min().unwrap_or(UNKNOWN)
    }

    fn read(proc: &Path) -> Self {
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
        };
        let (machine, own) = (text(&proc.join("meminfo")), text(&proc.join("self/status")));
        let of = |name| field(&own, name).unwrap_or(0);
        let process = ProcessMemory { resident: of("VmRSS"), anonymous: of("RssAnon"), file: of("RssFile") };
        let total = field(&machine, "MemTotal");
        let mut limits = Vec::new();
        if let (Some(total), Some(available)) = (total, field(&machine, "MemAvailable")) {
            limits.push(Limit { name: "machine".into(), total, used: total.saturating_sub(available) });
        }
        let groups = Groups::find(proc);
        limits.extend(groups.limits());
        let limits_of = text(&proc.join("self/limits"));
        for (line, name, used) in [
            ("Max data size", "data size", of("VmData")),
            ("Max address space", "address space", of("VmSize")),
        ] {
            let soft = limits_of.lines().find_map(|text| text.strip_prefix(line)?.split_whitespace().next());
            if let Some(total) = soft.and_then(|soft| soft.parse().ok()) {
                limits.push(Limit { name: name.into(), total, used });
            }
        }
        // A bound beyond what the machine has bounds nothing; version 1 says "none" by a huge number.
        limits.retain(|limit| limit.name == "machine" || limit.total < total.unwrap_or(1 << 62));
        let stalled = groups.stalled().or_else(|| stalled(&proc.join("pressure/memory")));
        Self { limits, stalled, process }
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// "some avg10" of a file of pressure stall information.
fn stalled(path: &Path) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// The control groups around this process.
#[derive(Debug, Default)]
struct Groups {
    /// Folders of version 2 and of version 1, the innermost first, each with its name.
    v2: Vec<(String, PathBuf)>,
    v1: Vec<(String, PathBuf)>,
}

impl Groups {
    fn find(proc: &Path) -> Self {
        let (mounts, own) = (text(&proc.join("self/mountinfo")), text(&proc.join("self/cgroup")));
        let path_of = |is_it: &dyn Fn(&str, &str) -> bool| {
            own.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':');
                let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
                is_it(number, controllers).then_some(path)
            })
        };
        let mut groups = Self::default();
        for line in mounts.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            let (place, kind): (Vec<&str>, Vec<&str>) =
                (place.split(' ').collect(), kind.split(' ').collect());
            let (&[_, _, _, root, mount, ..], &[kind, _, options, ..]) = (&place[..], &kind[..]) else {
                continue;
            };
            match kind {
                "cgroup2" => {
                    let path = path_of(&|number, controllers| number == "0" && controllers.is_empty());
                    groups.v2 = folders(mount, root, path.unwrap_or("/"));
                }
                "cgroup" if options.split(',').any(|option| option == "memory") => {
                    let path = path_of(&|_, controllers| controllers.split(',').any(|name| name == "memory"));
                    groups.v1 = folders(mount, root, path.unwrap_or("/"));
                }
                _ => {}
            }
        }
        groups
    }

    fn limits(&self) -> impl Iterator<Item = Limit> {
        let number = |path: PathBuf| text(&path).trim().parse::<u64>().ok();
        let stat = |folder: &Path, names: &[&str]| {
            let text = text(&folder.join("memory.stat"));
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
                line.trim().parse::<u64>().ok()
            };
            names.iter().filter_map(|name| value(name)).sum::<u64>()
        };
        let v2 = self.v2.iter().filter_map(move |(name, folder)| {
            let bounds = [number(folder.join("memory.max")), number(folder.join("memory.high"))];
            let total = bounds.into_iter().flatten().min()?;
            let taken = number(folder.join("memory.current"))?;
            let cached = stat(folder, &["active_file", "inactive_file", "slab_reclaimable"]);
            Some(Limit { name: format!("cgroup {name}"), total, used: taken.saturating_sub(cached) })
        });
        let v1 = self.v1.iter().filter_map(move |(name, folder)| {
            let total = number(folder.join("memory.limit_in_bytes"))?;
            let taken = number(folder.join("memory.usage_in_bytes"))?;
            let cached = stat(folder, &["total_active_file", "total_inactive_file"]);
            Some(Limit { name: format!("cgroup {name}"), total, used: taken.saturating_sub(cached) })
        });
        v2.chain(v1)
    }

    fn stalled(&self) -> Option<f64> {
        self.v2.iter().find_map(|(_, folder)| stalled(&folder.join("memory.pressure")))
    }
}

/// The folder of the group at `path`, and those around it, of a hierarchy whose `root` is mounted at `mount`.
fn folders(mount: &str, root: &str, path: &str) -> Vec<(String, PathBuf)> {
    let mount = PathBuf::from(mount.replace("\\040", " "));
    // A group that lies outside of what is mounted here, as in some containers, is seen as the mount itself.
    let inner = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let inner = if inner.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { inner };
    inner.ancestors().map(|part| (format!("/{}", part.display()), mount.join(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine as its files say it is.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.file("proc/meminfo", "MemTotal:  1048576 kB\nMemFree: 1 kB\nMemAvailable: 786432 kB\n");
            machine.file(
                "proc/self/status",
                "Name:\tx\nVmSize:\t900 kB\nVmData:\t500 kB\nVmRSS:\t300 kB\nRssAnon:\t100 kB\nRssFile:\t200 kB\n",
            );
            machine
        }

        fn file(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn mount(&self, kind: &str, root: &str, options: &str) {
            let mount = self.0.path().join("groups");
            let line = format!("31 23 0:28 {root} {} rw,relatime - {kind} x rw,{options}\n", mount.display());
            self.file("proc/self/mountinfo", &line);
        }

        fn read(&self) -> Pressure {
            Pressure::read(&self.0.path().join("proc"))
        }
    }

    fn limit(name: &str, total: u64, used: u64) -> Limit {
        Limit { name: name.into(), total, used }
    }

    #[test]
    fn a_machine_without_groups_is_its_memory() {
        let machine = Machine::new();
        machine.file("proc/pressure/memory", "some avg10=1.50 avg60=0 total=9\nfull avg10=0.50 total=1\n");
        let pressure = machine.read();
        assert_eq!(pressure.limits, [limit("machine", 1024 * MIB, 256 * MIB)]);
        assert_eq!(pressure.stalled, Some(1.5));
        let process = ProcessMemory { resident: 300 << 10, anonymous: 100 << 10, file: 200 << 10 };
        assert_eq!((pressure.process, pressure.total()), (process, 1024 * MIB));
    }

    #[test]
    fn every_group_around_counts_and_cached_files_do_not() {
        let machine = Machine::new();
        machine.mount("cgroup2", "/", "nsdelegate");
        machine.file("proc/self/cgroup", "0::/outer/inner\n");
        machine.file("groups/memory.pressure", "some avg10=9.00 total=9\n");
        for (group, most, high, current) in
            [("outer/inner", "max", "max", 1), ("outer", "536870912", "max", 300 * MIB)]
        {
            machine.file(&format!("groups/{group}/memory.max"), most);
            machine.file(&format!("groups/{group}/memory.high"), high);
            machine.file(&format!("groups/{group}/memory.current"), &current.to_string());
        }
        let stat = format!("anon 7\nfile {}\ninactive_file {}\nactive_file {MIB}\n", 9 * MIB, 99 * MIB);
        machine.file("groups/outer/memory.stat", &stat);
        let expected =
            [limit("machine", 1024 * MIB, 256 * MIB), limit("cgroup /outer", 512 * MIB, 200 * MIB)];
        let pressure = machine.read();
        assert_eq!((&pressure.limits[..], pressure.stalled), (&expected[..], Some(9.0)));
        assert_eq!(pressure.tightest(), Some(&expected[1]));
        // What is throttled from 256 MiB on has no more than that.
        machine.file("groups/outer/inner/memory.high", "268435456\n");
        assert_eq!(machine.read().total(), 256 * MIB);
    }

    #[test]
    fn version_1_is_understood_and_its_way_to_say_none() {
        let machine = Machine::new();
        machine.mount("cgroup", "/", "memory");
        machine.file("proc/self/cgroup", "4:cpu:/\n3:memory:/a\n0::/\n");
        machine.file("groups/memory.limit_in_bytes", "9223372036854771712\n");
        machine.file("groups/memory.usage_in_bytes", "1\n");
        machine.file("groups/a/memory.limit_in_bytes", "104857600\n");
        machine.file("groups/a/memory.usage_in_bytes", "52428800\n");
        machine.file("groups/a/memory.stat", "cache 9\ntotal_inactive_file 10485760\n");
        assert_eq!(machine.read().limits[1..], [limit("cgroup /a", 100 * MIB, 40 * MIB)]);
    }

    #[test]
    fn a_group_seen_from_inside_a_container_is_its_mount() {
        for (root, path) in [("/docker/1", "/docker/1"), ("/", "/../.."), ("/docker/1", "/")] {
            let machine = Machine::new();
            machine.mount("cgroup2", root, "x");
            machine.file("proc/self/cgroup", &format!("0::{path}\n"));
            machine.file("groups/memory.max", "104857600");
            machine.file("groups/memory.current", "1048576");
            assert_eq!(machine.read().limits[1..], [limit("cgroup /", 100 * MIB, MIB)], "{root} {path}");
        }
    }

    #[test]
    fn limits_of_the_process_count() {
        let machine = Machine::new();
        machine.file(
            "proc/self/limits",
            "Limit  Soft Limit  Hard Limit  Units\nMax data size  1048576  unlimited  bytes\n\
             Max address space  unlimited  unlimited  bytes\n",
        );
        assert_eq!(machine.read().limits[1..], [limit("data size", MIB, 500 << 10)]);
    }

    #[test]
    fn files_that_are_missing_or_odd_bound_nothing() {
        let machine = Machine::new();
        machine.file("proc/meminfo", "MemTotal: much\n");
        machine.file("proc/self/cgroup", "nonsense\n0::/x\n");
        machine.file("proc/self/mountinfo", "1 2 - cgroup2\n3 - \n\n");
        let pressure = machine.read();
        assert_eq!((pressure.tightest(), pressure.total(), pressure.stalled), (None, UNKNOWN, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_says_how_it_is() {
        let pressure = Pressure::sample();
        assert!(pressure.process.anonymous > 0 && pressure.process.resident >= pressure.process.anonymous);
        let tightest = pressure.tightest().unwrap();
        assert!((0.0..=110.0).contains(&tightest.percent()), "{tightest:?}");
    }
}
