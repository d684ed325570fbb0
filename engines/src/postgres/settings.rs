//! Settings of the embedded PostgreSQL (performance page, P14).

use std::fmt::Write;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Taken for the memory of a machine that does not tell.
const MEMORY_UNKNOWN: u64 = 2 * GIB;

/// Settings for a machine with this much memory in bytes. fsync stays on: what the server acknowledges is durable.
pub fn defaults(memory: u64, lz4: bool) -> Vec<(String, String)> {
    let shared_buffers = (memory / 4).clamp(128 * MIB, 2 * GIB) / MIB;
    let pairs = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("unix_socket_directories", String::new()),
        ("max_connections", "200".to_owned()),
        ("shared_buffers", format!("{shared_buffers}MB")),
        ("max_wal_size", "4GB".to_owned()),
        ("checkpoint_timeout", "10min".to_owned()),
        ("wal_compression", if lz4 { "lz4" } else { "pglz" }.to_owned()),
        ("jit", "off".to_owned()),
        // What is asked for lies in memory or on an SSD: with the default of 4 a group of a hundred rows scans tables of 10,000.
        ("random_page_cost", "1.1".to_owned()),
        // Log files of its own, one per weekday, each overwritten a week later: bounded without anybody's help.
        ("logging_collector", "on".to_owned()),
        ("log_directory", "log".to_owned()),
        ("log_filename", "postgresql-%a.log".to_owned()),
        ("log_truncate_on_rotation", "on".to_owned()),
        ("log_rotation_age", "1d".to_owned()),
        ("log_rotation_size", "0".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The text of `kontorion.conf`; `extra` comes last and so wins.
pub(super) fn render(port: u16, lz4: bool, extra: &[(String, String)]) -> String {
    let mut text = String::from("# Written by kontorion at every start. Use ALTER SYSTEM for settings of your own.\n");
    let port = [("port".to_owned(), port.to_string())];
    for (name, value) in defaults(memory_bytes(), lz4).iter().chain(extra).chain(&port) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    }
    text
}

/// Memory that this process may use: the machine's, or the limit of its control group.
fn memory_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let group = crate::files::read_trimmed(std::path::Path::new("/sys/fs/cgroup/memory.max"))
        .and_then(|text| text.parse::<u64>().ok());
    machine.into_iter().chain(group).min().unwrap_or(MEMORY_UNKNOWN)
}

fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::{GIB, MIB, defaults, render, total_of};

    fn shared_buffers(memory: u64) -> String {
        let settings = defaults(memory, true);
        settings.into_iter().find(|(name, _)| name == "shared_buffers").unwrap().1
    }

    #[test]
    fn shared_buffers_are_a_quarter_of_memory_within_bounds() {
        assert_eq!(shared_buffers(4 * GIB), "1024MB");
        assert_eq!(shared_buffers(256 * GIB), "2048MB");
        assert_eq!(shared_buffers(64 * MIB), "128MB");
    }

    #[test]
    fn extra_settings_come_after_the_defaults_and_are_quoted() {
        let text = render(5433, false, &[("max_connections".to_owned(), "it's".to_owned())]);
        let default = text.find("max_connections = '200'").unwrap();
        let extra = text.find("max_connections = 'it''s'").unwrap();
        assert!(default < extra);
        assert!(text.ends_with("port = '5433'\n"));
        assert!(text.contains("wal_compression = 'pglz'"));
    }

    #[test]
    fn reads_the_memory_of_the_machine() {
        assert_eq!(total_of("MemTotal:       24689384 kB\nMemFree: 1 kB\n"), Some(24_689_384 * 1024));
        assert_eq!(total_of("nothing"), None);
    }
}
