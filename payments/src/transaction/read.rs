//! Reads of the ledger of payments.

use domain::{Error, InvoiceId, Money, PaymentGatewayId, Result, Scope, TransactionId};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use store::{ListField, ListKind, ListQuery, ListSpec, Page, StoreError, Tx};

use super::model::Transaction;
use crate::words::TransactionKind;

const INVOICE: ListField = ListField::new("invoice_id", ListKind::Id);
const KIND: ListField = ListField::new(
    "kind",
    ListKind::Word(&["CHARGE", "REFUND", "MANUAL_PAYMENT", "WALLET_TOPUP", "WALLET_PAYMENT", "PAYOUT", "CHARGEBACK"]),
);

/// How transactions are listed.
pub const LIST: ListSpec = ListSpec {
    name: "transactions",
    columns: "*",
    from: "payment_transaction",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("customer_id", ListKind::Id),
        INVOICE,
        ListField::new("payment_method_id", ListKind::Id),
        ListField::new("direction", ListKind::Word(&["INBOUND", "OUTBOUND"])),
        KIND,
        ListField::new(
            "status",
            ListKind::Word(&[
                "PENDING",
                "PROCESSING",
                "SUCCEEDED",
                "FAILED",
                "CANCELLED",
                "PARTIALLY_REFUNDED",
                "REFUNDED",
                "DISPUTED",
            ]),
        ),
        ListField::new("currency", ListKind::Text),
        ListField::new("amount", ListKind::Number).sortable(),
        ListField::new("created_at", ListKind::Instant).sortable(),
        ListField::new("updated_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// `GET /v1/transactions`, newest first.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, query: &ListQuery) -> Result<Page<Transaction>> {
    query.fetch(conn, scope).await
}

/// Those of one invoice, of all kinds or of one, newest first.
///
/// # Errors
/// `NotFound` for the invoice; `Validation` and `INVALID_CURSOR` for the parameters.
pub async fn list_of_invoice(
    scope: &Scope,
    conn: &mut PgConnection,
    id: InvoiceId,
    kind: Option<TransactionKind>,
    parameters: &[(String, String)],
) -> Result<Page<Transaction>> {
    let query = ListQuery::parse(&LIST, parameters)?.only(INVOICE, id);
    let query = match kind {
        Some(kind) => query.only(KIND, kind),
        None => query,
    };
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM invoice WHERE workspace_id = $1 AND id = $2 AND deleted_at IS NULL)",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(&mut *conn)
    .await
    .context("looking for an invoice")?;
    if known { query.fetch(conn, scope).await } else { Err(Error::not_found("invoice", id)) }
}

/// `GET /v1/transactions/{id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: TransactionId) -> Result<Transaction> {
    sqlx::query_as("SELECT * FROM payment_transaction WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a transaction")?
        .ok_or_else(|| Error::not_found("transaction", id))
}

/// The same, locked: whoever records an outcome holds the row.
pub(crate) async fn lock(scope: &Scope, tx: &mut Tx, id: TransactionId) -> Result<Transaction> {
    sqlx::query_as("SELECT * FROM payment_transaction WHERE workspace_id = $1 AND id = $2 FOR NO KEY UPDATE")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(tx.conn())
        .await
        .context("locking a transaction")?
        .ok_or_else(|| Error::not_found("transaction", id))
}

/// The transaction of a gateway that its provider names.
pub(crate) async fn by_reference(
    scope: &Scope,
    conn: &mut PgConnection,
    gateway: PaymentGatewayId,
    reference: &str,
) -> Result<Option<TransactionId>> {
    sqlx::query_scalar(
        "SELECT id FROM payment_transaction WHERE workspace_id = $1 AND gateway_id = $2 AND provider_reference = $3",
    )
    .bind(scope.workspace_id)
    .bind(gateway)
    .bind(reference)
    .fetch_optional(conn)
    .await
    .context("looking for a transaction by its reference")
}

/// What a provider has given back of the payment of a refund once it has taken that, too: refunds that it knows and did not refuse.
pub(crate) async fn refunded_with(scope: &Scope, conn: &mut PgConnection, refund: &Transaction) -> Result<Money> {
    let sum: Decimal = sqlx::query_scalar(
        "SELECT coalesce(sum(amount), 0) FROM payment_transaction
         WHERE workspace_id = $1 AND parent_transaction_id = $2 AND kind = 'REFUND' AND gateway_id IS NOT NULL AND id <> $3
             AND (status = 'SUCCEEDED' OR (status = 'PROCESSING' AND provider_reference IS NOT NULL))",
    )
    .bind(scope.workspace_id)
    .bind(refund.parent_transaction_id)
    .bind(refund.id)
    .fetch_one(conn)
    .await
    .context("reading what was given back of a payment")?;
    Ok(Money::new(sum, refund.amount.currency())?.add(refund.amount)?)
}
