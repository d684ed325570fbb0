//! CPU time of process trees and memory of a process, from /proc: the judge of cost is all processes together.

use std::collections::HashMap;
use std::path::Path;

/// CPU time of a few groups of processes.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Seconds, by the name of the group.
    pub seconds: Vec<(&'static str, f64)>,
}

/// A process tree to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// As printed.
    pub name: &'static str,
    /// Its root.
    pub pid: i32,
}

/// One process.
struct Stat {
    parent: i32,
    ticks: u64,
}

/// The CPU time that each group has used since its processes began, children that have ended included.
#[must_use]
pub fn sample(groups: &[Group]) -> Sample {
    let processes = processes();
    // Linux fixes this to 100 on every architecture it presents to programs.
    let ticks_per_second = 100.0;
    let mut ticks = vec![0_u64; groups.len()];
    for (pid, stat) in &processes {
        if let Some(owner) = owner(&processes, *pid, groups) {
            ticks[owner] += stat.ticks;
        }
    }
    let seconds = |(group, ticks): (&Group, u64)| (group.name, ticks as f64 / ticks_per_second);
    Sample { seconds: groups.iter().zip(ticks).map(seconds).collect() }
}

fn processes() -> HashMap<i32, Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Own time and that of children that were waited for (proc(5): fields 4 and 14 to 17).
fn parse(stat: &str) -> Option<Stat> {
    // The name in parentheses may hold anything, also parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks: number(14)? + number(15)? + number(16)? + number(17)? })
}

/// The group whose root is met first on the way up: a tree inside another one counts for itself only.
fn owner(processes: &HashMap<i32, Stat>, mut pid: i32, groups: &[Group]) -> Option<usize> {
    // Deep enough for every real tree, and an end for a table that changed while it was read.
    for _ in 0..64 {
        if let Some(index) = groups.iter().position(|group| group.pid == pid) {
            return Some(index);
        }
        pid = processes.get(&pid)?.parent;
    }
    None
}

/// The embedded PostgreSQL of a data directory: it runs in a session of its own, so it is nobody's child.
#[must_use]
pub fn postmaster(data_dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join("postgres/cluster/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// The most memory that a process has had resident, in MiB.
#[must_use]
pub fn peak_memory(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

impl Sample {
    /// Seconds used since an earlier sample, by group.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<(&'static str, f64)> {
        self.seconds
            .iter()
            .zip(&before.seconds)
            .map(|((name, now), (_, then))| (*name, (now - then).max(0.0)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_read() {
        let stat = parse("42 (a) b) c) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5 6").unwrap();
        assert_eq!((stat.parent, stat.ticks), (7, 100));
    }

    #[test]
    fn a_tree_inside_another_counts_for_itself() {
        let processes: HashMap<i32, Stat> =
            [(1, 0), (10, 1), (11, 10), (12, 11)].map(|(pid, parent)| (pid, Stat { parent, ticks: 0 })).into();
        let groups = [Group { name: "outer", pid: 10 }, Group { name: "inner", pid: 11 }];
        assert_eq!(owner(&processes, 10, &groups), Some(0));
        assert_eq!(owner(&processes, 12, &groups), Some(1));
        assert_eq!(owner(&processes, 1, &groups), None);
    }

    #[test]
    fn the_own_work_is_seen() {
        let me = Group { name: "me", pid: nix::unistd::getpid().as_raw() };
        let before = sample(&[me]);
        let start = std::time::Instant::now();
        let mut x = 1_u64;
        while start.elapsed().as_millis() < 100 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let used = sample(&[me]).since(&before)[0].1;
        assert!((0.02..10.0).contains(&used), "{used}");
        assert!(peak_memory(me.pid).unwrap() > 0);
    }
}
