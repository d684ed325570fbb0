//! CreditNotes (credit-notes.md).

use billing::credit_note::{self, CreditNoteDTO};
use domain::CreditNoteId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "CreditNotes";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(list_credit_notes)).routes(routes!(get_credit_note))
}

/// List credit notes, newest first
#[utoipa::path(
    get, path = "/v1/credit-notes", operation_id = "list_credit_notes", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "created_at or updated_at, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("invoice_id" = Option<String>, Query, description = "eq, ne, in"),
        ("currency" = Option<String>, Query, description = "eq, ne, in"),
        ("credit_note_number" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("reason_code" = Option<String>, Query, description = "eq, ne, in"),
        ("issued_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<CreditNoteDTO>))
)]
async fn list_credit_notes(ctx: Ctx) -> Answer {
    ctx.require("credit_notes:read")?;
    let query = ctx.list(&credit_note::read::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::page(credit_note::read::list(&ctx.scope, &mut conn, &query).await?)
}

/// Read one credit note with its lines
#[utoipa::path(
    get, path = "/v1/credit-notes/{id}", operation_id = "get_credit_note", tag = TAG,
    params(("id" = CreditNoteId, Path, description = "Credit note")),
    responses((status = 200, description = "The credit note", body = Data<CreditNoteDTO>))
)]
async fn get_credit_note(ctx: Ctx) -> Answer {
    ctx.require("credit_notes:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(credit_note::read::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}
