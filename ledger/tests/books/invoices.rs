//! Invoices as booked facts.

use domain::WalletMode::{Postpaid, Prepaid};
use domain::{Currency, InvoiceId, WalletId};
use ledger::wallet::WalletTransactionSource;
use serde_json::json;

use crate::fixture::{Books, code, eur, euro};

async fn charge(books: &Books, wallet: WalletId, max: &str, invoice: InvoiceId) -> String {
    let mut tx = books.store.begin("charge").await.unwrap();
    let drawn = ledger::charge_for_invoice(&mut tx, &books.scope, wallet, euro(max), invoice).await.unwrap();
    tx.commit().await.unwrap();
    drawn.amount().to_string()
}

#[tokio::test]
async fn an_invoice_is_receivable_against_revenue_and_tax_once() {
    let books = Books::new().await;
    let invoice = InvoiceId::generate();
    for _ in 0..2 {
        let mut tx = books.store.begin("book").await.unwrap();
        ledger::book_invoice(&mut tx, &books.scope, invoice, Currency::EUR, euro("100.00"), euro("19.00"))
            .await
            .unwrap();
        ledger::book_invoice(&mut tx, &books.scope, InvoiceId::generate(), Currency::EUR, euro("0.00"), euro("0.00"))
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(books.account("receivable").await, "119.00");
    assert_eq!(books.account("revenue").await, "-100.00");
    assert_eq!(books.account("tax_payable").await, "-19.00");
    let mut tx = books.store.begin("book").await.unwrap();
    let other = ledger::book_invoice(&mut tx, &books.scope, invoice, Currency::USD, euro("1.00"), euro("0.00")).await;
    assert_eq!(code(other), "CURRENCY_MISMATCH");
    drop(tx);
    books.assert_verified().await;
}

#[tokio::test]
async fn prepaid_pays_down_to_zero_promotional_first_and_once() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    books.cash(wallet, "50.00").await;
    books.promotional(wallet, "20.00").await;
    let (first, second, third) = (InvoiceId::generate(), InvoiceId::generate(), InvoiceId::generate());
    assert_eq!(charge(&books, wallet, "30.00", first).await, "30.00");
    assert_eq!(charge(&books, wallet, "30.00", first).await, "30.00", "a repeat answers what was drawn");
    assert_eq!(books.balances(wallet).await, "40.00 / 0.00 / 0.00, 40.00");
    assert_eq!(charge(&books, wallet, "119.00", second).await, "40.00");
    assert_eq!(charge(&books, wallet, "119.00", third).await, "0.00");
    assert_eq!(books.account("receivable").await, "-70.00");
    let movements = books.movements(wallet).await;
    assert!(movements[2..].iter().all(|m| m.source == WalletTransactionSource::Invoice));
    assert_eq!(movements.last().unwrap().reference_id, Some(second.0));
    books.assert_verified().await;
}

#[tokio::test]
async fn postpaid_pays_down_to_its_limit_and_never_what_is_held() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Postpaid, Some("100.00")).await;
    books.cash(wallet, "50.00").await;
    books.hold(wallet, json!({"amount": eur("30.00")})).await.unwrap();
    assert_eq!(charge(&books, wallet, "500.00", InvoiceId::generate()).await, "120.00");
    assert_eq!(books.balances(wallet).await, "-70.00 / 0.00 / 30.00, 0.00");
    books.assert_verified().await;
}

/// Rule D3: the accrual is what this invoice draws; it does not stand in its own way.
#[tokio::test]
async fn an_accrual_does_not_block_its_invoice() {
    let books = Books::new().await;
    let dto = books.wallet(Prepaid, Currency::EUR, ledger::WalletDefaults::default()).await;
    books.cash(dto.wallet.id, "50.00").await;
    books.db_accrual(&dto, "50.00", false).await;
    assert_eq!(books.balances(dto.wallet.id).await, "50.00 / 0.00 / 0.00, 0.00");
    assert_eq!(charge(&books, dto.wallet.id, "50.00", InvoiceId::generate()).await, "50.00");
}
