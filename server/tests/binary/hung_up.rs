//! Guards against what a client that hangs up may leave behind: an operation that is done twice or by half, a key that nobody
//! answers for any more (rule D5).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::ClientError;
use client::views::Created;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

use crate::site::Site;
use crate::tenant::Tenant;

/// Calls of each kind.
const CALLS: usize = 300;

/// Calls under way at once.
const CONNECTIONS: usize = 8;

/// The patience of a client grows by this from call to call, so that together they hang up everywhere on the way.
const STEP: Duration = Duration::from_micros(50);

/// An impatient client waits no longer than so many steps.
const STEPS: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_up_leave_nothing_half_done() {
    let site = Site::new().await;
    let server = site.server("server", &[]).await;
    let tenant = Tenant::create(&server, 1).await;
    let hung_up = AtomicUsize::new(0);
    let calls = (0..2 * CALLS).map(async |number| {
        let patience = STEP * u32::try_from(number * 7 % STEPS).unwrap(); // 7 and 400 have no common divisor
        if tokio::time::timeout(patience, call(&tenant, number)).await.is_err() {
            hung_up.fetch_add(1, Ordering::Relaxed);
        }
    });
    stream::iter(calls).buffer_unordered(CONNECTIONS).collect::<()>().await;
    let hung_up = hung_up.into_inner();
    assert!((CALLS / 4..2 * CALLS).contains(&hung_up), "some hang up, and not all: {hung_up}");

    stream::iter((0..2 * CALLS).map(|number| call(&tenant, number)))
        .buffer_unordered(CONNECTIONS)
        .collect::<()>()
        .await;
    let wallet = format!("/v1/wallets/{}", tenant.subscribers[0].wallet_id);
    let wallet: Value = tenant.api.get(&wallet).await.expect("the wallet");
    assert_eq!(wallet["cash_balance"]["value"], format!("{CALLS}.00"), "{wallet}");
    let customers = site.number("SELECT count(*) FROM customer WHERE external_id LIKE 'impatient-%'").await;
    let wallets =
        "SELECT count(*) FROM wallet w JOIN customer c ON c.id = w.customer_id WHERE c.external_id LIKE 'impatient-%'";
    assert_eq!([customers, site.number(wallets).await], [i64::try_from(CALLS).unwrap(); 2]);
    server.verify_ledger().await.expect("the books agree");
}

/// An even number credits the one wallet, under a key of its own; an odd one makes a customer, whose number nobody else may have.
async fn call(tenant: &Tenant, number: usize) {
    if number.is_multiple_of(2) {
        let path = format!("/v1/wallets/{}/credit", tenant.subscribers[0].wallet_id);
        let body =
            json!({"amount": {"value": "1.00", "currency": "EUR"}, "idempotency_key": format!("credit-{number}")});
        let _: Value = tenant.api.post(&path, &body).await.expect("a credit");
        return;
    }
    let body = json!({
        "name": "Impatient", "email": "impatient@customer.example", "external_id": format!("impatient-{number}"),
        "customer_type": "BUSINESS", "billing_model": "PREPAID", "preferred_currency": "EUR", "auto_validate_vat": false,
    });
    match tenant.api.post::<Created>("/v1/customers", &body).await {
        Ok(_) => {}
        Err(ClientError::Refused { problem, .. }) if problem.status == 409 => {}
        Err(error) => panic!("{error}"),
    }
}
