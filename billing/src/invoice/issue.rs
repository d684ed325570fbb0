//! The last steps of finalizing, the same for every invoice: its number, its head, what wallets have paid of it as rows of the ledger
//! of payments, the wish to charge the rest, and events (invoices.md 4, rule D6).

use std::collections::HashMap;

use chrono::{Days, NaiveDate};
use chrono_tz::Tz;
use domain::period::midnight;
use domain::{Currency, CustomerId, Error, Instant, InvoiceId, Money, Result, Scope, SubscriptionId, WalletId};
use ledger::invoice::charge_transfer_id;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use store::{StoreError, Tx};
use uuid::Uuid;

use super::collect;
use super::finalize::{DocumentKind, FinalizeOptions, take_numbers};
use super::paid::Paid;
use super::save::Saved;
use super::words::InvoiceStatus;
use crate::events::{self, Event};
use crate::settings::BillingSettings;

/// A stored draft that becomes an invoice.
pub(super) struct Head {
    pub id: InvoiceId,
    pub customer_id: CustomerId,
    pub subscription_id: Option<SubscriptionId>,
    /// Those of the subscription.
    pub payment_terms_days: Option<i32>,
    pub total: Money,
    pub paid: Paid,
}

impl Head {
    /// That of a subscription's draft.
    pub fn of(saved: &Saved<'_>, paid: Paid) -> Self {
        Self {
            id: saved.id,
            customer_id: saved.subscription.customer_id,
            subscription_id: Some(saved.subscription.id),
            payment_terms_days: saved.subscription.payment_terms_days,
            total: saved.draft.totals.total,
            paid,
        }
    }
}

#[derive(FromRow)]
struct Customer {
    id: CustomerId,
    name: String,
    email: String,
    customer_type: String,
    billing_address: Option<Json<Value>>,
    tax_identifiers: Json<Value>,
    payment_terms_days: Option<i32>,
    locale: Option<String>,
}

/// Everything that finalizing writes into a head.
#[derive(Serialize)]
struct FinalRow {
    id: InvoiceId,
    invoice_number: String,
    sequence_number: i64,
    status: InvoiceStatus,
    amount_due: Decimal,
    amount_paid: Decimal,
    due_date: NaiveDate,
    payment_terms_days: i32,
    customer_profile_at_issue: String,
    issued_at: Instant,
    finalized_at: Instant,
    paid_at: Option<Instant>,
    locale: Option<String>,
    seller_snapshot: Value,
    buyer_snapshot: Value,
    updated_at: Instant,
}

/// What a wallet has paid of an invoice: a `WALLET_PAYMENT` of the ledger of payments (transactions.md 3).
#[derive(Serialize)]
struct PaymentRow {
    id: Uuid,
    customer_id: CustomerId,
    invoice_id: InvoiceId,
    subscription_id: Option<SubscriptionId>,
    wallet_id: WalletId,
    amount: Decimal,
    currency: Currency,
}

/// What the heads of a batch have from elsewhere. Read before wallets are locked.
pub(super) struct Issuer {
    /// Those of the organization.
    pub settings: BillingSettings,
    customers: HashMap<CustomerId, Customer>,
    seller: Value,
}

impl Issuer {
    /// Reads it.
    ///
    /// # Errors
    /// As every statement.
    pub async fn load(scope: &Scope, conn: &mut PgConnection, customers: &[CustomerId]) -> Result<Self> {
        Ok(Self {
            settings: BillingSettings::load(conn, scope.organization_id).await?,
            customers: load_customers(scope, conn, customers).await?,
            seller: seller(scope, conn).await?,
        })
    }

    /// Numbers booked drafts and locks their heads; the number row is the last lock.
    ///
    /// # Errors
    /// `NotFound` for a customer; a rule for a due date that is out of range.
    pub async fn issue(&self, scope: &Scope, tx: &mut Tx, heads: &[Head], options: FinalizeOptions) -> Result<()> {
        if heads.is_empty() {
            return Ok(());
        }
        let first = take_numbers(scope, tx.conn(), DocumentKind::Invoice, heads.len()).await?;
        let (mut rows, mut events) = (Vec::with_capacity(heads.len()), Vec::new());
        for (head, sequence) in heads.iter().zip(first..) {
            let row = self.final_row(scope, head, sequence, options)?;
            events.append(&mut finalized_events(scope, head, &row));
            rows.push(row);
        }
        let payments: Vec<_> = heads.iter().flat_map(payments).collect();
        write(scope, tx.conn(), &rows, &payments).await?;
        if options.is_charged {
            let open: Vec<_> = rows.iter().filter(|row| !row.amount_due.is_zero()).map(|row| row.id).collect();
            collect::want(scope, tx.conn(), &open).await?;
        }
        events::emit(tx.conn(), &events).await
    }

    fn final_row(&self, scope: &Scope, head: &Head, sequence: i64, options: FinalizeOptions) -> Result<FinalRow> {
        let (now, settings) = (scope.now(), &self.settings);
        let customer = self.customers.get(&head.customer_id);
        let customer = customer.ok_or_else(|| Error::not_found("customer", head.customer_id))?;
        let timezone: Tz = settings
            .timezone
            .parse()
            .map_err(|_| Error::invariant(format!("unknown time zone {}", settings.timezone)))?;
        let issued = options.issue_date.unwrap_or_else(|| now.with_timezone(&timezone).date_naive());
        // The first that is set of subscription, customer, organization (invoices.md 4).
        let terms = head.payment_terms_days.or(customer.payment_terms_days).unwrap_or(settings.payment_terms_days);
        let due = issued.checked_add_days(Days::new(u64::from(terms.unsigned_abs())));
        let paid = head.paid.total()?;
        let open = head.total.sub(paid)?;
        let is_paid = open.is_zero();
        Ok(FinalRow {
            id: head.id,
            invoice_number: settings.invoice_number(sequence),
            sequence_number: sequence,
            status: if is_paid { InvoiceStatus::Paid } else { InvoiceStatus::Finalized },
            amount_due: open.amount(),
            amount_paid: paid.amount(),
            due_date: due.ok_or_else(|| Error::business_rule("the due date is out of range"))?,
            payment_terms_days: terms,
            customer_profile_at_issue: customer.customer_type.clone(),
            issued_at: options.issue_date.map_or(now, |date| midnight(date, timezone)),
            finalized_at: now,
            paid_at: is_paid.then_some(now),
            locale: customer.locale.clone(),
            seller_snapshot: self.seller.clone(),
            buyer_snapshot: json!({
                "name": customer.name,
                "email": customer.email,
                "billing_address": customer.billing_address.as_ref().map(|json| &json.0),
                "tax_identifiers": customer.tax_identifiers.0,
            }),
            updated_at: now,
        })
    }
}

async fn load_customers(
    scope: &Scope,
    conn: &mut PgConnection,
    ids: &[CustomerId],
) -> Result<HashMap<CustomerId, Customer>> {
    let rows: Vec<Customer> = sqlx::query_as(
        "SELECT id, name, email, customer_type, billing_address, tax_identifiers, payment_terms_days, locale
         FROM customer WHERE workspace_id = $1 AND id = ANY($2)",
    )
    .bind(scope.workspace_id)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
    .context("reading customers")?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

async fn seller(scope: &Scope, conn: &mut PgConnection) -> Result<Value> {
    let name: String = sqlx::query_scalar("SELECT name FROM organization WHERE id = $1")
        .bind(scope.organization_id)
        .fetch_one(conn)
        .await
        .context("reading the organization")?;
    Ok(json!({ "name": name }))
}

/// One row per wallet, under the id of its first transfer for this invoice: however often it is written, it stands once (rule D5).
fn payments(head: &Head) -> impl Iterator<Item = PaymentRow> {
    head.paid.by_wallet().map(|(wallet_id, amount)| PaymentRow {
        id: charge_transfer_id(head.id, wallet_id).0,
        customer_id: head.customer_id,
        invoice_id: head.id,
        subscription_id: head.subscription_id,
        wallet_id,
        amount: amount.amount(),
        currency: amount.currency(),
    })
}

fn finalized_events(scope: &Scope, head: &Head, row: &FinalRow) -> Vec<Event> {
    let payload = json!({
        "invoice_id": head.id,
        "invoice_number": row.invoice_number,
        "customer_id": head.customer_id,
        "subscription_id": head.subscription_id,
        "status": row.status,
        "total": head.total,
    });
    let kinds = ["invoice.finalized", "invoice.paid"];
    let kinds = if row.status == InvoiceStatus::Paid { &kinds[..] } else { &kinds[..1] };
    let event =
        |kind: &&'static str| Event::new(scope.workspace_id, kind, "invoice", head.id, payload.clone(), scope.now());
    kinds.iter().map(event).collect()
}

/// Heads and payments in one statement: finalizing is a hot path.
async fn write(scope: &Scope, conn: &mut PgConnection, rows: &[FinalRow], payments: &[PaymentRow]) -> Result<()> {
    sqlx::query(
        "WITH paid AS (
             INSERT INTO payment_transaction (id, organization_id, workspace_id, customer_id, invoice_id, subscription_id,
                 wallet_id, direction, kind, status, amount, currency, processed_at, created_at, updated_at)
             SELECT id, $3, $1, customer_id, invoice_id, subscription_id, wallet_id, 'INBOUND', 'WALLET_PAYMENT', 'SUCCEEDED',
                 amount, currency, $5, $5, $5
             FROM jsonb_populate_recordset(NULL::payment_transaction, $4)
             ON CONFLICT (id) DO NOTHING)
         UPDATE invoice SET status = new.status, invoice_number = new.invoice_number,
                sequence_number = new.sequence_number, amount_due = new.amount_due, amount_paid = new.amount_paid,
                due_date = new.due_date, payment_terms_days = new.payment_terms_days,
                customer_profile_at_issue = new.customer_profile_at_issue, issued_at = new.issued_at,
                finalized_at = new.finalized_at, paid_at = new.paid_at, locale = new.locale,
                seller_snapshot = new.seller_snapshot, buyer_snapshot = new.buyer_snapshot, updated_at = new.updated_at,
                version = invoice.version + 1
         FROM jsonb_populate_recordset(NULL::invoice, $2) AS new
         WHERE invoice.workspace_id = $1 AND invoice.id = new.id",
    )
    .bind(scope.workspace_id)
    .bind(Json(rows))
    .bind(scope.organization_id)
    .bind(Json(payments))
    .bind(scope.now())
    .execute(conn)
    .await
    .context("finalizing invoices")?;
    Ok(())
}
