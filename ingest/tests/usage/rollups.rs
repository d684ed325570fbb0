//! Guards against sums per minute for analysts that are not those of the rows (rule C7): added up twice after a crash,
//! left behind by a late row or a void, or doubled by a row that two owners of a partition wrote.

use std::collections::BTreeMap;

use chrono::{DurationRound, TimeDelta};
use domain::{Instant, Quantity};
use ingest::usage::CountedEvent;
use ingest::usage::clickhouse::{ClickHouseUsage, Rollups};

use super::{Bed, PARTITION, instant, position};

/// Long after every event of these tests.
pub const LATER: &str = "2026-07-01T00:00:00Z";

/// (minute, subscription, metric) to (events, quantity).
type Sums = BTreeMap<(i64, uuid::Uuid, String), (u64, Quantity)>;

pub struct Board {
    pub bed: Bed,
    pub rollups: Rollups,
    pub rows: Vec<CountedEvent>,
}

impl Board {
    pub async fn new() -> Option<Self> {
        let bed = Bed::clickhouse().await?;
        let usage = ClickHouseUsage::connect(bed.clickhouse.as_ref().unwrap(), bed.store.clone()).await.unwrap();
        bed.execute(
            "INSERT INTO event_log (id, kind, name, partitions, created_at)
             VALUES ('00000000-0000-0000-0000-000000000001', 'local', 'test', 8, now())",
        )
        .await;
        Some(Self { rollups: usage.rollups(), bed, rows: Vec::new() })
    }

    /// Stores rows, and lets the checkpoint pass them.
    pub async fn store(&mut self, rows: Vec<CountedEvent>) {
        self.bed.write(&rows).await;
        self.rows.extend(rows);
        let next = self.rows.iter().map(|row| row.position.offset()).max().unwrap() + 1;
        sqlx::query(
            "INSERT INTO partition_checkpoint (log_id, partition, epoch, next_offset, updated_at)
             VALUES ('00000000-0000-0000-0000-000000000001', $1, 1, $2, now())
             ON CONFLICT (log_id, partition) DO UPDATE SET next_offset = $2",
        )
        .bind(PARTITION.cast_signed())
        .bind(next.cast_signed())
        .execute(self.bed.store.pool())
        .await
        .unwrap();
    }

    async fn run(&self) -> usize {
        self.rollups.run_once(instant(LATER)).await.unwrap().computed
    }

    fn expected(&self) -> Sums {
        let mut sums = Sums::new();
        for row in &self.rows {
            let event = &row.event;
            let minute = event.timestamp.duration_trunc(TimeDelta::minutes(1)).unwrap().timestamp();
            let sum = sums.entry((minute, event.subscription_id.0, event.metric_key.clone())).or_default();
            *sum = (sum.0 + 1, sum.1.checked_add(event.quantity).unwrap());
        }
        sums
    }

    /// As an analyst reads them.
    async fn seen(&self) -> Sums {
        #[derive(clickhouse::Row, serde::Deserialize)]
        struct Seen {
            minute: i64,
            #[serde(with = "clickhouse::serde::uuid")]
            subscription_id: uuid::Uuid,
            metric_key: String,
            events: u64,
            units: i128,
        }
        let sql = "SELECT toInt64(toUnixTimestamp64Second(s.minute)) AS minute, subscription_id,
                          CAST(s.metric_key AS String) AS metric_key, sum(event_count) AS events,
                          CAST(sum(quantity) AS Decimal(38, 12)) AS units
                   FROM usage_per_minute AS s GROUP BY minute, subscription_id, metric_key";
        let rows = self.bed.clickhouse_client().query(sql).fetch_all::<Seen>().await.unwrap();
        let entry = |row: Seen| {
            ((row.minute, row.subscription_id, row.metric_key), (row.events, Quantity::from_units(row.units)))
        };
        rows.into_iter().map(entry).collect()
    }

    async fn assert_right(&self) {
        assert_eq!(self.seen().await, self.expected());
        let audit = self.rollups.audit(&mut |_| {}).await.unwrap();
        assert!(audit.is_clean() && audit.minutes_due == 0, "{audit:?}");
        assert_eq!(audit.rows, self.bed.clickhouse_number("SELECT count() FROM usage_event").await);
    }

    /// A row at an offset that happened at an instant.
    pub fn row(&self, offset: u64, timestamp: &str) -> CountedEvent {
        self.bed.people.event(offset, instant(timestamp))
    }
}

#[tokio::test]
async fn c7_rollups_are_replaced_not_added() {
    let Some(mut board) = Board::new().await else { return };
    board.store(board.bed.people.crowd(400)).await;
    assert!(board.run().await > 100);
    board.assert_right().await;
    assert_eq!(board.run().await, 0, "nothing is due");
    // Late rows: their minutes are computed again, and only they.
    let late = board.rows[7].event.timestamp;
    board
        .store((401..=420).map(|n| board.bed.people.event(n, late + TimeDelta::seconds(n as i64 % 50))).collect())
        .await;
    assert_eq!(board.run().await, 1);
    board.assert_right().await;
    // A void: a minute without any other event disappears.
    board.store(vec![board.row(421, "2026-06-05T00:00:30Z")]).await;
    board.run().await;
    let voided = [board.rows.pop().unwrap(), board.rows.remove(7)];
    for row in &voided {
        board.bed.void(row, instant(LATER)).await;
    }
    assert_eq!(board.run().await, 2);
    board.assert_right().await;
}

#[tokio::test]
async fn c7_a_crash_between_any_two_steps_changes_no_sum() {
    let Some(mut board) = Board::new().await else { return };
    board.store(board.bed.people.crowd(200)).await;
    // Noted, not computed.
    board.rollups.note_all().await.unwrap();
    assert!(board.seen().await.is_empty());
    let audit = board.rollups.audit(&mut |_| {}).await.unwrap();
    assert!(audit.is_clean() && audit.minutes_due > 50, "what is due is no difference: {audit:?}");
    // Computed, and the minutes are due still.
    board
        .bed
        .execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'crash'; END $$;
             CREATE TRIGGER fail BEFORE DELETE ON usage_rollup_due FOR EACH STATEMENT EXECUTE FUNCTION fail();",
        )
        .await;
    for _ in 0..3 {
        board.rollups.run_once(instant(LATER)).await.unwrap_err();
    }
    board.bed.execute("DROP TRIGGER fail ON usage_rollup_due").await;
    board.run().await;
    board.assert_right().await;
    // Two nodes at once.
    let more: Vec<_> =
        (201..=260).map(|n| board.bed.people.event(n, board.rows[n as usize - 201].event.timestamp)).collect();
    board.store(more).await;
    let (one, two) = tokio::join!(board.run(), board.run());
    assert!(one + two > 0);
    board.run().await;
    board.assert_right().await;
    // A node that was held up writes what it read long ago: its version is older.
    let sql = "INSERT INTO usage_rollup_minute SELECT * REPLACE (event_count + 7 AS event_count, 0 AS version)
               FROM usage_rollup_minute FINAL";
    board.bed.clickhouse_client().query(sql).execute().await.unwrap();
    board.assert_right().await;
    // Wrong figures are found.
    let sql =
        "INSERT INTO usage_rollup_minute SELECT * REPLACE (event_count + 7 AS event_count, version + 1000 AS version)
               FROM usage_rollup_minute FINAL ORDER BY minute LIMIT 1";
    board.bed.clickhouse_client().query(sql).execute().await.unwrap();
    let audit = board.rollups.audit(&mut |_| {}).await.unwrap();
    assert_eq!((audit.differences_total, audit.differences[0].event_count), (1, -7), "{audit:?}");
}

#[tokio::test]
async fn c7_a_row_that_was_written_twice_is_summed_once() {
    let Some(mut board) = Board::new().await else { return };
    board.store(vec![board.row(1, "2026-05-04T10:00:10Z"), board.row(2, "2026-05-04T10:00:20Z")]).await;
    let client = board.bed.clickhouse_client();
    client.query("SYSTEM STOP MERGES usage_event").execute().await.unwrap();
    client
        .query("INSERT INTO usage_event SELECT * FROM usage_event WHERE position = ?")
        .bind(position(1).as_i64())
        .execute()
        .await
        .unwrap();
    assert_eq!(board.bed.clickhouse_number("SELECT count() FROM usage_event").await, 3);
    board.run().await;
    assert_eq!(board.seen().await, board.expected());
    let audit = board.rollups.audit(&mut |_| {}).await.unwrap();
    assert_eq!((audit.rows, audit.doubled_rows, audit.differences_total), (3, 1, 0));
    client.query("SYSTEM START MERGES usage_event").execute().await.unwrap();
    client.query("OPTIMIZE TABLE usage_event FINAL").execute().await.unwrap();
    board.assert_right().await;
}

#[tokio::test]
async fn a_minute_is_computed_when_it_is_over() {
    let Some(mut board) = Board::new().await else { return };
    let computed = async |board: &Board, now: &str| {
        let now: Instant = instant(now);
        board.rollups.run_once(now).await.unwrap().computed
    };
    board.store(vec![board.row(1, "2026-05-04T10:00:10Z"), board.row(2, "2026-05-04T10:01:00Z")]).await;
    assert_eq!(computed(&board, "2026-05-04T10:00:59Z").await, 0);
    assert_eq!(computed(&board, "2026-05-04T10:01:00Z").await, 1);
    assert_eq!(computed(&board, "2026-05-04T10:01:30Z").await, 0);
    // A test clock is ahead: its minute is computed when nothing came for a while.
    board.bed.execute("UPDATE usage_rollup_due SET noted_at = now() - interval '61 seconds'").await;
    assert_eq!(computed(&board, "2026-05-04T10:01:30Z").await, 1);
    board.assert_right().await;
}
