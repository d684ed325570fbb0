//! docs/analytics.md: what analysts read in ClickHouse is what the API says, and stays so whatever is repeated.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use ingest::usage::clickhouse::{Copies, CopyReport};
use serde_json::{Value, json};

use crate::fixture::{Offer, Shop, Site, id};

const DOCUMENT: &str = include_str!("../../../docs/analytics.md");
/// Long after every event of these tests.
const LATER: &str = "2026-07-01T00:00:00Z";

fn instant(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// Titles and texts of the examples of the document, in its order.
fn examples() -> Vec<(&'static str, &'static str)> {
    let blocks = DOCUMENT.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|sql| (sql.lines().next().unwrap().trim_start_matches("-- "), sql)).collect()
}

/// Rows as an analyst gets them over HTTP, every value a text.
async fn rows(site: &Site, sql: &str, parameters: &[(&str, &str)]) -> Vec<BTreeMap<String, String>> {
    let (address, database) = site.clickhouse_address();
    let mut pairs =
        vec![("database".to_owned(), database), ("default_format".to_owned(), "JSONStringsEachRow".to_owned())];
    for (name, value) in parameters.iter().filter(|(name, _)| sql.contains(&format!("{{{name}:"))) {
        pairs.push((format!("param_{name}"), (*value).to_owned()));
    }
    let url = reqwest::Url::parse_with_params(&address, pairs).unwrap();
    let answer = reqwest::Client::new().post(url).body(sql.to_owned()).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{sql}\n{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of columns.
fn picked(rows: &[BTreeMap<String, String>], columns: &[&str]) -> Vec<Vec<String>> {
    rows.iter().map(|row| columns.iter().map(|column| plain(&row[*column])).collect()).collect()
}

/// Decimals in their shortest form.
fn plain(text: &str) -> String {
    text.parse::<rust_decimal::Decimal>().map_or_else(|_| text.to_owned(), |number| number.normalize().to_string())
}

fn text(value: &Value) -> String {
    plain(value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str())
}

async fn copies(site: &Site) -> Copies {
    site.rollups().await.copies(site.engine().snapshots.clone())
}

async fn copy(site: &Site) -> CopyReport {
    copies(site).await.run_once(instant(LATER)).await.unwrap()
}

/// Everything that the jobs have to do.
async fn run_jobs(site: &Site) {
    let rollups = site.rollups().await;
    rollups.note_all().await.unwrap();
    let quiet = "UPDATE usage_rollup_day_due SET noted_at = noted_at - interval '2 minutes'";
    sqlx::query(quiet).execute(site.api.app.store.pool()).await.unwrap();
    rollups.run_once(instant(LATER)).await.unwrap();
    copy(site).await;
    let audit = rollups.audit(&mut |_| {}).await.unwrap();
    assert!(audit.is_clean() && audit.minutes_due == 0 && audit.days_due == 0, "{audit:?}");
}

/// A shop with thresholds, an allowance and a dimension; usage on two days, one event of it voided.
async fn busy_shop(site: &Site) -> Shop {
    let threshold = |value: &str| {
        json!({"name": format!("at {value}"), "comparator": "GTE", "value": value, "basis": "ABSOLUTE", "rearm": false,
               "actions": [{"kind": "WEBHOOK", "event_type": "meter.threshold_breached"}]})
    };
    let meter = json!({"dimensions": ["region", "plan_name"], "thresholds": [threshold("10"), threshold("15")]});
    let shop = Shop::with(site, Offer { meter, included: "5", ..Offer::default() }).await;
    shop.advance("2026-01-06T00:00:00Z").await;
    let mut events = Vec::new();
    for (key, quantity, timestamp, region) in [
        ("a", "1.5", "2026-01-03T23:59:59.999999Z", json!({"region": "eu"})),
        ("b", "2", "2026-01-04T00:00:00Z", json!({"region": "us", "secret": "x"})),
        ("c", "3.000000000001", "2026-01-04T10:15:00Z", json!({"region": "eu", "plan_name": true})),
        ("d", "4", "2026-01-04T10:45:00Z", json!({"region": "it's \"x\" ?"})),
        ("e", "6", "2026-01-04T11:00:00Z", json!({})),
        ("voided", "1000", "2026-01-04T10:30:00Z", json!({"region": "eu"})),
    ] {
        let key = format!("{}{key}", shop.customer);
        events.push(shop.event(&key, quantity, json!({"timestamp": timestamp, "dimension_vars": region})));
    }
    let sent = shop.client.post("/v1/usage-events", json!({"events": events})).await.data(202);
    assert_eq!(sent["accepted"], json!(6), "{sent}");
    let voided = sent["results"][5]["id"].as_str().unwrap();
    let _ = shop.client.post(&format!("/v1/usage-events/{voided}/void"), json!({"reason": "x"})).await.data(200);
    site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
    shop
}

/// An aggregate of the API that the examples are compared with: (bucket, group, value), without zeros.
async fn aggregate(shop: &Shop, query: &str) -> Vec<Vec<String>> {
    let range = "since=2026-01-01T00:00:00Z&until=2026-02-01T00:00:00Z&top=0";
    let answer = shop.client.get(&format!("/v1/usage-events/aggregate?{range}&{query}")).await.data(200);
    let buckets = answer["buckets"].as_array().unwrap().iter().filter(|bucket| bucket["value"] != json!("0"));
    let mut found: Vec<_> = buckets
        .map(|bucket| {
            let start = instant(bucket["bucket_start"].as_str().unwrap());
            let start = if query.contains("bucket=hour") { start.format("%F %T") } else { start.format("%F") };
            vec![start.to_string(), text(&bucket["group"]), text(&bucket["value"])]
        })
        .collect();
    found.sort();
    found
}

fn sorted(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_document_say_what_the_api_says() {
    let Some(site) = Site::start_on_clickhouse().await else { return };
    let (shop, other) = (busy_shop(&site).await, busy_shop(&site).await);
    run_jobs(&site).await;
    let workspace = site.api.tenant.sandbox.id.to_string();
    let stranger = site.api.tenant.live.id.to_string();
    for (title, sql) in examples() {
        let dated = title.contains(" day") || title.contains("share");
        let until = if dated { "2026-02-01" } else { "2026-02-01 00:00:00" };
        // Breaches occurred when they were found.
        let until = if title.starts_with("Breaches") { "2199-01-01 00:00:00" } else { until };
        let mut parameters = vec![
            ("workspace", workspace.as_str()),
            ("metric", "units"),
            ("dimension", "region"),
            ("value", "eu"),
            ("subscription", &shop.subscription),
            ("at", "2026-01-06 00:00:00"),
            ("since", if dated && !title.starts_with("Breaches") { "2026-01-01" } else { "2026-01-01 00:00:00" }),
            ("until", until),
        ];
        if title.starts_with("Billed") {
            shop.advance("2026-02-02T00:00:00Z").await;
            run_jobs(&site).await;
        }
        let found = rows(&site, sql, &parameters).await;
        compare(title, &found, [&shop, &other]).await;
        parameters[0].1 = &stranger;
        assert_eq!(rows(&site, sql, &parameters).await, [], "{title}: another workspace");
    }
    site.end().await;
}

async fn compare(title: &str, found: &[BTreeMap<String, String>], shops: [&Shop; 2]) {
    let [shop, other] = shops;
    let both = |values: [&str; 2]| {
        sorted(shops.iter().map(|shop| vec![shop.customer.clone(), values[0].into(), values[1].into()]).collect())
    };
    match title {
        "Quantity of a metric per hour and customer" => {
            for shop in shops {
                let query = "bucket=hour&metric=sum_quantity&metric_key=units";
                let expected = aggregate(shop, &format!("{query}&customer_id={}", shop.customer)).await;
                let rows: Vec<_> = found.iter().filter(|row| row["customer_id"] == shop.customer).cloned().collect();
                let rows = picked(&rows, &["hour", "used"])
                    .into_iter()
                    .map(|row| vec![row[0].clone(), "null".into(), row[1].clone()]);
                assert_eq!(sorted(rows.collect()), expected, "{title}");
                assert_eq!(expected.len(), 4);
            }
        }
        "Events and quantity per day and metric" => {
            for (metric, column) in [("count", "events"), ("sum_quantity", "used")] {
                let expected = aggregate(shop, &format!("bucket=day&group_by=metric_key&metric={metric}")).await;
                assert_eq!(sorted(picked(found, &["day", "metric_key", column])), expected, "{title}");
                assert_eq!(expected.len(), 2);
            }
        }
        "Quantity of a metric per day and value of a dimension" => {
            let expected = aggregate(shop, "bucket=day&group_by=dim:region&metric=sum_quantity&metric_key=units").await;
            assert_eq!(sorted(picked(found, &["day", "value", "used"])), expected, "{title}");
            assert_eq!(expected.len(), 5, "eu on two days, three others, one of them without the dimension");
        }
        "Customers with the largest share of a value of a dimension" => {
            let expected: Vec<_> = both(["4.500000000001", ""]).into_iter().map(|row| row[..2].to_vec()).collect();
            assert_eq!(sorted(picked(found, &["customer_id", "used"])), expected, "{title}");
        }
        "Running amounts per customer" => {
            let mut expected = BTreeSet::new();
            for shop in shops {
                let metric = metrics(shop).await.remove(0);
                expected.insert(vec![
                    shop.customer.clone(),
                    text(&metric["estimated_amount"]["value"]),
                    text(&metric["event_count"]),
                ]);
            }
            assert_eq!(sorted(picked(found, &["customer_id", "net", "events"])), Vec::from_iter(expected), "{title}");
        }
        "Lines of the window of a subscription at an instant" => {
            let names =
                ["quantity", "included_quantity", "overage_quantity", "event_count", "metric_key", "product_id"];
            let metrics = metrics(shop).await;
            let expected: Vec<Vec<String>> = metrics
                .iter()
                .map(|m| {
                    names.iter().map(|name| text(&m[*name])).chain([text(&m["estimated_amount"]["value"])]).collect()
                })
                .collect();
            let columns = [
                "quantity",
                "included_quantity",
                "billable_quantity",
                "event_count",
                "metric_key",
                "product_id",
                "amount",
            ];
            assert_eq!(picked(found, &columns), expected, "{title}");
            // 16.500000000001 less 5.
            assert_eq!((expected[0][2].as_str(), expected[0][6].as_str()), ("11.500000000001", "1.15"));
        }
        "Billed usage per product of the periods that ended in a span" => {
            let invoice = shop.invoices().await.remove(0);
            assert_eq!(invoice["status"], json!("finalized"));
            let line = &invoice["lines"][0];
            let quantity: rust_decimal::Decimal = line["quantity"].as_str().unwrap().parse().unwrap();
            let beyond = quantity - rust_decimal::Decimal::from(5);
            let expected = vec![text(&line["product_id"]), text(&line["amount"]["value"]), beyond.to_string()];
            assert_eq!(
                picked(found, &["product_id", "net", "billed"]),
                [expected],
                "{title}: only one of the two is billed"
            );
        }
        "Breaches per day, meter and threshold" => {
            let listed = shop.client.get("/v1/meter-breaches?limit=100").await.expect(200)["data"].take();
            let mut expected: BTreeMap<Vec<String>, u32> = BTreeMap::new();
            for breach in listed.as_array().unwrap() {
                let day = breach["occurred_at"].as_str().unwrap()[..10].to_owned();
                *expected.entry(vec![day, text(&breach["meter_key"]), text(&breach["threshold_name"])]).or_default() +=
                    1;
            }
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(mut key, count)| {
                    key.push(count.to_string());
                    key
                })
                .collect();
            assert_eq!(sorted(picked(found, &["day", "meter_key", "threshold_name", "breaches"])), expected, "{title}");
            assert_eq!(expected.len(), 4, "two of each shop");
        }
        "Largest events of a metric, voided ones left out" => {
            let listed = shop.client.get("/v1/usage-events?limit=100").await.expect(200)["data"].take();
            let listed = listed.as_array().unwrap().iter().filter(|event| event["voided_at"].is_null());
            let expected = sorted(
                listed.map(|event| vec![id(event), text(&event["customer_id"]), text(&event["quantity"])]).collect(),
            );
            assert_eq!(sorted(picked(found, &["id", "customer_id", "quantity"])), expected, "{title}");
            assert_eq!((expected.len(), other.customer == shop.customer), (10, false));
        }
        unknown => panic!("nothing compares the example {unknown:?}"),
    }
}

async fn metrics(shop: &Shop) -> Vec<Value> {
    let usage = shop.client.get(&format!("/v1/subscriptions/{}/usage", shop.subscription)).await.data(200);
    usage["metrics"].as_array().unwrap().clone()
}

/// Rated rows as an analyst sees them.
async fn rated(site: &Site) -> Vec<Vec<String>> {
    let sql = "SELECT wallet_currency, status, quantity, event_count, amount FROM rated_usage ORDER BY window_start, wallet_currency";
    picked(&rows(site, sql, &[]).await, &["wallet_currency", "status", "quantity", "event_count", "amount"])
}

fn line(values: [&str; 5]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// Rule C7: rows of a window are replaced when it changes, also after a crash between the two databases; a line that has gone
/// is seen no more.
#[tokio::test(flavor = "multi_thread")]
async fn c7_rated_usage_follows_its_windows() {
    let Some(site) = Site::start_on_clickhouse().await else { return };
    let shop = Shop::open(&site).await;
    shop.send("a", "30").await;
    let pinned = shop.event("pinned", "5", json!({"wallet_currency": "EUR"}));
    let pinned = shop.client.post("/v1/usage-events", pinned).await.data(202)["results"][0]["id"].take();
    site.eventually("SELECT event_count FROM usage_window", 2).await;
    assert_eq!(copy(&site).await, CopyReport { windows: 1, breaches: 0 });
    let first = [line(["", "open", "30", "1", "3"]), line(["EUR", "open", "5", "1", "0.5"])];
    assert_eq!(rated(&site).await, first);
    assert_eq!(copy(&site).await, CopyReport::default(), "nothing has changed");
    // ClickHouse has the rows, PostgreSQL does not know it.
    shop.send("b", "1").await;
    site.eventually("SELECT event_count FROM usage_window", 3).await;
    let crash = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'crash'; END $$;
        CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON rated_usage_copy FOR EACH ROW EXECUTE FUNCTION fail();";
    sqlx::raw_sql(crash).execute(site.api.app.store.pool()).await.unwrap();
    for _ in 0..2 {
        copies(&site).await.run_once(instant(LATER)).await.unwrap_err();
    }
    sqlx::raw_sql("DROP TRIGGER fail ON rated_usage_copy").execute(site.api.app.store.pool()).await.unwrap();
    let job = copies(&site).await;
    let (one, two) = tokio::join!(job.run_once(instant(LATER)), job.run_once(instant(LATER)));
    // Each leaves a step to the other that has it, so that both may have to come again.
    let later = job.run_once(instant(LATER)).await;
    assert!([one, two, later].map(|run| run.unwrap().windows).iter().sum::<usize>() >= 1, "two nodes at once");
    let second = [line(["", "open", "31", "2", "3.1"]), line(["EUR", "open", "5", "1", "0.5"])];
    assert_eq!(rated(&site).await, second);
    // A node that was held up writes what it read long ago.
    let old =
        "INSERT INTO rated_usage_version SELECT * REPLACE (7 AS quantity, 0 AS version) FROM rated_usage_version FINAL";
    site.clickhouse().query(old).execute().await.unwrap();
    assert_eq!(rated(&site).await, second);
    // The only event of a line is taken back.
    let void = format!("/v1/usage-events/{}/void", pinned.as_str().unwrap());
    let _ = shop.client.post(&void, json!({"reason": "x"})).await.data(200);
    site.eventually("SELECT count(*) FROM usage_void WHERE open", 0).await;
    copy(&site).await;
    assert_eq!(rated(&site).await, second[..1]);
    // In the grace, and billed.
    shop.advance("2026-02-01T00:30:00Z").await;
    copy(&site).await;
    assert_eq!(rated(&site).await[0], line(["", "ended", "31", "2", "3.1"]));
    shop.advance("2026-02-02T00:00:00Z").await;
    copy(&site).await;
    assert_eq!(rated(&site).await[0], line(["", "billed", "31", "2", "3.1"]));
    assert_eq!(text(&shop.invoices().await[0]["total"]["value"]), "3.1");
    assert_eq!(site.number("SELECT count(*) FROM usage_window WHERE billed AND NOT mirrored").await, 0);
    assert_eq!(copy(&site).await.windows, 0);
    site.end().await;
}

/// More windows than one step has, some of them billed before they were ever rated.
#[tokio::test(flavor = "multi_thread")]
async fn c7_many_windows_are_copied_in_steps() {
    let Some(site) = Site::start_on_clickhouse().await else { return };
    let shop = Shop::open(&site).await;
    shop.send("a", "30").await;
    site.eventually("SELECT event_count FROM usage_window", 1).await;
    let many = "CREATE TEMP TABLE twin AS SELECT gen_random_uuid() AS id, n FROM generate_series(1, 1200) AS n;
        SET session_replication_role = replica;
        INSERT INTO subscription SELECT (jsonb_populate_record(s, jsonb_build_object('id', twin.id))).* FROM subscription s, twin;
        INSERT INTO usage_window
        SELECT (jsonb_populate_record(w, jsonb_build_object('subscription_id', twin.id, 'billed', twin.n % 2 = 0))).*
        FROM usage_window w, twin WHERE w.subscription_id IN (SELECT subscription_id FROM usage_window LIMIT 1);";
    let mut conn = site.api.app.store.pool().acquire().await.unwrap().detach();
    sqlx::raw_sql(many).execute(&mut conn).await.unwrap();
    assert_eq!(copy(&site).await.windows, 1_201);
    let sql = "SELECT status, count() AS windows, sum(amount) AS net FROM rated_usage GROUP BY status ORDER BY status";
    let found = picked(&rows(&site, sql, &[]).await, &["status", "windows", "net"]);
    assert_eq!(found, [["billed", "600", "1800"], ["open", "601", "1803"]]);
    assert_eq!(copy(&site).await.windows, 0);
    let breaches = "INSERT INTO meter_breach
        SELECT gen_random_uuid(), s.organization_id, s.workspace_id, gen_random_uuid(), NULL, s.id, 'm', 't', 1.5, 'GTE', 2.000000000001,
               now(), now(), now(), 'WEBHOOK' FROM subscription s, generate_series(1, 10)";
    sqlx::raw_sql(breaches).execute(site.api.app.store.pool()).await.unwrap();
    assert_eq!(copy(&site).await.breaches, 12_010);
    // Copied again after a crash, they are there once.
    sqlx::query("UPDATE meter_breach SET mirrored = false").execute(site.api.app.store.pool()).await.unwrap();
    assert_eq!(copy(&site).await.breaches, 12_010);
    let sql = "SELECT count() AS breaches, sum(observed_value) AS observed FROM meter_breach";
    assert_eq!(picked(&rows(&site, sql, &[]).await, &["breaches", "observed"]), [["12010", "24020.00000001201"]]);
    site.end().await;
}
