//! Price formulas and rate expressions (price-formulas.md): a text is compiled once and evaluated for each rating key.
//!
//! [`Formula::compile`] reads the grammar, resolves the names, checks the types and writes a flat program for a stack
//! machine, in one pass and without a tree. Every name has a type then, so evaluation meets no surprise but in the values
//! that are bound to the names. A program has no jump backwards: it takes at most one step per instruction, and with the
//! bounds of the numbers ([`Number`]) its cost is bounded without a clock.
//!
//! What the pages leave open, decided here:
//!
//! * Numbers: sums, products, `%` (with the sign of the dividend) and whole powers are exact; quotients have 28
//!   significant digits, half-even. `^` with a fraction works where the result is exact.
//! * `<`, `<=`, `>` and `>=` compare numbers; `==` and `!=` two values of one type. `and` and `or`, `?:` and `if` are lazy.
//! * `coalesce` skips names that nothing binds; any other argument has a value or fails.
//! * `clamp(x, lo, hi)` is `min(max(x, lo), hi)`; the digits of `round` are a whole number and may be negative.
//! * An undeclared name of the engine, such as `quantity`, cannot be bound by an event; a declared one can, and its own
//!   value then comes after the bindings. `base_price` and `list_price` are one.
//! * A declaration of `dim.<key>`, `cost.amount` or `cost.currency` must have its type; it adds a default.
//! * A FORMULA meter has `+ - * /`, comparisons, `and`, `or`, `not`, and `min max ceil floor round if` (meters.md 5): the rest
//!   of the grammar is refused there, and its division by zero is 0. A cost has everything but rate tables.

mod compile;
mod functions;
mod lexer;
mod names;
mod number;
mod run;
mod value;

use std::collections::BTreeSet;

use domain::RateTableType;

use crate::rate_table::RateTable;

pub use names::{FormulaVariable, Source, Supplied, VARIABLES_MAX, Variable};
pub use number::Number;
pub use value::Value;

/// Characters of an expression.
pub const EXPRESSION_MAX: usize = 4_096;
/// Levels of parentheses, arguments, branches and exponents.
pub const DEPTH_MAX: usize = 64;
/// Literals, names, operators and calls.
pub const NODES_MAX: usize = 1_000;

/// Result of an evaluation.
pub type Result<T, E = FormulaFailure> = std::result::Result<T, E>;

/// Where an expression stands: it decides what its bare names mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A price formula: every name that is not supplied is declared.
    Price,
    /// The `rate_expression` of a tier: a name that is not supplied is a number of `pricing_vars`.
    Tier,
    /// A FORMULA meter (meters.md 5): every name is declared, and gives the value of a meter.
    Meter,
    /// A FORMULA cost (costs.md): `quantity` and `revenue` of the line.
    Cost,
}

impl Place {
    /// Whether a known operator or function can be used there.
    fn allows(self, name: &str) -> bool {
        match self {
            Self::Price | Self::Tier => true,
            Self::Meter => !matches!(name, "%" | "^" | "abs" | "clamp" | "coalesce" | "lookup" | "bracket"),
            Self::Cost => !matches!(name, "lookup" | "bracket"),
        }
    }
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct FormulaError {
    /// Characters before the place of the error; 0 when a declaration is wrong.
    pub position: usize,
    /// For people.
    pub message: String,
    /// Index of the declaration that is wrong; `None`: the expression itself is.
    #[serde(skip)]
    #[schema(ignore)]
    pub variable: Option<usize>,
}

/// Why an evaluation has no result. The same values fail the same way again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormulaFailure {
    /// Nothing binds a name.
    #[error("the variable {0} has no value")]
    UnboundVariable(String),
    /// `/` or `%` by zero, or a negative power of it.
    #[error("division by zero")]
    DivisionByZero,
    /// A bound value does not have the type of its variable, or an argument is not whole.
    #[error("{subject} must be {expected}")]
    TypeMismatch {
        /// The variable or argument.
        subject: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A rate below zero.
    #[error("the result {0} is negative")]
    NegativeResult(String),
    /// Too many digits.
    #[error("{0}")]
    LimitExceeded(&'static str),
    /// A rate table has no entry for the key, and its policy is `error`; or there is no such table at that time.
    #[error("the rate table {slug} has no entry for {key}")]
    TableKeyMissing {
        /// The table.
        slug: String,
        /// The key.
        key: String,
    },
}

impl FormulaFailure {
    /// Code of the problem document (price-formulas.md, Errors).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnboundVariable(_) => "FORMULA_UNBOUND_VARIABLE",
            Self::DivisionByZero => "FORMULA_DIVISION_BY_ZERO",
            Self::TypeMismatch { .. } => "FORMULA_TYPE_MISMATCH",
            Self::NegativeResult(_) => "FORMULA_NEGATIVE_RESULT",
            Self::LimitExceeded(_) => "FORMULA_LIMIT_EXCEEDED",
            Self::TableKeyMissing { .. } => "RATE_TABLE_KEY_MISSING",
        }
    }
}

impl From<FormulaFailure> for domain::Error {
    fn from(failure: FormulaFailure) -> Self {
        Self::rule(failure.code(), failure.to_string())
    }
}

/// Where an evaluation finds its values: the rating key, the bindings of the product, the price and the clock.
pub trait Environment {
    /// The value of a variable in the order of its [`Source`]; `None` when nothing binds it, then its default is taken.
    fn variable(&self, variable: &Variable) -> Option<Value<'_>>;
    /// The version of a rate table that is in effect at the rated time.
    fn table(&self, slug: &str) -> Option<&RateTable>;
    /// Told of a division by zero in a FORMULA meter, which is 0 there and an error everywhere else.
    fn divided_by_zero(&self) {}
}

/// A rate table that an expression reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableUse {
    /// Its stable name.
    pub slug: String,
    /// The kind that the expression takes it for.
    pub table_type: RateTableType,
}

/// A compiled expression. Its result is a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Formula {
    program: run::Program,
}

impl Formula {
    /// Compiles an expression. Declarations belong to price formulas; a tier has none.
    ///
    /// # Errors
    /// Everything that is wrong: a syntax error with its position ends the reading, wrong names, argument counts, types
    /// and declarations are all listed.
    pub fn compile(text: &str, place: Place, declared: &[FormulaVariable]) -> Result<Self, Vec<FormulaError>> {
        compile::compile(text, place, declared).map(|program| Self { program })
    }

    /// Evaluates it; the same values give the same result.
    ///
    /// # Errors
    /// As [`FormulaFailure`] lists, but `NegativeResult`.
    pub fn evaluate<E: Environment>(&self, environment: &E) -> Result<Number> {
        self.program.run(environment)
    }

    /// Evaluates it to a rate: exact, not negative.
    ///
    /// # Errors
    /// As [`FormulaFailure`] lists.
    pub fn evaluate_rate<E: Environment>(&self, environment: &E) -> Result<Number> {
        let rate = self.evaluate(environment)?;
        if rate.is_negative() { Err(FormulaFailure::NegativeResult(rate.to_string())) } else { Ok(rate) }
    }

    /// The names that it reads, each once, in the order of their first use.
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.program.variables
    }

    /// What it reads of each event, each once and in order: the values belong to the rating key (rule C1).
    #[must_use]
    pub fn event_variables(&self) -> BTreeSet<&str> {
        self.variables().iter().filter(|variable| variable.source.is_of_event()).map(|v| v.name.as_str()).collect()
    }

    /// Whether its result changes with the quantity that is rated.
    #[must_use]
    pub fn reads_quantity(&self) -> bool {
        let of_quantity =
            |supplied| matches!(supplied, Supplied::Quantity | Supplied::BillableQuantity | Supplied::TierQuantity);
        self.variables().iter().any(|variable| variable.source.supplied().is_some_and(of_quantity))
    }

    /// Whether it reads the external cost, which events must then bring.
    #[must_use]
    pub fn reads_cost(&self) -> bool {
        self.variables().iter().any(|v| matches!(v.source, Source::CostAmount | Source::CostCurrency))
    }

    /// The rate tables that it reads, each once.
    #[must_use]
    pub fn tables(&self) -> &[TableUse] {
        &self.program.tables
    }
}
