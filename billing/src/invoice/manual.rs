//! What an operator asks for: a draft of a period now, and finalizing a draft by hand (invoices.md 2).

use chrono::{DateTime, NaiveDate, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::Field;
use domain::period::Period;
use domain::{Error, Input, InvoiceId, Result, Scope, SubscriptionId};
use serde_json::Value;
use sqlx::PgConnection;
use store::{StoreError, Tx};
use utoipa::ToSchema;

use super::finalize::{FinalizeOptions, RunRef, Seals};
use super::model::{Invoice, InvoiceDTO};
use super::read;
use super::run::{RunKey, RunReason, is_billed_in_advance, parse_billing_reason};
use super::words::InvoiceStatus;
use crate::billing::{Billing, clocked};
use crate::subscription::{self, Subscription};

/// `domain.GenerateInvoiceRequest`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct GenerateInvoiceRequest {
    /// Whose.
    pub subscription_id: SubscriptionId,
    /// Start of one of its periods; default the current one.
    pub billing_period_start: Option<DateTime<Utc>>,
    /// End of that period.
    pub billing_period_end: Option<DateTime<Utc>>,
}

impl GenerateInvoiceRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let subscription_id = input.required("subscription_id", Field::id);
        let start = input.optional("billing_period_start", Field::instant);
        let end = input.optional("billing_period_end", Field::instant);
        if start.is_some() != end.is_some() {
            let lacking = if start.is_some() { "billing_period_end" } else { "billing_period_start" };
            input.error(lacking, Code::Required, "start and end are given together or left out together");
        }
        input.finish()?;
        let subscription_id = subscription_id.ok_or_else(|| Error::invariant("a required field was read"))?;
        Ok(Self { subscription_id, billing_period_start: start, billing_period_end: end })
    }
}

/// `FinalizeInvoiceRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct FinalizeInvoiceRequest {
    /// Default the present day in the organization's time zone.
    pub issue_date: Option<NaiveDate>,
    /// Whether the customer's default payment method is charged for what wallets do not pay. Default true.
    pub auto_charge: Option<bool>,
}

impl FinalizeInvoiceRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// `Validation` with every field that is wrong.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let issue_date = input.optional("issue_date", Field::date);
        let auto_charge = input.optional("auto_charge", Field::boolean);
        input.finish()?;
        Ok(Self { issue_date, auto_charge })
    }
}

impl Billing {
    /// Makes or recomputes the draft of a period. Over a period whose run has its draft already that draft is recomputed;
    /// over the running period a preview is made from the totals as they are checkpointed now, which the run at the
    /// period's end replaces.
    ///
    /// # Errors
    /// `NotFound`; 422 for a period that is none of the subscription's, or has nothing to bill; `CONFLICT` when its
    /// invoice is finalized.
    pub async fn generate_invoice(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        request: &GenerateInvoiceRequest,
    ) -> Result<InvoiceDTO> {
        self.snapshots.refresh().await?;
        let id = request.subscription_id;
        let subscription = subscription::read::lock(tx.conn(), scope.workspace_id, id).await?;
        let scope = clocked(scope, tx.conn(), subscription.test_clock_id).await?;
        let period = period_of(&subscription, request)?;
        let key = self.key_of(&scope, tx.conn(), &subscription, period).await?;
        let refs = [RunRef { subscription_id: id, key, work_id: None }];
        let drafts = self.draft_in(&scope, tx, &refs).await?;
        match drafts.first() {
            Some(draft) => read::get(&scope, tx.conn(), *draft).await,
            None => Err(Error::business_rule("nothing is to be billed for this period")),
        }
    }

    /// The run whose invoice a period gets: the one that was made for it, or a preview.
    async fn key_of(
        &self,
        scope: &Scope,
        conn: &mut PgConnection,
        subscription: &Subscription,
        period: Period,
    ) -> Result<RunKey> {
        let rows: Vec<(String, InvoiceStatus)> = sqlx::query_as(
            "SELECT billing_reason, status FROM invoice
             WHERE workspace_id = $1 AND subscription_id = $2 AND billing_period_start = $3 AND billing_period_end = $4
               AND deleted_at IS NULL AND status <> 'void' ORDER BY id",
        )
        .bind(scope.workspace_id)
        .bind(subscription.id)
        .bind(period.start)
        .bind(period.end)
        .fetch_all(conn)
        .await
        .context("looking for the invoice of a period")?;
        let runs = rows.iter().filter_map(|(reason, status)| Some((parse_billing_reason(reason)?.0, *status)));
        let made: Vec<_> = runs.filter(|(reason, _)| *reason != RunReason::Manual && !reason.is_extra()).collect();
        if let Some((reason, _)) = made.iter().find(|(_, status)| *status == InvoiceStatus::Draft) {
            return Ok(RunKey::new(*reason, period));
        }
        let is_running = subscription.current_period_start == Some(period.start) && !subscription.status.is_terminal();
        // In advance the running period's own invoice holds its fees, and a preview holds its usage.
        if is_running && (made.is_empty() || is_billed_in_advance(subscription)) {
            return Ok(RunKey::new(RunReason::Manual, period));
        }
        if made.is_empty() {
            return Err(Error::business_rule("nothing is to be billed for this period"));
        }
        Err(Error::conflict("CONFLICT", "the invoice of this period is finalized"))
    }

    /// Finalizes a draft by hand: seals its window, waits for the final quantities, computes the draft for the last time,
    /// books it, applies wallet money and numbers it. Every invoice of the run (one per wallet pin) is finalized with it,
    /// since they share the sealed window. The wait is short (15 s at most) and comes before the first lock.
    ///
    /// Whoever does not commit it takes the seals back ([`Billing::take_back`]), and must not be cancelled before that.
    ///
    /// # Errors
    /// `NotFound`; `INVALID_TRANSITION` unless a draft; 422 for a preview; `Unavailable` when the log does not answer; what
    /// booking says. The seals are taken back then.
    pub async fn finalize_invoice(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: InvoiceId,
        request: &FinalizeInvoiceRequest,
    ) -> Result<Finalized> {
        let invoice = read::head(scope, tx.conn(), id, false).await?;
        let run = run_of(&invoice)?;
        let clock = clock_of(scope, tx.conn(), run.subscription_id).await?;
        let clocked = clocked(scope, tx.conn(), clock).await?;
        let seals = self.seal(&clocked, &[run]).await?;
        let options =
            FinalizeOptions { issue_date: request.issue_date, is_charged: request.auto_charge.unwrap_or(true) };
        let finalized = async {
            self.await_seals(&seals).await?;
            withdraw_finalization(&clocked, tx.conn(), &run).await?;
            self.finalize_in(&clocked, tx, &[run], options).await?;
            read::get(&clocked, tx.conn(), id).await
        };
        match finalized.await {
            Ok(invoice) => Ok(Finalized { invoice, seals }),
            Err(error) => self.take_back(&seals).await.and(Err(error)),
        }
    }
}

/// A draft that is finalized as soon as its transaction is committed.
#[derive(Clone, Debug)]
pub struct Finalized {
    /// The invoice.
    pub invoice: InvoiceDTO,
    /// What its windows were sealed with.
    pub seals: Seals,
}

async fn clock_of(scope: &Scope, conn: &mut PgConnection, id: SubscriptionId) -> Result<Option<domain::TestClockId>> {
    sqlx::query_scalar("SELECT test_clock_id FROM subscription WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_one(conn)
        .await
        .context("reading the test clock of a subscription")
}

/// The scheduler need not finalize what is finalized by hand. Taken first, as the scheduler takes its own row first.
async fn withdraw_finalization(scope: &Scope, conn: &mut PgConnection, run: &RunRef) -> Result<()> {
    sqlx::query(
        "DELETE FROM due_work WHERE workspace_id = $1 AND kind = 'invoice_finalize' AND subject_id = $2 AND payload = $3",
    )
    .bind(scope.workspace_id)
    .bind(run.subscription_id)
    .bind(sqlx::types::Json(run.key))
    .execute(conn)
    .await
    .context("withdrawing due work")?;
    Ok(())
}

/// The run that a draft belongs to.
fn run_of(invoice: &Invoice) -> Result<RunRef> {
    if invoice.status != InvoiceStatus::Draft {
        let allowed: Vec<_> = invoice.status.transitions().iter().map(|status| status.as_str()).collect();
        let (from, to) = (invoice.status.as_str(), InvoiceStatus::Finalized.as_str());
        return Err(Error::invalid_transition("invoice", invoice.id, from, to, &allowed));
    }
    let reason = parse_billing_reason(&invoice.billing_reason).map(|(reason, _)| reason);
    let period = invoice.billing_period_start.zip(invoice.billing_period_end);
    match (reason, invoice.subscription_id, period) {
        (Some(RunReason::Manual), _, _) => {
            Err(Error::business_rule("this draft is a preview of a period that runs; its end makes the invoice"))
        }
        (Some(reason), Some(subscription_id), Some((start, end))) => {
            Ok(RunRef { subscription_id, key: RunKey::new(reason, Period { start, end }), work_id: None })
        }
        _ => Err(Error::invariant(format!("invoice {} has no run", invoice.id))),
    }
}

/// The period that was asked for; it must be one of the subscription's.
fn period_of(subscription: &Subscription, request: &GenerateInvoiceRequest) -> Result<Period> {
    let schedule = subscription.schedule()?;
    let current = subscription.current_period_start.filter(|_| subscription.activated_at.is_some());
    let (Some(start), end) = (request.billing_period_start.or(current), request.billing_period_end) else {
        return Err(Error::business_rule(format!(
            "a subscription that is {} has no billing period",
            subscription.status
        )));
    };
    let scheduled = schedule.containing(start);
    let cut = subscription.current_period_end.filter(|_| current == Some(start));
    let period =
        scheduled.filter(|period| period.start == start).map(|period| Period { start, end: cut.unwrap_or(period.end) });
    period.filter(|period| end.is_none_or(|end| end == period.end)).ok_or_else(|| {
        Error::business_rule(
            "billing_period_start and billing_period_end must be those of a billing period of the subscription",
        )
    })
}
