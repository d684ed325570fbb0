//! Measures `ledger verify` and the trial balance on large books:
//! `KONTORION_TRANSFERS=1000000 cargo test --release -p ledger --test books scale -- --ignored --nocapture`.

use std::time::Instant;

use domain::WalletMode::Prepaid;

use crate::fixture::Books;

/// A tenth of the movements on one wallet, the rest over a thousand, as credits of 1.00 would have left them.
const FILL: &str = "
WITH wallets AS (SELECT id, customer_id, workspace_id, row_number() OVER (ORDER BY id) - 1 AS place FROM wallet),
moved AS (
    SELECT gen_random_uuid() AS transfer_id, n, w.* FROM generate_series(1, $1::bigint) AS n
    JOIN wallets w ON w.place = CASE WHEN n % 10 = 0 THEN 0 ELSE 1 + n % 1000 END
), numbered AS (
    SELECT moved.*, row_number() OVER (PARTITION BY id ORDER BY n) AS step FROM moved
), accounts AS (
    INSERT INTO ledger_account (id, workspace_id, kind, currency, wallet_id, stripe, created_at)
    SELECT uuid_of_account(id), workspace_id, 'wallet_cash', 'EUR', id, 0, now() FROM wallets
    UNION ALL SELECT workspace_id, workspace_id, 'manual_clearing', 'EUR', NULL, 0, now() FROM wallets WHERE place = 0
), transfers AS (
    INSERT INTO ledger_transfer (id, workspace_id, kind, booked_at, created_at)
    SELECT transfer_id, workspace_id, 'wallet_credit', now(), now() FROM numbered
), entries AS (
    INSERT INTO ledger_entry (transfer_id, seq, workspace_id, account_id, currency, amount)
    SELECT transfer_id, 1, workspace_id, workspace_id, 'EUR', 1.00 FROM numbered
    UNION ALL SELECT transfer_id, 2, workspace_id, uuid_of_account(id), 'EUR', -1.00 FROM numbered
), movements AS (
    INSERT INTO wallet_transaction (id, workspace_id, wallet_id, customer_id, transfer_id, type, source, amount, currency,
        balance_kind, cash_balance_after, promotional_balance_after, created_at)
    SELECT gen_random_uuid(), workspace_id, id, customer_id, transfer_id, 'CREDIT', 'MANUAL', 1.00, 'EUR', 'CASH', step, 0,
        now() + step * interval '1 ms' FROM numbered
)
UPDATE wallet SET cash_balance = (SELECT count(*) FROM numbered WHERE numbered.id = wallet.id)";

#[tokio::test]
#[ignore = "measures"]
async fn scale() {
    let transfers: i64 = std::env::var("KONTORION_TRANSFERS").map_or(1_000_000, |text| text.parse().unwrap());
    let books = Books::new().await;
    for _ in 0..1_001 {
        books.euro_wallet(Prepaid, None).await;
    }
    let mut conn = books.store.pool().acquire().await.unwrap();
    for statement in [
        "SET statement_timeout = 0",
        "CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\"",
        "CREATE FUNCTION uuid_of_account(wallet uuid) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
             SELECT uuid_generate_v5(wallet, 'wallet_cash') $$",
    ] {
        sqlx::query(statement).execute(&mut *conn).await.unwrap();
    }
    sqlx::query(FILL).bind(transfers).execute(&mut *conn).await.unwrap();
    sqlx::query("VACUUM ANALYZE").execute(&mut *conn).await.unwrap();

    let began = Instant::now();
    let report = ledger::verify(&books.store, &mut |_| {}).await.unwrap();
    let verified = began.elapsed().as_secs_f64();
    assert!(report.is_clean(), "{:#?}", report.differences.first());
    let began = Instant::now();
    let rows = ledger::trial_balance(&books.store, &books.scope, None, &mut |_| {}).await.unwrap();
    let summed = began.elapsed().as_secs_f64();
    assert_eq!(rows.len(), 2);
    let memory = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = memory.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!(
        "{} transfers, {} entries, {} movements: verified in {verified:.1} s ({:.0} transfers/s), trial balance in {summed:.1} s; {peak}",
        report.transfers,
        report.entries,
        report.movements,
        report.transfers as f64 / verified
    );
}
