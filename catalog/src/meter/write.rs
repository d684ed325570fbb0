//! Writes of meters: create, archive, and what their versions need (edit-as-publish).

use domain::{Error, Instant, JsonMap, LateEventPolicy, MeterId, Patch, ProductId, Result, Scope};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::{CreateMeterRequest, LIST, Meter, MeterStatus, MeterVersionSnapshot, UpdateMeterRequest, formula};
use crate::recount::Touched;
use crate::version::{self, AsOf, EditControls, Entity, Life, Span, VersionRecord, Versioned, edit};

/// Creates a meter: active with version 1, which holds since ever so that backfilled usage finds it; or a draft. It is
/// compiled here once.
///
/// # Errors
/// `Conflict` with `DUPLICATE` on `key`; `Validation` for paths, filter and thresholds; `Rule` for functions, windows and
/// actions of thresholds that cannot be evaluated.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateMeterRequest) -> Result<Meter> {
    let is_draft = request.save_as_draft.unwrap_or_default();
    let meter = new_meter(scope, request);
    if let Some(id) = find_by_key(scope, tx, &meter.key).await? {
        return Err(Error::duplicate("key", Some(id.to_string())));
    }
    let span = Span::first(None, None, meter.created_at);
    edit::create(scope, tx, meter.id.0, &meter, (is_draft, span), |constraint| {
        (constraint == "meter_workspace_id_key_key").then(|| Error::duplicate("key", None))
    })
    .await
}

fn new_meter(scope: &Scope, request: CreateMeterRequest) -> Meter {
    Meter {
        id: MeterId::generate(),
        organization_id: scope.organization_id,
        workspace_id: scope.workspace_id,
        key: request.key,
        name: request.name,
        metric_key: request.metric_key,
        function: request.function,
        value_field: request.value_field,
        unique_by_field: request.unique_by_field,
        unit_label: request.unit_label,
        unit_currency_field: request.unit_currency_field,
        dimensions: request.dimensions.unwrap_or_default(),
        event_schema: request.event_schema.map(Value::Object),
        dedup_key_path: request.dedup_key_path,
        negative_allowed: request.negative_allowed.unwrap_or_default(),
        late_event_policy: request.late_event_policy.unwrap_or(LateEventPolicy::NextPeriod),
        window: request.window.unwrap_or_default(),
        filter: request.filter,
        formula: request.formula,
        thresholds: request.thresholds.unwrap_or_default(),
        status: MeterStatus::Draft,
        version: 0,
        head_version_id: None,
        created_at: scope.now(),
        updated_at: scope.now(),
        archived_at: None,
    }
}

impl Versioned for Meter {
    type Update = UpdateMeterRequest;
    type Version = MeterVersionSnapshot;
    const ENTITY: Entity = Entity::Meter;
    const DEFINITION: &'static [&'static str] = &[
        "name",
        "function",
        "value_field",
        "unique_by_field",
        "unit_label",
        "unit_currency_field",
        "dimensions",
        "event_schema",
        "dedup_key_path",
        "negative_allowed",
        "late_event_policy",
        "window",
        "filter",
        "formula",
        "thresholds",
    ];
    const MAY_START_IN_THE_PAST: bool = true;

    async fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf) -> Result<Self> {
        version::read(scope, conn, Self::ENTITY, &LIST, id, as_of).await
    }

    fn life(&self) -> (i32, Life) {
        let life = match self.status {
            MeterStatus::Draft => Life::Draft,
            MeterStatus::Active => Life::Live,
            MeterStatus::Archived => Life::Archived,
        };
        (self.version, life)
    }

    fn snapshot(&self) -> Value {
        json!({
            "name": self.name, "function": self.function, "value_field": self.value_field,
            "unique_by_field": self.unique_by_field, "unit_label": self.unit_label,
            "unit_currency_field": self.unit_currency_field, "dimensions": self.dimensions,
            "event_schema": self.event_schema, "dedup_key_path": self.dedup_key_path,
            "negative_allowed": self.negative_allowed, "late_event_policy": self.late_event_policy,
            "window": self.window, "filter": self.filter, "formula": self.formula, "thresholds": self.thresholds,
        })
    }

    fn controls(update: &UpdateMeterRequest) -> EditControls {
        update.controls
    }

    fn merge(mut self, update: UpdateMeterRequest) -> Result<Self> {
        fn set<T>(target: &mut T, sent: Option<T>) {
            if let Some(value) = sent {
                *target = value;
            }
        }
        set(&mut self.name, update.name);
        set(&mut self.function, update.function);
        self.value_field = update.value_field.apply(self.value_field);
        self.unique_by_field = update.unique_by_field.apply(self.unique_by_field);
        self.unit_label = update.unit_label.apply(self.unit_label);
        self.unit_currency_field = update.unit_currency_field.apply(self.unit_currency_field);
        set(&mut self.dimensions, update.dimensions);
        self.event_schema = match update.event_schema {
            Patch::Keep => self.event_schema,
            Patch::Clear => None,
            Patch::Set(schema) => Some(Value::Object(schema)),
        };
        self.dedup_key_path = update.dedup_key_path.apply(self.dedup_key_path);
        set(&mut self.negative_allowed, update.negative_allowed);
        set(&mut self.late_event_policy, update.late_event_policy);
        set(&mut self.window, update.window);
        self.filter = update.filter.apply(self.filter);
        self.formula = update.formula.apply(self.formula);
        set(&mut self.thresholds, update.thresholds);
        Ok(self)
    }

    async fn check(&self, scope: &Scope, tx: &mut Tx, _span: Option<&mut Span>) -> Result<()> {
        self.compile(Instant::UNIX_EPOCH)?;
        formula::lock(scope, tx).await?;
        formula::check_named(scope, tx, self).await
    }

    /// A meter without a published version measures nothing: its bindings and the formulas that name it must be gone before.
    async fn check_timeline(&self, scope: &Scope, tx: &mut Tx) -> Result<()> {
        let is_published: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM entity_version
                            WHERE workspace_id = $1 AND entity_id = $2 AND status <> 'draft' AND cancelled_at IS NULL)",
        )
        .bind(scope.workspace_id)
        .bind(self.id)
        .fetch_one(tx.conn())
        .await
        .context("looking for a published version")?;
        formula::lock(scope, tx).await?;
        if is_published {
            return formula::check_all(scope, tx).await;
        }
        refuse_bound(scope, tx, self.id, scope.now()).await?;
        refuse_named(scope, tx, &self.key, scope.now()).await
    }

    /// That of the products which it is bound to, or a FORMULA meter that may name it.
    async fn touched(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<Touched> {
        if !formula::users_of(scope, tx, id).await?.is_empty() {
            return Ok(Touched::Everything);
        }
        let products: Vec<ProductId> = sqlx::query_scalar(
            "SELECT DISTINCT product_id FROM product_meter_binding
             WHERE workspace_id = $1 AND meter_id = $2 AND status <> 'draft'",
        )
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_all(tx.conn())
        .await
        .context("looking for the products of a meter")?;
        Ok(if products.is_empty() { Touched::Nothing } else { Touched::Products(products) })
    }

    /// Bindings of the meter, and FORMULA meters that name it.
    async fn dependents(scope: &Scope, tx: &mut Tx, id: Uuid) -> Result<Vec<Uuid>> {
        let mut found: Vec<Uuid> =
            sqlx::query_scalar("SELECT id FROM product_meter_binding WHERE workspace_id = $1 AND meter_id = $2")
                .bind(scope.workspace_id)
                .bind(id)
                .fetch_all(tx.conn())
                .await
                .context("looking for the bindings of a meter")?;
        found.append(&mut formula::users_of(scope, tx, id).await?);
        Ok(found)
    }

    fn event_members(&self) -> Vec<(&'static str, Value)> {
        vec![("key", json!(self.key))]
    }

    fn version(mut self, record: VersionRecord) -> MeterVersionSnapshot {
        let meter_id = self.id;
        self.id = MeterId(record.row.id.0);
        self.status = match record.row.status {
            domain::VersionStatus::Draft => MeterStatus::Draft,
            domain::VersionStatus::Scheduled | domain::VersionStatus::Active => MeterStatus::Active,
            domain::VersionStatus::Archived => MeterStatus::Archived,
        };
        MeterVersionSnapshot {
            meter: self,
            meter_id,
            effective_from: record.row.effective_from,
            effective_to: record.row.effective_to,
            published_at: record.row.published_at,
            published_by: record.published_by,
            warnings: record.warnings,
        }
    }
}

/// Withdraws a meter; a repeat does nothing.
///
/// # Errors
/// `NotFound`, `Conflict` while a live binding exists or a live formula names it.
pub async fn archive(scope: &Scope, tx: &mut Tx, id: MeterId) -> Result<()> {
    let meter = super::lock(scope, tx, id).await?;
    if meter.status == MeterStatus::Archived {
        return Ok(());
    }
    let now = scope.now();
    formula::lock(scope, tx).await?;
    refuse_bound(scope, tx, id, now).await?;
    refuse_named(scope, tx, &meter.key, now).await?;
    version::end(scope, tx, id.0, now, "archived").await?;
    sqlx::query(
        "UPDATE meter SET status = 'archived', archived_at = $3, updated_at = $3 WHERE workspace_id = $1 AND id = $2",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("archiving a meter")?;
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(id));
    payload.insert("key".into(), json!(meter.key));
    payload.insert("version".into(), json!(meter.version));
    tx.emit(scope, "meter.archived", "meter", id, payload).await
}

async fn refuse_bound(scope: &Scope, tx: &mut Tx, id: MeterId, now: Instant) -> Result<()> {
    let bound: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM product_meter_binding t
                             CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id, $3)) e
                        WHERE t.workspace_id = $1 AND t.meter_id = $2 AND t.status = 'active'
                          AND e.status IN ('active', 'scheduled'))",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .bind(now)
    .fetch_one(tx.conn())
    .await
    .context("looking for bindings")?;
    if bound { Err(Error::conflict("CONFLICT", "a live binding uses this meter")) } else { Ok(()) }
}

async fn refuse_named(scope: &Scope, tx: &mut Tx, key: &str, now: Instant) -> Result<()> {
    match formula::user_of(scope, tx, key, now).await? {
        None => Ok(()),
        Some(user) => Err(Error::conflict("CONFLICT", format!("the FORMULA meter {user} names this meter"))),
    }
}

async fn find_by_key(scope: &Scope, tx: &mut Tx, key: &str) -> Result<Option<MeterId>> {
    sqlx::query_scalar("SELECT id FROM meter WHERE workspace_id = $1 AND key = $2")
        .bind(scope.workspace_id)
        .bind(key)
        .fetch_optional(tx.conn())
        .await
        .context("looking for a meter by key")
}
