//! Guards: a top-up by invoice that fills its wallet twice, not at all or before it is paid, that is booked as revenue, or whose money
//! stays on the wallet when it has gone back (wallets.md 2.2, mode INVOICE).

use billing::invoice::{self, InvoiceDTO};
use domain::{CustomerId, InvoiceId, Result, Scope, WalletId};
use ledger::Outcome;
use payments::charge::Attempt;
use payments::topup::{OpenedOfCustomer, WalletTopupRequest, WalletTopupResponse};
use payments::words::TransactionStatus;
use serde_json::{Value, json};

use crate::fixture::{Payer, Shop, Step, eur};

impl Shop {
    async fn order_of_customer(
        &self,
        scope: &Scope,
        customer: CustomerId,
        body: Value,
    ) -> Result<Outcome<OpenedOfCustomer>> {
        let request = WalletTopupRequest::read(&body)?;
        let mut tx = self.store.begin("topup").await?;
        let opened = self.payments.topup_customer(scope, &mut tx, customer, &request).await;
        tx.end(opened).await
    }

    /// An invoice over a top-up, and what the order is.
    pub async fn invoiced(&self, scope: &Scope, payer: &Payer, value: &str) -> (InvoiceId, OpenedOfCustomer) {
        let body = json!({"amount": eur(value), "mode": "INVOICE"});
        let opened = self.order_of_customer(scope, payer.customer, body).await.unwrap().value;
        let OpenedOfCustomer::Invoiced { invoice_id, .. } = opened else { panic!("{opened:?}") };
        (invoice_id, opened)
    }

    async fn how_far(&self, scope: &Scope, opened: &OpenedOfCustomer) -> WalletTopupResponse {
        self.payments.proceed_with_topup(scope, opened, Attempt::Again).await.unwrap()
    }

    async fn get_invoice(&self, scope: &Scope, id: InvoiceId) -> InvoiceDTO {
        let mut conn = self.store.pool().acquire().await.unwrap();
        invoice::read::get(scope, &mut conn, id).await.unwrap()
    }

    /// Type, source and amount of each movement of a wallet, the oldest first.
    async fn movements(&self, wallet: WalletId) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT type || ' ' || source || ' ' || round(amount, 2) FROM wallet_transaction WHERE wallet_id = $1
             ORDER BY created_at, id",
        )
        .bind(wallet)
        .fetch_all(self.store.pool())
        .await
        .unwrap()
    }

    /// Balances of these accounts of the workspace.
    async fn assert_booked<const N: usize>(&self, scope: &Scope, expected: [(&str, &str); N]) {
        for (kind, balance) in expected {
            assert_eq!(self.balance(scope, kind).await, balance, "{kind}");
        }
        self.assert_verified().await;
    }
}

fn transfer(value: &str) -> Value {
    json!({"source": "BANK_TRANSFER", "amount": eur(value)})
}

#[tokio::test]
async fn the_payment_in_full_fills_the_wallet_once() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    shop.topup(scope, payer.wallet, "100.00").await.unwrap();
    let (id, opened) = shop.invoiced(scope, &payer, "50.00").await;
    let first = shop.how_far(scope, &opened).await;
    assert_eq!((first.wallet_id, first.invoice_id, first.transaction_id), (payer.wallet, Some(id), None));
    assert_eq!((first.mode.as_str(), first.status), ("INVOICE", TransactionStatus::Pending));
    let dto = shop.get_invoice(scope, id).await;
    let head = &dto.invoice;
    assert_eq!((head.invoice_type.as_str(), head.status.as_str()), ("one_off", "finalized"));
    assert_eq!(head.invoice_number.as_deref(), Some("INV-000001"));
    assert!(head.due_date.is_some() && dto.buyer_snapshot.is_some());
    let [line] = dto.lines.as_slice() else { panic!("{} lines", dto.lines.len()) };
    assert_eq!((line.line.line_type.as_str(), line.line.charge_kind.as_str()), ("ONE_TIME", "ONE_TIME"));
    assert_eq!(
        (line.line.amount, line.line.total, line.line.tax_category_code.as_str()),
        (head.total, head.total, "O")
    );
    assert_eq!(shop.bill(id).await, "finalized paid 0.00 due 50.00", "no wallet pays for itself");
    assert_eq!(shop.cash(scope, payer.wallet).await, "100.00");
    shop.assert_booked(scope, [("receivable", "50.00"), ("topup_invoiced", "-50.00"), ("revenue", "0.00")]).await;

    shop.record(scope, id, transfer("20.00")).await.unwrap();
    assert_eq!(shop.cash(scope, payer.wallet).await, "100.00", "not yet paid in full");
    assert_eq!(shop.how_far(scope, &opened).await.status, TransactionStatus::Pending);
    let mut more = transfer("31.00");
    more["credit_excess_to_wallet"] = json!(true);
    shop.record(scope, id, more).await.unwrap();
    assert_eq!(shop.bill(id).await, "paid paid 50.00 due 0.00");
    assert_eq!(shop.how_far(scope, &opened).await.status, TransactionStatus::Succeeded);
    assert_eq!(shop.record(scope, id, transfer("50.00")).await.unwrap_err().code(), "INVALID_TRANSITION");
    let movements = shop.movements(payer.wallet).await;
    assert_eq!(movements, ["TOPUP TOPUP 100.00", "TOPUP TOPUP 50.00", "CREDIT MANUAL 1.00"]);
    assert_eq!(shop.events(scope).await["wallet.topup_succeeded"], 2);
    shop.assert_booked(
        scope,
        [("receivable", "0.00"), ("topup_invoiced", "0.00"), ("revenue", "0.00"), ("manual_clearing", "51.00")],
    )
    .await;
}

#[tokio::test]
async fn it_is_charged_as_every_invoice_is_and_credited_once_whenever_a_process_dies() {
    for what in ["nobody dies", "the answer is lost", "recording"] {
        let shop = Shop::open().await;
        let scope = &shop.live;
        let payer = shop.payer(scope).await;
        let (id, _) = shop.invoiced(scope, &payer, "50.00").await;
        match what {
            "nobody dies" => {}
            "the answer is lost" => shop.bank.will([Step::TakeAndLose]),
            _ => {
                shop.fail_at("wallet.topup_succeeded").await;
                assert_eq!(shop.sweep_in(0).await.failed, 1);
                assert_eq!(shop.bill(id).await, "finalized paid 0.00 due 50.00", "no half of an outcome");
                shop.fail_no_more().await;
            }
        }
        for minutes in [0, 2, 20] {
            shop.sweep_in(minutes).await;
        }
        assert_eq!(shop.bank.charges(), 1, "{what}");
        assert_eq!(shop.bill(id).await, "paid paid 50.00 due 0.00", "{what}");
        assert_eq!(shop.movements(payer.wallet).await, ["TOPUP TOPUP 50.00"], "{what}");
        shop.assert_booked(scope, [("topup_invoiced", "0.00"), ("gateway_clearing", "50.00"), ("receivable", "0.00")])
            .await;
    }
}

/// The customer sends the money, too, before the direct debit is confirmed: all of it is his.
#[tokio::test]
async fn money_that_crosses_is_on_the_wallet() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (id, _) = shop.invoiced(scope, &payer, "50.00").await;
    shop.bank.will([Step::TakeLater]);
    shop.sweep_in(0).await;
    shop.record(scope, id, transfer("50.00")).await.unwrap();
    assert_eq!(shop.cash(scope, payer.wallet).await, "50.00");
    shop.sweep_in(16).await;
    assert_eq!(shop.movements(payer.wallet).await, ["TOPUP TOPUP 50.00", "CREDIT PAYMENT 50.00"]);
    shop.assert_booked(scope, [("topup_invoiced", "0.00"), ("receivable", "0.00")]).await;
}

#[tokio::test]
async fn caps_are_asked_when_it_is_ordered_and_a_key_orders_once() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let cap = async |cap: Option<i32>| {
        let mut tx = shop.store.begin("cap").await.unwrap();
        sqlx::query("UPDATE wallet SET max_single_credit = $2 WHERE id = $1")
            .bind(payer.wallet)
            .bind(cap.map(rust_decimal::Decimal::from))
            .execute(tx.conn())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    let body = |value: &str| json!({"amount": eur(value), "mode": "INVOICE", "idempotency_key": "k"});
    cap(Some(40)).await;
    let refused = shop.order_of_customer(scope, payer.customer, body("50.00")).await.unwrap_err();
    assert_eq!(refused.code(), "MAX_SINGLE_CREDIT_EXCEEDED");
    cap(None).await;
    let first = shop.order_of_customer(scope, payer.customer, body("50.00")).await.unwrap();
    let again = shop.order_of_customer(scope, payer.customer, body("50.00")).await.unwrap();
    assert_eq!((again.value, first.replayed, again.replayed), (first.value, false, true));
    let other = shop.order_of_customer(scope, payer.customer, body("51.00")).await.unwrap_err();
    assert_eq!(other.code(), "IDEMPOTENCY_CONFLICT");
    let unknown = shop.order_of_customer(scope, CustomerId::generate(), body("50.00")).await.unwrap_err();
    assert_eq!(unknown.code(), "NOT_FOUND");
    let invoices: i64 = sqlx::query_scalar("SELECT count(*) FROM invoice").fetch_one(shop.store.pool()).await.unwrap();
    assert_eq!(invoices, 1);
    // What was paid is credited in any case.
    cap(Some(40)).await;
    shop.sweep_in(0).await;
    assert_eq!(shop.cash(scope, payer.wallet).await, "50.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn a_refund_takes_back_what_the_wallet_has() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (id, _) = shop.invoiced(scope, &payer, "50.00").await;
    shop.sweep_in(0).await;
    let refused = shop.refund(scope, id, json!({"destination": "WALLET"})).await.unwrap_err();
    assert_eq!(refused.code(), "BUSINESS_RULE_VIOLATION");
    shop.refund(scope, id, json!({"amount": eur("10.00"), "destination": "MANUAL"})).await.unwrap();
    assert_eq!(shop.cash(scope, payer.wallet).await, "40.00");
    shop.debit(scope, payer.wallet, "25.00").await;
    // It goes back when the provider has given it back, and not before.
    shop.bank.will([Step::TakeLater]);
    shop.refund(scope, id, json!({})).await.unwrap();
    assert_eq!(shop.cash(scope, payer.wallet).await, "15.00");
    shop.sweep_in(16).await;
    assert_eq!(shop.cash(scope, payer.wallet).await, "0.00");
    assert_eq!(shop.bank.returned(), ["40.00"]);
    assert_eq!(shop.bill(id).await, "paid paid 0.00 due 0.00");
    assert_eq!(shop.notes(scope, id).await.len(), 2);
    shop.assert_booked(
        scope,
        [
            ("receivable", "0.00"),
            ("topup_invoiced", "0.00"),
            ("write_off", "25.00"),
            ("revenue", "-25.00"), // of the debit
            ("gateway_clearing", "10.00"),
            ("manual_clearing", "-10.00"),
        ],
    )
    .await;
}

/// A part of it that went back before the rest came is not credited.
#[tokio::test]
async fn only_what_is_paid_is_credited() {
    for (is_credited, due, cash) in [(true, "30.00", "30.00"), (false, "50.00", "50.00")] {
        let shop = Shop::open().await;
        let scope = &shop.live;
        let payer = shop.payer(scope).await;
        let (id, _) = shop.invoiced(scope, &payer, "50.00").await;
        shop.record(scope, id, transfer("20.00")).await.unwrap();
        let back = json!({"destination": "MANUAL", "create_credit_note": is_credited});
        shop.refund(scope, id, back).await.unwrap();
        assert_eq!(shop.bill(id).await, format!("finalized paid 0.00 due {due}"));
        shop.sweep_in(0).await;
        assert_eq!(shop.cash(scope, payer.wallet).await, cash);
        shop.assert_booked(scope, [("receivable", "0.00"), ("topup_invoiced", "0.00"), ("revenue", "0.00")]).await;
    }
}

#[tokio::test]
async fn a_void_one_credits_nothing() {
    let shop = Shop::open().await;
    let scope = &shop.live;
    let payer = shop.payer(scope).await;
    let (id, opened) = shop.invoiced(scope, &payer, "50.00").await;
    sqlx::query("UPDATE invoice SET status = 'void', voided_at = now() WHERE id = $1")
        .bind(id)
        .execute(shop.store.pool())
        .await
        .unwrap();
    assert_eq!(shop.sweep_in(0).await.charges, 0);
    assert_eq!(shop.record(scope, id, transfer("50.00")).await.unwrap_err().code(), "INVALID_TRANSITION");
    assert_eq!(shop.cash(scope, payer.wallet).await, "0.00");
    assert_eq!(shop.how_far(scope, &opened).await.status, TransactionStatus::Cancelled);
}
