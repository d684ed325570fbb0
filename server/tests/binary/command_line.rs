//! Guards what operators and their scripts read: exit status, the one thing a command prints, and secrets that it must not.

use std::path::Path;
use std::process::{ExitStatus, Stdio};

use client::sample::CURRENCY;
use client::server::Organization;
use serde_json::{Value, json};

use crate::site::{Site, directory, program};
use crate::tenant::Tenant;

/// Exit status, standard output, standard error.
type Outcome = (ExitStatus, String, String);

/// Runs the program in a directory without a configuration file, with these variables.
async fn run(dir: &Path, environment: &[(&str, &str)], words: &[&str]) -> Outcome {
    let mut command = program();
    command.args(words).envs(environment.iter().copied()).current_dir(dir).stdin(Stdio::null());
    let output = command.output().await.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status, text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn config_masks_secrets_and_honours_file_then_environment_then_flags() {
    let dir = directory();
    let file = "database_url = \"postgres://kontorion:s3cret@db/kontorion\"\nkafka_topic = \"from-file\"\n\
                node_name = \"from-file\"\npartitions = 3\n";
    std::fs::write(dir.path().join("kontorion.toml"), file).unwrap();
    let environment = [
        ("KONTORION_NODE_NAME", "from-environment"),
        ("KONTORION_PARTITIONS", "5"),
        ("KONTORION_CLICKHOUSE_URL", "http://reader:t0p-secret@clickhouse:8123"),
    ];
    let (status, printed, complaint) = run(dir.path(), &environment, &["config", "--set", "partitions=7"]).await;
    assert!(status.success(), "{complaint}");
    let shown: toml::Table = printed.parse().unwrap();
    assert_eq!(shown["kafka_topic"].as_str(), Some("from-file"));
    assert_eq!(shown["node_name"].as_str(), Some("from-environment"));
    assert_eq!(shown["partitions"].as_integer(), Some(7));
    assert_eq!(shown["database_url"].as_str(), Some("postgres://kontorion:***@db/kontorion"));
    assert_eq!(shown["clickhouse_url"].as_str(), Some("http://reader:***@clickhouse:8123"));
    assert!(!printed.contains("s3cret") && !complaint.contains("s3cret") && !printed.contains("t0p"), "{printed}");
}

#[tokio::test]
async fn an_unknown_key_stops_the_start_wherever_it_stands() {
    let dir = directory();
    let file = dir.path().join("wrong.toml");
    std::fs::write(&file, "partitons = 3\n").unwrap();
    let file = file.to_str().unwrap();
    for (environment, words) in [
        (vec![], vec!["serve", "--config", file]),
        (vec![("KONTORION_PARTITONS", "3")], vec!["serve"]),
        (vec![], vec!["serve", "--set", "partitons=3"]),
    ] {
        let (status, _, complaint) = run(dir.path(), &environment, &words).await;
        assert_eq!(status.code(), Some(2), "{words:?}: {complaint}");
        assert!(complaint.contains("partitons") && complaint.contains("partitions"), "{words:?}: {complaint}");
    }
}

#[tokio::test]
async fn openapi_needs_no_server_and_no_database() {
    let dir = directory();
    let nowhere = [("KONTORION_DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")];
    let (status, printed, complaint) = run(dir.path(), &nowhere, &["openapi"]).await;
    assert!(status.success(), "{complaint}");
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for path in ["/v1/usage-events", "/v1/subscriptions/{id}/usage", "/v1/invoices"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[tokio::test]
async fn migrate_may_be_repeated_and_run_twice_at_once() {
    let site = Site::new().await;
    // The site's own database has the schema already: this one is empty.
    let name = format!("{}_empty", site.database.name());
    let create = format!("CREATE DATABASE {name}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&site.database.pool()).await.unwrap();
    let url = site.database.url().replace(site.database.name(), &name);
    let environment = [("KONTORION_DATABASE_URL", url.as_str())];
    let migrate = || run(site.dir.path(), &environment, &["migrate"]);
    let (one, two) = tokio::join!(migrate(), migrate());
    for (status, printed, complaint) in [one, two, migrate().await] {
        assert!(status.success(), "{complaint}");
        assert_eq!(printed, "the database has the current schema\n");
    }
    let migrated = sqlx::PgPool::connect(&url).await.unwrap();
    let applied: i64 =
        sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success").fetch_one(&migrated).await.unwrap();
    assert_eq!(applied, site.number("SELECT count(*) FROM _sqlx_migrations WHERE success").await);
    migrated.close().await;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&site.database.pool()).await.unwrap();
}

#[tokio::test]
async fn org_create_prints_ids_and_keys_once() {
    let site = Site::new().await;
    let environment = [("KONTORION_DATABASE_URL", site.database.url())];
    let (status, printed, complaint) =
        run(site.dir.path(), &environment, &["org", "create", "Acme GmbH", "--json"]).await;
    assert!(status.success(), "{complaint}");
    let created: Organization = serde_json::from_str(&printed).unwrap();
    for (workspace, prefix) in [(&created.live, "sk_live_"), (&created.sandbox, "sk_test_")] {
        assert!(workspace.key.starts_with(prefix), "{}", workspace.key);
        assert_eq!((printed.matches(&workspace.key).count(), complaint.matches(&workspace.key).count()), (1, 0));
        let stored: i64 =
            sqlx::query_scalar("SELECT count(*) FROM api_key WHERE workspace_id = $1::uuid AND NOT api_key::text ~ $2")
                .bind(&workspace.workspace_id)
                .bind(&workspace.key)
                .fetch_one(&site.database.pool())
                .await
                .unwrap();
        assert_eq!(stored, 1, "one key, and not in clear");
    }
    let (status, text, complaint) = run(site.dir.path(), &environment, &["org", "create", "Beta AG"]).await;
    assert!(status.success(), "{complaint}");
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM organization ORDER BY name")
        .fetch_all(&site.database.pool())
        .await
        .unwrap();
    assert_eq!(names, ["Acme GmbH", "Beta AG"]);
    assert_eq!((text.matches("sk_live_").count(), text.matches("sk_test_").count()), (1, 1), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_verify_names_what_somebody_changed() {
    let site = Site::new().await;
    let server = site.server("server", &[]).await;
    let tenant = Tenant::create(&server, 2).await;
    let wallet = tenant.subscribers[0].wallet_id;
    let credit = json!({
        "amount": {"value": "250.00", "currency": CURRENCY}, "source": "MANUAL", "idempotency_key": "credit",
    });
    let _: Value = tenant.api.post(&format!("/v1/wallets/{wallet}/credit"), &credit).await.expect("credited");
    let (status, printed, complaint) = server.command(&["ledger", "verify"]).await.unwrap();
    assert!(status.success(), "{printed}\n{complaint}");
    assert!(printed.ends_with("ledger: no difference"), "{printed}");

    // What is booked, the database lets nobody change.
    for refused in [
        "UPDATE ledger_entry SET amount = amount + 1",
        "DELETE FROM ledger_entry",
        "DELETE FROM ledger_transfer",
        "UPDATE wallet_transaction SET amount = amount + 1",
        "TRUNCATE wallet_transaction",
    ] {
        let error = sqlx::query(refused).execute(&site.database.pool()).await.expect_err(refused).to_string();
        assert!(error.contains("append-only"), "{refused}: {error}");
    }
    // A balance must be writable, so it is recomputed.
    let tampered = sqlx::query("UPDATE wallet SET cash_balance = cash_balance + 1 WHERE id = $1")
        .bind(wallet)
        .execute(&site.database.pool())
        .await
        .unwrap();
    assert_eq!(tampered.rows_affected(), 1);
    let (status, printed, complaint) = server.command(&["ledger", "verify"]).await.unwrap();
    assert_eq!(status.code(), Some(1), "{printed}");
    let named = format!("DIFFERENCE  balance: wallet {wallet} cash_balance, by entries: expected 250.00, found 251.00");
    assert!(printed.contains(&named), "{printed}");
    assert!(printed.ends_with("ledger: DIFFERS"), "{printed}");
    assert!(complaint.contains("2 differences in the books"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_commands_show_and_close_the_books() {
    let site = Site::new().await;
    let server = site.server("server", &[]).await;
    let tenant = Tenant::create(&server, 2).await;
    let wallet = tenant.subscribers[0].wallet_id.to_string();
    let credit = json!({"amount": {"value": "1250.00", "currency": CURRENCY}, "idempotency_key": "credit"});
    let _: Value = tenant.api.post(&format!("/v1/wallets/{wallet}/credit"), &credit).await.expect("credited");
    let workspace: String = sqlx::query_scalar("SELECT workspace_id::text FROM wallet WHERE id = $1::uuid")
        .bind(&wallet)
        .fetch_one(&site.database.pool())
        .await
        .unwrap();
    let server = &server;
    let ledger = async |words: &str| {
        let words = format!("ledger {words} --workspace {workspace}");
        server.command(&words.split(' ').collect::<Vec<_>>()).await.unwrap()
    };

    let (_, printed, complaint) = ledger("trial-balance").await;
    assert!(printed.contains("manual_clearing") && printed.contains("1,250.00 Dr"), "{printed}\n{complaint}");
    let (_, printed, _) = ledger("trial-balance --json --before 2020-01-01").await;
    assert_eq!(printed.trim(), "[]");
    let (_, printed, _) = ledger(&format!("account wallet_cash --wallet {wallet} --json")).await;
    let statement: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&statement["closing"], statement["lines"].as_array().map(Vec::len)), (&json!("-1250.00"), Some(1)));
    let (_, printed, _) = ledger("account manual_clearing --currency EUR").await;
    assert!(printed.contains("opening balance") && printed.contains("1,250.00 Dr"), "{printed}");
    for (wrong, told) in [
        ("account cash", "wallet_cash"),
        ("account wallet_cash", "--wallet"),
        ("account revenue", "--currency"),
        ("trial-balance --before yesterday", "2026-11-01T00:00:00Z"),
    ] {
        let (status, _, complaint) = ledger(wrong).await;
        assert_eq!(status.code(), Some(2), "{wrong}: {complaint}");
        assert!(complaint.contains(told), "{wrong}: {complaint}");
    }

    let (status, printed, complaint) = ledger("close --before 2020-02-01 --note January").await;
    assert!(status.success() && printed.contains("closed before 2020-02-01 00:00:00"), "{printed}\n{complaint}");
    let (status, _, complaint) = ledger("close --before 2020-02-01").await;
    assert_eq!(status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("closed for everything before"), "{complaint}");
    let (status, printed, _) = ledger("reopen --note again").await;
    assert!(status.success(), "{printed}");
    let (_, printed, _) = ledger("closings").await;
    assert!(printed.contains("January") && printed.contains("again"), "{printed}");
    let (_, printed, _) = server.command(&["ledger", "verify", "--json"]).await.unwrap();
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&report["differences_total"], &report["transfers"]), (&json!(0), &json!(1)));
}
