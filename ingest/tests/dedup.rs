//! Guards promise 1, "counted once": what the deduplication index remembers, and what it must never forget.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant as Stopwatch;

use chrono::{TimeDelta, TimeZone, Utc};
use domain::{Instant, Position, UsageEventId};
use ingest::dedup::{DedupIndex, DedupOptions};
use ingest::usage::CountedId;
use proptest::prelude::*;
use uuid::Uuid;

fn id(number: u64) -> UsageEventId {
    UsageEventId(Uuid::new_v5(&Uuid::nil(), &number.to_le_bytes()))
}

fn counted(offset: u64, payload_hash: u64) -> CountedId {
    CountedId { position: Position::new(1, offset), payload_hash }
}

fn at(offset: u64) -> Position {
    Position::new(1, offset)
}

fn on_day(day: i64) -> Instant {
    Utc.timestamp_opt(1_800_000_000, 0).unwrap() + TimeDelta::days(day)
}

fn options() -> DedupOptions {
    DedupOptions { capacity: 1000, cache_bytes: 1 << 20, memtable_bytes: 1 << 20, ..DedupOptions::default() }
}

fn open(dir: &Path) -> DedupIndex {
    DedupIndex::open(dir, options(), on_day(0)).unwrap()
}

#[test]
fn ids_are_answered_in_the_order_asked() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    assert_eq!(index.high_water(), None);
    assert_eq!(index.lookup(&[id(1)]).unwrap(), [None]);
    index.insert(&[(id(2), counted(5, 50)), (id(1), counted(4, 40))], at(5), on_day(0)).unwrap();
    let asked = [id(3), id(2), id(1), id(2)];
    assert_eq!(index.lookup(&asked).unwrap(), [None, Some(counted(5, 50)), Some(counted(4, 40)), Some(counted(5, 50))]);
    assert_eq!(index.approximate_len(), 2);
}

/// Else: a replayed record meets its own id with a later position, and is a duplicate of itself.
#[test]
fn b2_an_id_keeps_its_smallest_position() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.insert(&[(id(1), counted(9, 1)), (id(1), counted(7, 2)), (id(1), counted(8, 3))], at(9), on_day(0)).unwrap();
    assert_eq!(index.lookup(&[id(1)]).unwrap(), [Some(counted(7, 2))]);
    index.insert(&[(id(1), counted(8, 4))], at(9), on_day(0)).unwrap();
    assert_eq!(index.lookup(&[id(1)]).unwrap(), [Some(counted(7, 2))]);
    index.insert(&[(id(1), counted(3, 5))], at(9), on_day(0)).unwrap();
    assert_eq!(index.lookup(&[id(1)]).unwrap(), [Some(counted(3, 5))]);
    // In another bucket than before: a smaller one wins, a larger one loses.
    index.insert(&[(id(1), counted(6, 6))], at(9), on_day(20)).unwrap();
    assert_eq!(index.lookup(&[id(1)]).unwrap(), [Some(counted(3, 5))]);
    index.insert(&[(id(1), counted(2, 7))], at(9), on_day(20)).unwrap();
    assert_eq!(index.lookup(&[id(1)]).unwrap(), [Some(counted(2, 7))]);
}

#[test]
fn b3_the_high_water_position_never_goes_back_and_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.insert(&[(id(1), counted(4, 0))], at(4), on_day(0)).unwrap();
    index.insert(&[], at(9), on_day(0)).unwrap();
    index.insert(&[(id(2), counted(6, 0))], at(6), on_day(0)).unwrap();
    assert_eq!(index.high_water(), Some(at(9)));
    drop(index);
    let index = open(dir.path());
    assert_eq!(index.high_water(), Some(at(9)));
    assert_eq!(index.lookup(&[id(1), id(2)]).unwrap(), [Some(counted(4, 0)), Some(counted(6, 0))]);
}

/// Else: day 41 counts twice, or the disk grows for ever.
#[test]
fn b4_what_is_younger_than_the_horizon_is_kept_and_the_rest_goes_whole() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    for day in 0..120 {
        let entry = (id(day), counted(day, day));
        index.insert(&[entry], at(day), on_day(day.cast_signed())).unwrap();
        index.forget(on_day(day.cast_signed())).unwrap();
        let young: Vec<UsageEventId> = (day.saturating_sub(40)..=day).map(id).collect();
        assert!(index.lookup(&young).unwrap().iter().all(Option::is_some), "on day {day}");
    }
    assert_eq!(index.lookup(&[id(0), id(50)]).unwrap(), [None, None]);
    assert!(index.approximate_len() <= 40 + 1 + 8 + 1, "{} ids", index.approximate_len());
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    assert!(files() < 10, "{} files", files());
    drop(index);
    let index = DedupIndex::open(dir.path(), options(), on_day(400)).unwrap();
    assert_eq!((index.lookup(&[id(119)]).unwrap(), index.approximate_len()), (vec![None], 0));
    assert_eq!(index.high_water(), Some(at(119)));
}

#[test]
fn filters_grow_beyond_the_capacity_that_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    for batch in 0..100 {
        let entries: Vec<_> = (batch * 500..(batch + 1) * 500).map(|number| (id(number), counted(number, 0))).collect();
        index.insert(&entries, at(batch * 500 + 499), on_day(0)).unwrap();
    }
    drop(index);
    let index = open(dir.path());
    assert!(!index.is_filling());
    let all: Vec<UsageEventId> = (0..50_000).map(id).collect();
    let found = index.lookup(&all).unwrap();
    assert!(found.iter().enumerate().all(|(number, found)| *found == Some(counted(number as u64, 0))));
    let absent: Vec<UsageEventId> = (50_000..60_000).map(id).collect();
    assert!(index.lookup(&absent).unwrap().iter().all(Option::is_none));
    assert_eq!(index.approximate_len(), 50_000);
    assert!(index.memory() > 75_000);
}

fn filters(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "filter")).collect()
}

/// Pages of the map that had not been written when the power failed. Else: ids without bits look new and are counted twice.
#[test]
fn a_filter_is_not_believed_after_a_power_loss() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let entries: Vec<_> = (0..20_000).map(|number| (id(number), counted(number, 1))).collect();
    index.insert(&entries, at(19_999), on_day(0)).unwrap();
    drop(index);
    for path in filters(dir.path()) {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        // Word 2 of the header names the boot, word 3 the state "in use".
        file.write_all_at(&[7; 8], 16).unwrap();
        file.write_all_at(&1_u64.to_le_bytes(), 24).unwrap();
        file.write_all_at(&vec![0; file.metadata().unwrap().len() as usize - 4096], 4096).unwrap();
    }
    let index = open(dir.path());
    let all: Vec<UsageEventId> = (0..20_000).map(id).collect();
    // While the filter is filled, and after, and for what comes meanwhile.
    index.insert(&[(id(90_000), counted(90_000, 2))], at(90_000), on_day(0)).unwrap();
    loop {
        let was_filling = index.is_filling();
        assert!(index.lookup(&all).unwrap().iter().all(Option::is_some));
        assert_eq!(index.lookup(&[id(90_000), id(90_001)]).unwrap(), [Some(counted(90_000, 2)), None]);
        if !was_filling {
            break;
        }
    }
    drop(index);
    assert!(!open(dir.path()).is_filling());
}

#[test]
#[ignore = "the child of another test"]
fn child_inserts_until_it_is_killed() {
    let dir = PathBuf::from(std::env::var_os("KONTORION_TEST_INDEX").expect("a directory"));
    let index = open(&dir);
    let first = index.high_water().map_or(0, |position| position.offset() + 1);
    for batch in 0.. {
        let range = first + batch * 10..first + (batch + 1) * 10;
        let entries: Vec<_> = range.clone().map(|number| (id(number), counted(number, number))).collect();
        index.insert(&entries, at(range.end - 1), on_day(0)).unwrap();
        println!("inserted {}", range.end - 1);
    }
}

/// Else: the high-water position promises ids that are not there, and their retries are counted again.
#[test]
fn b3_ids_and_high_water_survive_sigkill_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = 0;
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "child_inserts_until_it_is_killed"])
            .env("KONTORION_TEST_INDEX", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines.filter_map(|line| line.strip_prefix("inserted ")?.parse::<u64>().ok()).take(300) {
            said = line;
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let index = open(dir.path());
        assert!(!index.is_filling(), "the filter survives a killed process");
        let high_water = index.high_water().unwrap().offset();
        assert!(high_water >= said);
        let all: Vec<UsageEventId> = (0..=high_water + 20).map(id).collect();
        let found = index.lookup(&all).unwrap();
        let (known, unknown) = found.split_at(high_water as usize + 1);
        assert!(known.iter().all(Option::is_some) && unknown.iter().all(Option::is_none));
    }
    assert!(said >= 8990);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<(u64, u64, u64)>),
    NextDay,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec((0..60_u64, 0..1000_u64, 0..3_u64), 1..20).prop_map(Step::Insert),
        2 => Just(Step::NextDay),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn knows_what_a_map_knows(steps in proptest::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Some(open(dir.path()));
        let mut model: HashMap<u64, CountedId> = HashMap::new();
        let (mut today, mut high_water) = (0, None);
        for step in steps {
            match step {
                Step::Insert(entries) => {
                    let batch: Vec<_> = entries.iter().map(|(n, offset, _)| (id(*n), counted(*offset, *offset))).collect();
                    let reached = at(entries.iter().map(|(_, offset, _)| *offset).max().unwrap());
                    index.as_ref().unwrap().insert(&batch, reached, on_day(today)).unwrap();
                    high_water = high_water.max(Some(reached));
                    for (n, offset, _) in entries {
                        let known = model.entry(n).or_insert(counted(offset, offset));
                        if offset < known.position.offset() {
                            *known = counted(offset, offset);
                        }
                    }
                }
                // Within the horizon: a map forgets nothing.
                Step::NextDay => today = (today + 3).min(39),
                Step::Reopen => {
                    drop(index.take());
                    index = Some(DedupIndex::open(dir.path(), options(), on_day(today)).unwrap());
                }
            }
            let index = index.as_ref().unwrap();
            let all: Vec<UsageEventId> = (0..60).map(id).collect();
            let expected: Vec<Option<CountedId>> = (0..60).map(|n| model.get(&n).copied()).collect();
            prop_assert_eq!(index.lookup(&all).unwrap(), expected);
            prop_assert_eq!(index.high_water(), high_water);
        }
    }
}

/// CPU time of this process so far, in microseconds: what a busy machine does not blur.
fn core_micros() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure that it is given.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// `cargo test --release -p ingest --test dedup -- --ignored --nocapture throughput`; KONTORION_IDS sets how many.
#[test]
#[ignore = "measures"]
fn throughput() {
    let ids: u64 = std::env::var("KONTORION_IDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000_000);
    let dir = tempfile::tempdir().unwrap();
    let sizes = DedupOptions { capacity: ids * 5, memtable_bytes: 16 << 20, ..DedupOptions::default() };
    let index = DedupIndex::open(dir.path(), sizes, on_day(0)).unwrap();
    let (mut part, mut cpu) = (Stopwatch::now(), core_micros());
    for (batch, start) in (0..ids).step_by(2000).enumerate() {
        let batch_ids: Vec<UsageEventId> = (start..start + 2000).map(id).collect();
        let found = index.lookup(&batch_ids).unwrap();
        assert!(found.iter().all(Option::is_none));
        let entries: Vec<_> = batch_ids.into_iter().zip(start..).map(|(id, n)| (id, counted(n, n))).collect();
        index.insert(&entries, at(start + 1999), on_day(0)).unwrap();
        if batch % 250 == 249 {
            let micros = part.elapsed().as_micros() as f64 / 500_000.0;
            let (memory, core) = (index.memory() >> 20, (core_micros() - cpu) / 500_000.0);
            println!("{} ids: {micros:.2} µs and {core:.2} core-µs per new id, {memory} MB of memory", start + 2000);
            (part, cpu) = (Stopwatch::now(), core_micros());
        }
    }
}
