//! A finalized invoice, written and booked directly: how invoices are made is tested where they are. The tests of the API have it
//! from here, too.

use domain::{Currency, CustomerId, InvoiceId, InvoiceLineId, Money, Scope};
use rust_decimal::Decimal;
use store::Store;

/// Net, tax and percent of a line.
pub type Line<'a> = (&'a str, &'a str, &'a str);

/// The invoice of the vectors: 100.00 and 19 %.
pub const PLAIN: &[Line<'_>] = &[("100.00", "19.00", "19")];

fn decimal(text: &str) -> Decimal {
    domain::money::parse_decimal(text).unwrap()
}

/// In euro, finalized and unpaid.
pub async fn finalized(store: &Store, scope: &Scope, customer: CustomerId, lines: &[Line<'_>]) -> InvoiceId {
    let id = InvoiceId::generate();
    let net: Decimal = lines.iter().map(|line| decimal(line.0)).sum();
    let tax: Decimal = lines.iter().map(|line| decimal(line.1)).sum();
    let mut tx = store.begin("invoice").await.unwrap();
    sqlx::query(
        "INSERT INTO invoice (id, organization_id, workspace_id, customer_id, invoice_type, status, currency, subtotal,
             tax_amount, total, amount_due, billing_reason, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 'one_off', 'draft', 'EUR', $5, $6, $5 + $6, $5 + $6, 'manual', now(), now())",
    )
    .bind(id)
    .bind(scope.organization_id)
    .bind(scope.workspace_id)
    .bind(customer)
    .bind(net)
    .bind(tax)
    .execute(tx.conn())
    .await
    .unwrap();
    for (position, (net, tax, rate)) in (1_i32..).zip(lines) {
        sqlx::query(
            "INSERT INTO invoice_line (id, workspace_id, invoice_id, position, line_type, charge_kind, description, quantity,
                 unit_amount, amount, total, tax_rate, tax_amount, tax_category_code)
             VALUES ($1, $2, $3, $4, 'MANUAL', 'ONE_TIME', 'Line ' || $4, 1, $5, $5, $5 + $6, $7, $6, 'S')",
        )
        .bind(InvoiceLineId::generate())
        .bind(scope.workspace_id)
        .bind(id)
        .bind(position)
        .bind(decimal(net))
        .bind(decimal(tax))
        .bind(decimal(rate))
        .execute(tx.conn())
        .await
        .unwrap();
    }
    sqlx::query(
        "WITH series AS (
             INSERT INTO document_series (workspace_id, kind, next_number) VALUES ($2, 'invoice', 2)
             ON CONFLICT (workspace_id, kind) DO UPDATE SET next_number = document_series.next_number + 1
             RETURNING next_number - 1 AS number)
         UPDATE invoice SET status = 'finalized', finalized_at = now(), issued_at = now(), due_date = current_date + 30,
             sequence_number = series.number, invoice_number = 'INV-' || $1
         FROM series WHERE id = $1",
    )
    .bind(id)
    .bind(scope.workspace_id)
    .execute(tx.conn())
    .await
    .unwrap();
    let euro = |amount| Money::new(amount, Currency::EUR).unwrap();
    ledger::book_invoice(&mut tx, scope, id, Currency::EUR, euro(net), euro(tax)).await.unwrap();
    tx.commit().await.unwrap();
    id
}
