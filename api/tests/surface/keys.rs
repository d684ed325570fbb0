//! Guards: a stranger's key that opens, a secret that is kept, a narrowed key that widens itself (api-keys.md).

use api::testing::{TestApi, id};
use serde_json::{Value, json};

fn token(key: &Value) -> String {
    key["key"].as_str().expect("clear text").to_owned()
}

#[tokio::test]
async fn a_key_is_made_with_the_type_of_its_workspace() {
    let api = TestApi::start().await;
    let key = api.sandbox.post("/v1/api-keys", json!({"name": "ci"})).await.expect(201);
    assert_eq!(key["key_type"], "sk_test");
    let text = token(&key);
    let hex = text.strip_prefix("sk_test_").expect("prefix");
    assert!(hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    assert_eq!(key["key_prefix"], text[..16]);
    let _ = api.sandbox.with_token(&text).get("/v1/products").await.expect(200);
    let wrong = json!({"name": "x", "key_type": "sk_live"});
    api.sandbox.post("/v1/api-keys", wrong).await.problem(422, "BUSINESS_RULE_VIOLATION");
}

#[tokio::test]
async fn the_clear_text_is_stored_nowhere() {
    let api = TestApi::start().await;
    let client = api.live.with_header("idempotency-key", "mint-1");
    let key = client.post("/v1/api-keys", json!({"name": "secret"})).await.expect(201);
    let (text, repeat) = (token(&key), client.post("/v1/api-keys", json!({"name": "secret"})).await);
    assert_eq!(repeat.header("idempotent-replayed"), Some("true"));
    let repeated = repeat.expect(201);
    assert_eq!(repeated["id"], key["id"]);
    assert_ne!(repeated["key"], key["key"]);
    for (table, column) in
        [("api_key", "api_key::text"), ("idempotency_key", "encode(body, 'escape')"), ("outbox", "outbox::text")]
    {
        let sql = format!("SELECT count(*) FROM {table} WHERE {column} LIKE '%' || $1 || '%'");
        let found: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(&text[16..])
            .fetch_one(api.app.store.pool())
            .await
            .unwrap();
        assert_eq!(found, 0, "{table}");
    }
}

#[tokio::test]
async fn bad_requests_name_their_fields() {
    let api = TestApi::start().await;
    let fields = api
        .live
        .post("/v1/api-keys", json!({"key_type": "sk_prod", "allowed_ips": ["10.0.0.0/8", "example.com"], "color": 1}))
        .await
        .bad_fields();
    let expected = [
        ("name", "REQUIRED"),
        ("key_type", "INVALID_ENUM"),
        ("allowed_ips[1]", "INVALID_FORMAT"),
        ("color", "UNKNOWN_FIELD"),
    ];
    assert_eq!(fields, expected.map(|(field, code)| (field.to_owned(), code.to_owned())));
    let past = json!({"name": "x", "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(api.live.post("/v1/api-keys", past).await.bad_fields(), [("expires_at".into(), "OUT_OF_RANGE".into())]);
    let scopes = json!({"name": "x", "scopes": ["customers:read", "customers:destroy"]});
    let problem = api.live.post("/v1/api-keys", scopes).await.problem(422, "BUSINESS_RULE_VIOLATION");
    assert_eq!(problem["unknown_scopes"], json!(["customers:destroy"]));
}

#[tokio::test]
async fn the_allowlist_is_held_against_the_client_address() {
    let api = TestApi::start().await;
    let body = json!({"name": "office", "allowed_ips": ["198.51.100.0/24"]});
    let key = api.live.with_token(&token(&api.live.post("/v1/api-keys", body).await.expect(201)));
    key.from_address("203.0.113.9").get("/v1/products").await.problem(403, "FORBIDDEN");
    let _ = key.from_address("198.51.100.7").get("/v1/products").await.expect(200);
    let _ = key.from_address("::ffff:198.51.100.7").get("/v1/products").await.expect(200);
    let forged = key.from_address("203.0.113.9").with_header("x-forwarded-for", "198.51.100.7");
    forged.get("/v1/products").await.problem(403, "FORBIDDEN");
}

#[tokio::test]
async fn rotation_ends_the_old_text_and_keeps_the_terms() {
    let api = TestApi::start().await;
    let body = json!({"name": "ci", "scopes": ["products:read", "api_keys:write"], "allowed_ips": ["127.0.0.0/8"],
                      "expires_at": "2999-01-01T00:00:00Z"});
    let old = api.live.post("/v1/api-keys", body).await.expect(201);
    let old_client = api.live.with_token(&token(&old));
    let _ = old_client.get("/v1/products").await.expect(200); // now in the cache
    let new = old_client.post_empty("/v1/api-keys/rotate").await.expect(200);
    old_client.get("/v1/products").await.problem(401, "UNAUTHORIZED");
    let _ = old_client.with_token(&token(&new)).get("/v1/products").await.expect(200);
    for member in ["scopes", "allowed_ips", "expires_at", "name", "key_type"] {
        assert_eq!(old[member], new[member], "{member}");
    }
    // Another key of the workspace, by its id; a foreign one is absent.
    let other = api.live.post("/v1/api-keys/rotate", json!({"id": new["id"]})).await.expect(200);
    old_client.with_token(&token(&new)).get("/v1/products").await.problem(401, "UNAUTHORIZED");
    api.other.post("/v1/api-keys/rotate", json!({"id": other["id"]})).await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn revocation_holds_at_once_and_repeats() {
    let api = TestApi::start().await;
    let key = api.live.post("/v1/api-keys", json!({"name": "gone"})).await.expect(201);
    let (path, client) = (format!("/v1/api-keys/{}", id(&key)), api.live.with_token(&token(&key)));
    let _ = client.get("/v1/products").await.expect(200);
    api.other.delete(&path).await.problem(404, "NOT_FOUND");
    let _ = client.delete(&path).await.expect(204); // a key may revoke itself
    client.get("/v1/products").await.problem(401, "UNAUTHORIZED");
    let _ = api.live.delete(&path).await.expect(204);
    let listed = |query: &'static str| {
        let live = api.live.clone();
        async move { live.get(&format!("/v1/api-keys{query}")).await.expect(200)["data"].as_array().unwrap().clone() }
    };
    assert!(listed("").await.iter().all(|row| row["id"] != key["id"]));
    let all = listed("?include_revoked=true").await;
    let row = all.iter().find(|row| row["id"] == key["id"]).expect("listed");
    assert!(row["revoked_at"].is_string() && row.get("key").is_none());
}

#[tokio::test]
async fn a_narrowed_key_cannot_widen_itself() {
    let api = TestApi::start().await;
    let body = json!({"name": "narrow", "scopes": ["api_keys:write", "products:read"]});
    let key = api.live.post("/v1/api-keys", body).await.expect(201);
    let narrow = api.live.with_token(&token(&key));
    narrow.post("/v1/api-keys", json!({"name": "all"})).await.problem(403, "FORBIDDEN");
    narrow.post("/v1/api-keys", json!({"name": "more", "scopes": ["wallets:adjust"]})).await.problem(403, "FORBIDDEN");
    let path = format!("/v1/api-keys/{}", id(&key));
    narrow.patch(&path, json!({"scopes": []})).await.problem(403, "FORBIDDEN");
    narrow.post("/v1/api-keys/rotate", json!({"id": api.tenant.live.api_key_id})).await.problem(403, "FORBIDDEN");
    let _ = narrow.post("/v1/api-keys", json!({"name": "same", "scopes": ["products:read"]})).await.expect(201);
    let changed = narrow.patch(&path, json!({"name": "renamed", "scopes": ["products:read"]})).await.data(200);
    assert_eq!((&changed["name"], &changed["scopes"]), (&json!("renamed"), &json!(["products:read"])));
    narrow.patch(&path, json!({"name": "again"})).await.problem(403, "FORBIDDEN"); // the change holds at once
}

#[tokio::test]
async fn a_workspace_has_at_most_fifty_active_keys() {
    let api = TestApi::start().await;
    for number in 1..50 {
        let _ = api.live.post("/v1/api-keys", json!({"name": format!("key {number}")})).await.expect(201);
    }
    api.live.post("/v1/api-keys", json!({"name": "one too many"})).await.problem(422, "LIMIT_EXCEEDED");
    let _ = api.live.post_empty("/v1/api-keys/rotate").await.expect(200);
}
