//! Tells the data of an INSERT from its statement.
//!
//! The library ends data that stands in the text of a query at its first two line feeds, in silence, in every format.
//! So data never stands there: it is put into a file in memory, and the statement reads that file
//! (`INSERT INTO t (columns) FROM INFILE …`). The engine parses the file with the table's own columns, types and
//! defaults, exactly as it parses the body of a request.

use std::ops::Range;

/// Where the parts of an `INSERT` with data are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Insert {
    /// End of table and columns: the place where a source is named.
    target_end: usize,
    /// `SETTINGS …`, possibly empty.
    settings: Range<usize>,
    /// Name of the format.
    format: String,
    /// Where the data that stands in the text begins.
    data: usize,
}

impl Insert {
    /// Finds the parts; `None` for everything else than an `INSERT` with data: it is run as it stands.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut words = Words { text, position: 0 };
        words.expect("INSERT")?;
        words.expect("INTO")?;
        words.skip_target()?;
        let mut target_end = words.position;
        let mut settings_start = None;
        loop {
            let start = words.skip_blanks();
            let word = words.next()?;
            let settings = settings_start.unwrap_or(start)..start;
            let target_end_now = if settings_start.is_some() { target_end } else { start };
            match keyword(&text[word.clone()]).as_deref() {
                Some("FORMAT") => {
                    let format = words.next()?;
                    let name = String::from_utf8_lossy(&text[format]).into_owned();
                    return Some(Self { target_end: target_end_now, settings, format: name, data: words.data_start() });
                }
                Some("VALUES") => {
                    let data = words.position;
                    return Some(Self { target_end: target_end_now, settings, format: "Values".to_owned(), data });
                }
                Some("SETTINGS") => {
                    settings_start = Some(start);
                    target_end = start;
                }
                Some("SELECT" | "WITH" | "FROM" | "WATCH") => return None,
                _ => {}
            }
        }
    }

    /// The data that stands in the text.
    pub(crate) fn inline_data<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.data..]
    }

    /// The statement that reads the data from a file.
    pub(crate) fn reading(&self, text: &[u8], file: &str) -> Vec<u8> {
        let mut sql = text[..self.target_end].to_vec();
        // Without COMPRESSION 'none' the engine would guess it from the name of the file.
        sql.extend_from_slice(format!(" FROM INFILE '{file}' COMPRESSION 'none' ").as_bytes());
        sql.extend_from_slice(&text[self.settings.clone()]);
        sql.extend_from_slice(format!(" FORMAT {}", self.format).as_bytes());
        sql
    }
}

/// A word in capitals, or nothing for quoted names, numbers and signs.
fn keyword(token: &[u8]) -> Option<String> {
    let is_word = token.iter().all(|byte| byte.is_ascii_alphabetic());
    is_word.then(|| String::from_utf8_lossy(token).to_ascii_uppercase())
}

/// Words, quoted pieces, bracketed groups and single signs of a statement, without blanks and comments.
struct Words<'a> {
    text: &'a [u8],
    position: usize,
}

impl Words<'_> {
    fn expect(&mut self, word: &str) -> Option<()> {
        let token = self.next()?;
        self.text[token].eq_ignore_ascii_case(word.as_bytes()).then_some(())
    }

    /// Moves behind `[TABLE] [database.]table`, whose names may be words that mean something elsewhere.
    fn skip_target(&mut self) -> Option<()> {
        let first = self.next()?;
        if self.text[first].eq_ignore_ascii_case(b"TABLE") {
            self.next()?;
        }
        let dot = self.skip_blanks();
        if self.text.get(dot) == Some(&b'.') {
            self.position = dot + 1;
            self.next()?;
        }
        Some(())
    }

    /// The next piece; `None` at the end, or when a quote or bracket is not closed.
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.skip_blanks();
        let length = match *self.text.get(start)? {
            quote @ (b'\'' | b'"' | b'`') => self.quoted(start, quote)?,
            b'(' => self.group(start)?,
            byte if is_word_byte(byte) => self.text[start..].iter().take_while(|&&byte| is_word_byte(byte)).count(),
            _ => 1,
        };
        self.position = start + length;
        Some(start..self.position)
    }

    /// Moves to the next byte that means something, and returns where that is.
    fn skip_blanks(&mut self) -> usize {
        loop {
            let rest = &self.text[self.position.min(self.text.len())..];
            let skipped = match rest {
                [byte, ..] if byte.is_ascii_whitespace() => 1,
                [b'-', b'-', ..] => rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len()),
                [b'/', b'*', ..] => {
                    rest.windows(2).skip(2).position(|pair| pair == b"*/").map_or(rest.len(), |at| at + 4)
                }
                _ => return self.position,
            };
            self.position += skipped;
        }
    }

    /// Length of a quoted piece. A backslash or a second quote keeps it open.
    fn quoted(&self, start: usize, quote: u8) -> Option<usize> {
        let mut at = start + 1;
        loop {
            match *self.text.get(at)? {
                b'\\' => at += 2,
                byte if byte == quote && self.text.get(at + 1) == Some(&quote) => at += 2,
                byte if byte == quote => return Some(at + 1 - start),
                _ => at += 1,
            }
        }
    }

    /// Length of a group in brackets, with the groups and quotes inside it.
    fn group(&self, start: usize) -> Option<usize> {
        let mut inside = Words { text: self.text, position: start + 1 };
        loop {
            let piece = inside.next()?;
            if self.text[piece] == *b")" {
                return Some(inside.position - start);
            }
        }
    }

    /// Where data begins after the name of a format: after blanks, at most one of which is a line feed.
    fn data_start(&self) -> usize {
        let rest = &self.text[self.position..];
        let blanks = rest.iter().take_while(|&&byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
        let line_feed = usize::from(rest.get(blanks) == Some(&b'\n'));
        self.position + blanks + line_feed
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::Insert;

    fn rewritten(text: &str) -> Option<(String, String)> {
        let insert = Insert::parse(text.as_bytes())?;
        let sql = String::from_utf8(insert.reading(text.as_bytes(), "F")).unwrap();
        let data = String::from_utf8(insert.inline_data(text.as_bytes()).to_vec()).unwrap();
        Some((sql.split_whitespace().collect::<Vec<_>>().join(" "), data))
    }

    #[test]
    fn data_leaves_the_statement() {
        let cases = [
            ("INSERT INTO t FORMAT RowBinary", "INSERT INTO t FROM INFILE 'F' COMPRESSION 'none' FORMAT RowBinary", ""),
            (
                "insert into d.t(`a`, b) format TSV\n\n1\t2\n\n3",
                "insert into d.t(`a`, b) FROM INFILE 'F' COMPRESSION 'none' FORMAT TSV",
                "\n1\t2\n\n3",
            ),
            (
                "INSERT INTO `format` (`values`, \"b)\") SETTINGS async_insert=1, x='FORMAT' FORMAT CSV 1",
                "INSERT INTO `format` (`values`, \"b)\") FROM INFILE 'F' COMPRESSION 'none' \
                 SETTINGS async_insert=1, x='FORMAT' FORMAT CSV",
                "1",
            ),
            (
                "INSERT INTO format.settings VALUES(1)",
                "INSERT INTO format.settings FROM INFILE 'F' COMPRESSION 'none' FORMAT Values",
                "(1)",
            ),
            (
                "/* one\n*/ INSERT -- two\n INTO TABLE t (a) VALUES ('x\n\n;y')",
                "/* one */ INSERT -- two INTO TABLE t (a) FROM INFILE 'F' COMPRESSION 'none' FORMAT Values",
                " ('x\n\n;y')",
            ),
        ];
        for (text, sql, data) in cases {
            assert_eq!(rewritten(text), Some((sql.to_owned(), data.to_owned())), "{text}");
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        let cases = [
            "SELECT 1 FORMAT CSV",
            "INSERT INTO t SELECT 1",
            "INSERT INTO t (a) WITH 1 AS x SELECT x",
            "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
            "INSERT INTO t (a",
            "INSERT INTO t 'open",
            "INSERT INTO",
            "",
            "/* open",
        ];
        for text in cases {
            assert_eq!(rewritten(text), None, "{text}");
        }
    }
}
