//! From the five calls of a minimal set-up to a finalized invoice over HTTP, on a test clock (subscriptions.md, invoices.md,
//! test-clocks.md); refusals, idempotency, tenancy.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use api::App;
use api::app::Engine;
use api::testing::{Client, TestApi, id, settings};
use billing::Billing;
use billing::control::{WindowControl, WindowRef};
use catalog::compiled::{Snapshots, StoredWindow};
use domain::{Clock, Result};
use ingest::door::Door;
use ingest::log::EventLog;
use ingest::log::local::{LocalLog, LocalLogOptions};
use ingest::log::registry::{self, LogKind};
use ingest::outbox::Relay;
use ingest::reserve::ReservationDesk;
use ingest::usage::postgres::PostgresUsage;
use serde_json::{Value, json};
use store::Groups;

type Done<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Test double of the log's control records: these tests meter nothing, so that none may be published.
struct NoWindows;

impl WindowControl for NoWindows {
    fn period_end<'a, 'b, 'c>(&'a self, windows: &'b [WindowRef]) -> Done<'c, Vec<domain::Position>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        unreachable!("no window is metered: {windows:?}")
    }
    fn seal<'a, 'b, 'c>(&'a self, windows: &'b [WindowRef]) -> Done<'c, Vec<domain::Position>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        unreachable!("no window is metered: {windows:?}")
    }
    fn reopen<'a, 'b, 'c>(&'a self, windows: &'b [WindowRef]) -> Done<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        unreachable!("no window is metered: {windows:?}")
    }
    fn count_late<'a, 'c>(&'a self, window: StoredWindow, _: domain::Position) -> Done<'c, StoredWindow>
    where
        'a: 'c,
        Self: 'c,
    {
        unreachable!("no window is metered: {window:?}")
    }
}

/// The API with a log, a door and billing behind it.
async fn api() -> TestApi {
    TestApi::start_with(settings(), |app| {
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(with_engine(app)))
    })
    .await
}

async fn with_engine(mut app: App) -> App {
    let dir = std::env::temp_dir().join(format!("kontorion-api-{}", uuid::Uuid::now_v7()));
    let log_id = LocalLog::prepare(&dir, 4).unwrap();
    let now = Clock::System.now();
    let identity = registry::register(&app.store, LogKind::Local, &log_id.to_string(), 4, now).await.unwrap();
    let options = LocalLogOptions { segment_bytes: 1 << 20, ..LocalLogOptions::default() };
    let log: Arc<dyn EventLog> = Arc::new(LocalLog::open(&dir, identity, options).unwrap());
    let snapshots = Snapshots::start(&app.store).await.unwrap();
    app.engine = Some(Engine {
        door: Arc::new(Door::new(app.store.clone(), snapshots.clone(), log.clone())),
        relay: Arc::new(Relay::new(app.store.clone(), log)),
        reservations: Groups::new(&app.store, ReservationDesk::new(snapshots.clone())),
        usage: Arc::new(PostgresUsage::new(app.store.clone())),
        billing: Billing::new(app.store.clone(), snapshots.clone(), Arc::new(NoWindows)),
        snapshots,
    });
    app
}

struct Shop {
    clock: String,
    customer: String,
    plan: String,
    product: String,
}

/// Clock, customer, seats at 10.00 and a published plan.
async fn shop(client: &Client) -> Shop {
    let clock =
        client.post("/v1/test-clocks", json!({"frozen_at": "2026-01-01T00:00:00Z", "name": "year"})).await.data(201);
    let customer = json!({"name": "Acme", "email": "a@acme.example", "test_clock_id": id(&clock)});
    let customer = client.post("/v1/customers", customer).await.data(201);
    let product = json!({"name": "Seats", "type": "SEAT", "pricing_model": "VOLUME"});
    let product = client.post("/v1/products", product).await.data(201);
    let plan =
        client.post("/v1/plans", json!({"name": "Team", "products": [{"product_id": id(&product)}]})).await.data(201);
    let price = json!({
        "product_id": id(&product), "currency": "EUR",
        "tiers": [{"tier_order": 1, "up_to": null, "unit_amount": "10.00", "flat_amount": "0.00"}]
    });
    let _ = client.post("/v1/prices", price).await.data(201);
    let _ = client.post(&format!("/v1/plans/{}/publish", id(&plan)), json!({})).await.data(200);
    let text = |value: &Value| id(value).to_string();
    Shop { clock: text(&clock), customer: text(&customer), plan: text(&plan), product: text(&product) }
}

fn subscription(shop: &Shop) -> Value {
    json!({
        "customer_id": shop.customer, "plan_id": shop.plan, "billing_interval_unit": "monthly",
        "billing_interval_count": 1, "currency": "EUR", "items": [{"product_id": shop.product, "quantity": "5"}]
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_clock_turns_a_subscription_into_invoices() {
    let api = api().await;
    let shop = shop(&api.sandbox).await;
    let created = api.sandbox.post("/v1/subscriptions", subscription(&shop)).await.data(201);
    assert_eq!(
        (&created["status"], &created["current_period_end"]),
        (&json!("ACTIVE"), &json!("2026-02-01T00:00:00Z"))
    );
    assert_eq!(created["items"][0]["quantity"], json!("5"));
    assert_eq!(created.get("drift"), None, "S9");
    let path = format!("/v1/subscriptions/{}", id(&created));
    assert_eq!(api.sandbox.get(&path).await.data(200), created);
    let drift = api.sandbox.get(&format!("{path}?include=drift")).await.data(200);
    assert_eq!(drift["drift"]["versions_behind"], json!(0));

    let advance = format!("/v1/test-clocks/{}/advance", shop.clock);
    let clock = api.sandbox.post(&advance, json!({"frozen_at": "2026-02-15T00:00:00Z"})).await.data(200);
    assert_eq!((&clock["status"], &clock["frozen_at"]), (&json!("active"), &json!("2026-02-15T00:00:00Z")));

    let list = format!("/v1/invoices?subscription_id={}&status.in=finalized,paid", id(&created));
    let invoices = api.sandbox.get(&list).await.expect(200)["data"].clone();
    let numbers: Vec<_> =
        invoices.as_array().unwrap().iter().map(|invoice| invoice["invoice_number"].clone()).collect();
    assert_eq!(numbers, [json!("INV-000002"), json!("INV-000001")]);
    let invoice = api.sandbox.get(&format!("/v1/invoices/{}", id(&invoices[0]))).await.data(200);
    assert_eq!(invoice["total"], json!({"value": "50.00", "currency": "EUR"}));
    assert_eq!(invoice["billing_period_start"], json!("2026-02-01T00:00:00Z"));
    let line = &invoice["lines"][0];
    assert_eq!((&line["line_type"], &line["unit_amount"]), (&json!("RECURRING"), &json!("10")));
    let atoms = format!("/v1/invoices/{}/lines/{}/atoms", id(&invoice), id(line));
    let atoms = api.sandbox.get(&atoms).await.expect(200)["data"].clone();
    assert_eq!(atoms[0]["tiers"][0]["amount"], json!({"value": "50.00", "currency": "EUR"}));

    let again = api.sandbox.post(&format!("/v1/invoices/{}/finalize", id(&invoice)), json!({})).await;
    let problem = again.problem(409, "INVALID_TRANSITION");
    assert_eq!(problem["allowed"], json!(["paid", "overdue", "void", "error"]));
    let periods = api.sandbox.get(&format!("{path}/billing-periods?limit=2")).await.expect(200);
    assert_eq!(periods["data"][1]["invoice_id"], invoice["id"]);
    assert_eq!(periods["pagination"]["has_more"], json!(true));

    let cancelled = api.sandbox.post(&format!("{path}/cancel"), json!({"cancel_at_period_end": true})).await.data(200);
    assert_eq!(cancelled["cancel_at_period_end"], json!(true));
    let back = api.sandbox.post(&format!("{path}/reactivate"), json!({})).await.data(200);
    assert_eq!(back["cancel_at_period_end"], json!(false));
    let closed = api.sandbox.post(&format!("{path}/cancel"), json!({})).await.data(200);
    assert_eq!((&closed["status"], &closed["allowed_transitions"]), (&json!("CANCELLED"), &json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_with_its_field() {
    let api = api().await;
    let shop = shop(&api.sandbox).await;
    for (member, value, field) in [
        ("billing_anchor_day", json!(29), "billing_anchor_day"),
        ("currency", json!("eur"), "currency"),
        ("billing_interval_unit", json!("month"), "billing_interval_unit"),
        ("items", json!([{"product_id": shop.product, "quantity": "-1"}]), "items[0].quantity"),
        ("promotion_codes", json!(["X"]), "promotion_codes"),
        ("colour", json!("red"), "colour"),
    ] {
        let mut body = subscription(&shop);
        body[member] = value;
        let problem = api.sandbox.post("/v1/subscriptions", body).await.problem(400, "VALIDATION");
        assert_eq!(problem["fields"][0]["field"], json!(field));
    }
    let mut dollars = subscription(&shop);
    dollars["currency"] = json!("USD");
    api.sandbox.post("/v1/subscriptions", dollars).await.problem(422, "CURRENCY_MISMATCH");
    api.sandbox.get("/v1/subscriptions?status=active").await.problem(400, "VALIDATION");
    api.sandbox.get("/v1/subscriptions?include=all").await.problem(400, "VALIDATION");
    let half = json!({"subscription_id": shop.plan, "billing_period_start": "2026-01-01T00:00:00Z"});
    api.sandbox.post("/v1/invoices/generate", half).await.problem(400, "VALIDATION");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenant_sees_nothing() {
    let api = api().await;
    let shop = shop(&api.sandbox).await;
    let created = api.sandbox.post("/v1/subscriptions", subscription(&shop)).await.data(201);
    let path = format!("/v1/subscriptions/{}", id(&created));
    for stranger in [&api.other, &api.live] {
        stranger.get(&path).await.problem(404, "NOT_FOUND");
        stranger.get(&format!("{path}/billing-periods")).await.problem(404, "NOT_FOUND");
        for action in ["cancel", "pause", "resume", "reactivate"] {
            stranger.post(&format!("{path}/{action}"), json!({})).await.problem(404, "NOT_FOUND");
        }
        let generate = json!({"subscription_id": created["id"]});
        stranger.post("/v1/invoices/generate", generate).await.problem(404, "NOT_FOUND");
        assert_eq!(stranger.get("/v1/subscriptions").await.expect(200)["data"], json!([]));
        stranger.get("/v1/test-clocks").await.problem(403, "FORBIDDEN");
        let advance = format!("/v1/test-clocks/{}/advance", shop.clock);
        stranger.post(&advance, json!({"frozen_at": "2026-03-01T00:00:00Z"})).await.problem(403, "FORBIDDEN");
    }
}

/// A price that a live subscription is charged by cannot be taken away from it: its next bill would fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_is_archived_when_no_live_subscription_is_charged_by_it() {
    let api = api().await;
    let client = &api.sandbox;
    let shop = shop(client).await;
    let prices = client.get(&format!("/v1/prices?product_id={}", shop.product)).await.expect(200)["data"].clone();
    let base = id(&prices[0]).to_owned();
    let archive =
        async |price: &str| client.post(&format!("/v1/prices/{price}/archive"), json!({"reason": "old"})).await;
    let price = async |members: Value| -> String {
        let mut whole = json!({"product_id": shop.product, "currency": "EUR", "list_price": "9.00"});
        members.as_object().unwrap().iter().for_each(|(name, value)| whole[name] = value.clone());
        id(&client.post("/v1/prices", whole).await.data(201)).to_owned()
    };
    let subscription = client.post("/v1/subscriptions", subscription(&shop)).await.data(201);
    let stranger = client.post("/v1/customers", json!({"name": "B", "email": "b@b.example"})).await.data(201);
    let other_plan = json!({"name": "Other", "products": [{"product_id": shop.product}]});
    let other_plan = client.post("/v1/plans", other_plan).await.data(201);
    for (members, is_charged) in [
        (json!({"customer_id": shop.customer}), true),
        (json!({"plan_id": shop.plan}), true),
        (json!({"custom_dimensions": {"region": "eu"}}), true),
        (json!({"billing_interval_unit": "monthly"}), true),
        (json!({"currency": "USD"}), false),
        (json!({"country_code": "US"}), false),
        (json!({"customer_id": id(&stranger)}), false),
        (json!({"plan_id": id(&other_plan)}), false),
        (json!({"billing_interval_unit": "yearly"}), false),
        (json!({"billing_interval_unit": "monthly", "billing_interval_count": 3}), false),
    ] {
        let price = price(members.clone()).await;
        let answer = archive(&price).await;
        if is_charged {
            let _ = answer.problem(409, "CONFLICT");
        } else {
            let archived = answer.data(200);
            assert_eq!(archived["status"], json!("archived"), "{members}");
            assert!(archived["archived_at"].is_string());
            assert_eq!(client.get(&format!("/v1/prices/{price}")).await.data(200), archived);
            let _ = archive(&price).await.problem(409, "INVALID_TRANSITION");
        }
    }
    let _ = archive(&base).await.problem(409, "CONFLICT");
    let _ = archive(&uuid::Uuid::now_v7().to_string()).await.problem(404, "NOT_FOUND");
    // It is billed as before.
    let advance = format!("/v1/test-clocks/{}/advance", shop.clock);
    let _ = client.post(&advance, json!({"frozen_at": "2026-02-15T00:00:00Z"})).await.data(200);
    let list = format!("/v1/invoices?subscription_id={}", id(&subscription));
    let invoices = client.get(&list).await.expect(200)["data"].clone();
    assert_eq!(invoices.as_array().unwrap().len(), 2);
    assert_eq!(invoices[0]["total"], json!({"value": "50.00", "currency": "EUR"}));
    let _ = client.post(&format!("/v1/subscriptions/{}/cancel", id(&subscription)), json!({})).await.data(200);
    assert_eq!(archive(&base).await.data(200)["status"], json!("archived"));
}

/// What a live subscription is billed by cannot end before it: by a version, by the span of the price, by the binding.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_live_subscription_needs_does_not_end() {
    let api = api().await;
    let client = &api.sandbox;
    let shop = shop(client).await;
    let prices = client.get(&format!("/v1/prices?product_id={}", shop.product)).await.expect(200)["data"].clone();
    let price = format!("/v1/prices/{}", id(&prices[0]));
    let subscription = client.post("/v1/subscriptions", subscription(&shop)).await.data(201);
    let (end, later) = ("2100-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
    let _ = client.put(&price, json!({"effective_to": end})).await.problem(409, "CONFLICT");
    let _ = client.put(&price, json!({"valid_to": end})).await.problem(409, "CONFLICT");
    let past = client.put(&price, json!({"valid_from": "2020-01-01T00:00:00Z"})).await;
    let _ = past.problem(422, "BUSINESS_RULE_VIOLATION");
    // Nor by the way of a draft, which alone ends nothing.
    let _ = client.put(&price, json!({"effective_to": end, "save_as_draft": true})).await.data(200);
    let _ = client.post_empty(&format!("{price}/versions/2/publish")).await.problem(409, "CONFLICT");
    // A version in the middle may end: another one goes on.
    let _ = client.put(&price, json!({"display_name": "Next", "effective_at": end})).await.data(200);
    let _ =
        client.put(&price, json!({"display_name": "Soon", "effective_at": later, "effective_to": end})).await.data(200);
    let _ = client.post(&format!("/v1/subscriptions/{}/cancel", id(&subscription)), json!({})).await.data(200);
    assert_eq!(client.put(&price, json!({"valid_to": end})).await.data(200)["valid_to"], end);
}
