//! Rate tables (rate-tables.md): a number by exact key or by range, which expressions consult.

use std::collections::HashSet;
use std::hash::Hash;

use domain::error::FieldErrorCode as Code;
use domain::{FastMap, FieldError, Quantity, RateTableType, VersionId};

use crate::error::{RatingError, Result};
use crate::formula::Number;

/// Entries of one version.
pub const ENTRIES_MAX: usize = 10_000;
/// Characters of a key, which may have several parts.
pub const KEY_MAX: usize = 1_024;

/// Entry of a lookup table.
#[derive(Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[schema(as = CreateLookupEntry)]
pub struct LookupEntry {
    /// Compared exactly; several parts are joined with `|`. Unique in the version.
    pub key: String,
    /// What it stands for.
    #[schema(value_type = String)]
    pub value: Quantity,
}

/// Entry of a bracket table: `lower_bound < x <= upper_bound`.
#[derive(Clone, Debug, PartialEq, Eq, utoipa::ToSchema)]
#[schema(as = CreateBracketEntry)]
pub struct BracketEntry {
    /// Exclusive; null: no lower bound.
    #[schema(value_type = Option<String>)]
    pub lower_bound: Option<Quantity>,
    /// Inclusive; null: open.
    #[schema(value_type = Option<String>)]
    pub upper_bound: Option<Quantity>,
    /// What it stands for.
    #[schema(value_type = String)]
    pub value: Quantity,
}

/// Entries of one version, of the table's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// By exact key.
    Lookup(Vec<LookupEntry>),
    /// By range.
    Bracket(Vec<BracketEntry>),
}

impl Entries {
    /// Checks them; an empty answer means that they compile. Paths begin with `lookup_entries` or `bracket_entries`.
    #[must_use]
    pub fn check(&self) -> Vec<FieldError> {
        let (name, count) = match self {
            Self::Lookup(entries) => ("lookup_entries", entries.len()),
            Self::Bracket(entries) => ("bracket_entries", entries.len()),
        };
        if count == 0 || count > ENTRIES_MAX {
            let message = format!("must have 1 to {ENTRIES_MAX} entries");
            return vec![FieldError { field: name.into(), code: Code::OutOfRange, message }];
        }
        match self {
            Self::Lookup(entries) => repeated(entries.iter().map(|entry| entry.key.as_str()))
                .map(|index| refusal(format!("{name}[{index}].key"), "is in the table already"))
                .collect(),
            Self::Bracket(entries) => check_brackets(entries),
        }
    }
}

fn refusal(field: String, message: &str) -> FieldError {
    FieldError { field, code: Code::NotAllowed, message: message.into() }
}

/// Indices of what was there before.
fn repeated<T: Eq + Hash>(values: impl Iterator<Item = T>) -> impl Iterator<Item = usize> {
    let mut seen = HashSet::new();
    values.enumerate().filter_map(move |(index, value)| (!seen.insert(value)).then_some(index))
}

fn check_brackets(entries: &[BracketEntry]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.lower_bound.zip(entry.upper_bound).is_some_and(|(lower, upper)| lower >= upper) {
            let field = format!("bracket_entries[{index}].upper_bound");
            errors.push(refusal(field, "must be larger than lower_bound"));
        }
    }
    if errors.is_empty() {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|index| entries[*index].lower_bound); // no bound comes first
        for pair in order.windows(2) {
            let (before, after) = (&entries[pair[0]], &entries[pair[1]]);
            let is_apart = before.upper_bound.zip(after.lower_bound).is_some_and(|(upper, lower)| upper <= lower);
            if !is_apart {
                let message = format!("overlaps bracket_entries[{}]", pair[0]);
                errors.push(refusal(format!("bracket_entries[{}].lower_bound", pair[1]), &message));
            }
        }
    }
    errors
}

/// A version of a rate table as the catalog stores it, with the behaviour of its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateTableDefinition {
    /// Stable name of the table.
    pub slug: String,
    /// This version of it.
    pub version_id: VersionId,
    /// Given back for a missing key; `None`: the computation fails.
    pub when_missing: Option<Quantity>,
    /// What it holds.
    pub entries: Entries,
}

/// A version of a rate table that is ready to be consulted.
#[derive(Clone, Debug, PartialEq)]
pub struct RateTable {
    slug: String,
    version_id: VersionId,
    when_missing: Option<Number>,
    index: Index,
}

#[derive(Clone, Debug, PartialEq)]
enum Index {
    Lookup(FastMap<String, Number>),
    /// Ascending; they do not overlap.
    Bracket(Vec<Bracket>),
}

#[derive(Clone, Debug, PartialEq)]
struct Bracket {
    lower: Option<Number>,
    upper: Option<Number>,
    value: Number,
}

impl RateTable {
    /// Checks and compiles a definition.
    ///
    /// # Errors
    /// `Definition` as [`Entries::check`] finds.
    pub fn compile(definition: RateTableDefinition) -> Result<Self> {
        let errors = definition.entries.check();
        if !errors.is_empty() {
            return Err(RatingError::Definition(errors));
        }
        let index = match definition.entries {
            Entries::Lookup(entries) => {
                Index::Lookup(entries.into_iter().map(|entry| (entry.key, entry.value.into())).collect())
            }
            Entries::Bracket(mut entries) => {
                entries.sort_by_key(|entry| entry.lower_bound);
                Index::Bracket(entries.into_iter().map(Bracket::new).collect())
            }
        };
        Ok(Self {
            slug: definition.slug,
            version_id: definition.version_id,
            when_missing: definition.when_missing.map(Number::from),
            index,
        })
    }

    /// Stable name of the table.
    #[must_use]
    pub fn slug(&self) -> &str {
        &self.slug
    }

    /// The version, to be pinned in a breakdown.
    #[must_use]
    pub fn version_id(&self) -> VersionId {
        self.version_id
    }

    /// How it is read.
    #[must_use]
    pub fn table_type(&self) -> RateTableType {
        match self.index {
            Index::Lookup(_) => RateTableType::Lookup,
            Index::Bracket(_) => RateTableType::Bracket,
        }
    }

    /// The value of a key, or what is given back without one; `None` fails the computation, and so does a bracket table.
    #[must_use]
    pub fn look_up(&self, key: &str) -> Option<&Number> {
        match &self.index {
            Index::Lookup(entries) => entries.get(key).or(self.when_missing.as_ref()),
            Index::Bracket(_) => None,
        }
    }

    /// The value of the range that a number lies in, or what is given back for a gap; `None` fails the computation, and so
    /// does a lookup table.
    #[must_use]
    pub fn bracket(&self, number: &Number) -> Option<&Number> {
        let Index::Bracket(brackets) = &self.index else {
            return None;
        };
        // The first that does not end below the number.
        let first = brackets.partition_point(|bracket| bracket.upper.as_ref().is_some_and(|upper| upper < number));
        let found = brackets.get(first).filter(|bracket| bracket.lower.as_ref().is_none_or(|lower| lower < number));
        found.map(|bracket| &bracket.value).or(self.when_missing.as_ref())
    }
}

impl Bracket {
    fn new(entry: BracketEntry) -> Self {
        Self {
            lower: entry.lower_bound.map(Number::from),
            upper: entry.upper_bound.map(Number::from),
            value: entry.value.into(),
        }
    }
}
