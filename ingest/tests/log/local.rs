//! The local log: what survives a killed process, a torn tail, a full disk.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::{EventLog, LogError, LogIdentity};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Harness, PARTITIONS, append_one, record, take, text};

pub struct LocalHarness {
    dir: TempDir,
}

impl LocalHarness {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Harness for LocalHarness {
    async fn open(&self) -> Arc<dyn EventLog> {
        Arc::new(open(self.dir.path(), small()).unwrap())
    }
}

/// Segments so short that the suite fills several, and a memory so small that readers go to the files.
fn small() -> LocalLogOptions {
    LocalLogOptions { segment_bytes: 64 << 10, tail_bytes: 300, ..LocalLogOptions::default() }
}

fn open(dir: &Path, options: LocalLogOptions) -> Result<LocalLog, LogError> {
    let id = LocalLog::prepare(dir, PARTITIONS)?;
    LocalLog::open(dir, LogIdentity { id, ordinal: 1, partitions: PARTITIONS }, options)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    segments
}

async fn read_all(log: &dyn EventLog, partition: u32) -> Vec<String> {
    let end = log.end(partition).await.unwrap();
    let mut reader = log.reader(partition, 0).await.unwrap();
    let records = take(&mut *reader, end as usize).await;
    assert!(records.iter().enumerate().all(|(index, found)| found.offset == index as u64));
    records.iter().map(text).collect()
}

#[tokio::test]
async fn a1_a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).unwrap();
    let refused = open(dir.path(), small()).err().unwrap().to_string();
    assert!(refused.contains("is open in another process"), "{refused}");
    log.close().await;
    open(dir.path(), small()).unwrap();
}

#[tokio::test]
async fn a5_another_number_of_partitions_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let id = LocalLog::prepare(dir.path(), PARTITIONS).unwrap();
    assert_eq!(LocalLog::prepare(dir.path(), PARTITIONS).unwrap(), id);
    let refused = LocalLog::prepare(dir.path(), PARTITIONS + 1).err().unwrap().to_string();
    assert!(refused.contains("was made with 3 partitions and is now to have 4"), "{refused}");
    let identity = LogIdentity { id: Uuid::nil(), ordinal: 1, partitions: 1 };
    assert!(LocalLog::open(dir.path(), identity, small()).is_err());
}

#[tokio::test]
async fn records_larger_than_a_chunk_and_empty_ones_go_through_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).unwrap();
    let sizes = [0, 1, 40_000, 7, 55_000, 0, 30_000];
    for size in sizes {
        append_one(&log, 2, &"x".repeat(size)).await;
    }
    let too_large = log.append(vec![record(2, &"x".repeat(70_000))]).await;
    assert!(matches!(too_large[0], Err(LogError::Unusable(_))));
    assert!(segments(dir.path()).len() >= 3);
    log.close().await;
    let log = open(dir.path(), small()).unwrap();
    let lengths: Vec<usize> = read_all(&log, 2).await.iter().map(String::len).collect();
    assert_eq!(lengths, sizes);
}

/// A power loss in the middle of a group leaves any part of it; the group was never acknowledged.
#[tokio::test]
async fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).unwrap();
    append_one(&log, 0, "acknowledged").await;
    log.close().await;
    let path = segments(dir.path()).pop().unwrap();
    let before = std::fs::read(&path).unwrap();
    let log = open(dir.path(), small()).unwrap();
    let batch = vec![record(0, "torn 0"), record(1, "torn 1"), record(0, "torn 2")];
    assert!(log.append(batch).await.iter().all(Result::is_ok));
    log.close().await;
    let after = std::fs::read(&path).unwrap();

    let changed: Vec<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).collect();
    for cut in changed.iter().step_by(3) {
        let mut torn = after.clone();
        torn[*cut] = before[*cut];
        std::fs::write(&path, &torn).unwrap();
        let log = open(dir.path(), small()).unwrap();
        let found = read_all(&log, 0).await;
        assert_eq!(found[0], "acknowledged", "torn at {cut}");
        // What is appended next stands alone: no good chunk of the torn group comes back behind it.
        let next = append_one(&log, 0, "next").await;
        let ends = (log.end(0).await.unwrap(), log.end(1).await.unwrap());
        log.close().await;
        let log = open(dir.path(), small()).unwrap();
        assert_eq!((log.end(0).await.unwrap(), log.end(1).await.unwrap()), ends, "torn at {cut}");
        assert_eq!(read_all(&log, 0).await[next as usize], "next");
        log.close().await;
    }
}

#[tokio::test]
async fn damage_to_acknowledged_records_is_an_error_and_no_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).unwrap();
    for number in 0..3 {
        append_one(&log, 0, &format!("acknowledged {number}")).await;
    }
    log.close().await;
    let path = segments(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(14).position(|window| window == b"acknowledged 0").unwrap();
    bytes[at] ^= 0xff;
    std::fs::write(&path, &bytes).unwrap();
    let refused = open(dir.path(), small()).err().unwrap().to_string();
    assert!(refused.contains("damaged"), "{refused}");
}

#[tokio::test]
async fn a_missing_segment_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).unwrap();
    for _ in 0..6 {
        append_one(&log, 0, &"x".repeat(40_000)).await;
    }
    log.close().await;
    std::fs::remove_file(&segments(dir.path())[2]).unwrap();
    let refused = open(dir.path(), small()).err().unwrap().to_string();
    assert!(refused.contains("missing"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_appends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path(), LocalLogOptions { queued_records_max: 10, ..small() }).unwrap());
    let batches = (0..200).map(|number| {
        let log = log.clone();
        tokio::spawn(async move { log.append((0..5).map(|_| record(0, &number.to_string())).collect()).await })
    });
    let (mut appended, mut refused) = (0, 0);
    for outcomes in join_all(batches).await {
        let outcomes = outcomes.unwrap();
        match &outcomes[0] {
            Ok(_) => appended += outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            Err(LogError::Full) => refused += outcomes.iter().filter(|o| matches!(o, Err(LogError::Full))).count(),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(appended + refused, 1000, "a batch is appended or refused whole");
    assert!(refused > 0);
    assert_eq!(log.end(0).await.unwrap(), appended as u64);
}

#[tokio::test]
async fn a6_old_segments_go_only_when_every_partition_has_passed_them() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), LocalLogOptions { retention: Duration::ZERO, ..small() }).unwrap();
    append_one(&log, 1, "of another partition").await;
    for _ in 0..8 {
        append_one(&log, 0, &"x".repeat(40_000)).await;
    }
    log.passed(0, 8).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let all = segments(dir.path()).len();
    assert!(log.reader(0, 0).await.is_ok(), "partition 1 has not passed the first segment");
    log.passed(1, 1).await;
    log.passed(2, 0).await;
    while segments(dir.path()).len() > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(all > 3);
    assert!(matches!(log.reader(0, 0).await.err(), Some(LogError::OutOfRange { first: 7, end: 8, .. })));
    log.close().await;
    let log = open(dir.path(), small()).unwrap();
    assert_eq!((log.end(0).await.unwrap(), log.end(1).await.unwrap()), (8, 1));
}

/// Runs in a child process: appends and says what was acknowledged, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of other tests"]
async fn child_appends_until_it_is_killed() {
    let dir = PathBuf::from(std::env::var_os("KONTORION_TEST_LOG").expect("a directory"));
    let log = Arc::new(open(&dir, small()).unwrap());
    if let Ok(limit) = std::env::var("KONTORION_TEST_FILE_LIMIT") {
        // The first segment is there, of its full length.
        append_one(&*log, 0, "before").await;
        limit_files(limit.parse().unwrap());
    }
    let appenders = (0..4).map(|appender| {
        let log = log.clone();
        tokio::spawn(async move {
            for number in 0..u64::MAX {
                let text = format!("{appender}.{number}.{}", "x".repeat(200));
                let partition = (number % u64::from(PARTITIONS)) as u32;
                let offset = append_one(&*log, partition, &text).await;
                println!("acknowledged {partition} {offset} {text}");
            }
        })
    });
    join_all(appenders).await;
}

/// Writes behind `bytes` of any file fail from now on, as on a broken disk.
fn limit_files(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: both calls only read their arguments; the child has no handler for this signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

fn child(dir: &Path, limit: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "log::local::child_appends_until_it_is_killed"]);
    command.env("KONTORION_TEST_LOG", dir).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(limit) = limit {
        command.env("KONTORION_TEST_FILE_LIMIT", limit.to_string());
    }
    command.spawn().unwrap()
}

/// What the child said was acknowledged: partition, offset, text. Reads until `count`, or until the child has ended.
fn acknowledged(child: &mut Child, count: usize) -> Vec<(u32, u64, String)> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines
        .filter_map(|line| {
            let mut words = line.strip_prefix("acknowledged ")?.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
        .take(count)
        .collect()
}

async fn assert_holds(dir: &Path, acknowledged: &[(u32, u64, String)]) {
    let log = open(dir, small()).unwrap();
    let mut found = Vec::new();
    for partition in 0..PARTITIONS {
        found.push(read_all(&log, partition).await);
    }
    for (partition, offset, text) in acknowledged {
        assert_eq!(found[*partition as usize].get(*offset as usize), Some(text), "acknowledged and not there");
    }
    log.close().await;
}

#[tokio::test]
async fn an_acknowledged_record_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    for _ in 0..3 {
        let mut child = child(dir.path(), None);
        said.extend(acknowledged(&mut child, 700));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_holds(dir.path(), &said).await;
    }
    assert_eq!(said.len(), 2100);
    assert!(segments(dir.path()).len() > 3, "the child filled segments");
}

/// Else: a node that is stopping says that it is ready, and requests are still sent to it.
#[tokio::test]
async fn a_closed_log_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).unwrap();
    log.ping().await.unwrap();
    log.close().await;
    assert!(matches!(log.ping().await, Err(LogError::Transient { .. })));
}

/// Else: the log goes on after a failed write, and acknowledges what the disk does not hold.
#[tokio::test]
async fn a6_a_failed_write_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), Some(40 << 10));
    let said = acknowledged(&mut child, usize::MAX);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGABRT));
    assert!(!said.is_empty());
    assert_holds(dir.path(), &said).await;
}
