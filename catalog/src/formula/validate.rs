//! Tries an expression without storing it.

use std::collections::{BTreeMap, HashMap};

use domain::{Result, Scope};
use rating::formula::{Environment, Place, Value, Variable};
use rating::{Formula, FormulaError, FormulaFailure, RateTable};
use serde::Serialize;
use serde_json::Value as Json;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::ValidateFormulaRequest;
use crate::rate_table;

/// What a validation found.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ValidateFormulaResult {
    /// Whether the expression can be saved and, when its bindings are complete, evaluated.
    pub valid: bool,
    /// What is wrong with it; an evaluation that fails stands at position 0 with its code.
    pub errors: Vec<FormulaError>,
    /// The rate, a decimal string; absent while a binding is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Json>,
}

/// The bindings of the request, and the rate tables of this instant.
struct Bindings {
    values: BTreeMap<String, Json>,
    tables: HashMap<String, RateTable>,
}

impl Environment for Bindings {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        self.values.get(&variable.name).and_then(Value::from_json)
    }

    fn table(&self, slug: &str) -> Option<&RateTable> {
        self.tables.get(slug)
    }
}

/// Checks an expression as a save would, and evaluates it to a rate when every variable that it comes to is bound.
///
/// # Errors
/// As every statement.
pub async fn validate(
    scope: &Scope,
    conn: &mut PgConnection,
    request: ValidateFormulaRequest,
) -> Result<ValidateFormulaResult> {
    let variables = request.variables.unwrap_or_default();
    let formula = match Formula::compile(&request.expression, Place::Price, &variables) {
        Ok(formula) => formula,
        Err(errors) => return Ok(ValidateFormulaResult { valid: false, errors, result: None }),
    };
    let messages = rate_table::check_uses(scope, conn, formula.tables()).await?;
    if !messages.is_empty() {
        return Ok(refused(messages));
    }
    let slugs: Vec<&str> = formula.tables().iter().map(|table| table.slug.as_str()).collect();
    let tables = rate_table::in_effect(scope, conn, &slugs, scope.now()).await?;
    let bindings = Bindings { values: request.bindings.unwrap_or_default(), tables };
    Ok(match formula.evaluate_rate(&bindings) {
        Ok(rate) => {
            ValidateFormulaResult { valid: true, errors: Vec::new(), result: Some(Json::String(rate.to_string())) }
        }
        Err(FormulaFailure::UnboundVariable(_)) => {
            ValidateFormulaResult { valid: true, errors: Vec::new(), result: None }
        }
        Err(failure) => refused(vec![format!("{}: {failure}", failure.code())]),
    })
}

fn refused(messages: Vec<String>) -> ValidateFormulaResult {
    let error = |message| FormulaError { position: 0, message, variable: None };
    ValidateFormulaResult { valid: false, errors: messages.into_iter().map(error).collect(), result: None }
}
