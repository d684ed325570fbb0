//! Cuts an expression into tokens.

/// A piece of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'t> {
    /// `digits [ "." digits ]`.
    Number(&'t str),
    /// Between quotes.
    Text(&'t str),
    /// A name or a word of the grammar.
    Name(&'t str),
    /// Operator, parenthesis, comma.
    Symbol(&'static str),
    /// Nothing is left.
    End,
}

/// Longer ones first.
const SYMBOLS: [&str; 20] =
    ["||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "^", "!", "?", ":", "(", ")", ","];

/// Reads tokens one after the other.
pub(super) struct Lexer<'t> {
    text: &'t str,
    /// Bytes that are read.
    at: usize,
}

impl<'t> Lexer<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// The next token with the byte where it begins, or what is wrong with it.
    pub(super) fn next(&mut self) -> (usize, Result<Token<'t>, String>) {
        let rest = self.text[self.at..].trim_start();
        let start = self.text.len() - rest.len();
        let read = read_token(rest);
        self.at = start + read.as_ref().map_or(0, |(_, length)| *length);
        (start, read.map(|(token, _)| token))
    }
}

/// The token that a text without leading spaces begins with, and its length.
fn read_token(text: &str) -> Result<(Token<'_>, usize), String> {
    let Some(first) = text.chars().next() else {
        return Ok((Token::End, 0));
    };
    let until = |is_part: fn(char) -> bool| text.find(|c| !is_part(c)).unwrap_or(text.len());
    match first {
        '0'..='9' => {
            let whole = until(|c| c.is_ascii_digit());
            let fraction = text[whole..]
                .strip_prefix('.')
                .map_or(0, |rest| rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
            let length = if fraction == 0 { whole } else { whole + 1 + fraction };
            Ok((Token::Number(&text[..length]), length))
        }
        'a'..='z' | 'A'..='Z' | '_' => {
            let length = until(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            Ok((Token::Name(&text[..length]), length))
        }
        '\'' | '"' => match text[1..].find(first) {
            Some(length) => Ok((Token::Text(&text[1..=length]), length + 2)),
            None => Err("the text has no closing quote".into()),
        },
        _ => match SYMBOLS.iter().find(|symbol| text.starts_with(**symbol)) {
            Some(symbol) => Ok((Token::Symbol(symbol), symbol.len())),
            None => Err(format!("unexpected character `{first}`")),
        },
    }
}
