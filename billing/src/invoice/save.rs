//! Writes drafts in bulk: heads and lines of a batch in a fixed number of statements (P11).

use std::collections::HashMap;

use domain::{Error, Instant, InvoiceId, InvoiceLineId, Money, Result, SubscriptionId, TaxCategoryCode, WorkspaceId};
use rating::Rated;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use store::StoreError;
use uuid::Uuid;

use super::draft::{Draft, DraftLine};
use super::invoiced::Invoiced;
use super::line::InvoiceLineAtom;
use super::model::InvoiceTaxBreakdownRow;
use super::run::{Run, RunKey};
use super::words::{AppliesAt, InvoiceLineType, InvoiceStatus, InvoiceType};
use crate::events::{self, Event};
use crate::subscription::Subscription;

/// The drafts of one run.
pub(crate) struct Computed<'a> {
    /// Whose.
    pub(crate) subscription: &'a Subscription,
    /// What was charged.
    pub(crate) run: Run,
    /// The result: one per wallet pin.
    pub(crate) drafts: Vec<Draft>,
    /// What is owed to the customer: usage lines with negative amounts.
    pub(crate) credits: Vec<DraftLine>,
    /// The usage that both are made of.
    pub(crate) rated: Rated,
    /// What the credits are on.
    pub(crate) invoiced: &'a [Invoiced],
    /// Position up to which the usage on the drafts is counted.
    pub(crate) usage_position: Option<i64>,
}

/// A draft that is stored.
pub(crate) struct Saved<'a> {
    /// Its id.
    pub(crate) id: InvoiceId,
    /// Whose.
    pub(crate) subscription: &'a Subscription,
    /// What it holds.
    pub(crate) draft: &'a Draft,
}

#[derive(FromRow)]
struct Existing {
    id: InvoiceId,
    subscription_id: SubscriptionId,
    billing_period_start: Instant,
    billing_period_end: Instant,
    billing_reason: String,
    status: InvoiceStatus,
}

#[derive(Serialize)]
struct HeadRow<'a> {
    id: InvoiceId,
    organization_id: domain::OrganizationId,
    workspace_id: WorkspaceId,
    customer_id: domain::CustomerId,
    subscription_id: SubscriptionId,
    invoice_type: InvoiceType,
    status: InvoiceStatus,
    currency: domain::Currency,
    subtotal: Decimal,
    discount_total: Decimal,
    tax_amount: Decimal,
    total: Decimal,
    amount_due: Decimal,
    amount_paid: Decimal,
    billing_period_start: Instant,
    billing_period_end: Instant,
    billing_reason: String,
    usage_position: Option<i64>,
    tax_breakdown: &'a [InvoiceTaxBreakdownRow],
    version: i32,
    custom_fields: serde_json::Value,
    metadata: serde_json::Value,
    created_at: Instant,
    updated_at: Instant,
}

#[derive(Serialize)]
struct LineRow<'a> {
    id: InvoiceLineId,
    workspace_id: WorkspaceId,
    invoice_id: InvoiceId,
    position: usize,
    line_type: InvoiceLineType,
    charge_kind: domain::ChargeKind,
    applies_at: AppliesAt,
    billing_timing: domain::BillingTiming,
    product_id: domain::ProductId,
    price_id: Option<domain::PriceId>,
    price_version_id: Option<domain::VersionId>,
    plan_version_id: domain::VersionId,
    subscription_item_id: Option<domain::SubscriptionItemId>,
    metric_key: Option<&'a str>,
    price_key: Option<&'a str>,
    wallet_currency: Option<domain::Currency>,
    description: &'a str,
    quantity: Decimal,
    unit_amount: Decimal,
    amount: Decimal,
    discount_amount: Decimal,
    total: Decimal,
    period_start: Instant,
    period_end: Instant,
    tax_rate: Decimal,
    tax_amount: Decimal,
    tax_category_code: TaxCategoryCode,
    supply_type: domain::SupplyType,
    reverse_charge: bool,
    atoms: Vec<InvoiceLineAtom>,
    metadata: serde_json::Value,
}

/// Writes the drafts of a batch. A draft of an earlier computation is replaced in place, one that has nothing left is
/// deleted, and a run that was finalized already stays as it is: a rerun creates nothing twice.
pub(crate) async fn save<'a>(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    now: Instant,
    computed: &'a [Computed<'a>],
) -> Result<Vec<Saved<'a>>> {
    let existing = existing(conn, workspace_id, computed).await?;
    let (mut saved, mut heads, mut changed, mut events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut kept: Vec<InvoiceId> = Vec::new();
    for Computed { subscription, run, drafts, usage_position, .. } in computed {
        let of_run = existing.get(&(run.subscription_id, run.key.start, run.key.end));
        for draft in drafts {
            let reason = run.key.billing_reason(draft.wallet_currency);
            let known = of_run.and_then(|rows| rows.iter().find(|row| row.billing_reason == reason));
            let id = match known {
                Some(row) if row.status != InvoiceStatus::Draft => continue,
                Some(row) => row.id,
                None => InvoiceId::generate(),
            };
            let head = head_row(id, subscription, (&run.key, *usage_position), draft, now);
            match known {
                Some(_) => {
                    kept.push(id);
                    changed.push(head);
                }
                None => {
                    events.push(generated(workspace_id, id, subscription, now));
                    heads.push(head);
                }
            }
            saved.push(Saved { id, subscription, draft });
        }
    }
    let drafts = existing.values().flatten().filter(|row| row.status == InvoiceStatus::Draft).map(|row| row.id);
    let obsolete: Vec<_> = drafts.filter(|id| !kept.contains(id)).collect();
    remove(conn, workspace_id, &obsolete, now).await?;
    write_heads(conn, workspace_id, &heads, &changed).await?;
    write_lines(conn, workspace_id, &kept, &saved).await?;
    events::emit(conn, &events).await?;
    Ok(saved)
}

fn generated(workspace_id: WorkspaceId, id: InvoiceId, subscription: &Subscription, now: Instant) -> Event {
    let payload =
        json!({"invoice_id": id, "subscription_id": subscription.id, "customer_id": subscription.customer_id});
    Event::new(workspace_id, "invoice.generated", "invoice", id, payload, now)
}

type ExistingOf = HashMap<(SubscriptionId, Instant, Instant), Vec<Existing>>;

/// Invoices that earlier computations of these runs left, locked.
async fn existing(conn: &mut PgConnection, workspace_id: WorkspaceId, computed: &[Computed<'_>]) -> Result<ExistingOf> {
    let (mut ids, mut starts, mut ends, mut reasons) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Computed { run, .. } in computed {
        ids.push(run.subscription_id.0);
        starts.push(run.key.start);
        ends.push(run.key.end);
        reasons.push(run.key.name());
    }
    let rows: Vec<Existing> = sqlx::query_as(
        "SELECT invoice.id, subscription_id, billing_period_start, billing_period_end, billing_reason, status
         FROM invoice JOIN unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::text[])
              AS run (subscription_id, billing_period_start, billing_period_end, reason)
              USING (subscription_id, billing_period_start, billing_period_end)
         WHERE invoice.workspace_id = $1 AND deleted_at IS NULL AND status <> 'void'
           AND split_part(billing_reason, ':', 1) = run.reason
         ORDER BY invoice.id FOR UPDATE OF invoice",
    )
    .bind(workspace_id)
    .bind(ids)
    .bind(starts)
    .bind(ends)
    .bind(reasons)
    .fetch_all(conn)
    .await
    .context("reading the invoices of earlier runs")?;
    let mut found = ExistingOf::new();
    for row in rows {
        found.entry((row.subscription_id, row.billing_period_start, row.billing_period_end)).or_default().push(row);
    }
    Ok(found)
}

/// Deletes drafts softly.
pub(crate) async fn remove(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    ids: &[InvoiceId],
    now: Instant,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE invoice SET deleted_at = $3, updated_at = $3, version = version + 1
         WHERE workspace_id = $1 AND id = ANY($2) AND status = 'draft'",
    )
    .bind(workspace_id)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .bind(now)
    .execute(conn)
    .await
    .context("deleting drafts")?;
    Ok(())
}

fn head_row<'a>(
    id: InvoiceId,
    subscription: &Subscription,
    (key, usage_position): (&RunKey, Option<i64>),
    draft: &'a Draft,
    now: Instant,
) -> HeadRow<'a> {
    HeadRow {
        id,
        organization_id: subscription.organization_id,
        workspace_id: subscription.workspace_id,
        customer_id: subscription.customer_id,
        subscription_id: subscription.id,
        invoice_type: InvoiceType::Subscription,
        status: InvoiceStatus::Draft,
        currency: subscription.currency,
        subtotal: draft.totals.subtotal.amount(),
        discount_total: draft.totals.discount_total.amount(),
        tax_amount: draft.totals.tax_amount.amount(),
        total: draft.totals.total.amount(),
        amount_due: draft.totals.total.amount(),
        amount_paid: Decimal::ZERO,
        billing_period_start: key.start,
        billing_period_end: key.end,
        billing_reason: key.billing_reason(draft.wallet_currency),
        usage_position,
        tax_breakdown: &draft.tax_breakdown,
        version: 1,
        custom_fields: json!({}),
        metadata: json!({}),
        created_at: now,
        updated_at: now,
    }
}

async fn write_heads(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    new: &[HeadRow<'_>],
    changed: &[HeadRow<'_>],
) -> Result<()> {
    if !new.is_empty() {
        sqlx::query("INSERT INTO invoice SELECT * FROM jsonb_populate_recordset(NULL::invoice, $1)")
            .bind(Json(new))
            .execute(&mut *conn)
            .await
            .context("writing drafts")?;
    }
    if !changed.is_empty() {
        sqlx::query(
            "UPDATE invoice SET subtotal = new.subtotal, discount_total = new.discount_total, tax_amount = new.tax_amount,
                    total = new.total, amount_due = new.total, tax_breakdown = new.tax_breakdown,
                    usage_position = new.usage_position,
                    updated_at = new.updated_at, version = invoice.version + 1
             FROM jsonb_populate_recordset(NULL::invoice, $2) AS new
             WHERE invoice.workspace_id = $1 AND invoice.id = new.id",
        )
        .bind(workspace_id)
        .bind(Json(changed))
        .execute(conn)
        .await
        .context("recomputing drafts")?;
    }
    Ok(())
}

async fn write_lines(
    conn: &mut PgConnection,
    workspace_id: WorkspaceId,
    replaced: &[InvoiceId],
    saved: &[Saved<'_>],
) -> Result<()> {
    if !replaced.is_empty() {
        sqlx::query("DELETE FROM invoice_line WHERE workspace_id = $1 AND invoice_id = ANY($2)")
            .bind(workspace_id)
            .bind(replaced.iter().map(|id| id.0).collect::<Vec<_>>())
            .execute(&mut *conn)
            .await
            .context("replacing lines of drafts")?;
    }
    let mut rows = Vec::new();
    for Saved { id, subscription, draft } in saved {
        for (index, line) in draft.lines.iter().enumerate() {
            rows.push(line_row(*id, subscription, index + 1, line)?);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query("INSERT INTO invoice_line SELECT * FROM jsonb_populate_recordset(NULL::invoice_line, $1)")
        .bind(Json(rows))
        .execute(conn)
        .await
        .context("writing lines")?;
    Ok(())
}

fn line_row<'a>(
    invoice_id: InvoiceId,
    subscription: &Subscription,
    position: usize,
    line: &'a DraftLine,
) -> Result<LineRow<'a>> {
    let id = InvoiceLineId::generate();
    let with_ids = |atom: &InvoiceLineAtom| InvoiceLineAtom { id: Uuid::now_v7(), line_id: id, ..atom.clone() };
    let total = line.amount.add(line.tax.amount)?;
    if line.atoms.iter().try_fold(Money::zero(total.currency()), |sum, atom| sum.add(atom.net_amount))? != line.amount {
        return Err(Error::invariant(format!("the atoms of a line of {} do not add up", subscription.id)));
    }
    Ok(LineRow {
        id,
        workspace_id: subscription.workspace_id,
        invoice_id,
        position,
        line_type: line.line_type,
        charge_kind: line.charge_kind,
        applies_at: line.applies_at,
        billing_timing: line.billing_timing,
        product_id: line.product_id,
        price_id: line.price_id,
        price_version_id: line.price_version_id,
        plan_version_id: subscription.plan_version_id,
        subscription_item_id: line.subscription_item_id,
        metric_key: line.metric_key.as_deref(),
        price_key: line.price_key.as_deref(),
        wallet_currency: line.wallet_currency,
        description: &line.description,
        quantity: line.quantity,
        unit_amount: line.unit_amount,
        amount: line.amount.amount(),
        discount_amount: Decimal::ZERO,
        total: total.amount(),
        period_start: line.period.start,
        period_end: line.period.end,
        tax_rate: line.tax.rate,
        tax_amount: line.tax.amount.amount(),
        tax_category_code: line.tax.category,
        supply_type: line.supply_type,
        reverse_charge: false,
        atoms: line.atoms.iter().map(with_ids).collect(),
        metadata: json!({}),
    })
}
