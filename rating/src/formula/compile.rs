//! Reads an expression by the grammar of price-formulas.md and writes its program, in one pass.
//!
//! Only what nests in the text nests here, and that is counted: the stack cannot overflow. A syntax error ends the
//! reading; whatever else is wrong is noted, and the reading goes on.

use domain::FormulaVarType;

use super::functions;
use super::lexer::{Lexer, Token};
use super::names::{FormulaVariable, KEYWORDS, Names};
use super::run::{Op, Program};
use super::{DEPTH_MAX, EXPRESSION_MAX, FormulaError, NODES_MAX, Number, Place, Value};

/// Type of an operand; `None` after an error that is noted already.
pub(super) type Kind = Option<FormulaVarType>;

pub(super) const NUMBER: Kind = Some(FormulaVarType::Number);
pub(super) const BOOLEAN: Kind = Some(FormulaVarType::Boolean);
pub(super) const TEXT: Kind = Some(FormulaVarType::String);

/// The reading cannot go on; the reason is noted.
pub(super) struct Stop;

/// See the module.
pub(super) fn compile(text: &str, place: Place, declared: &[FormulaVariable]) -> Result<Program, Vec<FormulaError>> {
    let mut errors = Vec::new();
    let names = Names::declare(place, declared, &mut errors);
    let mut compiler = Compiler {
        text,
        lexer: Lexer::new(text),
        token: Token::End,
        at: 0,
        names,
        program: Program::default(),
        depth: 0,
        nodes: 0,
        errors,
    };
    if text.chars().count() > EXPRESSION_MAX {
        compiler.note(0, format!("must have at most {EXPRESSION_MAX} characters"));
    } else {
        // A stop has noted its reason.
        let _ = compiler.whole();
    }
    let Compiler { program, errors, .. } = compiler;
    if errors.is_empty() { Ok(program) } else { Err(errors) }
}

pub(super) struct Compiler<'t> {
    text: &'t str,
    lexer: Lexer<'t>,
    /// The token that is looked at, and the byte where it begins.
    token: Token<'t>,
    pub(super) at: usize,
    names: Names,
    pub(super) program: Program,
    depth: usize,
    nodes: usize,
    errors: Vec<FormulaError>,
}

impl<'t> Compiler<'t> {
    /// Notes an error at a byte of the text.
    pub(super) fn note(&mut self, at: usize, message: String) {
        let position = self.text[..at].chars().count();
        self.errors.push(FormulaError { position, message, variable: None });
    }

    fn stop<T>(&mut self, message: String) -> Result<T, Stop> {
        self.note(self.at, message);
        Err(Stop)
    }

    fn advance(&mut self) -> Result<(), Stop> {
        let (at, token) = self.lexer.next();
        self.at = at;
        match token {
            Ok(token) => self.token = token,
            Err(message) => return self.stop(message),
        }
        Ok(())
    }

    /// Takes a token when it is one of these; a word of the grammar is a name here.
    pub(super) fn take(&mut self, wanted: &[&'static str]) -> Result<Option<&'static str>, Stop> {
        let (Token::Symbol(found) | Token::Name(found)) = self.token else {
            return Ok(None);
        };
        let Some(symbol) = wanted.iter().find(|symbol| **symbol == found) else {
            return Ok(None);
        };
        self.advance()?;
        Ok(Some(symbol))
    }

    pub(super) fn expect(&mut self, symbol: &'static str) -> Result<(), Stop> {
        match self.take(&[symbol])? {
            Some(_) => Ok(()),
            None => self.unexpected(&format!("`{symbol}`")),
        }
    }

    fn unexpected<T>(&mut self, wanted: &str) -> Result<T, Stop> {
        let found = match self.token {
            Token::End => "the end".to_owned(),
            Token::Number(text) | Token::Name(text) | Token::Symbol(text) => format!("`{text}`"),
            Token::Text(_) => "a text".to_owned(),
        };
        self.stop(format!("expected {wanted}, found {found}"))
    }

    /// Notes an operand of another type.
    pub(super) fn must_be(&mut self, at: usize, found: Kind, wanted: Kind) {
        if let (Some(found), Some(wanted)) = (found, wanted)
            && found != wanted
        {
            self.note(at, format!("a {wanted} is needed here, this is a {found}"));
        }
    }

    /// The type of a value that comes from one of two operands.
    pub(super) fn same(&mut self, at: usize, first: Kind, second: Kind) -> Kind {
        self.must_be(at, second, first);
        first.or(second)
    }

    /// Appends an instruction for one more node of the expression.
    pub(super) fn emit(&mut self, op: Op) -> Result<usize, Stop> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return self.stop(format!("must have at most {NODES_MAX} literals, names, operators and calls"));
        }
        self.program.ops.push(op);
        Ok(self.program.ops.len() - 1)
    }

    pub(super) fn place(&self) -> Place {
        self.names.place()
    }

    /// Notes an operator or function that the place does not have.
    pub(super) fn must_allow(&mut self, at: usize, name: &str) {
        if !self.place().allows(name) {
            let place = if self.place() == Place::Meter { "a meter" } else { "a cost" };
            self.note(at, format!("`{name}` cannot be used in the formula of {place}"));
        }
    }

    pub(super) fn here(&self) -> usize {
        self.program.ops.len()
    }

    fn whole(&mut self) -> Result<(), Stop> {
        self.advance()?;
        let kind = self.expression()?;
        if self.token != Token::End {
            return self.unexpected("an operator or the end");
        }
        if kind.is_some_and(|kind| Some(kind) != NUMBER) {
            self.note(0, "the result must be a NUMBER".into());
        }
        Ok(())
    }

    /// `expr`: one more level.
    pub(super) fn expression(&mut self) -> Result<Kind, Stop> {
        self.nested(Self::conditional)
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Kind, Stop>) -> Result<Kind, Stop> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.stop(format!("must be nested at most {DEPTH_MAX} levels deep"));
        }
        let kind = read(self)?;
        self.depth -= 1;
        Ok(kind)
    }

    fn conditional(&mut self) -> Result<Kind, Stop> {
        let at = self.at;
        let condition = self.either()?;
        if self.take(&["?"])?.is_none() {
            return Ok(condition);
        }
        self.must_be(at, condition, BOOLEAN);
        self.branches(":")
    }

    /// Both results of a condition that is on the stack, with what stands between them.
    pub(super) fn branches(&mut self, between: &'static str) -> Result<Kind, Stop> {
        let branch = self.emit(Op::Branch(0))?;
        let first = self.expression()?;
        let jump = self.here();
        self.program.ops.push(Op::Jump(0));
        self.expect(between)?;
        self.program.aim(branch);
        let at = self.at;
        let second = self.expression()?;
        self.program.aim(jump);
        Ok(self.same(at, first, second))
    }

    fn either(&mut self) -> Result<Kind, Stop> {
        self.lazy(&["||", "or"], Op::OrElse(0), Self::both)
    }

    fn both(&mut self) -> Result<Kind, Stop> {
        self.lazy(&["&&", "and"], Op::AndThen(0), Self::negation)
    }

    fn lazy(
        &mut self,
        symbols: &[&'static str],
        op: Op,
        operand: fn(&mut Self) -> Result<Kind, Stop>,
    ) -> Result<Kind, Stop> {
        let mut left_at = self.at;
        let mut kind = operand(self)?;
        while self.take(symbols)?.is_some() {
            self.must_be(left_at, kind, BOOLEAN);
            let jump = self.emit(op)?;
            left_at = self.at;
            let right = operand(self)?;
            self.must_be(left_at, right, BOOLEAN);
            self.program.aim(jump);
            kind = BOOLEAN;
        }
        Ok(kind)
    }

    fn negation(&mut self) -> Result<Kind, Stop> {
        if self.take(&["!", "not"])?.is_none() {
            return self.comparison();
        }
        let at = self.at;
        let kind = self.comparison()?;
        self.must_be(at, kind, BOOLEAN);
        self.emit(Op::Not)?;
        Ok(BOOLEAN)
    }

    fn comparison(&mut self) -> Result<Kind, Stop> {
        let left_at = self.at;
        let left = self.sum()?;
        let Some(symbol) = self.take(&["==", "!=", "<", "<=", ">", ">="])? else {
            return Ok(left);
        };
        let right_at = self.at;
        let right = self.sum()?;
        if matches!(symbol, "==" | "!=") {
            self.same(right_at, left, right);
        } else {
            self.must_be(left_at, left, NUMBER);
            self.must_be(right_at, right, NUMBER);
        }
        self.emit(Op::compare(symbol))?;
        Ok(BOOLEAN)
    }

    fn sum(&mut self) -> Result<Kind, Stop> {
        self.chain(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Result<Kind, Stop> {
        self.chain(&["*", "/", "%"], Self::signed)
    }

    /// Operands of numbers, from left to right.
    fn chain(&mut self, symbols: &[&'static str], operand: fn(&mut Self) -> Result<Kind, Stop>) -> Result<Kind, Stop> {
        let left_at = self.at;
        let mut kind = operand(self)?;
        loop {
            let symbol_at = self.at;
            let Some(symbol) = self.take(symbols)? else { break };
            self.must_allow(symbol_at, symbol);
            self.must_be(left_at, kind, NUMBER);
            let right_at = self.at;
            let right = operand(self)?;
            self.must_be(right_at, right, NUMBER);
            self.emit(match Op::arithmetic(symbol) {
                Op::Divide if self.place() == Place::Meter => Op::DivideOrZero,
                op => op,
            })?;
            kind = NUMBER;
        }
        Ok(kind)
    }

    fn signed(&mut self) -> Result<Kind, Stop> {
        if self.take(&["-"])?.is_none() {
            return self.power();
        }
        let at = self.at;
        let kind = self.power()?;
        self.must_be(at, kind, NUMBER);
        self.emit(Op::Negate)?;
        Ok(NUMBER)
    }

    fn power(&mut self) -> Result<Kind, Stop> {
        let at = self.at;
        let base = self.primary()?;
        let symbol_at = self.at;
        if self.take(&["^"])?.is_none() {
            return Ok(base);
        }
        self.must_allow(symbol_at, "^");
        self.must_be(at, base, NUMBER);
        let exponent_at = self.at;
        let exponent = self.nested(Self::signed)?;
        self.must_be(exponent_at, exponent, NUMBER);
        self.emit(Op::Power)?;
        Ok(NUMBER)
    }

    fn primary(&mut self) -> Result<Kind, Stop> {
        match self.token {
            Token::Number(text) => match Number::parse(text) {
                Some(number) => self.constant(Value::Number(number)),
                None => self.stop("a number must have at most 1,000 digits".into()),
            },
            Token::Text(text) => self.constant(Value::Text(text.to_owned().into())),
            Token::Name("true") => self.constant(Value::Boolean(true)),
            Token::Name("false") => self.constant(Value::Boolean(false)),
            Token::Name(name) if !KEYWORDS.contains(&name) => {
                let at = self.at;
                self.advance()?;
                if self.take(&["("])?.is_some() { functions::call(self, name, at) } else { self.variable(name, at) }
            }
            Token::Symbol("(") => {
                self.advance()?;
                let kind = self.expression()?;
                self.expect(")")?;
                Ok(kind)
            }
            _ => self.unexpected("a value"),
        }
    }

    pub(super) fn constant(&mut self, value: Value<'static>) -> Result<Kind, Stop> {
        let kind = value.var_type();
        let index = self.program.constant(value);
        self.emit(Op::Constant(index))?;
        self.advance()?;
        Ok(Some(kind))
    }

    fn variable(&mut self, name: &str, at: usize) -> Result<Kind, Stop> {
        match self.names.resolve(name) {
            Ok(variable) => {
                let kind = variable.var_type;
                let index = self.program.variable(variable);
                self.emit(Op::Load(index))?;
                Ok(Some(kind))
            }
            Err(message) => {
                self.note(at, message);
                Ok(None)
            }
        }
    }
}
