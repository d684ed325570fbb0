//! usage.md, list, aggregate and running usage: the same over both usage stores.

use serde_json::{Value, json};

use crate::fixture::{Shop, Site, id};

/// What happened: key, metric, quantity, timestamp, region. 2026-01-05 is a Monday.
const EVENTS: [(&str, &str, &str, &str, Option<&str>); 9] = [
    ("a", "units", "1.5", "2026-01-03T23:59:59.999999Z", Some("eu")),
    ("b", "units", "2", "2026-01-04T00:00:00Z", Some("us")),
    ("c", "units", "3", "2026-01-04T10:15:00Z", Some("eu")),
    ("d", "units", "4", "2026-01-04T10:45:00Z", Some("Other")),
    ("e", "calls", "1", "2026-01-04T10:45:00Z", Some("ap")),
    ("f", "calls", "1", "2026-01-04T11:00:00Z", None),
    ("g", "units", "0.000000000001", "2026-01-05T00:00:00Z", Some("eu")),
    ("h", "units", "7", "2026-01-05T06:00:00Z", Some("it's \"x\"")),
    ("voided", "units", "1000", "2026-01-04T10:30:00Z", Some("eu")),
];

struct Scene {
    site: Site,
    shop: Shop,
    /// Another customer with one event.
    neighbour: Shop,
}

impl Scene {
    async fn new(site: Site) -> Self {
        let (shop, neighbour) = (Shop::open(&site).await, Shop::open(&site).await);
        let meter = json!({"key": "calls", "name": "Calls", "metric_key": "calls", "function": "COUNT"});
        let meter = id(&shop.client.post("/v1/meters", meter).await.data(201));
        let path = format!("/v1/products/{}/meter-bindings", shop.product);
        let _ = shop.client.post(&path, json!({"meter_id": meter})).await.data(201);
        shop.advance("2026-01-06T00:00:00Z").await;
        site.engine().snapshots.refresh().await.unwrap();
        let mut events = Vec::new();
        for (key, metric, quantity, timestamp, region) in EVENTS {
            let vars = region.map_or(json!({}), |region| json!({"region": region, "size": 2.50}));
            let more = json!({"metric_key": metric, "timestamp": timestamp, "dimension_vars": vars});
            events.push(shop.event(key, quantity, more));
        }
        let sent = shop.client.post("/v1/usage-events", json!({"events": events})).await.data(202);
        assert_eq!(sent["accepted"], json!(EVENTS.len()), "{sent}");
        neighbour.send("neighbour", "100").await;
        let count = EVENTS.len() as i64;
        site.eventually("SELECT coalesce(sum(event_count), 0)::bigint FROM usage_window", count + 1).await;
        let voided = sent["results"][8]["id"].as_str().unwrap();
        let _ = shop.client.post(&format!("/v1/usage-events/{voided}/void"), json!({"reason": "x"})).await.data(200);
        site.eventually("SELECT coalesce(sum(event_count), 0)::bigint FROM usage_window", count).await;
        Self { site, shop, neighbour }
    }

    /// Keys of a page, and its cursor.
    async fn page(&self, query: &str) -> (Vec<String>, Option<String>) {
        let page = self.shop.client.get(&format!("/v1/usage-events?{query}")).await.expect(200);
        let key = |event: &Value| event["idempotency_key"].as_str().unwrap().to_owned();
        let keys = page["data"].as_array().unwrap().iter().map(key).collect();
        let cursor = page["pagination"]["cursor"].as_str().map(str::to_owned);
        assert_eq!(page["pagination"]["has_more"], json!(cursor.is_some()));
        (keys, cursor)
    }

    async fn aggregate(&self, query: &str) -> Value {
        let path = format!("/v1/usage-events/aggregate?customer_id={}&{query}", self.shop.customer);
        self.shop.client.get(&path).await.data(200)
    }
}

/// The buckets that are not 0, as "day and hour group value".
fn buckets(answer: &Value) -> Vec<String> {
    let shown = |bucket: &Value| {
        let start = &bucket["bucket_start"].as_str().unwrap()[8..13];
        let group = bucket["group"].as_str().unwrap_or("-");
        let other = if bucket["is_other"] == json!(true) { " (others)" } else { "" };
        format!("{start} {group}{other} {}", bucket["value"].as_str().unwrap())
    };
    let all = answer["buckets"].as_array().unwrap();
    all.iter().filter(|bucket| bucket["value"] != json!("0")).map(shown).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_over_postgres() {
    lists(Scene::new(Site::start().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_over_clickhouse() {
    if let Some(site) = Site::start_on_clickhouse().await {
        lists(Scene::new(site).await).await;
    }
}

async fn lists(scene: Scene) {
    let (shop, neighbour) = (&scene.shop, &scene.neighbour);
    let mine = format!("customer_id={}", shop.customer);
    let ids = |page: &Value| page["data"].as_array().unwrap().iter().map(id).collect::<Vec<_>>();
    let all = shop.client.get("/v1/usage-events?metric_key=calls").await.expect(200);
    let [f, e] = ids(&all).try_into().unwrap();
    for (query, expected) in [
        (String::new(), "h g f d e voided c b a neighbour"),
        (mine.clone(), "h g f d e voided c b a"),
        (format!("subscription_id={}", neighbour.subscription), "neighbour"),
        (
            format!("subscription_id.in={},{}", neighbour.subscription, shop.subscription),
            "h g f d e voided c b a neighbour",
        ),
        (format!("product_id={}", shop.product), "h g f d e voided c b a"),
        (format!("product_id={}&{mine}", neighbour.product), ""),
        ("metric_key=calls".into(), "f e"),
        ("metric_key=calls,nothing".into(), "f e"),
        (format!("metric_key=calls&metric_key=units&{mine}"), "h g f d e voided c b a"),
        (format!("id={f}"), "f"),
        (format!("id.in={f},{e}&metric_key=calls"), "f e"),
        ("occurred_after=2026-01-04T10:45:00Z".into(), "h g f d e"),
        (format!("occurred_before=2026-01-04T00:00:00Z&{mine}"), "a"),
        ("occurred_after=2026-01-04T00:00:00Z&occurred_before=2026-01-04T10:45:00Z".into(), "voided c b"),
        ("timestamp.gt=2026-01-04T10:45:00Z&timestamp.lte=2026-01-05T00:00:00Z".into(), "g f"),
        ("timestamp=2026-01-04T11:00:00Z".into(), "f"),
    ] {
        let expected: Vec<&str> = expected.split_whitespace().collect();
        let (mut keys, cursor) = scene.page(&format!("limit=100&{query}")).await;
        assert_eq!(cursor, None);
        // Two at one instant are in the order of their ids.
        let tie = |key: &str| ["d", "e"].contains(&key);
        if let Some(at) = keys.iter().position(|key| tie(key)).filter(|at| keys.get(at + 1).is_some_and(|key| tie(key)))
        {
            keys[at..at + 2].sort();
        }
        assert_eq!(keys, expected, "{query}");
        let (mut paged, mut cursor) = scene.page(&format!("limit=2&{query}")).await;
        while let Some(next) = cursor {
            let (more, after) = scene.page(&format!("limit=2&{query}&cursor={next}")).await;
            paged.extend(more);
            cursor = after;
        }
        assert_eq!((paged.len(), paged.first()), (expected.len(), keys.first().map(|_| &paged[0])), "{query}");
    }
    // Every member, and the void.
    let event = shop.client.get(&format!("/v1/usage-events?{mine}&limit=1")).await.expect(200)["data"][0].take();
    let expected = json!({"region": "it's \"x\"", "size": "2.5"});
    assert_eq!((&event["dimension_vars"]["region"], &event["quantity"]), (&expected["region"], &json!("7")));
    assert_eq!(shop.client.get(&format!("/v1/usage-events/{}", id(&event))).await.data(200), event);
    let (listed, path) = (format!("{mine}&occurred_after=2026-01-04T10:30:00Z&limit=100"), "/v1/usage-events");
    let page = shop.client.get(&format!("{path}?{listed}")).await.expect(200);
    let voided: Vec<_> =
        page["data"].as_array().unwrap().iter().filter(|event| event["voided_at"].is_string()).collect();
    assert_eq!((voided.len(), &voided[0]["idempotency_key"]), (1, &json!("voided")));
    // Another tenant sees nothing of it.
    let other = &scene.site.api.other_sandbox;
    assert_eq!(other.get("/v1/usage-events").await.expect(200)["data"], json!([]));
    other.get(&format!("{path}/{}", id(&event))).await.problem(404, "NOT_FOUND");
    // A cursor belongs to its filter.
    let (_, cursor) = scene.page("limit=1&metric_key=calls").await;
    let foreign = format!("{path}?limit=1&metric_key=units&cursor={}", cursor.unwrap());
    shop.client.get(&foreign).await.problem(400, "INVALID_CURSOR");
    let bad =
        shop.client.get(&format!("{path}?limit=0&customer_id=x&colour=red&occurred_after=now")).await.bad_fields();
    let fields: Vec<&str> = bad.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["limit", "customer_id", "colour", "occurred_after"]);
    scene.site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_over_postgres() {
    aggregates(Scene::new(Site::start().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregates_over_clickhouse() {
    if let Some(site) = Site::start_on_clickhouse().await {
        aggregates(Scene::new(site).await).await;
    }
}

async fn aggregates(scene: Scene) {
    let days = "bucket=day&since=2026-01-03T12:00:00Z&until=2026-01-06T00:00:00Z";
    for (query, total, expected) in [
        (days.to_owned(), "8", vec!["03T00 - 1", "04T00 - 5", "05T00 - 2"]),
        (
            format!("{days}&metric=sum_quantity"),
            "19.500000000001",
            vec!["03T00 - 1.5", "04T00 - 11", "05T00 - 7.000000000001"],
        ),
        (
            format!("{days}&metric=sum_quantity&metric_key=units"),
            "17.500000000001",
            vec!["03T00 - 1.5", "04T00 - 9", "05T00 - 7.000000000001"],
        ),
        (
            "bucket=hour&since=2026-01-04T10:30:00Z&until=2026-01-04T12:00:00Z&metric=count&group_by=none".into(),
            "4",
            vec!["04T10 - 3", "04T11 - 1"],
        ),
        // `until` cuts the last bucket.
        (
            "bucket=week&since=2026-01-04T00:00:00Z&until=2026-01-05T06:00:00Z".into(),
            "7",
            vec!["29T00 - 6", "05T00 - 1"],
        ),
        (
            format!("{days}&group_by=metric_key"),
            "8",
            vec!["03T00 units 1", "04T00 units 3", "04T00 calls 2", "05T00 units 2"],
        ),
        // Ties by name: of 7, 4.500000000001, 4, 2, 1, 1 two are kept; the value "Other" is in the tail.
        (
            format!("{days}&group_by=dim:region&metric=sum_quantity&top=2"),
            "19.500000000001",
            vec![
                "03T00 eu 1.5",
                "04T00 eu 3",
                "04T00 Other (others) 8",
                "05T00 it's \"x\" 7",
                "05T00 eu 0.000000000001",
            ],
        ),
        (
            format!("{days}&group_by=dim:region&metric=sum_quantity&top=3"),
            "19.500000000001",
            vec![
                "03T00 eu 1.5",
                "04T00 eu 3",
                "04T00 Other 4",
                "04T00 Other (others) 4",
                "05T00 it's \"x\" 7",
                "05T00 eu 0.000000000001",
            ],
        ),
        (
            format!("{days}&group_by=dim:region&top=0"),
            "8",
            vec![
                "03T00 eu 1",
                "04T00 eu 1",
                "04T00  1",
                "04T00 Other 1",
                "04T00 ap 1",
                "04T00 us 1",
                "05T00 eu 1",
                "05T00 it's \"x\" 1",
            ],
        ),
        (format!("{days}&group_by=dim:size"), "8", vec!["03T00 2.5 1", "04T00 2.5 4", "04T00  1", "05T00 2.5 2"]),
        (format!("{days}&group_by=dim:nothing"), "8", vec!["03T00  1", "04T00  5", "05T00  2"]),
        (format!("{days}&subscription_id={}", scene.neighbour.subscription), "0", vec![]),
    ] {
        let answer = scene.aggregate(&query).await;
        assert_eq!((answer["total"].as_str().unwrap(), buckets(&answer)), (total, owned(&expected)), "{query}");
    }
    let answer = scene.aggregate(days).await;
    let of = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        [of("bucket"), of("metric"), of("group_by"), of("since"), of("until")],
        ["day", "count", "none", "2026-01-03T00:00:00Z", "2026-01-06T00:00:00Z"]
    );
    // Empty buckets are there, and the window is capped.
    assert_eq!(
        scene.aggregate("bucket=hour&since=2026-01-04T00:00:00Z&until=2026-01-05T00:00:00Z").await["buckets"]
            .as_array()
            .unwrap()
            .len(),
        24
    );
    let capped = scene.aggregate("bucket=hour&since=2020-01-01T00:00:00Z&until=2026-01-06T00:00:00Z").await;
    assert_eq!((capped["buckets"].as_array().unwrap().len(), &capped["total"]), (2_160, &json!("8")));
    let client = &scene.shop.client;
    let foreign = scene.site.api.other_sandbox.get(&format!("/v1/usage-events/aggregate?{days}")).await.data(200);
    assert_eq!((foreign["total"].as_str(), foreign["buckets"].as_array().unwrap().len()), (Some("0"), 3));
    let path = "/v1/usage-events/aggregate";
    let query = "bucket=month&metric=max&group_by=dim:A&top=-1&since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z";
    let mut bad: Vec<_> =
        client.get(&format!("{path}?{query}")).await.bad_fields().into_iter().map(|(f, _)| f).collect();
    bad.sort();
    assert_eq!(bad, ["bucket", "group_by", "metric", "since", "top"]);
    assert_eq!(client.get(path).await.bad_fields(), [("bucket".to_owned(), "REQUIRED".to_owned())]);
    scene.site.end().await;
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn running_usage_over_postgres() {
    running_usage(Scene::new(Site::start().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_usage_over_clickhouse() {
    if let Some(site) = Site::start_on_clickhouse().await {
        running_usage(Scene::new(site).await).await;
    }
}

async fn running_usage(scene: Scene) {
    let shop = &scene.shop;
    let path = format!("/v1/subscriptions/{}/usage", shop.subscription);
    let usage = shop.client.get(&path).await.data(200);
    assert_eq!(
        (&usage["as_of"], &usage["subscription_id"]),
        (&json!("2026-01-06T00:00:00Z"), &json!(shop.subscription))
    );
    let mut shown = Vec::new();
    for metric in usage["metrics"].as_array().unwrap() {
        assert_eq!((&metric["product_id"], &metric["price_key"]), (&json!(shop.product), &Value::Null));
        assert_eq!(metric["window_start"], json!("2026-01-01T00:00:00Z"));
        assert_eq!(metric["window_end"], json!("2026-02-01T00:00:00Z"));
        let of = |name: &str| metric[name].as_str().unwrap_or_default().to_owned();
        let amount = metric["estimated_amount"]["value"].as_str().unwrap().to_owned();
        shown.push([
            of("metric_key"),
            of("quantity"),
            of("overage_quantity"),
            metric["event_count"].to_string(),
            amount,
        ]);
    }
    let expected = [["calls", "2", "2", "2", "0.20"], ["units", "17.500000000001", "17.500000000001", "6", "1.75"]];
    assert_eq!(shown, expected);
    let next = shop.client.get(&format!("{path}?at=2026-02-01T00:00:00Z")).await.data(200);
    assert_eq!((&next["metrics"], &next["as_of"]), (&json!([]), &json!("2026-02-01T00:00:00Z")));
    scene.site.api.other_sandbox.get(&path).await.problem(404, "NOT_FOUND");
    for (query, field, code) in [("at=now", "at", "INVALID_FORMAT"), ("colour=red", "colour", "UNKNOWN_FIELD")] {
        let bad = shop.client.get(&format!("{path}?{query}")).await.bad_fields();
        assert_eq!(bad, [(field.to_owned(), code.to_owned())]);
    }
    scene.site.end().await;
}
