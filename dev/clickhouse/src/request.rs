//! The parameters of a request to ClickHouse's HTTP interface.

/// Parameters that say something about the transport of the answer, which this server decides itself.
const WITHOUT_EFFECT: [&str; 9] = [
    "user",
    "password",
    "quota_key",
    "stacktrace",
    "wait_end_of_query",
    "buffer_size",
    "send_progress_in_http_headers",
    "enable_http_compression",
    "add_http_cors_header",
];

/// Parameters that would change what the data means. Ignoring them would answer something else than was asked.
const NOT_SUPPORTED: [&str; 6] = ["compress", "decompress", "session_id", "session_check", "session_timeout", "role"];

/// What a request asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The statement, or the part of it that stands in the address.
    pub(crate) query: Option<String>,
    /// The current database.
    pub(crate) database: Option<String>,
    /// The format of the answer to a query that names none.
    pub(crate) default_format: Option<String>,
    /// The id that the client chose for the query.
    pub(crate) query_id: Option<String>,
    /// Values of `{name:Type}`.
    pub(crate) parameters: Vec<(String, String)>,
    /// Settings of the engine.
    settings: Vec<(String, String)>,
}

impl Parameters {
    /// Sorts the parameters of an address.
    ///
    /// # Errors
    /// A message of the engine's kind for parameters that this server cannot honour.
    pub(crate) fn parse(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "query" => parsed.query = Some(value),
                "database" => parsed.database = Some(value),
                "default_format" => parsed.default_format = Some(value),
                "query_id" => parsed.query_id = Some(value),
                known if WITHOUT_EFFECT.contains(&known) => {}
                known if NOT_SUPPORTED.contains(&known) => {
                    if !matches!(value.as_str(), "" | "0" | "false") {
                        return Err(not_supported(known));
                    }
                }
                _ => parsed.keep(name, value)?,
            }
        }
        Ok(parsed)
    }

    fn keep(&mut self, name: String, value: String) -> Result<(), String> {
        if let Some(parameter) = name.strip_prefix("param_") {
            self.parameters.push((parameter.to_owned(), value));
            return Ok(());
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(format!(
                "Code: 115. DB::Exception: Setting {name:?} is neither a builtin setting nor started \
                                with the prefix 'SQL_' registered for user-defined settings. (UNKNOWN_SETTING)"
            ));
        }
        self.settings.push((name, value));
        Ok(())
    }

    /// The statements that prepare a session for this request. `read_only` is what GET means.
    pub(crate) fn preparation(&self, read_only: bool) -> Vec<String> {
        let mut statements = Vec::new();
        if let Some(database) = self.database.as_deref().filter(|database| !database.is_empty()) {
            statements.push(format!("USE `{}`", escaped(database, '`')));
        }
        let (locks, settings): (Vec<_>, Vec<_>) = self.settings.iter().partition(|(name, _)| name == "readonly");
        statements.extend(settings.iter().map(|(name, value)| set(name, value)));
        // Last: it forbids what comes after it. 2 still lets a query bring settings of its own.
        match locks.last() {
            Some((name, value)) => statements.push(set(name, value)),
            None if read_only => statements.push(set("readonly", "2")),
            None => {}
        }
        statements
    }
}

fn set(name: &str, value: &str) -> String {
    format!("SET {name} = '{}'", escaped(value, '\''))
}

fn escaped(text: &str, quote: char) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character == quote || character == '\\' {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

pub(crate) fn not_supported(what: &str) -> String {
    format!("Code: 48. DB::Exception: {what} is not supported by dev-clickhouse. (NOT_IMPLEMENTED)")
}

#[cfg(test)]
mod tests {
    use super::Parameters;

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, String> {
        Parameters::parse(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn settings_become_statements_and_the_lock_comes_last() {
        let parsed = parse(&[
            ("readonly", "1"),
            ("database", "a`b"),
            ("max_threads", "2"),
            ("format_csv_delimiter", "'"),
            ("param_x", "y"),
            ("user", "u"),
        ])
        .unwrap();
        let expected =
            ["USE `a\\`b`", "SET max_threads = '2'", "SET format_csv_delimiter = '\\''", "SET readonly = '1'"];
        assert_eq!(parsed.preparation(true), expected);
        assert_eq!(parsed.parameters, [("x".to_owned(), "y".to_owned())]);
    }

    #[test]
    fn get_reads_only() {
        assert_eq!(parse(&[]).unwrap().preparation(true), ["SET readonly = '2'"]);
        assert!(parse(&[]).unwrap().preparation(false).is_empty());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        assert!(parse(&[("compress", "1")]).is_err());
        assert!(parse(&[("compress", "0")]).is_ok());
        assert!(parse(&[("session_id", "s")]).is_err());
        assert!(parse(&[("a b", "s")]).is_err());
    }
}
