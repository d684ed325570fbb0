//! Money of finalized invoices: wallets, books, dates, immutability.

use serde_json::json;

use crate::fixture::{World, at};

/// Wallet money is applied at finalization and reduces what is due, never the total (D4); the books balance.
#[tokio::test]
async fn wallet_money_is_applied_at_finalization() {
    let world = World::new("2026-01-31").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    for (cash, due, paid, status) in [("100.00", "0.00", "31.00", "paid"), ("10.50", "20.50", "10.50", "finalized")] {
        let customer = world.customer().await;
        let wallet = world.wallet(customer, cash).await;
        let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
        world.settle().await;
        let invoice = world.invoices(id).await.remove(0).invoice;
        assert_eq!(invoice.total.amount().to_string(), "31.00");
        assert_eq!(invoice.amount_due.amount().to_string(), due);
        assert_eq!((invoice.amount_paid.amount().to_string().as_str(), invoice.status.as_str()), (paid, status));
        let left: rust_decimal::Decimal = sqlx::query_scalar("SELECT cash_balance FROM wallet WHERE id = $1")
            .bind(wallet)
            .fetch_one(world.store.pool())
            .await
            .unwrap();
        let cash: rust_decimal::Decimal = cash.parse().unwrap();
        assert_eq!(left, cash - invoice.amount_paid.amount());
        let events = world.events(invoice.id).await;
        assert_eq!(events.first().map(String::as_str), Some("invoice.generated"));
        assert_eq!(events.contains(&"invoice.paid".to_owned()), status == "paid");
    }
    let sums: Vec<(String, rust_decimal::Decimal)> = sqlx::query_as(
        "SELECT kind, sum(amount) FROM ledger_entry JOIN ledger_account account ON account.id = account_id
         WHERE kind IN ('receivable', 'revenue') GROUP BY kind ORDER BY kind",
    )
    .fetch_all(world.store.pool())
    .await
    .unwrap();
    let sums: Vec<_> = sums.iter().map(|(kind, sum)| (kind.as_str(), sum.normalize().to_string())).collect();
    assert_eq!(sums, [("receivable", "20.5".to_owned()), ("revenue", "-62".to_owned())]);
}

/// invoices.md 4, Payment terms: finalize on 2026-01-31, 30 days: due 2026-03-02; the first that is set wins.
#[tokio::test]
async fn the_due_date_follows_the_terms() {
    let world = World::new("2026-01-31").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    for (terms, due) in [(json!({}), "2026-03-02"), (json!({"payment_terms_days": 0}), "2026-01-31")] {
        let id = world.subscribe(plan, terms).await.subscription.id;
        world.settle().await;
        let invoice = world.invoices(id).await.remove(0);
        assert_eq!(invoice.invoice.due_date.unwrap().to_string(), due);
        assert_eq!(invoice.invoice.issued_at, Some(at("2026-01-31")));
        assert_eq!(invoice.buyer_snapshot.unwrap()["name"], "A");
        let row = &invoice.tax_breakdown[0];
        assert_eq!((row.tax_category_code.as_str(), row.tax_amount.is_zero()), ("O", true), "no tax rules, no tax");
    }
}

/// A finalized invoice and its lines never change: the database refuses.
#[tokio::test]
async fn a_finalized_invoice_is_immutable() {
    let world = World::new("2026-01-31").await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    world.subscribe(plan, json!({})).await;
    world.settle().await;
    for sql in [
        "UPDATE invoice SET total = 1",
        "UPDATE invoice SET due_date = '2030-01-01'",
        "UPDATE invoice SET status = 'draft'",
        "DELETE FROM invoice",
        "UPDATE invoice_line SET amount = 1",
        "DELETE FROM invoice_line",
        "INSERT INTO invoice_line SELECT gen_random_uuid(), workspace_id, invoice_id, 2, line_type, charge_kind, applies_at,
             billing_timing, product_id, price_id, price_version_id, plan_version_id, subscription_item_id, metric_key,
             price_key, wallet_currency, description, quantity, unit_amount, amount, discount_amount, total, period_start,
             period_end, tax_rate, tax_type, tax_amount, tax_category_code, tax_exemption_code, tax_exemption_reason,
             supply_type, tax_rule_id, reverse_charge, atoms, metadata FROM invoice_line",
    ] {
        let refused = sqlx::query(sql).execute(world.store.pool()).await.unwrap_err();
        let code = refused.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        assert_eq!(code.as_deref(), Some("23000"), "{sql}: {refused}");
    }
}

/// Rule D3: a wallet that comes later takes over what its customer's open windows have accrued in its currency.
#[tokio::test]
async fn a_new_wallet_takes_over_accruals() {
    let world = World::new("2026-01-01").await;
    let plan = world.plan(&[(world.product("USAGE", "1").await, "0")]).await;
    let customer = world.customer().await;
    let id = world.try_subscribe(customer, plan, json!({})).await.unwrap().subscription.id;
    world.db_accrual(id, "2025-12-01").await;
    sqlx::query("UPDATE usage_accrual SET closed = true").execute(world.store.pool()).await.unwrap();
    world.db_accrual(id, "2026-01-01").await;
    let wallet = world.wallet(customer, "10.00").await;
    let wallets: Vec<Option<domain::WalletId>> =
        sqlx::query_scalar("SELECT wallet_id FROM usage_accrual ORDER BY window_start")
            .fetch_all(world.store.pool())
            .await
            .unwrap();
    assert_eq!(wallets, [None, Some(wallet)]);
    let body = json!({"customer_id": customer, "currency": "EUR"});
    let request = ledger::wallet::CreateWalletRequest::read(&body).unwrap();
    let mut tx = world.store.begin("make a wallet").await.unwrap();
    let refused = ledger::wallet::create_secondary(&world.scope, &mut tx, None, &request).await.unwrap_err();
    let domain::Error::Conflict { extensions, .. } = refused else { panic!("{refused}") };
    assert_eq!(extensions["existing_id"], json!(wallet));
}

/// invoices.md: the day of issue that an operator gives is a day of the organization's time zone.
#[tokio::test]
async fn an_invoice_is_issued_on_the_day_that_was_given() {
    let settings = json!({"auto_finalize_invoices": "false"});
    let world = World::with("2026-01-01T12:00:00Z", "Europe/Berlin", settings).await;
    let plan = world.plan(&[(world.product("FIXED_CHARGE", "31.00").await, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.settle().await;
    let draft = world.invoices(id).await.remove(0).invoice.id;
    let body = json!({"issue_date": "2025-12-15"});
    let request = billing::invoice::FinalizeInvoiceRequest::read(&body).unwrap();
    let mut tx = world.store.begin("finalize").await.unwrap();
    let done = world.billing.finalize_invoice(&world.scope, &mut tx, draft, &request).await.unwrap().invoice.invoice;
    assert_eq!(done.issued_at, Some(at("2025-12-14T23:00:00Z")));
    assert_eq!(done.due_date.unwrap().to_string(), "2026-01-14");
}
