//! What the local log does on this machine:
//! `cargo test --release -p ingest --test log_throughput -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::{Append, EventLog, LogIdentity};

const PARTITIONS: u32 = 16;
const RECORD_BYTES: usize = 300;

fn open(dir: &std::path::Path) -> LocalLog {
    let id = LocalLog::prepare(dir, PARTITIONS).unwrap();
    LocalLog::open(dir, LogIdentity { id, ordinal: 1, partitions: PARTITIONS }, LocalLogOptions::default()).unwrap()
}

/// CPU time of this process so far, in microseconds: what a busy machine does not blur.
fn core_micros() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure that it is given.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// `appenders` tasks append `calls` batches each, every record to the next partition.
async fn append(log: &Arc<LocalLog>, appenders: u32, calls: u32, batch: u32) {
    let payload = Bytes::from(vec![1; RECORD_BYTES]);
    let (started, cpu) = (Instant::now(), core_micros());
    let tasks = (0..appenders).map(|appender| {
        let (log, payload) = (log.clone(), payload.clone());
        tokio::spawn(async move {
            for call in 0..calls {
                let records = (0..batch).map(|number| Append {
                    partition: (appender + call + number) % PARTITIONS,
                    payload: payload.clone(),
                });
                assert!(log.append(records.collect()).await.iter().all(Result::is_ok));
            }
        })
    });
    futures::future::join_all(tasks.collect::<Vec<_>>()).await;
    let records = f64::from(appenders * calls * batch);
    let (rate, cpu) = (records / started.elapsed().as_secs_f64(), (core_micros() - cpu) / records);
    println!("{appenders} appenders, batches of {batch}: {rate:.0} records/s at {cpu:.2} core-µs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn throughput() {
    let dir = tempfile::tempdir_in(std::env::var_os("KONTORION_BENCH_DIR").unwrap_or("/tmp".into())).unwrap();
    let log = Arc::new(open(dir.path()));
    append(&log, 64, 500, 1).await;
    append(&log, 256, 400, 1).await;
    append(&log, 1, 2000, 1).await;
    append(&log, 16, 150, 500).await;
    log.close().await;
    drop(log);

    let log = open(dir.path());
    let (mut records, started, cpu) = (0, Instant::now(), core_micros());
    for partition in 0..PARTITIONS {
        let end = log.end(partition).await.unwrap();
        let mut reader = log.reader(partition, 0).await.unwrap();
        let mut next = 0;
        while next < end {
            next = reader.next(1000).await.unwrap().last().unwrap().offset + 1;
        }
        records += end;
    }
    let (micros, cpu) =
        (started.elapsed().as_secs_f64() * 1e6 / records as f64, (core_micros() - cpu) / records as f64);
    println!("read {records} records from files: {micros:.2} µs and {cpu:.2} core-µs each");
}
