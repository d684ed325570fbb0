//! Invoices (invoices.md).

use billing::invoice::{
    self, FinalizeInvoiceRequest, Finalized, GenerateInvoiceRequest, Invoice, InvoiceDTO, InvoiceLineAtom,
};
use domain::{InvoiceId, InvoiceLineId};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::write::to_the_end;
use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Invoices";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_invoices))
        .routes(routes!(generate_invoice))
        .routes(routes!(get_invoice))
        .routes(routes!(finalize_invoice))
        .routes(routes!(list_invoice_line_atoms))
}

/// List invoices, newest first
#[utoipa::path(
    get, path = "/v1/invoices", operation_id = "list_invoices", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at or updated_at, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("subscription_id" = Option<String>, Query, description = "eq, ne, in"),
        ("currency" = Option<String>, Query, description = "eq, ne, in"),
        ("invoice_number" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("invoice_type" = Option<String>, Query, description = "eq, ne, in"),
        ("void_reason" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("due_date" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("issued_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("paid_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("sent_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Invoice>))
)]
async fn list_invoices(ctx: Ctx) -> Answer {
    ctx.require("invoices:read")?;
    let query = ctx.list(&invoice::read::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::page(invoice::read::list(&ctx.scope, &mut conn, &query).await?)
}

/// Make or recompute the draft of a subscription's period
#[utoipa::path(
    post, path = "/v1/invoices/generate", operation_id = "generate_invoice", tag = TAG,
    request_body = GenerateInvoiceRequest,
    responses((status = 201, description = "The draft", body = Data<InvoiceDTO>))
)]
async fn generate_invoice(ctx: Ctx) -> Answer {
    ctx.require("invoices:write")?;
    let mut write = ctx.write("generate_invoice").await?;
    let request = ctx.body(GenerateInvoiceRequest::read)?;
    let draft = ctx.app.engine()?.billing.generate_invoice(&ctx.scope, write.tx(), &request).await?;
    write.created(Data(draft)).await
}

/// Read one invoice with its lines
#[utoipa::path(
    get, path = "/v1/invoices/{id}", operation_id = "get_invoice", tag = TAG,
    params(("id" = InvoiceId, Path, description = "Invoice")),
    responses((status = 200, description = "The invoice", body = Data<InvoiceDTO>))
)]
async fn get_invoice(ctx: Ctx) -> Answer {
    ctx.require("invoices:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(invoice::read::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// Seal the usage, compute for the last time, book, apply wallet money, number and lock
#[utoipa::path(
    post, path = "/v1/invoices/{id}/finalize", operation_id = "finalize_invoice", tag = TAG,
    request_body = FinalizeInvoiceRequest,
    params(("id" = InvoiceId, Path, description = "Invoice")),
    responses((status = 200, description = "The finalized invoice", body = Data<InvoiceDTO>))
)]
async fn finalize_invoice(ctx: Ctx) -> Answer {
    ctx.require("invoices:finalize")?;
    let mut write = ctx.write("finalize_invoice").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body_or_empty(FinalizeInvoiceRequest::read)?;
    let billing = ctx.app.engine()?.billing.clone();
    // Whatever becomes of the client: a seal without its invoice would make later usage late (rule C2).
    to_the_end(async move {
        let Finalized { invoice, seals } = billing.finalize_invoice(&ctx.scope, write.tx(), id, &request).await?;
        match write.ok(Data(invoice)).await {
            Err(error) => {
                billing.take_back(&seals).await?;
                Err(error)
            }
            answered => answered,
        }
    })
    .await
}

/// List the rated pieces of a line, with their tiers
#[utoipa::path(
    get, path = "/v1/invoices/{id}/lines/{line_id}/atoms", operation_id = "list_invoice_line_atoms", tag = TAG,
    params(
        ("id" = InvoiceId, Path, description = "Invoice"),
        ("line_id" = InvoiceLineId, Path, description = "Line"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<InvoiceLineAtom>))
)]
async fn list_invoice_line_atoms(ctx: Ctx) -> Answer {
    ctx.require("invoices:read")?;
    let mut conn = ctx.conn().await?;
    let (id, line_id) = (ctx.path_id("id")?, ctx.path_id("line_id")?);
    answer::page(invoice::read::atoms(&ctx.scope, &mut conn, id, line_id, ctx.query()).await?)
}
