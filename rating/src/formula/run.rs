//! The stack machine that evaluates a formula.

use std::borrow::Cow;
use std::cmp::Ordering;

use smallvec::SmallVec;

use super::number::{Rounding, SCALE_MAX};
use super::{Environment, FormulaFailure, Number, Result, TableUse, Value, Variable};

/// One instruction. Operands are taken from the stack, the result is put there. Jumps go forward only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Puts a constant.
    Constant(u16),
    /// Puts the value of a variable.
    Load(u16),
    /// Puts the value of a variable and jumps; goes on when nothing binds it.
    LoadBound {
        variable: u16,
        end: u16,
    },
    Negate,
    Not,
    Add,
    Subtract,
    Multiply,
    Divide,
    /// As `Divide`, but 0 where the divisor is.
    DivideOrZero,
    Remainder,
    Power,
    /// Takes two values; whether they are equal, or not.
    Equal(bool),
    /// Takes two numbers; whether the first is less, or greater.
    Order {
        wanted: Ordering,
        or_equal: bool,
    },
    Jump(u16),
    /// Takes a truth and jumps when it is false.
    Branch(u16),
    /// Jumps when a truth is false and leaves it, else takes it.
    AndThen(u16),
    /// Jumps when a truth is true and leaves it, else takes it.
    OrElse(u16),
    /// Of so many numbers.
    Min(u16),
    Max(u16),
    Abs,
    Floor,
    Ceil,
    RoundWhole,
    Round,
    Clamp,
    Lookup {
        table: u16,
        keys: u16,
    },
    Bracket(u16),
}

impl Op {
    pub(super) fn arithmetic(symbol: &str) -> Self {
        match symbol {
            "+" => Self::Add,
            "-" => Self::Subtract,
            "*" => Self::Multiply,
            "/" => Self::Divide,
            _ => Self::Remainder,
        }
    }

    pub(super) fn compare(symbol: &str) -> Self {
        match symbol {
            "==" => Self::Equal(true),
            "!=" => Self::Equal(false),
            "<" => Self::Order { wanted: Ordering::Less, or_equal: false },
            "<=" => Self::Order { wanted: Ordering::Less, or_equal: true },
            ">" => Self::Order { wanted: Ordering::Greater, or_equal: false },
            _ => Self::Order { wanted: Ordering::Greater, or_equal: true },
        }
    }
}

/// Instructions with what they name. All indices fit 16 bits, since the nodes of an expression are bounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Program {
    pub(super) ops: Vec<Op>,
    constants: Vec<Value<'static>>,
    pub(super) variables: Vec<Variable>,
    pub(super) tables: Vec<TableUse>,
}

type Stack<'r> = SmallVec<[Value<'r>; 8]>;

/// Index of an entry that stands in a list once.
fn interned<T: PartialEq>(list: &mut Vec<T>, entry: T) -> u16 {
    let index = list.iter().position(|known| *known == entry).unwrap_or_else(|| {
        list.push(entry);
        list.len() - 1
    });
    u16::try_from(index).unwrap_or(u16::MAX)
}

impl Program {
    pub(super) fn constant(&mut self, value: Value<'static>) -> u16 {
        interned(&mut self.constants, value)
    }

    pub(super) fn variable(&mut self, variable: Variable) -> u16 {
        interned(&mut self.variables, variable)
    }

    pub(super) fn table(&mut self, table: TableUse) -> u16 {
        interned(&mut self.tables, table)
    }

    /// The text of a constant.
    pub(super) fn text(&self, constant: u16) -> Option<String> {
        match self.constants.get(usize::from(constant)) {
            Some(Value::Text(text)) => Some(text.to_string()),
            _ => None,
        }
    }

    /// Lets a jump go to the instruction that comes next.
    pub(super) fn aim(&mut self, jump: usize) {
        let here = u16::try_from(self.ops.len()).unwrap_or(u16::MAX);
        match &mut self.ops[jump] {
            Op::Jump(to) | Op::Branch(to) | Op::AndThen(to) | Op::OrElse(to) | Op::LoadBound { end: to, .. } => {
                *to = here;
            }
            _ => {}
        }
    }

    pub(super) fn run<E: Environment>(&self, environment: &E) -> Result<Number> {
        let mut stack = Stack::new();
        let mut next = 0;
        while let Some(op) = self.ops.get(next) {
            next = self.step(*op, next + 1, &mut stack, environment)?;
        }
        pop_number(&mut stack)
    }

    /// Executes one instruction; answers which one comes then.
    fn step<'r, E: Environment>(
        &'r self,
        op: Op,
        next: usize,
        stack: &mut Stack<'r>,
        environment: &'r E,
    ) -> Result<usize> {
        match op {
            Op::Constant(index) => stack.push(borrowed(&self.constants[usize::from(index)])),
            Op::Load(index) => {
                let variable = &self.variables[usize::from(index)];
                let value = load(variable, environment)?;
                stack.push(value.ok_or_else(|| FormulaFailure::UnboundVariable(variable.name.clone()))?);
            }
            Op::LoadBound { variable, end } => {
                if let Some(value) = load(&self.variables[usize::from(variable)], environment)? {
                    stack.push(value);
                    return Ok(end.into());
                }
            }
            Op::Jump(to) => return Ok(to.into()),
            Op::Branch(to) if !pop_truth(stack)? => return Ok(to.into()),
            Op::Branch(_) => {}
            Op::AndThen(to) | Op::OrElse(to) => {
                let truth = pop_truth(stack)?;
                if truth == matches!(op, Op::OrElse(_)) {
                    stack.push(Value::Boolean(truth));
                    return Ok(to.into());
                }
            }
            Op::Not => {
                let truth = pop_truth(stack)?;
                stack.push(Value::Boolean(!truth));
            }
            Op::Equal(wanted) => {
                let (second, first) = (pop(stack)?, pop(stack)?);
                stack.push(Value::Boolean((first == second) == wanted));
            }
            Op::Order { wanted, or_equal } => {
                let (second, first) = (pop_number(stack)?, pop_number(stack)?);
                let order = first.cmp(&second);
                stack.push(Value::Boolean(order == wanted || (or_equal && order == Ordering::Equal)));
            }
            Op::DivideOrZero => {
                let (divisor, dividend) = (pop_number(stack)?, pop_number(stack)?);
                let quotient = if divisor.is_zero() {
                    environment.divided_by_zero();
                    Number::ZERO
                } else {
                    dividend.div(&divisor)?
                };
                stack.push(Value::Number(quotient));
            }
            Op::Lookup { table, keys } => {
                let key = pop_key(stack, keys.into())?;
                stack.push(Value::Number(self.look_up(table, &key, environment)?));
            }
            Op::Bracket(table) => {
                let number = pop_number(stack)?;
                stack.push(Value::Number(self.bracket(table, &number, environment)?));
            }
            numeric => {
                let number = compute(numeric, stack)?;
                stack.push(Value::Number(number));
            }
        }
        Ok(next)
    }

    fn look_up<E: Environment>(&self, table: u16, key: &str, environment: &E) -> Result<Number> {
        let slug = &self.tables[usize::from(table)].slug;
        let found = environment.table(slug).and_then(|table| table.look_up(key));
        found.cloned().ok_or_else(|| FormulaFailure::TableKeyMissing { slug: slug.clone(), key: key.to_owned() })
    }

    fn bracket<E: Environment>(&self, table: u16, number: &Number, environment: &E) -> Result<Number> {
        let slug = &self.tables[usize::from(table)].slug;
        let found = environment.table(slug).and_then(|table| table.bracket(number));
        found.cloned().ok_or_else(|| FormulaFailure::TableKeyMissing { slug: slug.clone(), key: number.to_string() })
    }
}

/// The instructions from numbers to a number.
fn compute(op: Op, stack: &mut Stack<'_>) -> Result<Number> {
    let last = pop_number(stack)?;
    match op {
        Op::Negate => last.neg(),
        Op::Abs => last.abs(),
        Op::Floor => last.round(0, Rounding::Floor),
        Op::Ceil => last.round(0, Rounding::Ceil),
        Op::RoundWhole => last.round(0, Rounding::HalfAway),
        Op::Round => pop_number(stack)?.round(fraction_digits(&last)?, Rounding::HalfAway),
        Op::Min(count) | Op::Max(count) => {
            let better = if matches!(op, Op::Min(_)) { Ordering::Less } else { Ordering::Greater };
            let mut best = last;
            for _ in 1..count {
                let other = pop_number(stack)?;
                if other.cmp(&best) == better {
                    best = other;
                }
            }
            Ok(best)
        }
        Op::Clamp => {
            let (low, number) = (pop_number(stack)?, pop_number(stack)?);
            Ok(number.max(low).min(last))
        }
        _ => {
            let first = pop_number(stack)?;
            match op {
                Op::Add => first.add(&last),
                Op::Subtract => first.sub(&last),
                Op::Multiply => first.mul(&last),
                Op::Divide => first.div(&last),
                Op::Remainder => first.rem(&last),
                _ => first.pow(&last),
            }
        }
    }
}

/// The digits argument of `round`.
fn fraction_digits(number: &Number) -> Result<i32> {
    let most = i64::from(SCALE_MAX);
    let whole = number.to_whole().filter(|digits| (-most..=most).contains(digits));
    whole.and_then(|digits| i32::try_from(digits).ok()).ok_or_else(|| FormulaFailure::TypeMismatch {
        subject: "the second argument of round".into(),
        expected: "a whole number between -1000 and 1000",
    })
}

/// The value of a variable in its type; `None` when nothing binds it.
fn load<'r, E: Environment>(variable: &'r Variable, environment: &'r E) -> Result<Option<Value<'r>>> {
    let Some(value) = environment.variable(variable) else {
        return Ok(variable.default.as_ref().map(borrowed));
    };
    match value.read_as(variable.var_type) {
        Some(value) => Ok(Some(value)),
        None => Err(FormulaFailure::TypeMismatch {
            subject: format!("the variable {}", variable.name),
            expected: variable.var_type.as_str(),
        }),
    }
}

fn borrowed<'v>(value: &'v Value<'static>) -> Value<'v> {
    match value {
        Value::Text(text) => Value::Text(Cow::Borrowed(text)),
        Value::Number(number) => Value::Number(number.clone()),
        Value::Boolean(truth) => Value::Boolean(*truth),
    }
}

/// The compiler has checked every operand; a program that it did not write fails instead of panicking.
fn mismatch(expected: &'static str) -> FormulaFailure {
    FormulaFailure::TypeMismatch { subject: "an operand".into(), expected }
}

fn pop<'r>(stack: &mut Stack<'r>) -> Result<Value<'r>> {
    stack.pop().ok_or_else(|| mismatch("there"))
}

fn pop_number(stack: &mut Stack<'_>) -> Result<Number> {
    match pop(stack)? {
        Value::Number(number) => Ok(number),
        _ => Err(mismatch("a NUMBER")),
    }
}

fn pop_truth(stack: &mut Stack<'_>) -> Result<bool> {
    match pop(stack)? {
        Value::Boolean(truth) => Ok(truth),
        _ => Err(mismatch("a BOOLEAN")),
    }
}

/// The key of a lookup table: its parts joined with `|`.
fn pop_key<'r>(stack: &mut Stack<'r>, parts: usize) -> Result<Cow<'r, str>> {
    if parts == 1 {
        return Ok(match pop(stack)? {
            Value::Text(text) => text,
            other => Cow::Owned(other.to_string()),
        });
    }
    let first = stack.len().checked_sub(parts).ok_or_else(|| mismatch("there"))?;
    let texts: Vec<String> = stack.drain(first..).map(|part| part.to_string()).collect();
    Ok(Cow::Owned(texts.join("|")))
}
