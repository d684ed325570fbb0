//! Meters (meters.md): how usage events become one number.

pub(crate) mod formula;
mod request;
mod write;

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{
    Error, FieldError, Instant, LateEventPolicy, MeterFunction, MeterId, OrganizationId, Result, Scope, VersionId,
    WindowKind, WindowUnit, WorkspaceId,
};
use rating::{CompiledMeter, Component, FilterTree, MeterDefinition, Span, Threshold};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use store::{ListField, ListKind, ListQuery, ListSpec, Page, Tx};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::version::{AsOf, VersionWarnDTO, Versioned};

use crate::compiled::EventSchema;
use crate::formula::field_errors;

pub use request::{CreateMeterRequest, UpdateMeterRequest};
pub use write::{archive, create};

domain::wire_enum! {
    /// State of a meter.
    pub enum MeterStatus {
        /// Being edited.
        Draft = "draft",
        /// In use.
        Active = "active",
        /// Withdrawn.
        Archived = "archived",
    }
}

/// Shape of a metering window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Window {
    /// Kind.
    pub kind: WindowKind,
    /// Duration of a TUMBLING or SLIDING window, e.g. `15m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub size: Option<String>,
    /// Unit of a CALENDAR window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub unit: Option<WindowUnit>,
    /// IANA time zone of a CALENDAR window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub timezone: Option<String>,
}

impl Default for Window {
    /// `DefaultWindow()`: the billing period.
    fn default() -> Self {
        Self { kind: WindowKind::BillingPeriod, size: None, unit: None, timezone: None }
    }
}

impl Window {
    /// The window, compiled.
    ///
    /// # Errors
    /// A size that is no duration or out of range, and what its kind needs.
    pub(crate) fn span(&self) -> Result<Span, Vec<FieldError>> {
        Span::new(self.kind, self.size.as_deref(), self.unit, self.timezone.as_deref())
    }

    /// Reads a window of a request; members that its kind does not have are refused.
    ///
    /// # Errors
    /// The bad fields.
    pub fn read(field: Field<'_>) -> FieldResult<Self> {
        field.object(|input| {
            let kind = input.required("kind", Field::word::<WindowKind>);
            let size = input.optional("size", |v| v.text(1, 32));
            let unit = input.optional("unit", Field::word);
            let timezone = input.optional("timezone", read_timezone);
            let kind = kind?;
            let sized = matches!(kind, WindowKind::Tumbling | WindowKind::Sliding);
            let calendar = kind == WindowKind::Calendar;
            for (name, sent, needed, allowed) in [
                ("size", size.is_some(), sized, sized),
                ("unit", unit.is_some(), calendar, calendar),
                ("timezone", timezone.is_some(), false, calendar),
            ] {
                if needed && !sent {
                    input.error(name, Code::Required, format!("is required by {kind}"));
                } else if sent && !allowed {
                    input.error(name, Code::NotAllowed, format!("is not used by {kind}"));
                }
            }
            Some(Self { kind, size, unit, timezone })
        })
    }
}

fn read_timezone(field: Field<'_>) -> FieldResult<String> {
    match field.raw().as_str() {
        Some(name) if name.parse::<chrono_tz::Tz>().is_ok() => Ok(name.to_owned()),
        _ => field.refuse(Code::InvalidFormat, "must be an IANA time zone such as Europe/Berlin"),
    }
}

/// Combination of other meters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeterFormula {
    /// Expression over the variables.
    pub expression: String,
    /// Where each variable comes from.
    pub variables: Vec<MeterFormulaVariable>,
}

impl MeterFormula {
    /// Compiles the expression.
    ///
    /// # Errors
    /// `Validation` with the place of each error, under `formula`.
    pub(crate) fn compile(&self, version_id: VersionId, negative_allowed: bool) -> Result<rating::MeterFormula> {
        let names = self.variables.iter().map(|variable| variable.name.clone()).collect();
        rating::MeterFormula::compile(version_id, &self.expression, names, negative_allowed).map_err(|errors| {
            let mut fields = field_errors("expression", errors);
            fields.iter_mut().for_each(|field| field.field = format!("formula.{}", field.field));
            Error::Validation(fields)
        })
    }
}

/// A variable of a meter formula.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeterFormulaVariable {
    /// Name in the expression.
    pub name: String,
    /// Meter that gives its value.
    pub meter_key: String,
}

/// A meter.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = MeterDTO)]
pub struct Meter {
    /// Meter.
    pub id: MeterId,
    /// Owner.
    pub organization_id: OrganizationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Stable identifier.
    pub key: String,
    /// Name.
    pub name: String,
    /// Metric of the events that it reads.
    pub metric_key: String,
    /// How events combine.
    pub function: MeterFunction,
    /// Path of the number to combine; null: `quantity`.
    #[schema(required)]
    pub value_field: Option<String>,
    /// Path whose distinct values are counted.
    #[schema(required)]
    pub unique_by_field: Option<String>,
    /// Unit for people.
    #[schema(required)]
    pub unit_label: Option<String>,
    /// Path of the currency when the value is money.
    #[schema(required)]
    pub unit_currency_field: Option<String>,
    /// Dimension keys to split by.
    pub dimensions: Vec<String>,
    /// JSON Schema of its events.
    #[schema(required, value_type = Option<Object>)]
    pub event_schema: Option<Value>,
    /// Path whose value deduplicates.
    #[schema(required)]
    pub dedup_key_path: Option<String>,
    /// Whether negative values are allowed.
    pub negative_allowed: bool,
    /// What happens to late events.
    pub late_event_policy: LateEventPolicy,
    /// Over which window.
    pub window: Window,
    /// Which events count.
    #[schema(required)]
    pub filter: Option<FilterTree>,
    /// Combination of other meters, for FORMULA.
    #[schema(required)]
    pub formula: Option<MeterFormula>,
    /// Limits on the observed value.
    pub thresholds: Vec<Threshold>,
    /// State.
    pub status: MeterStatus,
    /// Number of the head version.
    pub version: i32,
    /// The head version.
    #[schema(required)]
    pub head_version_id: Option<VersionId>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// When it was withdrawn.
    #[schema(required)]
    pub archived_at: Option<DateTime<Utc>>,
}

/// A frozen state of a meter: all of the meter with that version's definition, `id` being the version's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MeterVersionSnapshot {
    /// The meter at this version.
    #[serde(flatten)]
    pub meter: Meter,
    /// The meter.
    pub meter_id: MeterId,
    /// Start of its span; null: since ever, or a draft.
    #[schema(required)]
    pub effective_from: Option<DateTime<Utc>>,
    /// End of its span, exclusive.
    #[schema(required)]
    pub effective_to: Option<DateTime<Utc>>,
    /// When it was published.
    #[schema(required)]
    pub published_at: Option<DateTime<Utc>>,
    /// By which key.
    #[schema(required)]
    pub published_by: Option<Uuid>,
    /// Warnings of a scheduled version.
    pub warnings: Vec<VersionWarnDTO>,
}

impl Meter {
    /// Compiles the definition, so that no stored version fails later.
    ///
    /// # Errors
    /// `Validation` with field paths; `Rule` for what this version of the engine cannot evaluate.
    pub(crate) fn compile(&self, effective_from: Instant) -> Result<CompiledMeter> {
        self.check_function()?;
        if let Some(schema) = &self.event_schema {
            EventSchema::compile(schema).map_err(|error| Error::Validation(vec![error]))?;
        }
        Ok(CompiledMeter::compile(MeterDefinition {
            meter_id: self.id,
            version_id: self.head_version_id.unwrap_or_else(VersionId::generate),
            effective_from,
            key: self.key.clone(),
            metric_key: self.metric_key.clone(),
            function: self.function,
            value_field: self.value_field.clone(),
            unique_by_field: self.unique_by_field.clone(),
            filter: self.filter.clone(),
            negative_allowed: self.negative_allowed,
            late_event_policy: self.late_event_policy,
            thresholds: self.thresholds.clone(),
            window: self.window.span().map_err(Error::Validation)?,
            dedup_key_path: self.dedup_key_path.clone(),
            unit_currency_field: self.unit_currency_field.clone(),
        })?)
    }

    /// A FORMULA meter has a formula in the place of what reads events; better refused than ignored.
    fn check_function(&self) -> Result<()> {
        let Some(formula) = self.formula.as_ref().filter(|_| self.function == MeterFunction::Formula) else {
            return match (self.function, &self.formula) {
                (MeterFunction::Formula, _) => {
                    Err(Error::field("formula", Code::Required, "is required by the function FORMULA"))
                }
                (_, Some(_)) => Err(Error::field("formula", Code::NotAllowed, "is used by the function FORMULA only")),
                (_, None) => Ok(()),
            };
        };
        let members = [
            ("value_field", self.value_field.is_some()),
            ("unique_by_field", self.unique_by_field.is_some()),
            ("unit_currency_field", self.unit_currency_field.is_some()),
            ("dedup_key_path", self.dedup_key_path.is_some()),
            ("event_schema", self.event_schema.is_some()),
            ("filter", self.filter.is_some()),
        ];
        let message = "is not used by FORMULA: the meters that it names read the events";
        let refused = |(name, _): (&str, bool)| FieldError {
            field: name.into(),
            code: Code::NotAllowed,
            message: message.into(),
        };
        let mut fields: Vec<FieldError> = members.into_iter().filter(|(_, is_set)| *is_set).map(refused).collect();
        match formula.compile(VersionId(Uuid::nil()), self.negative_allowed) {
            Err(Error::Validation(errors)) => fields.extend(errors),
            other => other.map(drop)?,
        }
        if fields.is_empty() { Ok(()) } else { Err(Error::Validation(fields)) }
    }
}

impl FromRow<'_, PgRow> for Meter {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let decode = |name: &str, errors: Vec<domain::FieldError>| sqlx::Error::ColumnDecode {
            index: name.to_owned(),
            source: Box::new(Error::Validation(errors)),
        };
        let filter: Option<Value> = row.try_get("filter")?;
        let filter = filter.map(|json| FilterTree::from_json(&json)).transpose().map_err(|e| decode("filter", e))?;
        let window: sqlx::types::Json<Window> = row.try_get("window")?;
        let thresholds: sqlx::types::Json<Vec<Threshold>> = row.try_get("thresholds")?;
        let formula: Option<sqlx::types::Json<MeterFormula>> = row.try_get("formula")?;
        Ok(Self {
            id: row.try_get("id")?,
            organization_id: row.try_get("organization_id")?,
            workspace_id: row.try_get("workspace_id")?,
            key: row.try_get("key")?,
            name: row.try_get("name")?,
            metric_key: row.try_get("metric_key")?,
            function: row.try_get("function")?,
            value_field: row.try_get("value_field")?,
            unique_by_field: row.try_get("unique_by_field")?,
            unit_label: row.try_get("unit_label")?,
            unit_currency_field: row.try_get("unit_currency_field")?,
            dimensions: row.try_get("dimensions")?,
            event_schema: row.try_get("event_schema")?,
            dedup_key_path: row.try_get("dedup_key_path")?,
            negative_allowed: row.try_get("negative_allowed")?,
            late_event_policy: row.try_get("late_event_policy")?,
            window: window.0,
            filter,
            formula: formula.map(|json| json.0),
            thresholds: thresholds.0,
            status: row.try_get("status")?,
            version: row.try_get("version")?,
            head_version_id: row.try_get("head_version_id")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            archived_at: row.try_get("archived_at")?,
        })
    }
}

/// The members of a version are read from the one that is in effect.
const LIST: ListSpec = ListSpec {
    name: "meters",
    columns: "t.id, t.organization_id, t.workspace_id, t.key, e.name, t.metric_key, e.function, e.value_field,
        e.unique_by_field, e.unit_label, e.unit_currency_field, e.dimensions, e.event_schema, e.dedup_key_path,
        e.negative_allowed, e.late_event_policy, e.\"window\", e.filter, e.formula, e.thresholds, t.status, e.version,
        e.head_version_id, t.created_at, t.updated_at, t.archived_at",
    from: "meter t CROSS JOIN LATERAL jsonb_populate_record(t, entity_state(t.id)) e",
    workspace_column: "t.workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id).column("t.id"),
        ListField::new("key", ListKind::Text).column("t.key").sortable(),
        ListField::new("name", ListKind::Text).column("e.name").sortable(),
        ListField::new("metric_key", ListKind::Text).column("t.metric_key"),
        ListField::new(
            "function",
            ListKind::Word(&["COUNT", "SUM", "MAX", "MIN", "AVG", "LAST", "UNIQUE_COUNT", "TIME_WEIGHTED", "FORMULA"]),
        )
        .column("e.function"),
        ListField::new("status", ListKind::Word(&["draft", "active", "archived"])).column("t.status"),
        ListField::new("created_at", ListKind::Instant).column("t.created_at").sortable(),
        ListField::new("updated_at", ListKind::Instant).column("t.updated_at").sortable(),
    ],
    shorthands: &[],
    order: "t.created_at",
    id: "t.id",
};

/// Meters of the workspace.
///
/// # Errors
/// As [`ListQuery::parse`].
pub async fn list(scope: &Scope, conn: &mut PgConnection, parameters: &[(String, String)]) -> Result<Page<Meter>> {
    ListQuery::parse(&LIST, parameters)?.fetch(conn, scope).await
}

/// One meter.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: MeterId) -> Result<Meter> {
    Meter::read(scope, conn, id.0, AsOf::Instant(scope.now())).await
}

/// A meter as it is now, with changes that are tried on it, and what reads events for it: itself, or the meters that a
/// FORMULA meter names.
///
/// # Errors
/// `NotFound`; `Validation` and `Rule` where it cannot be evaluated.
pub async fn compiled(
    scope: &Scope,
    conn: &mut PgConnection,
    id: MeterId,
    changes: Option<UpdateMeterRequest>,
) -> Result<(Meter, Vec<(CompiledMeter, Option<Component>)>)> {
    let mut meter = get(scope, conn, id).await?;
    if let Some(changes) = changes {
        meter = Versioned::merge(meter, changes)?;
    }
    let compiled = meter.compile(scope.now())?;
    let readers = formula::readers(scope, conn, &meter, compiled).await?;
    Ok((meter, readers))
}

/// One meter, locked.
///
/// # Errors
/// `NotFound`.
pub(crate) async fn lock(scope: &Scope, tx: &mut Tx, id: MeterId) -> Result<Meter> {
    Meter::lock(scope, tx, id.0).await?;
    get(scope, tx.conn(), id).await
}
