//! Routes and answers, as ClickHouse gives them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::Semaphore;

use crate::chdb::{Engine, Exception, Output};
use crate::insert::Insert;
use crate::request::{Parameters, not_supported};

/// Queries that run at the same time; others wait.
const QUERIES_MAX: usize = 16;

/// Largest body. Bodies are held in memory.
const BODY_BYTES_MAX: usize = 2 << 30;

const QUERY_ID: HeaderName = HeaderName::from_static("x-clickhouse-query-id");
const SUMMARY: HeaderName = HeaderName::from_static("x-clickhouse-summary");
const EXCEPTION_CODE: HeaderName = HeaderName::from_static("x-clickhouse-exception-code");
const EXCEPTION_TAG: HeaderName = HeaderName::from_static("x-clickhouse-exception-tag");
const FORMAT: HeaderName = HeaderName::from_static("x-clickhouse-format");
const SERVER: HeaderName = HeaderName::from_static("x-clickhouse-server-display-name");

#[derive(Clone)]
struct Server {
    engine: Engine,
    permits: Arc<Semaphore>,
}

/// The HTTP interface of the engine.
pub(crate) fn router(engine: Engine) -> Router {
    let server = Server { engine, permits: Arc::new(Semaphore::new(QUERIES_MAX)) };
    Router::new()
        .route("/", get(query).post(query))
        .route("/ping", get(async || "Ok.\n"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(server)
}

async fn query(
    State(server): State<Server>,
    method: Method,
    headers: HeaderMap,
    Query(pairs): Query<Vec<(String, String)>>,
    body: Bytes,
) -> Response {
    let read_only = method == Method::GET;
    if read_only && pairs.is_empty() && body.is_empty() {
        return "Ok.\n".into_response();
    }
    let request = match Request::new(pairs, &headers, body, read_only) {
        Ok(request) => request,
        Err(message) => return failure(&Exception(message), ""),
    };
    let id = request.parameters.query_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    // The semaphore is never closed, so a permit always comes.
    let _permit = server.permits.acquire().await;
    let (engine, format) = (server.engine, request.format().to_owned());
    match tokio::task::spawn_blocking(move || request.run(&engine)).await {
        Ok(Ok(output)) => success(output, &id, &format),
        Ok(Err(exception)) => failure(&exception, &id),
        Err(panic) => failure(&Exception(format!("Code: 49. DB::Exception: {panic} (LOGICAL_ERROR)")), &id),
    }
}

/// A query and everything that it needs.
struct Request {
    parameters: Parameters,
    text: Vec<u8>,
    data: Bytes,
    read_only: bool,
}

impl Request {
    /// Puts together what stands in the address and what stands in the body: data follows its statement.
    fn new(pairs: Vec<(String, String)>, headers: &HeaderMap, body: Bytes, read_only: bool) -> Result<Self, String> {
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(not_supported("Content-Encoding"));
        }
        let mut parameters = Parameters::parse(pairs)?;
        let in_header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        parameters.database = parameters.database.or_else(|| in_header("x-clickhouse-database"));
        parameters.default_format = parameters.default_format.or_else(|| in_header("x-clickhouse-format"));
        let (text, data) = match parameters.query.take().filter(|query| !query.trim().is_empty()) {
            Some(query) => (query.into_bytes(), body),
            None => (body.to_vec(), Bytes::new()),
        };
        if text.trim_ascii().is_empty() {
            return Err("Code: 62. DB::Exception: Empty query. (SYNTAX_ERROR)".to_owned());
        }
        Ok(Self { parameters, text, data, read_only })
    }

    fn format(&self) -> &str {
        self.parameters.default_format.as_deref().unwrap_or("TabSeparated")
    }

    fn run(self, engine: &Engine) -> Result<Output, Exception> {
        let session = engine.connect()?;
        for statement in self.parameters.preparation(self.read_only) {
            session.query(statement.as_bytes(), "TabSeparated", &[])?;
        }
        let run = |sql: &[u8]| session.query(sql, self.format(), &self.parameters.parameters);
        let Some(insert) = Insert::parse(&self.text) else {
            // A statement may be cut between address and body, at a line feed.
            let rest = if self.data.is_empty() { &[][..] } else { b"\n" };
            return run(&[&self.text, rest, &self.data].concat());
        };
        let file = in_memory(&[insert.inline_data(&self.text), &self.data])?;
        run(&insert.reading(&self.text, &format!("/proc/self/fd/{}", file.as_raw_fd())))
    }
}

/// A file without a name that exists until it is closed.
fn in_memory(parts: &[&[u8]]) -> Result<File, Exception> {
    let write = || -> io::Result<File> {
        let mut file = File::from(memfd_create("insert", MFdFlags::MFD_CLOEXEC)?);
        for part in parts {
            file.write_all(part)?;
        }
        Ok(file)
    };
    write().map_err(|error| Exception(format!("Code: 75. DB::Exception: {error} (CANNOT_WRITE_TO_FILE_DESCRIPTOR)")))
}

fn success(output: Output, id: &str, format: &str) -> Response {
    let summary = format!(
        "{{\"read_rows\":\"{}\",\"written_rows\":\"{}\",\"result_bytes\":\"{}\"}}",
        output.rows_read(),
        output.rows_written(),
        output.as_ref().len()
    );
    // With a tag the client looks for failures under that tag, and takes no data for one.
    let tag = uuid::Uuid::new_v4().simple().to_string();
    let mut response = Response::new(Body::from(Bytes::from_owner(output)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(format)));
    insert_text(headers, SUMMARY, &summary);
    insert_text(headers, EXCEPTION_TAG, &tag[..16]);
    insert_text(headers, QUERY_ID, id);
    insert_text(headers, FORMAT, format);
    headers.insert(SERVER, HeaderValue::from_static("dev-clickhouse"));
    response
}

fn failure(exception: &Exception, id: &str) -> Response {
    let code = code_of(&exception.0);
    tracing::debug!(query.id = id, code, "query failed: {exception}");
    let mut response = (status_of(code), format!("{exception}\n")).into_response();
    insert_text(response.headers_mut(), EXCEPTION_CODE, &code.to_string());
    insert_text(response.headers_mut(), QUERY_ID, id);
    response
}

/// Leaves out what a header cannot carry, such as an id with a line feed.
fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn content_type(format: &str) -> &'static str {
    match format {
        "JSON" | "JSONCompact" | "JSONStrings" => "application/json; charset=UTF-8",
        "JSONEachRow" | "JSONCompactEachRow" => "application/x-ndjson; charset=UTF-8",
        "TabSeparated" | "TSV" => "text/tab-separated-values; charset=UTF-8",
        "CSV" => "text/csv; charset=UTF-8",
        name if name.starts_with("RowBinary") || name == "Native" => "application/octet-stream",
        _ => "text/plain; charset=UTF-8",
    }
}

/// Reads the number out of `Code: 60. DB::Exception: …`; 1000 stands for an exception without one.
fn code_of(message: &str) -> u32 {
    let digits = message.strip_prefix("Code: ").and_then(|rest| rest.split('.').next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(1000)
}

/// The status of an error code, as the server chooses it: who is at fault, and whether another try may help.
fn status_of(code: u32) -> StatusCode {
    match code {
        // Syntax, unparsable or unfitting data.
        6 | 26 | 27 | 33 | 38 | 41 | 42 | 43 | 53 | 62 | 69 | 72 | 117 | 130 | 456 | 457 => StatusCode::BAD_REQUEST,
        // Unknown function, identifier, type, table, database, storage, format, setting.
        46 | 47 | 50 | 56 | 60 | 73 | 81 | 115 | 128 => StatusCode::NOT_FOUND,
        // Read only.
        164 | 497 => StatusCode::FORBIDDEN,
        // Not implemented.
        48 => StatusCode::NOT_IMPLEMENTED,
        // Timeouts, too many at once.
        159 | 202 | 209 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::code_of;

    #[test]
    fn code_of_an_exception() {
        assert_eq!(code_of("Code: 60. DB::Exception: Unknown table. (UNKNOWN_TABLE)"), 60);
        assert_eq!(code_of("something else"), 1000);
    }
}
