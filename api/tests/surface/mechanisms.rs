//! Guards: answers without a problem document, checks in another order, limits that do not hold.

use api::limit::Rate;
use api::testing::{TestApi, settings};
use axum::http::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn authentication_fails_as_documented() {
    let api = TestApi::start().await;
    for header in ["Basic x", "Bearer ", "Bearer", "", "Bearer sk_live_00", "bearer nonsense"] {
        let reply = api.live.with_authorization(header).get("/v1/products").await;
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{header}");
        reply.problem(401, "UNAUTHORIZED");
    }
    let unknown = format!("Bearer sk_live_{}", "0".repeat(64));
    api.live.with_authorization(&unknown).get("/v1/products").await.problem(401, "UNAUTHORIZED");
    let _ = api.live.get("/v1/products").await.expect(200);
}

#[tokio::test]
async fn a_suspended_organization_cannot_work() {
    let api = TestApi::start().await;
    sqlx::query("UPDATE organization SET status = 'suspended' WHERE id = $1")
        .bind(api.tenant.organization_id)
        .execute(api.app.store.pool())
        .await
        .unwrap();
    api.live.get("/v1/products").await.problem(401, "UNAUTHORIZED");
    let _ = api.other.get("/v1/products").await.expect(200);
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let api = TestApi::start().await;
    let body = api.live.get("/v1/nothing?x=1").await.problem(404, "NOT_FOUND");
    assert_eq!(body["instance"], "/v1/nothing?x=1");
    let reply = api.live.send(Method::DELETE, "/v1/products", None).await;
    let allow = reply.header("allow").unwrap_or_default().to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    reply.problem(405, "METHOD_NOT_ALLOWED");
    api.live.get("/v1/products/not-an-id").await.problem(400, "BAD_REQUEST");
}

#[tokio::test]
async fn request_ids_are_taken_over_or_made() {
    let api = TestApi::start().await;
    let reply = api.live.with_header("x-request-id", "abc-123").get("/v1/nothing").await;
    assert_eq!(reply.header("x-request-id"), Some("abc-123"));
    assert_eq!(reply.problem(404, "NOT_FOUND")["request_id"], "abc-123");
    for bad in ["has space", &"x".repeat(129)] {
        let reply = api.live.with_header("x-request-id", bad).get("/v1/products").await;
        let id = reply.header("x-request-id").unwrap_or_default();
        assert!(id != bad && uuid::Uuid::parse_str(id).is_ok(), "{id}");
    }
}

#[tokio::test]
async fn bodies_must_be_json_of_a_bounded_size() {
    let api = TestApi::start().await;
    let post = |content_type: &'static str, body: &str| {
        let (client, body) = (api.live.clone(), body.as_bytes().to_vec());
        async move { client.send_bytes(Method::POST, "/v1/products", content_type, body).await }
    };
    for (content_type, body) in [
        ("application/json", "{"),
        ("application/json", ""),
        ("application/json", "[]"),
        ("application/json", r#"{"name":"a","name":"b"}"#),
        ("text/plain", "{}"),
        ("application/x-www-form-urlencoded", "name=x"),
    ] {
        post(content_type, body).await.problem(400, "BAD_REQUEST");
    }
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(1 << 20));
    post("application/json", &large).await.problem(413, "PAYLOAD_TOO_LARGE");
    let anonymous = api.live.with_authorization("");
    let reply = anonymous.send_bytes(Method::POST, "/v1/products", "application/json", large.into_bytes()).await;
    reply.problem(413, "PAYLOAD_TOO_LARGE"); // size is judged before the key
    let merge_patch = "application/merge-patch+json; charset=utf-8";
    let fields = post(merge_patch, "{}").await.bad_fields();
    assert_eq!(fields, [("name".into(), "REQUIRED".into()), ("type".into(), "REQUIRED".into())]);
}

#[tokio::test]
async fn permission_is_checked_before_the_body() {
    let api = TestApi::start().await;
    let body = json!({"name": "reader", "scopes": ["products:read"]});
    let key = api.live.post("/v1/api-keys", body).await.expect(201);
    let reader = api.live.with_token(key["key"].as_str().unwrap());
    let _ = reader.get("/v1/products").await.expect(200);
    let problem = reader.post("/v1/products", json!({"bad": 1})).await.problem(403, "FORBIDDEN");
    assert_eq!(problem["required_permission"], "products:write");
}

#[tokio::test]
async fn the_rate_limit_holds_per_workspace() {
    let slow = Rate { per_second: 1, burst: 3 };
    let api = TestApi::start_with(api::Settings { rate_live: slow, ..settings() }, |app| app).await;
    for left in ["2", "1", "0"] {
        let reply = api.live.get("/v1/products").await;
        assert_eq!(reply.header("x-ratelimit-limit"), Some("3"));
        assert_eq!(reply.header("x-ratelimit-remaining"), Some(left));
        assert!(reply.header("x-ratelimit-reset").is_some_and(|at| at.parse::<i64>().is_ok()));
        let _ = reply.expect(200);
    }
    // Before permission and validation: even a wrong call is refused for the rate alone.
    let refused = api.live.post("/v1/products", json!(1)).await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    refused.problem(429, "RATE_LIMITED");
    let _ = api.sandbox.get("/v1/products").await.expect(200);
    let _ = api.other.get("/v1/products").await.expect(200);
}

#[tokio::test]
async fn health_metrics_and_pages_need_no_key() {
    let api = TestApi::start().await;
    let anyone = api.live.with_authorization("");
    assert_eq!(anyone.get("/healthz").await.expect(200), json!({"status": "ok"}));
    assert_eq!(anyone.get("/readyz").await.expect(200)["checks"]["database"], "ok");
    assert_eq!(anyone.get("/v1/openapi.json").await.expect(200)["openapi"], "3.1.0");
    let metrics = anyone.get("/metrics").await;
    let text = String::from_utf8(metrics.bytes).unwrap();
    assert!(
        text.contains(r#"http_request_duration_seconds_count{method="GET",route="/healthz",status="200"}"#),
        "{text}"
    );
    let page = anyone.get("/docs").await;
    let html = String::from_utf8(page.bytes.clone()).unwrap();
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    assert!(!html.contains("http://") && !html.contains("https://"), "the page loads nothing from elsewhere");
}

#[tokio::test]
async fn a_lost_database_is_unavailable_and_not_shown() {
    let api = TestApi::start().await;
    let _ = api.live.get("/v1/products").await.expect(200);
    api.app.store.pool().close().await;
    let reply = api.live.get("/v1/products").await;
    assert_eq!(reply.header("retry-after"), Some("1"));
    let problem: Value = reply.problem(503, "SERVICE_UNAVAILABLE");
    assert_eq!(problem["dependency"], "database");
    let anyone = api.live.with_authorization("");
    assert_eq!(anyone.get("/readyz").await.expect(503)["checks"]["database"], "unavailable");
}
