//! Changes prices: what their versions need (edit-as-publish), and the span of the price itself.

use domain::input::merge_metadata;
use domain::{Error, Instant, Patch, PriceId, Result, Scope};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::archive::charges_somebody;
use super::request::numbered;
use super::write::{
    begin_from_now, check_duplicate, check_tables, check_window, compile, formula_of, single_tier, tables_read,
};
use super::{LIST, Price, PriceStatus, PriceVersion, UpdatePriceRequest};
use crate::product::{self, ProductStatus};
use crate::recount::{self, Touched};
use crate::version::{self, AsOf, EditControls, Entity, Life, Span, VersionRecord, Versioned, edit};

impl Versioned for Price {
    type Update = UpdatePriceRequest;
    type Version = PriceVersion;
    const ENTITY: Entity = Entity::Price;
    const DEFINITION: &'static [&'static str] = &[
        "list_price",
        "tiers",
        "formula_id",
        "display_name",
        "requires_continuous_coverage",
        "metadata",
        "effective_from",
        "effective_to",
    ];
    const MAY_START_IN_THE_PAST: bool = true;

    /// As whoever creates or archives prices of the product: one at a time.
    async fn lock(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<()> {
        let product_id = super::get(scope, tx.conn(), PriceId(id)).await?.product_id;
        product::lock(scope, tx, product_id).await.map(drop)
    }

    async fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf) -> Result<Self> {
        version::read(scope, conn, Self::ENTITY, &LIST, id, as_of).await
    }

    fn life(&self) -> (i32, Life) {
        let life = match self.status {
            PriceStatus::Draft => Life::Draft,
            PriceStatus::Active => Life::Live,
            PriceStatus::Archived => Life::Archived,
        };
        (self.version, life)
    }

    fn snapshot(&self) -> Value {
        json!({
            "list_price": self.list_price, "tiers": self.tiers, "formula_id": self.formula_id, "tables": tables_read(&self.tiers),
            "display_name": self.display_name, "requires_continuous_coverage": self.requires_continuous_coverage,
            "metadata": self.metadata,
        })
    }

    fn controls(update: &UpdatePriceRequest) -> EditControls {
        update.controls
    }

    fn end(update: &UpdatePriceRequest) -> Patch<Instant> {
        update.effective_to.clone()
    }

    fn merge(mut self, update: UpdatePriceRequest) -> Result<Self> {
        if update.has_window() {
            let detail = "valid_from and valid_to belong to the price, not to a version: change them at once, without \
                          effective_at and save_as_draft";
            return Err(Error::business_rule(detail));
        }
        self.formula_id = update.formula_id.apply(self.formula_id);
        let made = self.list_price.map(|amount| vec![single_tier(self.product_type, amount)]);
        if let Some(amount) = update.list_price {
            if made.as_ref() == Some(&self.tiers) {
                self.tiers = vec![single_tier(self.product_type, amount)];
            }
            self.list_price = Some(amount);
        }
        if let Some(tiers) = &update.tiers {
            self.tiers = numbered(tiers);
        }
        self.display_name = update.display_name.apply(self.display_name);
        if let Some(flag) = update.requires_continuous_coverage {
            self.requires_continuous_coverage = flag;
        }
        merge_metadata(&mut self.metadata, update.metadata.unwrap_or_default())?;
        Ok(self)
    }

    async fn check(&self, scope: &Scope, tx: &mut Tx, span: Option<&mut Span>) -> Result<()> {
        let product = product::find(scope, tx.conn(), self.product_id).await?;
        let formula = formula_of(scope, tx, self).await?;
        compile(&product, self, formula)?;
        check_tables(scope, tx, &self.tiers).await?;
        let Some(span) = span else { return Ok(()) };
        if product.status == ProductStatus::Archived {
            return Err(Error::business_rule("the product is archived"));
        }
        if span.is_first {
            begin_from_now(scope, tx, self, span).await?;
        } else {
            refuse_early_end(scope, tx, self, span).await?;
        }
        check_window(self, span)
    }

    async fn check_timeline(&self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        check_duplicate(scope, tx, self).await
    }

    fn requires_coverage(&self) -> bool {
        self.requires_continuous_coverage
    }

    async fn touched(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<Touched> {
        let price = super::get(scope, tx.conn(), PriceId(id)).await?;
        Ok(Touched::Products(vec![price.product_id]))
    }

    fn event_members(&self) -> Vec<(&'static str, Value)> {
        vec![("product_id", json!(self.product_id))]
    }

    fn version(self, record: VersionRecord) -> PriceVersion {
        PriceVersion {
            row: record.row,
            price_id: self.id,
            list_price: self.list_price,
            tiers: self.tiers,
            formula_version_id: self.formula_version_id,
            warnings: record.warnings,
        }
    }
}

/// Changes a price: its own span at once, everything else by a version (edit-as-publish).
///
/// # Errors
/// As [`edit::update`]; `Conflict` when a live subscription is charged by the price and it would end earlier; `Rule` for a
/// span that changes the past of a product in use.
pub async fn update(scope: &Scope, tx: &mut Tx, id: PriceId, mut request: UpdatePriceRequest) -> Result<Price> {
    Price::lock(scope, tx, id.0).await?;
    let price = super::get(scope, tx.conn(), id).await?;
    version::check_expected(request.controls.expected_version, price.version)?;
    let controls = request.controls;
    let is_beside = controls.save_as_draft && price.status != PriceStatus::Draft;
    if request.has_window() && controls.start_anywhere(scope.now()).is_none() && !is_beside {
        change_window(scope, tx, price, (&request.valid_from, &request.valid_to)).await?;
        if request.is_live_edit {
            return super::get(scope, tx.conn(), id).await;
        }
        (request.valid_from, request.valid_to) = (Patch::Keep, Patch::Keep);
    }
    edit::update(scope, tx, id.0, request).await
}

/// As for archiving: whoever is charged by the price would find none on the next bill. Versions in the middle of the timeline
/// change nothing about its end.
async fn refuse_early_end(scope: &Scope, tx: &mut Tx, price: &Price, span: &Span) -> Result<()> {
    let last: Option<(Option<Instant>, Option<Instant>)> = sqlx::query_as(
        "SELECT effective_from, planned_to FROM entity_version
         WHERE workspace_id = $1 AND entity_id = $2 AND status <> 'draft' AND cancelled_at IS NULL
         ORDER BY effective_from DESC NULLS LAST LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(price.id)
    .fetch_optional(tx.conn())
    .await
    .context("looking for the end of a price")?;
    let Some((last_from, last_to)) = last else { return Ok(()) };
    if span.from >= last_from && is_earlier(span.to, last_to) && charges_somebody(scope, tx, price).await? {
        return Err(charged());
    }
    Ok(())
}

/// Whether an end (`None`: never) comes before another one.
fn is_earlier(end: Option<Instant>, other: Option<Instant>) -> bool {
    end.is_some_and(|end| other.is_none_or(|other| end < other))
}

fn charged() -> Error {
    Error::conflict("CONFLICT", "a live subscription is charged by this price: it cannot end earlier")
}

/// Moves the span of the price itself. What was rated stays: only its part ahead may change once subscriptions have the
/// product.
async fn change_window(
    scope: &Scope,
    tx: &mut Tx,
    mut price: Price,
    (from, to): (&Patch<Instant>, &Patch<Instant>),
) -> Result<()> {
    if price.status == PriceStatus::Archived {
        return Err(Error::conflict("CONFLICT", "an archived price cannot be changed"));
    }
    let now = scope.now();
    let before = (price.valid_from, price.valid_to);
    price.valid_from = from.clone().apply(price.valid_from);
    price.valid_to = to.clone().apply(price.valid_to);
    let past =
        |(from, to): (Option<Instant>, Option<Instant>)| (from.map(|from| from.min(now)), to.filter(|to| *to < now));
    let is_live = price.status == PriceStatus::Active;
    if is_live && is_earlier(price.valid_to, before.1) && charges_somebody(scope, tx, &price).await? {
        return Err(charged());
    }
    let changes_the_past = past(before) != past((price.valid_from, price.valid_to));
    if changes_the_past && is_live && has_subscribers(scope, tx, &price).await? {
        return Err(Error::business_rule("the span of a price of a product that is in use cannot change in the past"));
    }
    check_window(&price, &Span { from: price.effective_from, to: price.effective_to, is_first: false, now })?;
    sqlx::query("UPDATE price SET valid_from = $3, valid_to = $4, updated_at = $5 WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(price.id)
        .bind(price.valid_from)
        .bind(price.valid_to)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("moving the span of a price")?;
    check_duplicate(scope, tx, &price).await?;
    let earlier = |old: Option<Instant>, new: Option<Instant>| (old != new).then(|| old.into_iter().chain(new).min());
    let moved = [earlier(before.0, price.valid_from), earlier(before.1, price.valid_to)];
    if let Some(from) = moved.into_iter().flatten().min() {
        recount::request(scope, tx, from, Touched::Products(vec![price.product_id])).await?;
    }
    tx.catalog_changed(scope.workspace_id);
    Ok(())
}

async fn has_subscribers(scope: &Scope, tx: &mut Tx, price: &Price) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM subscription_item WHERE workspace_id = $1 AND product_id = $2)")
        .bind(scope.workspace_id)
        .bind(price.product_id)
        .fetch_one(tx.conn())
        .await
        .context("looking for subscriptions to the product")
}
