//! Bodies of rate table writes.

use chrono::{DateTime, Utc};
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Input, MissingKeyPolicy, Patch, Quantity, RateTableType, Result};
use rating::rate_table::{BracketEntry, ENTRIES_MAX, Entries, KEY_MAX, LookupEntry};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::plan::ChildVersionPins;
use crate::texts::not_null;
use crate::version::EditControls;

/// Body of `POST /v1/rate-tables`.
#[derive(Clone, Debug, ToSchema)]
pub struct CreateRateTableRequest {
    /// Name, 1–255 characters.
    pub name: String,
    /// Stable name in expressions, `^[a-z0-9_]{1,64}$`, unique.
    pub slug: String,
    /// How it is read.
    pub table_type: RateTableType,
    /// Text for people.
    pub description: Option<String>,
    /// What it answers for a key that it lacks; default `error`.
    pub on_missing_key: Option<MissingKeyPolicy>,
    /// The answer under `default_value`.
    #[schema(value_type = Option<String>)]
    pub default_value: Option<Quantity>,
    /// Default false.
    pub requires_continuous_coverage: Option<bool>,
}

impl CreateRateTableRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let name = i.required("name", |v| v.text(1, 255));
        let slug = i.required("slug", read_slug);
        let table_type = i.required("table_type", Field::word);
        let request = Self {
            name: name.unwrap_or_default(), // `finish` refuses what is missing
            slug: slug.unwrap_or_default(),
            table_type: table_type.unwrap_or(RateTableType::Lookup),
            description: i.optional("description", |v| v.text(0, 2_000)),
            on_missing_key: i.optional("on_missing_key", Field::word),
            default_value: i.optional("default_value", Field::quantity),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
        };
        input.finish()?;
        Ok(request)
    }
}

/// Body of `PUT /v1/rate-tables/{id}`: the members that are sent. Slug and kind are fixed at creation, entries change with
/// the versions.
#[derive(Clone, Debug, Default, ToSchema)]
pub struct UpdateRateTableRequest {
    /// Name, 1–255 characters.
    pub name: Option<String>,
    /// Text for people.
    #[schema(value_type = Option<String>)]
    pub description: Patch<String>,
    /// What it answers for a key that it lacks.
    pub on_missing_key: Option<MissingKeyPolicy>,
    /// The answer under `default_value`.
    #[schema(value_type = Option<String>)]
    pub default_value: Patch<Quantity>,
    /// Timeline flag.
    pub requires_continuous_coverage: Option<bool>,
    /// When the new version takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps the edit a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the table is at another version.
    pub expected_version: Option<i64>,
    #[schema(ignore)]
    pub(super) controls: EditControls,
    /// Entries that are stored already, in place of those of the version before.
    #[schema(ignore)]
    pub(super) entry_set_id: Option<Uuid>,
}

impl UpdateRateTableRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation`.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let name = i.patch("name", |v| v.text(1, 255));
        let controls = EditControls::read(i);
        let request = Self {
            name: not_null(i, "name", name),
            description: i.patch("description", |v| v.text(0, 2_000)),
            on_missing_key: i.optional("on_missing_key", Field::word),
            default_value: i.patch("default_value", Field::quantity),
            requires_continuous_coverage: i.optional("requires_continuous_coverage", Field::boolean),
            entry_set_id: None,
            ..Self::from(controls)
        };
        input.finish()?;
        Ok(request)
    }
}

impl From<EditControls> for UpdateRateTableRequest {
    fn from(controls: EditControls) -> Self {
        Self {
            effective_at: controls.effective_at,
            save_as_draft: Some(controls.save_as_draft),
            expected_version: controls.expected_version,
            controls,
            ..Self::default()
        }
    }
}

/// How [`CreateVersionRequest`] stands in the OpenAPI document. `changes` and `pins` belong to other entities.
#[derive(ToSchema)]
#[schema(as = CreateVersionRequest)]
pub struct CreateVersionWire {
    /// When it takes effect; default now.
    pub effective_at: Option<DateTime<Utc>>,
    /// Keeps it a draft.
    pub save_as_draft: Option<bool>,
    /// Refused when the entity is at another version.
    pub expected_version: Option<i64>,
    /// Members of the entity's update request.
    #[schema(value_type = Option<Object>)]
    pub changes: Option<Value>,
    /// Versions of other entities that it takes.
    pub pins: Option<ChildVersionPins>,
    /// Entries of a lookup table, at most 10,000.
    pub lookup_entries: Option<Vec<LookupEntry>>,
    /// Entries of a bracket table, at most 10,000.
    pub bracket_entries: Option<Vec<BracketEntry>>,
}

/// Body of the routes that make a version or replace what it holds.
#[derive(Clone, Debug)]
pub struct CreateVersionRequest {
    pub(super) controls: EditControls,
    pub(super) entries: Entries,
}

impl CreateVersionRequest {
    /// Reads the body for a rate table: entries of one kind.
    ///
    /// # Errors
    /// `Validation`, for repeated keys and overlapping ranges too.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let i = &mut input;
        let controls = EditControls::read(i);
        let lookup = i.optional("lookup_entries", |v| v.list(1, ENTRIES_MAX, read_lookup_entry));
        let bracket = i.optional("bracket_entries", |v| v.list(1, ENTRIES_MAX, read_bracket_entry));
        let sent = ["lookup_entries", "bracket_entries"].map(|name| i.has(name));
        if sent == [true, true] {
            i.error("bracket_entries", Code::NotAllowed, "cannot stand beside lookup_entries");
        }
        if sent == [false, false] {
            i.error("lookup_entries", Code::Required, "is required, or bracket_entries, as the table's kind says");
        }
        let entries = match bracket {
            Some(entries) => Entries::Bracket(entries),
            None => Entries::Lookup(lookup.unwrap_or_default()),
        };
        if !i.is_bad() {
            for error in entries.check() {
                i.error(&error.field, error.code, error.message);
            }
        }
        input.finish()?;
        Ok(Self { controls, entries })
    }
}

fn read_slug(field: Field<'_>) -> FieldResult<String> {
    let good = |slug: &str| {
        (1..=64).contains(&slug.len())
            && slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    match field.raw().as_str() {
        Some(slug) if good(slug) => Ok(slug.to_owned()),
        _ => field.refuse(Code::InvalidFormat, "must match ^[a-z0-9_]{1,64}$"),
    }
}

fn read_lookup_entry(field: Field<'_>) -> FieldResult<LookupEntry> {
    field.object(|input| {
        let key = input.required("key", |v| v.text(1, KEY_MAX));
        let value = input.required("value", Field::quantity);
        Some(LookupEntry { key: key?, value: value? })
    })
}

fn read_bracket_entry(field: Field<'_>) -> FieldResult<BracketEntry> {
    field.object(|input| {
        let lower_bound = input.optional("lower_bound", Field::quantity);
        let upper_bound = input.optional("upper_bound", Field::quantity);
        let value = input.required("value", Field::quantity);
        Some(BracketEntry { lower_bound, upper_bound, value: value? })
    })
}
