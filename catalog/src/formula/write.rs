//! Writes of formulas: create, edit-as-publish, delete.

use domain::error::FieldErrorCode as Code;
use domain::{Error, FieldError, JsonMap, PriceFormulaId, Result, Scope};
use rating::formula::Place;
use rating::{Formula, FormulaVariable};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::{
    CreatePriceFormulaRequest, LIST, PriceFormula, PriceFormulaStatus, PriceFormulaVersion, UpdatePriceFormulaRequest,
    field_errors,
};
use crate::rate_table;
use crate::version::{self, AsOf, EditControls, Entity, Life, Span, VersionRecord, Versioned, edit};

/// Creates a formula: version 1 is published at once and holds since ever.
///
/// # Errors
/// `Validation` for the expression, its variables and the rate tables that it names.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreatePriceFormulaRequest) -> Result<PriceFormula> {
    let formula = new_formula(scope, request);
    let span = Span::first(None, None, formula.created_at);
    edit::create(scope, tx, formula.id.0, &formula, (false, span), |_| None).await
}

fn new_formula(scope: &Scope, request: CreatePriceFormulaRequest) -> PriceFormula {
    PriceFormula {
        id: PriceFormulaId::generate(),
        organization_id: scope.organization_id,
        name: request.name,
        expression: request.expression,
        variables: request.variables.unwrap_or_default(),
        is_system: false,
        version: 0,
        head_version_id: None,
        created_at: scope.now(),
        updated_at: scope.now(),
        status: PriceFormulaStatus::Draft,
    }
}

impl Versioned for PriceFormula {
    type Update = UpdatePriceFormulaRequest;
    type Version = PriceFormulaVersion;
    const ENTITY: Entity = Entity::PriceFormula;
    const DEFINITION: &'static [&'static str] = &["name", "expression", "variables"];

    async fn read(scope: &Scope, conn: &mut PgConnection, id: Uuid, as_of: AsOf) -> Result<Self> {
        version::read(scope, conn, Self::ENTITY, &LIST, id, as_of).await
    }

    fn life(&self) -> (i32, Life) {
        let life = match self.status {
            PriceFormulaStatus::Draft => Life::Draft,
            PriceFormulaStatus::Active => Life::Live,
        };
        (self.version, life)
    }

    /// `tables` names the rate tables that it reads: they stay while it may be evaluated.
    fn snapshot(&self) -> Value {
        let formula = Formula::compile(&self.expression, Place::Price, &self.variables).ok();
        let tables = formula.iter().flat_map(Formula::tables).map(|table| table.slug.as_str()).collect::<Vec<_>>();
        json!({
            "name": self.name, "expression": self.expression, "variables": self.variables, "tables": tables,
        })
    }

    fn controls(update: &UpdatePriceFormulaRequest) -> EditControls {
        update.controls
    }

    fn merge(mut self, update: UpdatePriceFormulaRequest) -> Result<Self> {
        self.name = update.name.unwrap_or(self.name);
        self.expression = update.expression.unwrap_or(self.expression);
        self.variables = update.variables.unwrap_or(self.variables);
        Ok(self)
    }

    async fn check(&self, scope: &Scope, tx: &mut Tx, _span: Option<&mut Span>) -> Result<()> {
        check_expression(scope, tx.conn(), &self.expression, &self.variables).await
    }

    fn version(self, record: VersionRecord) -> PriceFormulaVersion {
        PriceFormulaVersion {
            row: record.row,
            formula_id: self.id,
            expression: self.expression,
            variables: self.variables,
        }
    }
}

async fn check_expression(
    scope: &Scope,
    conn: &mut PgConnection,
    expression: &str,
    variables: &[FormulaVariable],
) -> Result<()> {
    let formula = Formula::compile(expression, Place::Price, variables)
        .map_err(|errors| Error::Validation(field_errors("expression", errors)))?;
    let messages = rate_table::check_uses(scope, conn, formula.tables()).await?;
    let field_error = |message| FieldError { field: "expression".into(), code: Code::NotAllowed, message };
    if messages.is_empty() { Ok(()) } else { Err(Error::Validation(messages.into_iter().map(field_error).collect())) }
}

/// Changes a formula (edit-as-publish).
///
/// # Errors
/// `Forbidden` for one that the system provides; as [`edit::update`] and [`create`].
pub async fn update(
    scope: &Scope,
    tx: &mut Tx,
    id: PriceFormulaId,
    request: UpdatePriceFormulaRequest,
) -> Result<PriceFormula> {
    refuse_system(&super::get(scope, tx.conn(), id).await?)?;
    edit::update(scope, tx, id.0, request).await
}

/// Removes a formula with its versions.
///
/// # Errors
/// `NotFound`, `Forbidden` for one that the system provides, `Conflict` while a price refers to it.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: PriceFormulaId) -> Result<()> {
    PriceFormula::lock(scope, tx, id.0).await?;
    refuse_system(&super::get(scope, tx.conn(), id).await?)?;
    if is_referred_to(scope, tx, id).await? {
        return Err(Error::conflict("CONFLICT", "a price refers to this formula"));
    }
    for sql in [
        "DELETE FROM entity_version WHERE workspace_id = $1 AND entity_id = $2",
        "DELETE FROM price_formula WHERE workspace_id = $1 AND id = $2",
    ] {
        sqlx::query(sql).bind(scope.workspace_id).bind(id).execute(tx.conn()).await.context("deleting a formula")?;
    }
    tx.catalog_changed(scope.workspace_id);
    let mut payload = JsonMap::new();
    payload.insert("id".into(), json!(id));
    tx.emit(scope, "price_formula.deleted", "price_formula", id, payload).await
}

/// Whether a price has it, or any version of a price: usage of the past is rated again with the formula of then.
async fn is_referred_to(scope: &Scope, tx: &mut Tx, id: PriceFormulaId) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM price WHERE workspace_id = $1 AND formula_id = $2)
             OR EXISTS (SELECT FROM entity_version
                        WHERE workspace_id = $1 AND entity_type = 'price' AND snapshot ->> 'formula_id' = $2::text)",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_one(tx.conn())
    .await
    .context("looking for prices with the formula")
}

fn refuse_system(formula: &PriceFormula) -> Result<()> {
    if !formula.is_system {
        return Ok(());
    }
    let detail = "the system provides this formula: it is read-only".into();
    Err(Error::Forbidden { detail, required_permission: None })
}
