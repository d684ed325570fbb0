//! Guards: a retry that acts twice, and a key that answers another request (conventions.md, Idempotency).

use std::collections::HashSet;

use api::testing::TestApi;
use futures::future::join_all;
use serde_json::json;

fn product(name: &str) -> serde_json::Value {
    json!({"name": name, "type": "USAGE"})
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer() {
    let api = TestApi::start().await;
    let client = api.live.with_header("idempotency-key", "k1");
    let first = client.post("/v1/products", product("A")).await;
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = client.post("/v1/products", product("A")).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!((first.status, &first.bytes), (again.status, &again.bytes));
    client.post("/v1/products", product("B")).await.problem(409, "IDEMPOTENCY_CONFLICT");
    // Other operations, other workspaces and other keys are free.
    let _ = client.post("/v1/plans", json!({"name": "P"})).await.expect(201);
    let _ = api.sandbox.with_header("idempotency-key", "k1").post("/v1/products", product("A")).await.expect(201);
    let _ = api.live.with_header("idempotency-key", "k2").post("/v1/products", product("A")).await.expect(201);
    let listed = api.live.get("/v1/products").await.expect(200);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn refusals_are_repeated_too_but_not_passing_trouble() {
    let api = TestApi::start().await;
    let client = api.live.with_header("idempotency-key", "k1");
    let first = client.post("/v1/products", json!({"name": ""})).await;
    let again = client.post("/v1/products", json!({"name": ""})).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.header("content-type"), Some("application/problem+json"));
    assert_eq!((first.status.as_u16(), &first.bytes), (400, &again.bytes));
    for round in 0..20 {
        let conflict = client.post("/v1/products", product("A")).await.problem(409, "IDEMPOTENCY_CONFLICT");
        assert!(conflict["detail"].as_str().unwrap().contains("another request"), "round {round}: {conflict}");
        let again = client.post("/v1/products", json!({"name": ""})).await;
        assert_eq!(again.body, first.body, "round {round}: the conflict has not replaced the first answer");
    }
}

#[tokio::test]
async fn keys_have_a_form_and_matter_on_posts_only() {
    let api = TestApi::start().await;
    for bad in ["", "has space", &"x".repeat(256)] {
        let client = api.live.with_header("idempotency-key", bad);
        client.post("/v1/products", product("A")).await.problem(400, "BAD_REQUEST");
    }
    let longest = "x".repeat(255);
    let client = api.live.with_header("idempotency-key", &longest);
    let id = client.post("/v1/products", product("A")).await.data(201)["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/products/{id}");
    assert_eq!(client.put(&path, json!({"name": "B"})).await.data(200)["version"], 2);
    assert_eq!(client.put(&path, json!({"name": "B"})).await.data(200)["version"], 3);
}

#[tokio::test]
async fn a_key_is_kept_for_a_day() {
    let api = TestApi::start().await;
    let client = api.live.with_header("idempotency-key", "k1");
    let first = client.post("/v1/products", product("A")).await.data(201);
    sqlx::query("UPDATE idempotency_key SET created_at = created_at - interval '25 hours'")
        .execute(api.app.store.pool())
        .await
        .unwrap();
    let later = client.post("/v1/products", product("A")).await.data(201);
    assert_ne!(first["id"], later["id"]);
}

#[tokio::test]
async fn concurrent_first_calls_act_once() {
    let api = TestApi::start().await;
    let client = api.live.with_header("idempotency-key", "race");
    let replies = join_all((0..8).map(|_| client.post("/v1/products", product("A")))).await;
    let mut ids = HashSet::new();
    for reply in replies {
        match reply.status.as_u16() {
            201 => drop(ids.insert(reply.body["data"]["id"].to_string())),
            _ => drop(reply.problem(409, "IDEMPOTENCY_CONFLICT")),
        }
    }
    assert_eq!(ids.len(), 1);
    let listed = api.live.get("/v1/products").await.expect(200);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1));
}
