//! settlements.md: the vector, periods, states, what is carried, and the books.

use api::testing::{Client, TestApi, id};
use serde_json::{Value, json};

use super::{bill, customer, eur};

fn line(line_type: &str, amount: &str, more: Value) -> Value {
    let mut line = json!({"type": line_type, "description": "A line", "amount": eur(amount)});
    line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line
}

fn period(customer: &Value, month: u32, more: Value) -> Value {
    let mut body = json!({
        "customer_id": id(customer), "currency": "EUR", "period_start": format!("2026-{month:02}-01T00:00:00Z"),
        "period_end": format!("2026-{:02}-01T00:00:00Z", month + 1),
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn generate(client: &Client, body: Value) -> Value {
    client.post("/v1/settlements/generate", body).await.data(201)
}

fn amounts(settlement: &Value) -> [&str; 5] {
    ["gross_earnings", "total_fees", "total_fee_tax", "total_withholding", "net_payout"]
        .map(|name| settlement[name]["value"].as_str().unwrap())
}

/// Sum of the entries of a kind of account.
async fn booked(api: &TestApi, kind: &str) -> String {
    let sum: Option<sqlx::types::Decimal> = sqlx::query_scalar(
        "SELECT sum(e.amount) FROM ledger_entry e JOIN ledger_account a ON a.id = e.account_id WHERE a.kind = $1",
    )
    .bind(kind)
    .fetch_one(api.app.store.pool())
    .await
    .unwrap();
    sum.unwrap_or_default().normalize().to_string()
}

/// Test vectors of the reference, and the way of a settlement to its payout.
#[tokio::test]
async fn the_vector_of_the_reference_is_paid_out() {
    let api = TestApi::start().await;
    let client = &api.live;
    let seller = customer(client, json!({})).await;
    let lines = json!([
        line("EARNING", "1000.00", json!({"reference": "order 1", "metadata": {"order": "1"}})),
        line("REFUND", "50.00", json!({})),
        line("COMMISSION", "95.00", json!({"tax_rate": "19"})),
        line("FEE", "5.00", json!({"tax_rate": "19"})),
    ]);
    let made = generate(client, period(&seller, 1, json!({"lines": lines}))).await;
    assert_eq!(amounts(&made), ["950.00", "100.00", "19.00", "0.00", "831.00"]);
    assert_eq!((&made["status"], &made["settlement_number"]), (&json!("draft"), &Value::Null));
    let path = format!("/v1/settlements/{}", id(&made));
    assert_eq!(client.get(&path).await.data(200), made);
    let taxes: Vec<&Value> =
        made["lines"].as_array().unwrap().iter().map(|line| &line["tax_amount"]["value"]).collect();
    assert_eq!(taxes, [&Value::Null, &Value::Null, &json!("18.05"), &json!("0.95")]);
    let listed = client.get(&format!("{path}/lines?type=FEE")).await.expect(200);
    assert_eq!((listed["data"].as_array().unwrap().len(), &listed["data"][0]["amount"]), (1, &eur("5.00")));
    let post = |action: &'static str, body: Value| {
        let (client, path) = (client.clone(), format!("{path}/{action}"));
        async move { client.post(&path, body).await }
    };
    post("pay", json!({})).await.problem(409, "INVALID_TRANSITION");
    let finalized = post("finalize", json!({})).await.data(200);
    assert_eq!((&finalized["status"], &finalized["settlement_number"]), (&json!("finalized"), &json!("SET-000001")));
    assert_eq!(
        (booked(&api, "settlement_payable").await, booked(&api, "settlement_expense").await),
        ("-831".into(), "831".into())
    );
    client.delete(&path).await.problem(409, "INVALID_TRANSITION");
    assert_eq!(post("pay", json!({"paid_at": "2999-01-01T00:00:00Z"})).await.bad_fields()[0].0, "paid_at");
    let paid = post("pay", json!({"reference": "SEPA 7"})).await.data(200);
    assert_eq!((&paid["status"], &paid["payout_reference"]), (&json!("paid"), &json!("SEPA 7")));
    post("void", json!({})).await.problem(409, "INVALID_TRANSITION");
    let payouts = client.get("/v1/transactions?kind=PAYOUT").await.expect(200);
    let payout = &payouts["data"][0];
    assert_eq!(
        (&payout["amount"], &payout["direction"], &payout["status"], &payout["settlement_id"], &payout["reference"]),
        (&eur("831.00"), &json!("OUTBOUND"), &json!("SUCCEEDED"), &paid["id"], &json!("SEPA 7"))
    );
    assert_eq!(
        (booked(&api, "settlement_payable").await, booked(&api, "manual_clearing").await),
        ("0".into(), "-831".into())
    );
    let stranger = &api.other;
    stranger.get(&path).await.problem(404, "NOT_FOUND");
    assert!(ledger::verify(&api.app.store, &mut |_| {}).await.unwrap().is_clean());
}

/// Without lines: every movement of the period, once, and none of another.
#[tokio::test]
async fn a_draft_without_lines_has_the_movements_of_the_period() {
    let api = TestApi::start().await;
    let client = &api.sandbox;
    let seller = customer(client, json!({})).await;
    let invoice = bill(&api, &seller).await;
    let paid = json!({"source": "BANK_TRANSFER", "reference": "a", "received_at": "2026-01-15T00:00:00Z"});
    let paid = client.post(&format!("{invoice}/manual-payments"), paid).await.data(201);
    let refund = json!({"amount": eur("19.00"), "destination": "MANUAL"});
    let _ = client.post(&format!("{invoice}/refund"), refund).await.data(201);
    let made = generate(client, period(&seller, 1, json!({}))).await;
    let lines = made["lines"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[0]["type"], &lines[0]["transaction_id"]), (1, &json!("EARNING"), &paid["id"]));
    assert_eq!((&lines[0]["invoice_id"], amounts(&made)[4]), (&paid["invoice_id"], "119.00"));
    // The refund was today.
    let later = json!({"period_start": "2026-02-01T00:00:00Z", "period_end": "2999-01-01T00:00:00Z"});
    let made = generate(client, period(&seller, 2, later)).await;
    assert_eq!(
        (&made["lines"][0]["type"], amounts(&made)),
        (&json!("REFUND"), ["-19.00", "0.00", "0.00", "0.00", "-19.00"])
    );
}

/// Money for a wallet is an earning when the wallet pays an invoice with it, and not before: neither what was paid beyond an invoice nor
/// what pays the invoice of a top-up.
#[tokio::test]
async fn money_for_a_wallet_is_no_earning_yet() {
    let api = TestApi::start().await;
    let client = &api.sandbox;
    let seller = customer(client, json!({})).await;
    let invoice = bill(&api, &seller).await;
    let paid = json!({"source": "CASH", "amount": eur("130.00"), "credit_excess_to_wallet": true});
    let paid = client.post(&format!("{invoice}/manual-payments"), paid).await.data(201);
    let topup = format!("/v1/customers/{}/wallets/topup", id(&seller));
    let _ = client.post(&topup, json!({"amount": eur("5.00"), "mode": "MANUAL"})).await.data(201);
    let ordered = client.post(&topup, json!({"amount": eur("20.00"), "mode": "INVOICE"})).await.data(201);
    let asked = format!("/v1/invoices/{}", ordered["invoice_id"].as_str().unwrap());
    let _ = client.post(&format!("{asked}/manual-payments"), json!({"source": "CASH"})).await.data(201);
    let refund = json!({"amount": eur("7.00"), "destination": "MANUAL"});
    let _ = client.post(&format!("{asked}/refund"), refund).await.data(201);
    let always = json!({"period_start": "2026-01-01T00:00:00Z", "period_end": "2999-01-01T00:00:00Z"});
    let made = generate(client, period(&seller, 1, always)).await;
    let lines = made["lines"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[0]["transaction_id"], &lines[0]["amount"]), (1, &paid["id"], &eur("119.00")));
}

/// A negative payout is carried into the next draft, once; and again when that is no more.
#[tokio::test]
async fn a_negative_payout_is_carried_into_the_next_draft() {
    let api = TestApi::start().await;
    let client = &api.live;
    let seller = customer(client, json!({})).await;
    let fee = generate(client, period(&seller, 1, json!({"lines": [line("FEE", "10.00", json!({}))]}))).await;
    let first = format!("/v1/settlements/{}", id(&fee));
    let post = async |path: &str| client.post(path, json!({})).await;
    let _ = post(&format!("{first}/finalize")).await.data(200);
    post(&format!("{first}/pay")).await.problem(422, "BUSINESS_RULE_VIOLATION");
    let earning = || json!({"lines": [line("EARNING", "100.00", json!({}))]});
    let next = generate(client, period(&seller, 2, earning())).await;
    assert_eq!((amounts(&next)[0], amounts(&next)[4]), ("90.00", "90.00"));
    let carried = &next["lines"][1];
    assert_eq!(
        (&carried["type"], &carried["amount"], &carried["reference"]),
        (&json!("ADJUSTMENT"), &eur("-10.00"), &json!("SET-000001"))
    );
    post(&format!("{first}/void")).await.problem(409, "INVALID_TRANSITION");
    // Deleted, it carries nothing; the one in its place does.
    let _ = client.delete(&format!("/v1/settlements/{}", id(&next))).await.expect(204);
    client.get(&format!("/v1/settlements/{}", id(&next))).await.problem(404, "NOT_FOUND");
    let next = generate(client, period(&seller, 2, earning())).await;
    let other = generate(client, period(&seller, 3, earning())).await;
    assert_eq!((amounts(&next)[4], amounts(&other)[4]), ("90.00", "100.00"), "carried once");
    let second = format!("/v1/settlements/{}", id(&next));
    let _ = post(&format!("{second}/finalize")).await.data(200);
    assert_eq!(booked(&api, "settlement_payable").await, "-90", "what is carried is booked once");
    let _ = post(&format!("{second}/void")).await.data(200);
    assert_eq!(booked(&api, "settlement_payable").await, "10");
    let _ = post(&format!("{first}/void")).await.data(200);
    assert_eq!(booked(&api, "settlement_payable").await, "0");
    let voids = client.get("/v1/settlements?status=void&sort=period_start").await.expect(200);
    assert_eq!(voids["data"].as_array().unwrap().len(), 2);
    assert!(voids["data"][0].get("lines").is_none(), "lists have no lines");
}

#[tokio::test]
async fn periods_do_not_overlap_and_bad_bodies_name_their_fields() {
    let api = TestApi::start().await;
    let client = &api.live;
    let seller = customer(client, json!({})).await;
    let made = generate(client, period(&seller, 3, json!({}))).await;
    let again = |more: Value| client.post("/v1/settlements/generate", period(&seller, 3, more));
    let problem = again(json!({"period_start": "2026-03-31T23:59:59Z", "period_end": "2026-05-01T00:00:00Z"})).await;
    assert_eq!(problem.problem(409, "PERIOD_OVERLAP")["settlement_id"], made["id"]);
    // Beside it, in another currency, and after it is void.
    let _ = generate(client, period(&seller, 4, json!({}))).await;
    let _ = again(json!({"currency": "USD"})).await.data(201);
    let _ = client.post(&format!("/v1/settlements/{}/void", id(&made)), json!({"reason": "wrong"})).await.data(200);
    let _ = again(json!({})).await.data(201);
    let nobody = "00000000-0000-7000-8000-000000000000";
    again(json!({"customer_id": nobody})).await.problem(404, "NOT_FOUND");
    let unknown = json!({"period_start": "2026-06-01T00:00:00Z", "period_end": "2026-07-01T00:00:00Z",
        "lines": [line("EARNING", "1.00", json!({"transaction_id": nobody}))]});
    again(unknown).await.problem(404, "NOT_FOUND");
    again(json!({"currency": "USD", "lines": [line("EARNING", "1.00", json!({}))]}))
        .await
        .problem(422, "CURRENCY_MISMATCH");
    let bad = again(json!({
        "period_end": "2026-03-01T00:00:00Z", "color": 1,
        "lines": [line("EARNING", "0.00", json!({})), line("EARNING", "1.00", json!({"tax_rate": "19"})),
                  line("FEE", "1.00", json!({"tax_rate": "101"})), line("TIP", "1.00", json!({}))],
    }));
    let expected = [
        ("lines[0].amount", "OUT_OF_RANGE"),
        ("lines[1].tax_rate", "NOT_ALLOWED"),
        ("lines[2].tax_rate", "OUT_OF_RANGE"),
        ("lines[3].type", "INVALID_ENUM"),
        ("period_end", "OUT_OF_RANGE"),
        ("color", "UNKNOWN_FIELD"),
    ];
    let mut found = bad.await.bad_fields();
    found.sort();
    let mut expected: Vec<_> = expected.map(|(field, code)| (field.to_owned(), code.to_owned())).into();
    expected.sort();
    assert_eq!(found, expected);
}
