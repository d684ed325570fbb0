//! From usage to money: the one place where quantities become amounts (DESIGN section 4).
//!
//! Pure functions and plain data: no I/O, no clock, no tasks. The subscription actor, the preview, price computation,
//! the invoice and the benchmarks call the same code, so that one thing has one figure everywhere.
//!
//! The walk of an event: [`window::WindowState::apply`] judges it by the filters of a binding, reads its value, puts it
//! into the state of its [`RatingKey`] and says which thresholds it crossed. The walk of a bill:
//! [`window::WindowState::rate`] takes the running totals of all keys through the allowance ([`allowance`]) and the tiers
//! ([`pricing`]). Amounts are always computed anew from totals, never summed from differences, so the state of a window
//! is a function of the *set* of its counted events (rule C1).

pub mod allowance;
pub mod binding;
pub mod commitment;
pub mod component;
pub mod cost;
pub mod entry;
pub mod error;
pub mod exact;
pub mod expression;
pub mod field;
pub mod filter;
pub mod formula;
pub mod limit;
pub mod member;
pub mod meter;
pub mod pricing;
pub mod rate_table;
pub mod running;
mod sighting;
pub mod span;
pub mod state;
pub mod threshold;
pub mod timeline;
pub mod total;
pub mod window;

pub use allowance::Allowance;
pub use binding::{BindingDefinition, CompiledBinding};
pub use commitment::{Commitment, CommittedPart, Shortfall};
pub use component::{Component, MeterFormula, Step};
pub use cost::{CostRule, CostedLine, LineCost, line_cost};
pub use entry::{Entry, RatingKey, Variables};
pub use error::{RatingError, Result};
pub use exact::Exact;
pub use expression::{Basis, Bindings, Bound, PeriodFacts, RateTables};
pub use filter::FilterTree;
pub use formula::{Formula, FormulaError, FormulaFailure, FormulaVariable};
pub use limit::{Block, CapLimit, Limit, Limits, NewlyReached, UsageCap};
pub use member::{MemberRow, Members};
pub use meter::{CompiledMeter, MeterDefinition, MeterInput, MeterState};
pub use pricing::{CompiledPrice, PriceDefinition, PriceFormula, Tier, TierContribution, Walk, total, walk, walk_with};
pub use rate_table::{RateTable, RateTableDefinition};
pub use span::Span;
pub use state::{StateError, Versions, WindowRecord};
pub use threshold::{Breach, Threshold, ThresholdAction, ThresholdOwner};
pub use total::{Accrual, Atom, Finding, PairTotal, PoolTotal, Rated, RatedLine, RatingInput, Terms};
pub use window::{Carry, Counted, Outcome, Target, WindowState};
