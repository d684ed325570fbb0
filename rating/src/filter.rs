//! Filter trees of meters and bindings (meters.md 5): which events count.
//!
//! A tree is checked and compiled when it is read; matching it against an event allocates nothing and cannot fail.
//! A missing field makes every comparison false except `NOT_EXISTS`, `NE` and `NOT_IN`. Numbers compare by value, and
//! decimal text compares with numbers, since decimals travel as strings.

use std::cell::Cell;

use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{FieldError, FilterGroupOp, FilterOperator, Input, Quantity, UsageEvent};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::field::{ALLOWED_PATHS, FieldPath, FieldValue};

/// Levels of a tree; a single leaf is one level.
pub const DEPTH_MAX: usize = 5;
/// Leaves of a tree.
pub const LEAVES_MAX: usize = 50;
/// Entries of the list of `IN` and `NOT_IN`.
pub const LIST_MAX: usize = 1_000;

/// A checked tree: `{"root": node}`.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct FilterTree {
    #[schema(value_type = FilterNodeWire)]
    root: FilterNode,
}

/// How a node of a filter stands in the OpenAPI document: a group `{op, children}` or a comparison
/// `{field, operator, value}`.
#[derive(utoipa::ToSchema)]
#[schema(as = FilterNode)]
pub struct FilterNodeWire {
    /// How the children combine.
    #[schema(nullable = false)]
    pub op: Option<FilterGroupOp>,
    /// Nodes of the group.
    #[schema(no_recursion, nullable = false)]
    pub children: Option<Vec<FilterNodeWire>>,
    /// `quantity`, `price_key`, `external_cost_currency`, `dimension_vars.<key>` or `pricing_vars.<key>`.
    #[schema(nullable = false)]
    pub field: Option<String>,
    /// How the field is compared.
    #[schema(nullable = false)]
    pub operator: Option<FilterOperator>,
    /// String, number or boolean; a list of them for `IN` and `NOT_IN`; none for `EXISTS` and `NOT_EXISTS`.
    pub value: Option<Value>,
}

/// A group of nodes or one comparison.
#[derive(Clone, Debug, PartialEq)]
enum FilterNode {
    Group { op: FilterGroupOp, children: Vec<FilterNode> },
    Leaf(Leaf),
}

/// One comparison: as it was sent, and compiled.
#[derive(Clone, Debug, PartialEq)]
struct Leaf {
    field: FieldPath,
    operator: FilterOperator,
    value: Option<Value>,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    /// EQ, IN; negated: NE, NOT_IN.
    OneOf {
        values: Vec<Scalar>,
        negated: bool,
    },
    /// GT, GTE, LT, LTE against a number.
    Compare(Quantity),
    Contains(String),
    StartsWith(String),
    Exists(bool),
}

#[derive(Clone, Debug, PartialEq)]
enum Scalar {
    Bool(bool),
    Number(Quantity),
    Text { text: String, number: Option<Quantity> },
}

impl Scalar {
    fn equals(&self, value: FieldValue<'_>) -> bool {
        match (self, value) {
            (Self::Bool(a), FieldValue::Bool(b)) => *a == b,
            (Self::Number(a), FieldValue::Number(b)) => *a == b,
            (Self::Text { text, .. }, FieldValue::Text(b)) => text == b,
            (Self::Text { number: Some(a), .. }, FieldValue::Number(b)) => *a == b,
            (Self::Number(a), FieldValue::Text(b)) => Quantity::parse(b) == Ok(*a),
            _ => false,
        }
    }

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(number) => Quantity::parse(&number.to_string()).ok().map(Self::Number),
            Value::String(text) if is_storable(text) => {
                Some(Self::Text { text: text.clone(), number: Quantity::parse(text).ok() })
            }
            Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// PostgreSQL keeps no U+0000.
fn is_storable(text: &str) -> bool {
    !text.contains('\0')
}

impl FilterTree {
    /// Reads the wire form from a member of a request; all errors carry their path.
    ///
    /// # Errors
    /// The bad fields: unknown members, fields and operators, values that do not fit the operator, too deep, too many.
    pub fn read(field: Field<'_>) -> FieldResult<Self> {
        let leaves = Cell::new(0);
        field.object(|input| Some(Self { root: input.required("root", |node| read_node(node, 1, &leaves))? }))
    }

    /// Reads the wire form of a stored tree; paths of errors start at `root`.
    ///
    /// # Errors
    /// As `read`.
    pub fn from_json(value: &Value) -> Result<Self, Vec<FieldError>> {
        let fields = |error| match error {
            domain::Error::Validation(fields) => fields,
            other => vec![FieldError { field: "root".into(), code: Code::InvalidFormat, message: other.to_string() }],
        };
        let leaves = Cell::new(0);
        let mut input = Input::new(value).map_err(fields)?;
        let root = input.required("root", |node| read_node(node, 1, &leaves));
        input.finish().map_err(fields)?;
        root.map(|root| Self { root }).ok_or_else(Vec::new)
    }

    /// Whether an event passes.
    #[must_use]
    pub fn matches(&self, event: &UsageEvent) -> bool {
        self.root.matches(event)
    }
}

impl FilterNode {
    fn matches(&self, event: &UsageEvent) -> bool {
        match self {
            Self::Group { op: FilterGroupOp::And, children } => children.iter().all(|child| child.matches(event)),
            Self::Group { op: FilterGroupOp::Or, children } => children.iter().any(|child| child.matches(event)),
            Self::Group { op: FilterGroupOp::Not, children } => !children.iter().any(|child| child.matches(event)),
            Self::Leaf(leaf) => leaf.matches(event),
        }
    }
}

impl Leaf {
    fn matches(&self, event: &UsageEvent) -> bool {
        let found = self.field.read(event);
        match &self.test {
            Test::Exists(wanted) => found.is_some() == *wanted,
            Test::OneOf { values, negated } => {
                found.is_some_and(|found| values.iter().any(|value| value.equals(found))) != *negated
            }
            Test::Compare(limit) => number_of(found).is_some_and(|number| match self.operator {
                FilterOperator::Gt => number > *limit,
                FilterOperator::Gte => number >= *limit,
                FilterOperator::Lt => number < *limit,
                _ => number <= *limit,
            }),
            Test::Contains(part) => matches!(found, Some(FieldValue::Text(text)) if text.contains(part.as_str())),
            Test::StartsWith(part) => matches!(found, Some(FieldValue::Text(text)) if text.starts_with(part.as_str())),
        }
    }
}

fn number_of(value: Option<FieldValue<'_>>) -> Option<Quantity> {
    match value? {
        FieldValue::Number(number) => Some(number),
        FieldValue::Text(text) => Quantity::parse(text).ok(),
        FieldValue::Bool(_) => None,
    }
}

fn read_node(field: Field<'_>, depth: usize, leaves: &Cell<usize>) -> FieldResult<FilterNode> {
    if depth > DEPTH_MAX {
        return field.refuse(Code::OutOfRange, format!("must be at most {DEPTH_MAX} levels deep"));
    }
    field.object(|input| {
        if input.has("op") || input.has("children") {
            let op = input.required("op", Field::word::<FilterGroupOp>);
            let children = input
                .required("children", |list| list.list(1, LEAVES_MAX, |child| read_node(child, depth + 1, leaves)));
            return Some(FilterNode::Group { op: op?, children: children? });
        }
        leaves.set(leaves.get() + 1);
        if leaves.get() > LEAVES_MAX {
            input.error("field", Code::TooLong, format!("must have at most {LEAVES_MAX} comparisons in one filter"));
        }
        read_leaf(input).map(FilterNode::Leaf)
    })
}

fn read_leaf(input: &mut Input<'_>) -> Option<Leaf> {
    let path = input.required("field", |v| {
        let text = v.raw().as_str().unwrap_or_default();
        FieldPath::parse(text).map_or_else(|| v.refuse(Code::InvalidFormat, ALLOWED_PATHS), Ok)
    });
    let operator = input.required("operator", Field::word::<FilterOperator>);
    let value = input.optional("value", |v| Ok(v.raw().clone()));
    let operator = operator?;
    match compile(operator, value.as_ref()) {
        Ok(test) => Some(Leaf { field: path?, operator, value, test }),
        Err((code, message)) => {
            input.error("value", code, message);
            None
        }
    }
}

fn compile(operator: FilterOperator, value: Option<&Value>) -> Result<Test, (Code, &'static str)> {
    use FilterOperator as Op;
    let scalar =
        || value.and_then(Scalar::read).ok_or((Code::InvalidFormat, "must be a string, a number or a boolean"));
    let text = || match value {
        Some(Value::String(text)) if is_storable(text) => Ok(text.clone()),
        _ => Err((Code::InvalidFormat, "must be a string")),
    };
    match operator {
        Op::Exists | Op::NotExists if value.is_some() => Err((Code::NotAllowed, "is not used by this operator")),
        Op::Exists => Ok(Test::Exists(true)),
        Op::NotExists => Ok(Test::Exists(false)),
        _ if value.is_none() => Err((Code::Required, "is required by this operator")),
        Op::Eq | Op::Ne => Ok(Test::OneOf { values: vec![scalar()?], negated: operator == Op::Ne }),
        Op::In | Op::NotIn => Ok(Test::OneOf { values: scalars(value)?, negated: operator == Op::NotIn }),
        Op::Gt | Op::Gte | Op::Lt | Op::Lte => match scalar()? {
            Scalar::Number(number) | Scalar::Text { number: Some(number), .. } => Ok(Test::Compare(number)),
            _ => Err((Code::InvalidFormat, "must be a number")),
        },
        Op::Contains => Ok(Test::Contains(text()?)),
        Op::StartsWith => Ok(Test::StartsWith(text()?)),
    }
}

fn scalars(value: Option<&Value>) -> Result<Vec<Scalar>, (Code, &'static str)> {
    let Some(Value::Array(entries)) = value else {
        return Err((Code::InvalidFormat, "must be a list of strings, numbers or booleans"));
    };
    if entries.is_empty() || entries.len() > LIST_MAX {
        return Err((Code::OutOfRange, "must have 1 to 1000 entries"));
    }
    let values: Option<Vec<_>> = entries.iter().map(Scalar::read).collect();
    values.ok_or((Code::InvalidFormat, "must be a list of strings, numbers or booleans"))
}

impl Serialize for FilterNode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Group { op, children } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("op", op)?;
                map.serialize_entry("children", children)?;
                map.end()
            }
            Self::Leaf(leaf) => {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("field", &leaf.field.to_string())?;
                map.serialize_entry("operator", &leaf.operator)?;
                if let Some(value) = &leaf.value {
                    map.serialize_entry("value", value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for FilterTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_json(&value).map_err(|fields| {
            let text: Vec<_> = fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect();
            serde::de::Error::custom(text.join("; "))
        })
    }
}
