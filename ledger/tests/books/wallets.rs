//! Rules of wallets.md beyond the vectors: creation, caps, currencies, settings, corrections, transfers, tenancy.

use domain::WalletMode::{Postpaid, Prepaid};
use domain::{Currency, WalletId};
use ledger::wallet::{
    self, AdjustRequest, CreateWalletRequest, CreditRequest, TransferRequest, UpdateWalletSettingsRequest,
    WalletDefaults, WalletRequest,
};
use serde_json::{Value, json};

use crate::fixture::{Books, bad_fields, code, decimal, eur, workspace};

async fn secondary(books: &Books, body: Value) -> domain::Result<ledger::WalletDTO> {
    let request = CreateWalletRequest::read(&body)?;
    let mut tx = books.store.begin("secondary").await?;
    let wallet = wallet::create_secondary(&books.scope, &mut tx, None, &request).await?;
    tx.commit().await?;
    Ok(wallet)
}

#[tokio::test]
async fn a_second_wallet_in_one_currency_is_a_duplicate() {
    let books = Books::new().await;
    let primary = books.wallet(Prepaid, Currency::EUR, WalletDefaults::default()).await.wallet;
    assert!(primary.is_primary);
    let other = secondary(&books, json!({"customer_id": primary.customer_id, "currency": "USD"})).await.unwrap();
    assert!(!other.wallet.is_primary);
    assert_eq!(other.available_balance.to_string(), "0.00 USD");
    let again = secondary(&books, json!({"customer_id": primary.customer_id, "currency": "EUR"})).await;
    assert_eq!(code(again), "DUPLICATE");
    let unknown = secondary(&books, json!({"customer_id": uuid::Uuid::now_v7(), "currency": "EUR"})).await;
    assert_eq!(code(unknown), "NOT_FOUND");
    let topup = json!({"customer_id": primary.customer_id, "currency": "GBP", "auto_topup_enabled": true});
    assert_eq!(code(secondary(&books, topup).await), "BUSINESS_RULE_VIOLATION");
}

#[tokio::test]
async fn defaults_come_from_request_then_customer_then_organization() {
    let books = Books::new().await;
    sqlx::query("UPDATE organization SET settings = $1")
        .bind(json!({"wallet_default_max_balance": "900", "wallet_default_max_single_credit": "", "wallet_default_credit_limit": "1"}))
        .execute(books.store.pool())
        .await
        .unwrap();
    let customer = books.db_customer(Postpaid, None).await;
    sqlx::query("UPDATE customer SET default_credit_limit = 50.555, default_low_balance_threshold = 7")
        .execute(books.store.pool())
        .await
        .unwrap();
    let wallet = secondary(&books, json!({"customer_id": customer, "currency": "EUR", "low_balance_threshold": "3"}))
        .await
        .unwrap()
        .wallet;
    let text = |money: Option<domain::Money>| money.map(|money| money.to_string());
    assert_eq!(text(wallet.low_balance_threshold).as_deref(), Some("3.00 EUR"), "of the request");
    assert_eq!(text(wallet.credit_limit).as_deref(), Some("50.56 EUR"), "of the customer, in the wallet's currency");
    assert_eq!(text(wallet.max_balance).as_deref(), Some("900.00 EUR"), "of the organization");
    assert_eq!(text(wallet.max_single_credit), None);
}

#[tokio::test]
async fn caps_bound_credits() {
    let books = Books::new().await;
    let defaults = WalletDefaults {
        max_balance: Some(decimal("150")),
        max_single_credit: Some(decimal("100")),
        ..WalletDefaults::default()
    };
    let wallet = books.wallet(Prepaid, Currency::EUR, defaults).await.wallet.id;
    assert_eq!(code(books.credit(wallet, json!({"amount": eur("100.01")})).await), "MAX_SINGLE_CREDIT_EXCEEDED");
    books.cash(wallet, "100.00").await;
    assert_eq!(code(books.credit(wallet, json!({"amount": eur("50.01")})).await), "MAX_BALANCE_EXCEEDED");
    books.promotional(wallet, "50.00").await;
    let dollars = json!({"amount": {"value": "1.00", "currency": "USD"}});
    assert_eq!(code(books.credit(wallet, dollars.clone()).await), "CURRENCY_MISMATCH");
    assert_eq!(code(books.debit(wallet, dollars).await), "CURRENCY_MISMATCH");
    books.assert_verified().await;
}

#[tokio::test]
async fn bad_bodies_name_every_field() {
    let wrong = json!({"amount": eur("0.00"), "source": "GIFT", "expires_at": "2030-01-01T00:00:00Z", "colour": 1});
    assert_eq!(
        bad_fields(CreditRequest::read(&wrong)),
        [
            ("amount".into(), "OUT_OF_RANGE"),
            ("expires_at".into(), "NOT_ALLOWED"),
            ("source".into(), "INVALID_ENUM"),
            ("colour".into(), "UNKNOWN_FIELD")
        ]
    );
    let precise = json!({"amount": eur("1.001")});
    assert_eq!(bad_fields(CreditRequest::read(&precise)), [("amount.value".into(), "OUT_OF_RANGE")]);
    let negative = json!({"amount": eur("-1.00")});
    assert_eq!(bad_fields(CreditRequest::read(&negative)), [("amount".into(), "OUT_OF_RANGE")]);
    let yen = json!({"currency": "JPY", "credit_limit": "0.5", "max_balance": "x"});
    assert_eq!(
        bad_fields(CreateWalletRequest::read(&yen)),
        [("credit_limit".into(), "OUT_OF_RANGE"), ("max_balance".into(), "INVALID_FORMAT")]
    );
}

async fn settings(books: &Books, id: WalletId, body: Value) -> domain::Result<ledger::WalletDTO> {
    let request = UpdateWalletSettingsRequest::read(&body)?;
    let mut tx = books.store.begin("settings").await?;
    let wallet = wallet::update_settings(&books.scope, &mut tx, id, &request).await?;
    tx.commit().await?;
    Ok(wallet)
}

#[tokio::test]
async fn settings_change_what_is_sent() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Postpaid, Some("50")).await;
    let dto = settings(&books, wallet, json!({"credit_limit": "80", "max_balance": "200"})).await.unwrap();
    assert_eq!(dto.available_balance.to_string(), "80.00 EUR");
    let dto = settings(&books, wallet, json!({"max_balance": null})).await.unwrap();
    assert_eq!(
        (dto.wallet.max_balance, dto.wallet.credit_limit.map(|m| m.to_string())),
        (None, Some("80.00 EUR".into()))
    );
    assert_eq!(dto, books.get(wallet).await);
    assert_eq!(code(settings(&books, wallet, json!({"mode": "PREPAID"})).await), "BUSINESS_RULE_VIOLATION");
    assert_eq!(code(settings(&books, wallet, json!({"auto_topup_enabled": true})).await), "BUSINESS_RULE_VIOLATION");
    let precise = settings(&books, wallet, json!({"max_balance": "1.001", "auto_topup_amount": "0"})).await;
    assert_eq!(
        bad_fields(precise),
        [("auto_topup_amount".into(), "OUT_OF_RANGE"), ("max_balance".into(), "OUT_OF_RANGE")]
    );
    let past = settings(&books, wallet, json!({"promotional_balance_expires_at": "2001-01-01T00:00:00Z"})).await;
    assert_eq!(code(past), "BUSINESS_RULE_VIOLATION");
}

#[tokio::test]
async fn accrued_usage_cannot_be_spent_twice() {
    let books = Books::new().await;
    let dto = books.wallet(Prepaid, Currency::EUR, WalletDefaults::default()).await;
    let wallet = dto.wallet.id;
    books.cash(wallet, "100.00").await;
    books.db_accrual(&dto, "30.00", false).await;
    books.db_accrual(&dto, "99.00", true).await;
    assert_eq!(books.balances(wallet).await, "100.00 / 0.00 / 0.00, 70.00");
    assert_eq!(books.get(wallet).await.accrued_balance.to_string(), "30.00 EUR");
    assert_eq!(code(books.debit(wallet, json!({"amount": eur("70.01")})).await), "INSUFFICIENT_FUNDS");
    books.debit(wallet, json!({"amount": eur("70.00")})).await.unwrap();
}

#[tokio::test]
async fn adjustments_are_signed_and_stop_at_zero() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    let adjust = async |body: Value| {
        let request = AdjustRequest::read(&body)?;
        Ok(books.ask(wallet, WalletRequest::Adjust(request)).await?.movement()?.value)
    };
    adjust(json!({"amount": eur("10.00"), "reason": "found"})).await.unwrap();
    adjust(json!({"amount": eur("-4.00"), "reason": "lost"})).await.unwrap();
    adjust(json!({"amount": eur("5.00"), "reason": "gift", "balance": "PROMOTIONAL"})).await.unwrap();
    assert_eq!(code(adjust(json!({"amount": eur("-6.01"), "reason": "too much"})).await), "INSUFFICIENT_FUNDS");
    assert_eq!(books.balances(wallet).await, "6.00 / 5.00 / 0.00, 11.00");
    assert_eq!(books.account("write_off").await, "6.00");
    books.assert_verified().await;
}

#[tokio::test]
async fn transfers_convert_and_move_cash_only() {
    let books = Books::new().await;
    let euros = books.wallet(Prepaid, Currency::EUR, WalletDefaults::default()).await.wallet;
    let dollars = secondary(&books, json!({"customer_id": euros.customer_id, "currency": "USD"})).await.unwrap().wallet;
    books.cash(euros.id, "100.00").await;
    books.promotional(euros.id, "50.00").await;
    let transfer = async |body: Value| {
        let request = TransferRequest::read(&body)?;
        Ok(books.ask(euros.id, WalletRequest::Transfer(request)).await?.transfer()?.value)
    };
    let moved =
        transfer(json!({"to_wallet_id": dollars.id, "amount": eur("10.01"), "fx_rate": "1.105"})).await.unwrap();
    assert_eq!(moved.credit.amount.to_string(), "11.06 USD");
    assert_eq!(code(transfer(json!({"to_wallet_id": dollars.id, "amount": eur("1.00")})).await), "FX_RATE_NOT_FOUND");
    let too_much = json!({"to_wallet_id": dollars.id, "amount": eur("90.00"), "fx_rate": "1"});
    assert_eq!(code(transfer(too_much).await), "INSUFFICIENT_FUNDS");
    let other = books.euro_wallet(Prepaid, None).await;
    let foreign = transfer(json!({"to_wallet_id": other, "amount": eur("1.00")})).await;
    assert_eq!(code(foreign), "BUSINESS_RULE_VIOLATION");
    assert_eq!(books.balances(euros.id).await, "89.99 / 50.00 / 0.00, 139.99");
    books.assert_verified().await;
}

#[tokio::test]
async fn another_workspace_sees_nothing() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "10.00").await;
    let stranger = workspace(&books.store).await;
    assert_eq!(code(wallet::get(&stranger, &books.store, wallet).await), "NOT_FOUND");
    assert_eq!(code(wallet::list_transactions(&stranger, &books.store, wallet, &[]).await), "NOT_FOUND");
    assert!(wallet::list(&stranger, &books.store, &[]).await.unwrap().data.is_empty());
    let request = wallet::DebitRequest::read(&json!({"amount": eur("1.00")})).unwrap();
    let refused = books.ask_as(&stranger, wallet, WalletRequest::Debit(request)).await;
    assert_eq!(code(refused), "NOT_FOUND");
}

#[tokio::test]
async fn lists_filter_and_page() {
    let books = Books::new().await;
    let first = books.wallet(Prepaid, Currency::EUR, WalletDefaults::default()).await.wallet;
    for currency in ["USD", "GBP", "JPY"] {
        secondary(&books, json!({"customer_id": first.customer_id, "currency": currency})).await.unwrap();
    }
    books.euro_wallet(Prepaid, None).await;
    let list = async |parameters: &[(&str, &str)]| {
        let owned: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        wallet::list(&books.scope, &books.store, &owned).await
    };
    assert_eq!(list(&[]).await.unwrap().data.len(), 5);
    assert_eq!(list(&[("currency", "USD,GBP"), ("currency", "JPY")]).await.unwrap().data.len(), 3);
    assert_eq!(list(&[("is_primary", "false")]).await.unwrap().data.len(), 3);
    assert_eq!(list(&[("customer_id", &first.customer_id.to_string())]).await.unwrap().data.len(), 4);
    let page = list(&[("limit", "2")]).await.unwrap();
    let cursor = page.pagination.cursor.unwrap();
    let next = list(&[("limit", "2"), ("cursor", &cursor)]).await.unwrap();
    assert!(page.data.iter().all(|row| !next.data.contains(row)));
    assert_eq!(bad_fields(list(&[("colour", "red")]).await), [("colour".into(), "UNKNOWN_FIELD")]);
}
