//! Lists: one description per resource gives its filters, its order and its keyset pages (conventions.md, Pagination and
//! Filters). A page costs the same wherever it lies, and no list can be read without a workspace.

use domain::error::FieldErrorCode as Code;
use domain::{Error, FieldError, Result, Scope};
use serde::Serialize;
use sha2::Digest;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, Row};

use crate::StoreError;

/// What a filterable field holds; it fixes the operators and the cast of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// UUID: eq, ne, in.
    Id,
    /// Name, number, key: eq, ne, in, contains.
    Text,
    /// Words of an enum: eq, ne, in.
    Word(&'static [&'static str]),
    /// true or false: eq, ne.
    Bool,
    /// eq, ne, gt, gte, lt, lte.
    Number,
    /// Timestamp: eq, ne, gt, gte, lt, lte.
    Instant,
    /// Date: eq, ne, gt, gte, lt, lte.
    Date,
    /// Span of time, a `tstzrange`, asked for one of its instants: eq.
    Span,
}

/// A field that a list can filter by.
#[derive(Clone, Copy, Debug)]
pub struct ListField {
    /// Name on the wire.
    pub name: &'static str,
    /// SQL expression.
    pub column: &'static str,
    /// What it holds.
    pub kind: ListKind,
    /// Whether `sort` accepts it; its expression must then never be null.
    pub sortable: bool,
}

impl ListField {
    /// A field whose column has its name.
    #[must_use]
    pub const fn new(name: &'static str, kind: ListKind) -> Self {
        Self { name, column: name, kind, sortable: false }
    }

    /// The same, read from another expression.
    #[must_use]
    pub const fn column(mut self, column: &'static str) -> Self {
        self.column = column;
        self
    }

    /// The same, accepted by `sort`.
    #[must_use]
    pub const fn sortable(mut self) -> Self {
        self.sortable = true;
        self
    }
}

/// Another spelling of a filter, e.g. `created_after` for `created_at.gte`.
pub type Shorthand = (&'static str, &'static str, &'static str);

/// How one resource is listed.
#[derive(Clone, Copy, Debug)]
pub struct ListSpec {
    /// Name of the list; cursors are bound to it.
    pub name: &'static str,
    /// Columns of a row, as its `FromRow` needs them.
    pub columns: &'static str,
    /// Tables and joins; must offer `workspace_id` unambiguously as `workspace_column`.
    pub from: &'static str,
    /// Column that holds the workspace.
    pub workspace_column: &'static str,
    /// Fixed condition such as `deleted_at IS NULL`, or `true`.
    pub condition: &'static str,
    /// Filterable fields.
    pub fields: &'static [ListField],
    /// `(parameter, field, operator)`.
    pub shorthands: &'static [Shorthand],
    /// Default order: a never-null timestamp expression, descending.
    pub order: &'static str,
    /// Unique tie-breaker, a UUID expression.
    pub id: &'static str,
}

/// One page.
#[derive(Clone, Debug, Serialize)]
pub struct Page<T> {
    /// Rows in order.
    pub data: Vec<T>,
    /// How to go on.
    pub pagination: PageResponse,
}

/// How to go on (`pagination.PageResponse`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PageResponse {
    /// Opaque; sent back as `cursor` it gives the next page. Null on the last page.
    #[schema(required)]
    pub cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
    /// Rows asked for.
    pub limit: u32,
}

impl<T> Page<T> {
    /// A complete list as one page.
    #[must_use]
    pub fn complete(data: Vec<T>) -> Self {
        let limit = u32::try_from(data.len()).unwrap_or(u32::MAX).max(1);
        Self { data, pagination: PageResponse { cursor: None, has_more: false, limit } }
    }

    /// The same page with other rows.
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> Page<U> {
        Page { data: self.data.into_iter().map(convert).collect(), pagination: self.pagination }
    }
}

#[derive(Clone, Debug)]
struct Filter {
    field: ListField,
    operator: &'static str,
    values: Vec<String>,
}

/// A list request whose parameters have been checked.
#[derive(Clone, Debug)]
pub struct ListQuery {
    spec: ListSpec,
    filters: Vec<Filter>,
    sort: Option<(ListField, bool)>,
    limit: u32,
    after: Option<(String, uuid::Uuid)>,
    fingerprint: String,
}

const OPERATORS: &[&str] = &["eq", "ne", "in", "contains", "gt", "gte", "lt", "lte"];

impl ListQuery {
    /// Checks the query parameters against the description.
    ///
    /// # Errors
    /// `Validation` for an unknown parameter, field, operator or value, `BadRequest` with `INVALID_CURSOR`.
    pub fn parse(spec: &ListSpec, parameters: &[(String, String)]) -> Result<Self> {
        Self::parse_with(spec, parameters, &[])
    }

    /// The same, where `extra` parameters are the caller's own business.
    ///
    /// # Errors
    /// As [`ListQuery::parse`].
    pub fn parse_with(spec: &ListSpec, parameters: &[(String, String)], extra: &[&str]) -> Result<Self> {
        let mut query =
            Self { spec: *spec, filters: Vec::new(), sort: None, limit: 25, after: None, fingerprint: String::new() };
        let (mut errors, mut cursor) = (Vec::new(), None);
        for (name, value) in parameters {
            let outcome = match name.as_str() {
                "limit" => query.read_limit(value),
                "cursor" => {
                    cursor = Some(value);
                    Ok(())
                }
                "sort" => query.read_sort(value),
                other if extra.contains(&other) => Ok(()),
                other => query.read_filter(other, value),
            };
            errors.extend(outcome.err().map(|(code, message)| FieldError { field: name.clone(), code, message }));
        }
        if !errors.is_empty() {
            return Err(Error::Validation(errors));
        }
        query.fingerprint = query.fingerprint();
        if let Some(cursor) = cursor {
            query.after = Some(query.read_cursor(cursor)?);
        }
        Ok(query)
    }

    /// Adds a condition that is no parameter, e.g. the parent of a nested list.
    #[must_use]
    pub fn only(mut self, field: ListField, value: impl ToString) -> Self {
        self.filters.push(Filter { field, operator: "eq", values: vec![value.to_string()] });
        self
    }

    fn read_limit(&mut self, value: &str) -> Result<(), (Code, String)> {
        match value.parse() {
            Ok(limit @ 1..=100) => {
                self.limit = limit;
                Ok(())
            }
            _ => Err((Code::OutOfRange, "must be a whole number from 1 to 100".into())),
        }
    }

    fn read_sort(&mut self, value: &str) -> Result<(), (Code, String)> {
        let (name, descending) = value.strip_prefix('-').map_or((value, false), |name| (name, true));
        let field = self.spec.fields.iter().find(|field| field.sortable && field.name == name).ok_or_else(|| {
            let names: Vec<_> = self.spec.fields.iter().filter(|f| f.sortable).map(|f| f.name).collect();
            (Code::InvalidEnum, format!("must be one of {}, or one of them after `-`", names.join(", ")))
        })?;
        self.sort = Some((*field, descending));
        Ok(())
    }

    fn read_filter(&mut self, parameter: &str, value: &str) -> Result<(), (Code, String)> {
        let shorthand = self.spec.shorthands.iter().find(|(name, _, _)| *name == parameter);
        let (name, operator) = match shorthand {
            Some((_, field, operator)) => (*field, *operator),
            None => parameter.rsplit_once('.').filter(|(_, op)| OPERATORS.contains(op)).unwrap_or((parameter, "eq")),
        };
        let field = *self.spec.fields.iter().find(|field| field.name == name).ok_or_else(|| self.unknown(parameter))?;
        let mut operator = OPERATORS.iter().copied().find(|op| *op == operator).unwrap_or("eq");
        if !allowed_operators(field.kind).contains(&operator) {
            return Err((
                Code::NotAllowed,
                format!("`{name}` takes the operators {}", allowed_operators(field.kind).join(", ")),
            ));
        }
        // Documented shorthand: a comma-separated or repeated parameter without an operator means "any of".
        let listed = value.contains(',') && operator == "eq" && !matches!(field.kind, ListKind::Text);
        let values: Vec<String> = if operator == "in" || listed {
            value.split(',').map(str::to_owned).collect()
        } else {
            vec![value.to_owned()]
        };
        if listed {
            operator = "in";
        }
        for value in &values {
            check_value(field.kind, value)?;
        }
        let repeated =
            self.filters.iter_mut().find(|f| f.field.name == field.name && matches!(f.operator, "in" | "eq"));
        match repeated {
            Some(filter) if matches!(operator, "eq" | "in") && !parameter.contains('.') => {
                filter.operator = "in";
                filter.values.extend(values);
            }
            _ => self.filters.push(Filter { field, operator, values }),
        }
        Ok(())
    }

    fn unknown(&self, parameter: &str) -> (Code, String) {
        let names: Vec<_> = self.spec.fields.iter().map(|field| field.name).collect();
        let shorthands: Vec<_> = self.spec.shorthands.iter().map(|(name, _, _)| *name).collect();
        let known = [names, shorthands, vec!["limit", "cursor", "sort"]].concat().join(", ");
        (
            Code::UnknownField,
            format!(
                "`{parameter}` is not a known parameter; known are {known}, with .eq .ne .in .contains .gt .gte .lt .lte"
            ),
        )
    }

    /// What a cursor is bound to: the list, its filters and its order.
    fn fingerprint(&self) -> String {
        let mut hasher = sha2::Sha256::new();
        hasher.update(self.spec.name);
        for filter in &self.filters {
            hasher.update(format!("|{}.{}={}", filter.field.name, filter.operator, filter.values.join(",")));
        }
        if let Some((field, descending)) = &self.sort {
            hasher.update(format!("|{}{descending}", field.name));
        }
        hex::encode(&hasher.finalize()[..8])
    }

    fn read_cursor(&self, cursor: &str) -> Result<(String, uuid::Uuid)> {
        let invalid = || Error::BadRequest {
            code: "INVALID_CURSOR",
            detail: "the cursor belongs to another list, filter or order".into(),
        };
        let bytes = hex::decode(cursor).map_err(|_| invalid())?;
        let (fingerprint, value, id): (String, String, uuid::Uuid) =
            serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        if fingerprint != self.fingerprint || value.contains('\0') {
            return Err(invalid());
        }
        let kind = self.sort.map_or(ListKind::Instant, |(field, _)| field.kind);
        check_value(kind, &value).map_err(|_| invalid())?;
        Ok((value, id))
    }

    fn cursor(&self, value: &str, id: uuid::Uuid) -> String {
        hex::encode(serde_json::json!([self.fingerprint, value, id]).to_string())
    }

    /// Reads the page, in one statement.
    ///
    /// # Errors
    /// As every statement.
    pub async fn fetch<T>(&self, conn: &mut PgConnection, scope: &Scope) -> Result<Page<T>>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let mut sql = self.sql(scope);
        let mut rows = sql.build().fetch_all(conn).await.context("reading a list")?;
        let has_more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        let cursor = match rows.last() {
            Some(last) if has_more => {
                let value: String = last.try_get("cursor_order").context("reading a cursor")?;
                Some(self.cursor(&value, last.try_get("cursor_id").context("reading a cursor")?))
            }
            _ => None,
        };
        let data = rows.iter().map(T::from_row).collect::<Result<_, _>>().context("reading a row of a list")?;
        Ok(Page { data, pagination: PageResponse { cursor, has_more, limit: self.limit } })
    }

    fn sql(&self, scope: &Scope) -> QueryBuilder<Postgres> {
        let spec = &self.spec;
        let (order, kind, descending) = match &self.sort {
            Some((field, descending)) => (field.column, field.kind, *descending),
            None => (spec.order, ListKind::Instant, true),
        };
        let text = match kind {
            ListKind::Instant => format!("to_char({order}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"),
            _ => format!("({order})::text"),
        };
        let mut sql = QueryBuilder::new(format!(
            "SELECT {}, {text} AS cursor_order, {} AS cursor_id FROM {} WHERE {} AND {} = ",
            spec.columns, spec.id, spec.from, spec.condition, spec.workspace_column
        ));
        sql.push_bind(scope.workspace_id.0);
        for filter in &self.filters {
            push_filter(&mut sql, filter);
        }
        if let Some((value, id)) = &self.after {
            sql.push(format!(" AND ({order}, {}) {} (", spec.id, if descending { "<" } else { ">" }));
            sql.push_bind(value.clone());
            sql.push(format!("::{}, ", cast(kind)));
            sql.push_bind(*id);
            sql.push(")");
        }
        let direction = if descending { "DESC" } else { "ASC" };
        sql.push(format!(" ORDER BY {order} {direction}, {} {direction} LIMIT {}", spec.id, self.limit + 1));
        sql
    }
}

fn push_filter(sql: &mut QueryBuilder<Postgres>, filter: &Filter) {
    let column = filter.field.column;
    let cast = cast(filter.field.kind);
    match filter.operator {
        "in" => {
            sql.push(format!(" AND {column} = ANY("));
            sql.push_bind(filter.values.clone());
            sql.push(format!("::text[]::{cast}[])"));
        }
        "contains" => {
            let pattern = filter.values.concat().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            sql.push(format!(" AND {column} ILIKE "));
            sql.push_bind(format!("%{pattern}%"));
        }
        operator => {
            let sign = match operator {
                "ne" => "IS DISTINCT FROM",
                "gt" => ">",
                "gte" => ">=",
                "lt" => "<",
                "lte" => "<=",
                _ if filter.field.kind == ListKind::Span => "@>",
                _ => "=",
            };
            sql.push(format!(" AND {column} {sign} "));
            sql.push_bind(filter.values.concat());
            sql.push(format!("::{cast}"));
        }
    }
}

fn cast(kind: ListKind) -> &'static str {
    match kind {
        ListKind::Id => "uuid",
        ListKind::Text | ListKind::Word(_) => "text",
        ListKind::Bool => "boolean",
        ListKind::Number => "numeric",
        ListKind::Instant | ListKind::Span => "timestamptz",
        ListKind::Date => "date",
    }
}

fn allowed_operators(kind: ListKind) -> &'static [&'static str] {
    match kind {
        ListKind::Id | ListKind::Word(_) => &["eq", "ne", "in"],
        ListKind::Text => &["eq", "ne", "in", "contains"],
        ListKind::Bool => &["eq", "ne"],
        ListKind::Span => &["eq"],
        ListKind::Number | ListKind::Instant | ListKind::Date => &["eq", "ne", "gt", "gte", "lt", "lte"],
    }
}

fn check_value(kind: ListKind, value: &str) -> Result<(), (Code, String)> {
    let good = match kind {
        ListKind::Id => uuid::Uuid::parse_str(value).is_ok(),
        ListKind::Text => !value.contains('\0'),
        ListKind::Word(words) => {
            return if words.contains(&value) {
                Ok(())
            } else {
                Err((Code::InvalidEnum, format!("must be one of {}", words.join(", "))))
            };
        }
        ListKind::Bool => matches!(value, "true" | "false"),
        ListKind::Number => domain::Quantity::parse(value).is_ok(),
        ListKind::Instant | ListKind::Span => chrono::DateTime::parse_from_rfc3339(value).is_ok(),
        ListKind::Date => chrono::NaiveDate::parse_from_str(value, "%Y-%m-%d").is_ok(),
    };
    let form = match kind {
        ListKind::Id => "a UUID",
        ListKind::Text | ListKind::Word(_) => "text without U+0000",
        ListKind::Bool => "true or false",
        ListKind::Number => "a decimal number",
        ListKind::Instant | ListKind::Span => "an RFC 3339 timestamp such as 2026-01-31T00:00:00Z",
        ListKind::Date => "a date such as 2026-01-31",
    };
    if good { Ok(()) } else { Err((Code::InvalidFormat, format!("must be {form}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: ListSpec = ListSpec {
        name: "things",
        columns: "id",
        from: "thing",
        workspace_column: "workspace_id",
        condition: "true",
        fields: &[
            ListField::new("id", ListKind::Id),
            ListField::new("name", ListKind::Text).sortable(),
            ListField::new("status", ListKind::Word(&["a", "b"])),
            ListField::new("created_at", ListKind::Instant).sortable(),
        ],
        shorthands: &[("created_after", "created_at", "gte")],
        order: "created_at",
        id: "id",
    };

    fn parse(parameters: &[(&str, &str)]) -> Result<ListQuery> {
        let owned: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        ListQuery::parse(&SPEC, &owned)
    }

    #[test]
    fn refuses_what_the_grammar_does_not_have() {
        for (name, value, code) in [
            ("limit", "0", Code::OutOfRange),
            ("limit", "101", Code::OutOfRange),
            ("limit", "x", Code::OutOfRange),
            ("color", "red", Code::UnknownField),
            ("status.gt", "a", Code::NotAllowed),
            ("status", "c", Code::InvalidEnum),
            ("id", "7", Code::InvalidFormat),
            ("created_after", "yesterday", Code::InvalidFormat),
            ("sort", "status", Code::InvalidEnum),
        ] {
            let Err(Error::Validation(fields)) = parse(&[(name, value)]) else {
                panic!("{name}={value} must be refused")
            };
            assert_eq!((fields[0].field.as_str(), fields[0].code), (name, code));
        }
    }

    #[test]
    fn a_cursor_is_bound_to_list_filter_and_order() {
        let query = parse(&[("status", "a")]).expect("good");
        let cursor = query.cursor("2026-01-31T00:00:00.000000Z", uuid::Uuid::nil());
        assert!(parse(&[("status", "a"), ("cursor", &cursor)]).is_ok());
        for other in [
            vec![("status", "b"), ("cursor", &cursor)],
            vec![("cursor", &cursor)],
            vec![("status", "a"), ("cursor", "zz")],
        ] {
            assert!(matches!(parse(&other), Err(Error::BadRequest { code: "INVALID_CURSOR", .. })));
        }
    }
}
