//! Money on invoices, of the tag Invoices: charging them (invoices.md), what arrived outside the gateways (manual-payments.md), and
//! what goes back (refunds.md).

use axum::http::StatusCode;
use domain::{InvoiceId, TransactionId};
use ledger::Outcome;
use payments::collect::{ChargeInvoiceRequest, ChargeInvoiceResponse, Charged};
use payments::manual::{self, RecordManualPaymentRequest, ReverseManualPaymentRequest};
use payments::refund::{Ordered, RefundInvoiceRequest, RefundResult};
use payments::transaction::{self, Transaction};
use payments::words::TransactionKind;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::begun::Begun;
use crate::write::to_the_end;
use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Invoices";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_manual_payments, record_manual_payment))
        .routes(routes!(reverse_manual_payment))
        .routes(routes!(charge_invoice))
        .routes(routes!(refund_invoice))
        .routes(routes!(list_invoice_refunds))
}

/// Record money that arrived outside the gateways
#[utoipa::path(
    post, path = "/v1/invoices/{id}/manual-payments", operation_id = "record_manual_payment", tag = TAG,
    request_body = RecordManualPaymentRequest,
    params(("id" = InvoiceId, Path, description = "Invoice")),
    responses((status = 201, description = "The payment", body = Data<Transaction>))
)]
async fn record_manual_payment(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("record_manual_payment").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(RecordManualPaymentRequest::read)?;
    let recorded = manual::record(&ctx.scope, write.tx(), id, &request).await?;
    write.created(Data(recorded)).await
}

/// List the manual payments of an invoice, newest first
#[utoipa::path(
    get, path = "/v1/invoices/{id}/manual-payments", operation_id = "list_manual_payments", tag = TAG,
    params(
        ("id" = InvoiceId, Path, description = "Invoice"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Transaction>))
)]
async fn list_manual_payments(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let id = ctx.path_id("id")?;
    let mut conn = ctx.conn().await?;
    answer::page(manual::list(&ctx.scope, &mut conn, id, ctx.query()).await?)
}

/// Take a manual payment back: its amount is due again
#[utoipa::path(
    post, path = "/v1/invoices/{id}/manual-payments/{payment_id}/reverse", operation_id = "reverse_manual_payment", tag = TAG,
    request_body = ReverseManualPaymentRequest,
    params(
        ("id" = InvoiceId, Path, description = "Invoice"),
        ("payment_id" = TransactionId, Path, description = "Manual payment"),
    ),
    responses((status = 200, description = "The payment that was taken back", body = Data<Transaction>))
)]
async fn reverse_manual_payment(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let mut write = ctx.write("reverse_manual_payment").await?;
    let (id, payment) = (ctx.path_id("id")?, ctx.path_id("payment_id")?);
    let request = ctx.body(ReverseManualPaymentRequest::read)?;
    let reversed = manual::reverse(&ctx.scope, write.tx(), id, payment, &request).await?;
    write.ok(Data(reversed)).await
}

/// Charge what is due to a payment method
///
/// A payment that its provider has not decided answers with status PENDING or PROCESSING; the invoice is paid by itself then, and
/// `payment.succeeded` or `payment.failed` tells of it.
#[utoipa::path(
    post, path = "/v1/invoices/{id}/charge", operation_id = "charge_invoice", tag = TAG,
    request_body = ChargeInvoiceRequest,
    params(("id" = InvoiceId, Path, description = "Invoice")),
    responses((status = 200, description = "How far the payment is", body = Data<ChargeInvoiceResponse>))
)]
async fn charge_invoice(ctx: Ctx) -> Answer {
    ctx.require("payments:write")?;
    let begun: Begun<Charged> = match ctx.write("charge_invoice").await {
        Ok(mut write) => {
            let id = ctx.path_id("id")?;
            let request = ctx.body_or_empty(ChargeInvoiceRequest::read)?;
            let charged = ctx.app.payments.charge_invoice(&ctx.scope, write.tx(), id, &request).await?;
            Begun::commit(write, Outcome::first(charged)).await?
        }
        Err(refusal) => Begun::repeated(refusal)?,
    };
    let (payments, scope, attempt) = (ctx.app.payments.clone(), ctx.scope, begun.attempt());
    let Charged { invoice_id, transaction_id } = begun.opened;
    let payment = to_the_end(async move { payments.proceed(&scope, transaction_id, attempt).await }).await?;
    payment.refusal()?;
    let (status, amount) = (payment.status, payment.amount);
    begun.answer(StatusCode::OK, ChargeInvoiceResponse { invoice_id, transaction_id, status, amount })
}

/// Refund money that was paid on an invoice
///
/// Money goes back the way it came, to a wallet, or by hand; a credit note over the same amount is issued with it. What a gateway
/// has not confirmed is PENDING or PROCESSING; `payment.refunded` or `payment.refund_failed` tells of it.
#[utoipa::path(
    post, path = "/v1/invoices/{id}/refund", operation_id = "refund_invoice", tag = TAG, request_body = RefundInvoiceRequest,
    params(("id" = InvoiceId, Path, description = "Invoice")),
    responses(
        (status = 200, description = "How far the refund of an earlier call with the same idempotency_key is", body = Data<RefundResult>),
        (status = 201, description = "How far the refund is", body = Data<RefundResult>),
    )
)]
async fn refund_invoice(ctx: Ctx) -> Answer {
    ctx.require("payments:refund")?;
    let begun: Begun<Ordered> = match ctx.write("refund_invoice").await {
        Ok(mut write) => {
            let id = ctx.path_id("id")?;
            let request = ctx.body_or_empty(RefundInvoiceRequest::read)?;
            let ordered = ctx.app.payments.refund_invoice(&ctx.scope, write.tx(), id, &request).await?;
            Begun::commit(write, ordered).await?
        }
        Err(refusal) => Begun::repeated(refusal)?,
    };
    let (payments, scope, attempt) = (ctx.app.payments.clone(), ctx.scope, begun.attempt());
    let ordered = begun.opened.clone();
    let result = to_the_end(async move { payments.proceed_with_refund(&scope, &ordered, attempt).await }).await?;
    begun.answer(StatusCode::CREATED, result)
}

/// List the refunds of an invoice, newest first
#[utoipa::path(
    get, path = "/v1/invoices/{id}/refunds", operation_id = "list_invoice_refunds", tag = TAG,
    params(
        ("id" = InvoiceId, Path, description = "Invoice"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Transaction>))
)]
async fn list_invoice_refunds(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let id = ctx.path_id("id")?;
    let mut conn = ctx.conn().await?;
    let kind = Some(TransactionKind::Refund);
    answer::page(transaction::list_of_invoice(&ctx.scope, &mut conn, id, kind, ctx.query()).await?)
}
