//! Guards against sums per day for analysts that are not those of the rows (rule C7), by metric, dimension and customer.

use std::collections::BTreeMap;

use domain::{CustomerId, Quantity};

use super::rollups::{Board, LATER};
use super::{instant, position};

/// (day, metric, dimension, value, customer) to (events, quantity).
type Sums = BTreeMap<(String, String, String, String, CustomerId), (u64, Quantity)>;

/// The dimensions that the meters of each metric list.
const LISTED: [(&str, &[&str]); 2] = [("api_calls", &["region"]), ("o'clock \"x\"", &["absent", "region"])];

impl Board {
    /// A board whose workspace has meters: two of one metric, with a dimension each.
    async fn with_meters() -> Option<Self> {
        let board = Self::new().await?;
        for (metric, dimension) in [("api_calls", "region"), (LISTED[1].0, "absent"), (LISTED[1].0, "region")] {
            let mut tx = board.bed.store.begin("test meter").await.unwrap();
            sqlx::query("SET LOCAL session_replication_role = replica").execute(tx.conn()).await.unwrap();
            sqlx::query(
                "INSERT INTO meter (id, organization_id, workspace_id, key, name, metric_key, function, \"window\", dimensions,
                                    status, version, created_at, updated_at)
                 VALUES (gen_random_uuid(), $1, $2, gen_random_uuid()::text, 'x', $3, 'SUM', '{}', ARRAY[$4], 'active', 1, now(), now())",
            )
            .bind(board.bed.people.scope.organization_id)
            .bind(board.bed.people.scope.workspace_id)
            .bind(metric)
            .bind(dimension)
            .execute(tx.conn())
            .await
            .unwrap();
            tx.commit().await.unwrap();
        }
        Some(board)
    }

    /// Lets a minute pass in which nothing is noted, and computes.
    async fn compute_days(&self) -> usize {
        self.rollups.note_all().await.unwrap();
        self.bed.execute("UPDATE usage_rollup_day_due SET noted_at = noted_at - interval '61 seconds'").await;
        self.rollups.run_once(instant(LATER)).await.unwrap().days
    }

    fn expected_days(&self) -> Sums {
        let mut sums = Sums::new();
        for row in &self.rows {
            let event = &row.event;
            let listed =
                LISTED.iter().find(|(metric, _)| *metric == event.metric_key).map_or(&[][..], |(_, keys)| keys);
            let value = |key: &str| event.dimension_vars.get(key).map(ToString::to_string).unwrap_or_default();
            let pairs = listed.iter().map(|key| ((*key).to_owned(), value(key)));
            for (dimension, value) in pairs.chain([(String::new(), String::new())]) {
                let day = event.timestamp.format("%F").to_string();
                let sum = sums.entry((day, event.metric_key.clone(), dimension, value, event.customer_id)).or_default();
                *sum = (sum.0 + 1, sum.1.checked_add(event.quantity).unwrap());
            }
        }
        sums
    }

    /// As an analyst reads them.
    async fn seen_days(&self) -> Sums {
        #[derive(clickhouse::Row, serde::Deserialize)]
        struct Seen {
            day: String,
            metric_key: String,
            dimension: String,
            value: String,
            #[serde(with = "clickhouse::serde::uuid")]
            customer_id: uuid::Uuid,
            events: u64,
            units: i128,
        }
        let sql = "SELECT toString(d.day) AS day, CAST(metric_key AS String) AS metric_key, CAST(dimension AS String) AS dimension,
                          value, customer_id, sum(event_count) AS events, CAST(sum(quantity) AS Decimal(38, 12)) AS units
                   FROM usage_per_day AS d GROUP BY day, metric_key, dimension, value, customer_id";
        let rows = self.bed.clickhouse_client().query(sql).fetch_all::<Seen>().await.unwrap();
        let entry = |row: Seen| {
            let key = (row.day, row.metric_key, row.dimension, row.value, CustomerId(row.customer_id));
            (key, (row.events, Quantity::from_units(row.units)))
        };
        rows.into_iter().map(entry).collect()
    }

    async fn assert_days_right(&self) {
        assert_eq!(self.seen_days().await, self.expected_days());
        let audit = self.rollups.audit(&mut |_| {}).await.unwrap();
        assert!(audit.is_clean() && audit.days_due == 0, "{audit:?}");
    }
}

#[tokio::test]
async fn c7_days_are_replaced_not_added() {
    let Some(mut board) = Board::with_meters().await else { return };
    board.store(board.bed.people.crowd(600)).await;
    assert_eq!(board.compute_days().await, 35, "five weeks");
    board.assert_days_right().await;
    let dimensions: std::collections::BTreeSet<_> =
        board.seen_days().await.into_keys().map(|(_, metric, dimension, _, _)| (metric, dimension)).collect();
    assert_eq!(dimensions.len(), 6, "three metrics; one, two and no dimensions beside the sums of all");
    assert_eq!(board.compute_days().await, 0, "nothing is due");
    // A late row: its day is computed again, and only it.
    let late = board.rows[7].event.timestamp;
    board.store(vec![board.bed.people.event(601, late)]).await;
    assert_eq!(board.compute_days().await, 1);
    board.assert_days_right().await;
    // A void: a day with nothing else disappears.
    board.store(vec![board.row(602, "2026-06-05T00:00:30Z")]).await;
    board.compute_days().await;
    let voided = [board.rows.pop().unwrap(), board.rows.remove(7)];
    for row in &voided {
        board.bed.void(row, instant(LATER)).await;
    }
    assert_eq!(board.compute_days().await, 2);
    board.assert_days_right().await;
    // A dimension that is listed no more goes when its day is computed again, and the audit knows which one a day has.
    board.bed.execute("UPDATE meter SET dimensions = '{}'").await;
    board.assert_days_right().await;
    board.store(vec![board.bed.people.event(603, late)]).await;
    assert_eq!(board.compute_days().await, 1);
    let day = late.format("%F").to_string();
    let of_day = board.seen_days().await.into_keys().filter(|key| key.0 == day && !key.2.is_empty()).count();
    let audit = board.rollups.audit(&mut |_| {}).await.unwrap();
    assert!(of_day == 0 && audit.is_clean(), "{audit:?}");
}

#[tokio::test]
async fn c7_a_crash_between_pieces_of_a_day_changes_no_sum() {
    let Some(mut board) = Board::with_meters().await else { return };
    board.store(board.bed.people.crowd(300)).await;
    board.rollups.note_all().await.unwrap();
    assert_eq!(board.rollups.run_once(instant(LATER)).await.unwrap().days, 0, "something came a moment ago");
    // Big days, in three pieces each; the last of a day is written, and the day is due still.
    board.bed.execute("UPDATE usage_rollup_day_due SET pieces = 3").await;
    board
        .bed
        .execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'crash'; END $$;
             CREATE TRIGGER fail BEFORE DELETE ON usage_rollup_day_due FOR EACH ROW EXECUTE FUNCTION fail();",
        )
        .await;
    board.bed.execute("UPDATE usage_rollup_day_due SET noted_at = noted_at - interval '61 seconds'").await;
    for _ in 0..2 {
        board.rollups.run_once(instant(LATER)).await.unwrap_err();
    }
    let audit = board.rollups.audit(&mut |_| {}).await.unwrap();
    assert!(audit.is_clean() && audit.days_due == 35, "what is due is no difference: {audit:?}");
    board.bed.execute("DROP TRIGGER fail ON usage_rollup_day_due").await;
    // The day in hand is noted again: it is done once more, from its first piece.
    let again = board.bed.people.event(301, board.rows.iter().map(|row| row.event.timestamp).min().unwrap());
    board.store(vec![again]).await;
    let steps = 1 + 1 + 34 * 3;
    assert_eq!(
        board.compute_days().await,
        steps,
        "the last piece of the day in hand, it once more, and three of all others"
    );
    assert_eq!(board.bed.count("SELECT count(*) FROM usage_rollup_day_due WHERE done = 0 AND pieces IS NULL").await, 0);
    board.assert_days_right().await;
    // A node that was held up: its version is older. And a wrong figure is found.
    let replaced = |events: &str, version: &str| {
        format!(
            "INSERT INTO usage_rollup_day SELECT * REPLACE ({events} AS event_count, {version} AS version)
             FROM usage_rollup_day FINAL WHERE event_count > 0 ORDER BY day, dimension, value, customer_id LIMIT 1"
        )
    };
    board.bed.clickhouse_client().query(&replaced("event_count + 7", "0")).execute().await.unwrap();
    board.assert_days_right().await;
    board.bed.clickhouse_client().query(&replaced("event_count + 7", "version + 1000")).execute().await.unwrap();
    let audit = board.rollups.audit(&mut |_| {}).await.unwrap();
    assert_eq!((audit.day_differences_total, audit.day_differences[0].event_count), (1, -7), "{audit:?}");
    assert!(!audit.is_clean());
}

/// A day that never rests is computed once it is over, ten minutes after it became due.
#[tokio::test]
async fn a_day_is_computed_when_nothing_comes_or_when_it_is_over() {
    let Some(mut board) = Board::with_meters().await else { return };
    board.store(vec![board.row(1, "2026-05-04T23:59:59.999999Z")]).await;
    board.rollups.note_all().await.unwrap();
    let computed = async |board: &Board, now: &str| board.rollups.run_once(instant(now)).await.unwrap().days;
    assert_eq!(computed(&board, "2026-05-04T23:59:59Z").await, 0);
    board.bed.execute("UPDATE usage_rollup_day_due SET since = since - interval '11 minutes'").await;
    assert_eq!(computed(&board, "2026-05-04T23:59:59Z").await, 0, "not over");
    assert_eq!(computed(&board, "2026-05-05T00:00:00Z").await, 1);
    board.assert_days_right().await;
    assert_eq!(board.rows[0].position, position(1));
}
