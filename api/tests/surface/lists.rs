//! Guards: rows skipped or repeated while others write, and parameters that are ignored.

use std::collections::HashSet;

use api::testing::TestApi;
use serde_json::{Value, json};

#[tokio::test]
async fn pages_have_no_gaps_while_rows_are_inserted() {
    let api = TestApi::start().await;
    let insert = |name: String| {
        let live = api.live.clone();
        async move { live.post("/v1/products", json!({"name": name, "type": "SEAT"})).await.data(201)["id"].to_string() }
    };
    let mut before = HashSet::new();
    for number in 0..23 {
        before.insert(insert(format!("before {number}")).await);
    }
    let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = api.live.get(&format!("/v1/products?limit=5{cursor}")).await.expect(200);
        seen.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].to_string()));
        pages += 1;
        insert(format!("during {pages}")).await;
        let pagination = &page["pagination"];
        assert_eq!(pagination["limit"], 5);
        match &pagination["cursor"] {
            Value::String(text) => {
                assert_eq!(pagination["has_more"], true);
                cursor = format!("&cursor={text}");
            }
            _ => {
                assert_eq!(pagination, &json!({"cursor": null, "has_more": false, "limit": 5}));
                break;
            }
        }
    }
    assert_eq!(pages, 5);
    assert_eq!(seen.len(), 23, "no row twice, none added behind the cursor");
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), before);
}

#[tokio::test]
async fn filters_follow_the_grammar() {
    let api = TestApi::start().await;
    for (name, kind) in [("Alpha", "SEAT"), ("Beta_1", "USAGE"), ("beta%", "FIXED_CHARGE")] {
        let _ = api.live.post("/v1/products", json!({"name": name, "type": kind})).await.expect(201);
    }
    let names = |query: &'static str| {
        let live = api.live.clone();
        async move {
            let page = live.get(&format!("/v1/products?sort=name&{query}")).await.expect(200);
            let rows = page["data"].as_array().unwrap().clone();
            rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    assert_eq!(names("type=SEAT").await, ["Alpha"]);
    assert_eq!(names("type.in=SEAT,USAGE").await, ["Alpha", "Beta_1"]);
    assert_eq!(names("type.ne=SEAT").await.len(), 2);
    assert_eq!(names("name.contains=beta").await.len(), 2);
    assert_eq!(names("name.contains=%25").await, ["beta%"]);
    assert_eq!(names("name.contains=_").await, ["Beta_1"]);
    assert_eq!(names("created_at.gt=2999-01-01T00:00:00Z").await.len(), 0);
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("color=red", "color"),
        ("type=seat", "type"),
        ("name.gt=a", "name.gt"),
        ("sort=description", "sort"),
    ] {
        let fields = api.live.get(&format!("/v1/products?{query}")).await.bad_fields();
        assert_eq!(fields[0].0, field);
    }
    api.live.get("/v1/products?cursor=zz").await.problem(400, "INVALID_CURSOR");
}

#[tokio::test]
async fn a_cursor_belongs_to_its_list() {
    let api = TestApi::start().await;
    for number in 0..3 {
        let _ = api.live.post("/v1/products", json!({"name": format!("{number}"), "type": "SEAT"})).await.expect(201);
    }
    let page = api.live.get("/v1/products?limit=1").await.expect(200);
    let cursor = page["pagination"]["cursor"].as_str().unwrap().to_owned();
    let _ = api.live.get(&format!("/v1/products?limit=2&cursor={cursor}")).await.expect(200);
    for other in ["/v1/plans?x", "/v1/products?type=SEAT", "/v1/products?sort=name"] {
        let path = format!("{}&cursor={cursor}", other.replace("?x", "?limit=1"));
        api.live.get(&path).await.problem(400, "INVALID_CURSOR");
    }
    // Another tenant with this cursor sees its own rows only.
    let foreign = api.other.get(&format!("/v1/products?cursor={cursor}")).await.expect(200);
    assert_eq!(foreign["data"], json!([]));
}
