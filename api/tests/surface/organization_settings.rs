//! Guards: a setting that is written half, or whose value cannot be (organizations.md, rule 4 and its vectors).

use api::testing::TestApi;
use serde_json::{Value, json};

fn find<'a>(page: &'a Value, key: &str) -> &'a Value {
    page["data"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn settings_have_a_default_until_they_are_written() {
    let api = TestApi::start().await;
    let path = "/v1/organization-settings";
    let before = api.live.get(path).await.expect(200);
    let terms = find(&before, "payment_terms_days");
    assert_eq!(
        (&terms["value"], &terms["source"], &terms["updated_at"]),
        (&json!("30"), &json!("default"), &Value::Null)
    );
    let put = |settings: Value| {
        let client = api.live.clone();
        async move { client.put(path, json!({"settings": settings})).await }
    };
    let written = put(json!({"payment_terms_days": "30", "fx_policy": "period_start"})).await.expect(200);
    let terms = find(&written, "payment_terms_days");
    assert_eq!((&terms["source"], terms["updated_at"].is_string()), (&json!("override"), true));
    assert_eq!(find(&written, "fx_policy")["value"], "period_start");
    assert_eq!(api.sandbox.get(path).await.expect(200), written, "of the organization, not of a workspace");
    assert_eq!(find(&api.other.get(path).await.expect(200), "fx_policy")["value"], "invoice_issue");
    let removed = put(json!({"payment_terms_days": null})).await.expect(200);
    assert_eq!(find(&removed, "payment_terms_days")["source"], "default");
    assert_eq!(find(&removed, "fx_policy")["source"], "override", "what is not sent stays");
}

#[tokio::test]
async fn one_bad_value_rejects_the_whole_request() {
    let api = TestApi::start().await;
    let path = "/v1/organization-settings";
    for (settings, field, code) in [
        (
            json!({"payment_terms_days": "30", "auto_finalize_invoices": "maybe"}),
            "settings.auto_finalize_invoices",
            "INVALID_FORMAT",
        ),
        (
            json!({"payment_terms_days": "30", "usage_grace_period": "5 minutes"}),
            "settings.usage_grace_period",
            "INVALID_FORMAT",
        ),
        (json!({"payment_terms_days": "30", "fx_policy": "NONE"}), "settings.fx_policy", "INVALID_FORMAT"),
        (
            json!({"payment_terms_days": "30", "invoice_number_padding": 6}),
            "settings.invoice_number_padding",
            "INVALID_FORMAT",
        ),
        (
            json!({"payment_terms_days": "30", "wallet_default_credit_limit": "-1"}),
            "settings.wallet_default_credit_limit",
            "INVALID_FORMAT",
        ),
        (
            json!({"payment_terms_days": "30", "dunning_retry_schedule_seconds": "[7200, -1]"}),
            "settings.dunning_retry_schedule_seconds",
            "INVALID_FORMAT",
        ),
        (json!({"payment_terms_days": "30", "colour": "red"}), "settings.colour", "UNKNOWN_FIELD"),
    ] {
        let refused = api.live.put(path, json!({"settings": settings})).await.bad_fields();
        assert_eq!(refused, [(field.to_owned(), code.to_owned())]);
    }
    let after = api.live.get(path).await.expect(200);
    assert_eq!(find(&after, "payment_terms_days")["source"], "default", "nothing was written");
    let _ = api.live.put(path, json!({"settings": {"usage_grace_period": "5m"}})).await.expect(200);
    let fx = api.live.get("/v1/organization-settings?category=fx").await.expect(200);
    assert_eq!(fx["data"].as_array().unwrap().len(), 1);
    api.live.get("/v1/organization-settings?limits=1").await.problem(400, "VALIDATION");
    let catalog = api.live.get("/v1/organization-settings/catalog").await.expect(200);
    let entry = find(&catalog, "fx_policy");
    assert_eq!(
        (&entry["type"], &entry["default"], &entry["category"]),
        (&json!("string"), &json!("invoice_issue"), &json!("fx"))
    );
    assert_eq!(catalog["data"].as_array().unwrap().len(), after["data"].as_array().unwrap().len());
    let key =
        api.live.post("/v1/api-keys", json!({"name": "r", "scopes": ["organization_settings:read"]})).await.expect(201);
    let reader = api.live.with_token(key["key"].as_str().unwrap());
    let _ = reader.get(path).await.expect(200);
    reader.put(path, json!({"settings": {}})).await.problem(403, "FORBIDDEN");
}
