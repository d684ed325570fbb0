//! Guards: money converted at the wrong rate, at one of another workspace, or at none (fx.md).

use api::testing::{Client, TestApi, id};
use chrono::NaiveDate;
use currency::feed::Day;
use domain::{Clock, Currency};
use serde_json::{Value, json};

/// Publishes rates of a day: units for one euro.
async fn publish(api: &TestApi, date: &str, rates: &[(&str, &str)]) {
    let rate = |(code, rate): &(&str, &str)| (Currency::parse(code).unwrap(), rate.parse().unwrap());
    let day = Day { date: date.parse().unwrap(), rates: rates.iter().map(rate).collect() };
    let mut conn = api.app.store.pool().acquire().await.unwrap();
    currency::snapshot::keep(&mut conn, "ECB", &[day], Clock::System.now()).await.unwrap();
}

fn today() -> NaiveDate {
    Clock::System.now().date_naive()
}

async fn rate(client: &Client, query: &str) -> String {
    let rate = client.get(&format!("/v1/fx/rates?{query}")).await.data(200);
    let text = |name: &str| rate[name].as_str().unwrap_or("-").to_owned();
    format!("{} {} {}", text("kind"), text("rate"), text("snapshot_date"))
}

async fn set(client: &Client, pair: (&str, &str), rate: &str, more: Value) -> String {
    let mut body = json!({"source_currency": pair.0, "target_currency": pair.1, "rate": rate});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    id(&client.post("/v1/fx/overrides", body).await.data(201))
}

#[tokio::test]
async fn the_rate_in_effect_follows_the_rules() {
    let api = TestApi::start().await;
    let client = &api.live;
    publish(&api, "2026-02-27", &[("USD", "1.0853"), ("GBP", "0.8349"), ("JPY", "163.45")]).await; // a Friday
    publish(&api, "2026-03-02", &[("USD", "1.09"), ("JPY", "164")]).await;
    for (query, expected) in [
        ("source=EUR&target=EUR", "IDENTITY 1 -"),
        ("source=EUR&target=USD&at=2026-02-27T00:00:00Z", "SNAPSHOT 1.0853 2026-02-27"),
        ("source=EUR&target=USD&at=2026-03-01T23:59:59Z", "SNAPSHOT 1.0853 2026-02-27"),
        ("source=EUR&target=USD&at=2026-03-02T00:30:00%2B02:00", "SNAPSHOT 1.0853 2026-02-27"), // still the first in UTC
        ("source=EUR&target=USD&at=2026-03-02T00:00:00Z", "SNAPSHOT 1.09 2026-03-02"),
        ("source=USD&target=EUR&at=2026-02-28T00:00:00Z", "INVERSE 0.9214042200 2026-02-27"),
        ("source=USD&target=GBP&at=2026-02-28T00:00:00Z", "CROSS 0.7692803833 2026-02-27"),
        // The pound was not published on Monday: each half its own day, and the earlier is told.
        ("source=USD&target=GBP&at=2026-03-02T00:00:00Z", "CROSS 0.7659633028 2026-02-27"),
        ("source=EUR&target=GBP&at=2026-03-06T23:00:00Z", "SNAPSHOT 0.8349 2026-02-27"),
    ] {
        assert_eq!(rate(client, query).await, expected, "{query}");
        assert_eq!(rate(&api.other, query).await, expected, "published for all: {query}");
    }
    for query in [
        "source=EUR&target=GBP&at=2026-03-07T00:00:00Z", // eight days
        "source=EUR&target=USD&at=2026-02-26T23:59:59Z", // before the first
        "source=EUR&target=CHF&at=2026-02-27T00:00:00Z",
        "source=CHF&target=USD&at=2026-02-27T00:00:00Z",
        "source=EUR&target=USD",
    ] {
        let problem = client.get(&format!("/v1/fx/rates?{query}")).await.problem(422, "FX_RATE_NOT_FOUND");
        assert!(problem["source_currency"].is_string() && problem["at"].is_string(), "{problem}");
    }
    let seen = client.get("/v1/fx/rates?source=EUR&target=USD&at=2026-03-02T00:00:00Z").await.data(200);
    let snapshot = client.get("/v1/fx/snapshots?date=2026-03-02&target_currency=USD").await.expect(200);
    assert_eq!((&seen["id"], &seen["as_of"]), (&snapshot["data"][0]["id"], &json!("2026-03-02T00:00:00Z")));
}

#[tokio::test]
async fn overrides_go_before_snapshots_within_their_window() {
    let api = TestApi::start().await;
    let client = &api.live;
    publish(&api, "2026-03-02", &[("USD", "1.09"), ("GBP", "0.84")]).await;
    let window =
        json!({"valid_from": "2026-03-02T08:00:00Z", "valid_to": "2026-03-03T08:00:00Z", "reason": "contract"});
    let first = set(client, ("EUR", "USD"), "1.1", window).await;
    let later = json!({"valid_from": "2026-03-02T10:00:00Z", "valid_to": "2026-03-02T11:00:00Z"});
    set(client, ("EUR", "USD"), "1.2", later.clone()).await;
    set(client, ("EUR", "USD"), "1.25", later).await; // of one valid_from the latest made
    let day = json!({"valid_from": "2026-01-01T00:00:00Z", "snapshot_date": "2026-03-04"});
    set(client, ("EUR", "USD"), "1.3", day).await;
    set(client, ("CHF", "EUR"), "1.05", json!({"valid_from": "2026-01-01T00:00:00Z"})).await;
    for (at, expected) in [
        ("2026-03-02T07:59:59Z", "SNAPSHOT 1.09 2026-03-02"),
        ("2026-03-02T08:00:00Z", "OVERRIDE 1.1 -"),
        ("2026-03-02T10:30:00Z", "OVERRIDE 1.25 -"),
        ("2026-03-02T11:00:00Z", "OVERRIDE 1.1 -"),
        ("2026-03-03T08:00:00Z", "SNAPSHOT 1.09 2026-03-02"),
        ("2026-03-04T00:00:00Z", "OVERRIDE 1.3 2026-03-04"),
        ("2026-03-04T23:59:59Z", "OVERRIDE 1.3 2026-03-04"),
        ("2026-03-05T00:00:00Z", "SNAPSHOT 1.09 2026-03-02"),
    ] {
        assert_eq!(rate(client, &format!("source=EUR&target=USD&at={at}")).await, expected, "{at}");
    }
    let at = "at=2026-03-02T09:00:00Z";
    assert_eq!(rate(client, &format!("source=USD&target=EUR&{at}")).await, "INVERSE 0.9090909091 -");
    assert_eq!(rate(client, &format!("source=CHF&target=GBP&{at}")).await, "CROSS 0.8820000000 2026-03-02");
    assert_eq!(
        rate(&api.other, &format!("source=EUR&target=USD&{at}")).await,
        "SNAPSHOT 1.09 2026-03-02",
        "not of others"
    );
    assert_eq!(rate(&api.sandbox, &format!("source=EUR&target=USD&{at}")).await, "SNAPSHOT 1.09 2026-03-02");
    // Changed, then taken away.
    let path = format!("/v1/fx/overrides/{first}");
    let changed = client.patch(&path, json!({"rate": "1.15", "valid_to": null, "reason": null})).await.data(200);
    assert_eq!(
        (&changed["rate"], &changed["valid_to"], &changed["reason"]),
        (&json!("1.15"), &Value::Null, &Value::Null)
    );
    assert_eq!(client.get(&path).await.data(200), changed);
    assert_eq!(rate(client, "source=EUR&target=USD&at=2027-01-01T00:00:00Z").await, "OVERRIDE 1.15 -");
    let found = client.get("/v1/fx/overrides?active_at=2026-03-04T12:00:00Z&source_currency=EUR").await.expect(200);
    assert_eq!(found["data"].as_array().unwrap().len(), 2, "the one without an end, and that of the day");
    assert_eq!(
        client.get("/v1/fx/overrides?target_currency.in=USD,EUR").await.expect(200)["data"].as_array().unwrap().len(),
        5
    );
    let _ = client.delete(&path).await.expect(204);
    for reply in [client.get(&path).await, client.delete(&path).await, client.patch(&path, json!({})).await] {
        reply.problem(404, "NOT_FOUND");
    }
    assert_eq!(rate(client, &format!("source=EUR&target=USD&{at}")).await, "SNAPSHOT 1.09 2026-03-02");
}

#[tokio::test]
async fn an_override_begins_now_or_with_its_day() {
    let api = TestApi::start().await;
    let before = Clock::System.now();
    let body = json!({"source_currency": "EUR", "target_currency": "USD", "rate": "1.5", "valid_from": null});
    let set = api.live.post("/v1/fx/overrides", body.clone()).await.data(201);
    let from: domain::Instant = set["valid_from"].as_str().unwrap().parse().unwrap();
    assert!(from >= before && set["valid_to"].is_null() && set["deleted_at"].is_null());
    assert_eq!(rate(&api.live, "source=EUR&target=USD").await, "OVERRIDE 1.5 -");
    let past =
        json!({"source_currency": "EUR", "target_currency": "GBP", "rate": "0.9", "snapshot_date": "2026-03-02"});
    assert_eq!(api.live.post("/v1/fx/overrides", past).await.data(201)["valid_from"], "2026-03-02T00:00:00Z");
    assert_eq!(rate(&api.live, "source=EUR&target=GBP&at=2026-03-02T12:00:00Z").await, "OVERRIDE 0.9 2026-03-02");
}

#[tokio::test]
async fn bad_input_is_named() {
    let api = TestApi::start().await;
    let client = &api.live;
    let good = json!({"source_currency": "EUR", "target_currency": "USD", "rate": "1.5"});
    for (name, value, code) in [
        ("source_currency", json!("eur"), "INVALID_FORMAT"),
        ("source_currency", Value::Null, "REQUIRED"),
        ("target_currency", json!("EUR"), "NOT_ALLOWED"),
        ("rate", json!("0"), "OUT_OF_RANGE"),
        ("rate", json!("-1"), "OUT_OF_RANGE"),
        ("rate", json!("1.00000000001"), "OUT_OF_RANGE"),
        ("rate", json!("1000000000"), "OUT_OF_RANGE"),
        ("rate", json!("x"), "INVALID_FORMAT"),
        ("snapshot_date", json!("2026-02-30"), "INVALID_FORMAT"),
        ("valid_to", json!("2000-01-01T00:00:00Z"), "OUT_OF_RANGE"),
        ("reason", json!("x".repeat(501)), "TOO_LONG"),
        ("id", json!("x"), "UNKNOWN_FIELD"),
    ] {
        let mut body = good.clone();
        body[name] = value.clone();
        let refused = client.post("/v1/fx/overrides", body).await.bad_fields();
        assert_eq!(refused, [(name.to_owned(), code.to_owned())], "{name} {value}");
    }
    let path = format!("/v1/fx/overrides/{}", set(client, ("EUR", "USD"), "1.0000000001", json!({})).await);
    for (body, field, code) in [
        (json!({"source_currency": "GBP"}), "source_currency", "NOT_ALLOWED"),
        (json!({"valid_to": "2000-01-01T00:00:00Z"}), "valid_to", "OUT_OF_RANGE"),
        (json!({"rate": "0"}), "rate", "OUT_OF_RANGE"),
    ] {
        assert_eq!(client.patch(&path, body).await.bad_fields(), [(field.to_owned(), code.to_owned())]);
    }
    for (query, fields) in [
        ("", vec!["source", "target"]),
        ("source=eur&target=USD", vec!["source"]),
        ("source=EUR&target=USD&at=today&when=x", vec!["when", "at"]),
    ] {
        let refused = client.get(&format!("/v1/fx/rates?{query}")).await.bad_fields();
        assert_eq!(refused.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), fields);
    }
    client.get("/v1/fx/snapshots?date=2026-13-01").await.problem(400, "VALIDATION");
    client.get("/v1/fx/overrides?active_at.gt=2026-01-01T00:00:00Z").await.problem(400, "VALIDATION");
}

#[tokio::test]
async fn snapshots_are_those_of_a_day_and_never_change() {
    let api = TestApi::start().await;
    let yesterday = today().pred_opt().unwrap();
    publish(&api, &yesterday.to_string(), &[("USD", "1.08")]).await;
    assert_eq!(api.live.get("/v1/fx/snapshots").await.expect(200)["data"], json!([]), "none of today");
    publish(&api, &today().to_string(), &[("USD", "1.09"), ("JPY", "164.20")]).await;
    publish(&api, &today().to_string(), &[("USD", "2"), ("CHF", "0.95")]).await; // the dollar is known
    let page = api.live.get("/v1/fx/snapshots?sort=target_currency").await.expect(200);
    let rows: Vec<_> =
        page["data"].as_array().unwrap().iter().map(|row| (&row["target_currency"], &row["rate"])).collect();
    assert_eq!(json!(rows), json!([["CHF", "0.95"], ["JPY", "164.20"], ["USD", "1.09"]]));
    let row = &page["data"][0];
    assert_eq!((&row["source_currency"], &row["source"]), (&json!("EUR"), &json!("ECB")));
    assert_eq!(row["snapshot_date"], json!(today().to_string()));
    let old = api.live.get(&format!("/v1/fx/snapshots?date={yesterday}")).await.expect(200);
    assert_eq!(old["data"][0]["rate"], "1.08");
    let refused = sqlx::query("UPDATE fx_snapshot SET rate = 3").execute(api.app.store.pool()).await;
    assert!(refused.unwrap_err().to_string().contains("append-only"));
}

/// A transfer without a rate takes the one in effect and keeps it, whatever becomes of it later.
#[tokio::test]
async fn a_transfer_takes_the_rate_in_effect_and_pins_it() {
    let api = TestApi::start().await;
    let client = &api.live;
    let customer = client.post("/v1/customers", json!({"name": "A", "email": "a@b.example"})).await.data(201);
    let euros = format!("/v1/wallets/{}", id(&customer["wallet"]));
    let open = |currency: &'static str| {
        let body = json!({"customer_id": id(&customer), "currency": currency});
        async move { id(&client.post("/v1/wallets", body).await.data(201)) }
    };
    let (dollars, yen) = (open("USD").await, open("JPY").await);
    let money = |value: &str| json!({"value": value, "currency": "EUR"});
    let _ = client.post(&format!("{euros}/credit"), json!({"amount": money("100.00")})).await.data(201);
    let transfer = |more: Value| {
        let mut body = json!({"to_wallet_id": dollars, "amount": money("19.99")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = format!("{euros}/transfer");
        async move { client.post(&path, body).await }
    };
    transfer(json!({})).await.problem(422, "FX_RATE_NOT_FOUND");
    publish(&api, &today().to_string(), &[("USD", "1.0853"), ("JPY", "163.45")]).await;
    let moved = transfer(json!({"idempotency_key": "k"})).await.data(201);
    assert_eq!((&moved["fx_rate"], &moved["credit"]["amount"]["value"]), (&json!("1.0853"), &json!("21.70")));
    let pinned = &moved["debit"]["metadata"];
    let snapshot = client.get("/v1/fx/snapshots?target_currency=USD").await.expect(200)["data"][0].take();
    assert_eq!((&pinned["fx_rate"], &pinned["fx_rate_kind"]), (&json!("1.0853"), &json!("SNAPSHOT")));
    assert_eq!((&pinned["fx_rate_id"], &pinned["fx_snapshot_date"]), (&snapshot["id"], &snapshot["snapshot_date"]));
    assert_eq!(&moved["credit"]["metadata"], pinned);
    let _ = set(client, ("EUR", "USD"), "2", json!({})).await;
    assert_eq!(transfer(json!({"idempotency_key": "k"})).await.data(200), moved, "a repeat answers the first");
    assert_eq!(
        transfer(json!({})).await.data(201)["credit"]["amount"]["value"],
        "39.98",
        "a new one takes the override"
    );
    let given = transfer(json!({"fx_rate": "1.5"})).await.data(201);
    assert_eq!((&given["fx_rate"], &given["credit"]["amount"]["value"]), (&json!("1.5"), &json!("29.99"))); // 29.985
    // Rounded to whole yen in the mode of the workspace.
    let to_yen = json!({"to_wallet_id": yen, "amount": money("10.00")});
    assert_eq!(transfer(to_yen.clone()).await.data(201)["credit"]["amount"]["value"], "1635");
    let _ = client.patch("/v1/currencies/JPY", json!({"rounding_mode": "DOWN"})).await.expect(200);
    assert_eq!(transfer(to_yen).await.data(201)["credit"]["amount"]["value"], "1634");
    let nothing = json!({"to_wallet_id": yen, "amount": money("0.01"), "fx_rate": "0.1"});
    transfer(nothing).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let report = ledger::verify(&api.app.store, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.differences);
}
