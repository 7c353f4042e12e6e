//! How much memory there is for this process.
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// What is assumed where the system does not say.
const UNKNOWN: u64 = 8 << 30;

/// Bytes of main memory that this process may count on: those of the machine or, where a control group
/// (of a container, a service, a batch system) allows it less, of that. 8 GiB where the system does not say,
/// as on other systems than Linux.
///
/// Read anew by each call, since a limit may change while the process runs.
pub fn total_memory() -> u64 {
    total(Path::new("/proc"))
}

fn total(proc: &Path) -> u64 {
    groups(proc).iter().flat_map(Group::limits).fold(machine(proc).unwrap_or(UNKNOWN), u64::min)
}

/// Bytes of main memory of the machine.
fn machine(proc: &Path) -> Option<u64> {
    let info = fs::read_to_string(proc.join("meminfo")).ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

/// The control group of this process in one hierarchy that accounts for memory.
struct Group {
    /// Where the hierarchy is mounted, and the folder of the group in it.
    mount: PathBuf,
    folder: PathBuf,
    /// Its files of limits.
    files: &'static [&'static str],
}

impl Group {
    /// The limits of the group and of those that it is in, in bytes. A limit that is none is a word, or a
    /// number beyond any memory.
    fn limits(&self) -> impl Iterator<Item = u64> + '_ {
        let folders = self.folder.ancestors().take_while(|folder| folder.starts_with(&self.mount));
        folders.flat_map(|folder| {
            self.files
                .iter()
                .filter_map(|file| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok())
        })
    }
}

/// The groups of this process: of version 2 and of version 1, which may be mounted at the same time
/// (`man 7 cgroups`). Above `memory.high` a process is slowed down, so that is a limit too.
fn groups(proc: &Path) -> Vec<Group> {
    let read = |name: &str| fs::read_to_string(proc.join("self").join(name)).unwrap_or_default();
    let (memberships, mounts) = (read("cgroup"), read("mountinfo"));
    let group = |line: &str| {
        // ID PARENT DEVICE ROOT MOUNT-POINT OPTIONS ... - TYPE SOURCE SUPER-OPTIONS
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount) = (mount.next()?, PathBuf::from(mount.next()?));
        let mut kind = kind.split(' ');
        let (controllers, files): (_, &[_]) = match kind.next()? {
            "cgroup2" => ("", &["memory.max", "memory.high"]),
            "cgroup" if kind.nth(1)?.split(',').any(|option| option == "memory") => {
                ("memory", &["memory.limit_in_bytes"])
            }
            _ => return None,
        };
        // HIERARCHY:CONTROLLERS:PATH
        let path = memberships.lines().find_map(|line| {
            let (of, path) = line.split_once(':')?.1.split_once(':')?;
            of.split(',').any(|of| of == controllers).then_some(path)
        })?;
        // A group outside of what is mounted is that of a container: what is mounted is the container's.
        let inside = Path::new(path).strip_prefix(root).ok();
        let is_plain = |path: &&Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        let folder = mount.join(inside.filter(is_plain).unwrap_or(Path::new("")));
        Some(Group { mount, folder, files })
    };
    mounts.lines().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Display;

    const GIB: u64 = 1 << 30;

    /// A machine with 16 GiB; `{}` in `mountinfo` stands for the folder that holds the hierarchies.
    fn machine_with(cgroup: &str, mountinfo: &str, limits: &[(&str, &dyn Display)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: String| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        1 kB\n".to_owned());
        write("proc/self/cgroup", cgroup.to_owned());
        write("proc/self/mountinfo", mountinfo.replace("{}", root.path().to_str().unwrap()));
        for (path, limit) in limits {
            write(path, format!("{limit}\n"));
        }
        total(&root.path().join("proc"))
    }

    const V2: &str =
        "25 1 0:22 / / rw - ext4 /dev/sda rw\n31 25 0:28 / {}/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_machine_without_groups_has_its_memory() {
        assert_eq!(machine_with("", "", &[]), 16 * GIB);
        assert_eq!(total(Path::new("/nonexistent")), UNKNOWN);
        assert!(total_memory() > 0);
    }

    #[test]
    fn the_least_limit_of_the_group_and_those_above_counts() {
        let limit = |own: &dyn Display, above: &dyn Display, high: &dyn Display| {
            let files = [
                ("cg/a/b/memory.max", own),
                ("cg/a/memory.max", above),
                ("cg/a/b/memory.high", high),
                ("memory.max", &1),
                ("cg/other/memory.max", &2),
            ];
            machine_with("0::/a/b\n", V2, &files)
        };
        assert_eq!(limit(&"max", &"max", &"max"), 16 * GIB);
        assert_eq!(limit(&(4 * GIB), &"max", &"max"), 4 * GIB);
        assert_eq!(limit(&(4 * GIB), &(2 * GIB), &"max"), 2 * GIB);
        assert_eq!(limit(&(4 * GIB), &(2 * GIB), &GIB), GIB);
        assert_eq!(limit(&(64 * GIB), &"max", &"max"), 16 * GIB);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_top() {
        let limits: [(&str, &dyn Display); 1] = [("cg/memory.max", &GIB)];
        assert_eq!(machine_with("0::/\n", V2, &limits), GIB);
        // Without a namespace of its own it is told where it is outside, or that it is above.
        assert_eq!(machine_with("0::/../../x\n", V2, &limits), GIB);
        let mounted = V2.replace(" / {}/cg", " /docker/1 {}/cg");
        assert_eq!(machine_with("0::/docker/1\n", &mounted, &limits), GIB);
        assert_eq!(machine_with("0::/elsewhere\n", &mounted, &limits), GIB);
    }

    #[test]
    fn version_1_counts_too() {
        let mounts = "32 31 0:29 / {}/cg/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / {}/cg/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / {}/cg/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let memberships = "4:memory:/job/7\n1:cpu,cpuacct:/x\n0::/\n";
        let none = 9_223_372_036_854_771_712u64;
        let limit = |own: u64, unified: &dyn Display| {
            let files: [(&str, &dyn Display); 4] = [
                ("cg/memory/job/7/memory.limit_in_bytes", &own),
                ("cg/memory/job/memory.limit_in_bytes", &none),
                ("cg/unified/memory.max", unified),
                ("cg/cpu/x/memory.limit_in_bytes", &1),
            ];
            machine_with(memberships, mounts, &files)
        };
        assert_eq!(limit(none, &"max"), 16 * GIB);
        assert_eq!(limit(2 * GIB, &"max"), 2 * GIB);
        assert_eq!(limit(2 * GIB, &GIB), GIB);
    }
}
