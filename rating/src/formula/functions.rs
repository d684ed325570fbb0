//! Calls of the functions of price-formulas.md.

use domain::RateTableType;

use super::TableUse;
use super::compile::{BOOLEAN, Compiler, Kind, NUMBER, Stop, TEXT};
use super::names::is_key;
use super::run::Op;

/// A function of numbers: its name, the fewest and the most arguments, and the instruction for so many.
struct Function {
    name: &'static str,
    least: usize,
    most: usize,
    op: fn(u16) -> Op,
}

const FUNCTIONS: [Function; 7] = [
    Function { name: "min", least: 1, most: usize::MAX, op: Op::Min },
    Function { name: "max", least: 1, most: usize::MAX, op: Op::Max },
    Function { name: "abs", least: 1, most: 1, op: |_| Op::Abs },
    Function { name: "floor", least: 1, most: 1, op: |_| Op::Floor },
    Function { name: "ceil", least: 1, most: 1, op: |_| Op::Ceil },
    Function { name: "round", least: 1, most: 2, op: |count| if count == 1 { Op::RoundWhole } else { Op::Round } },
    Function { name: "clamp", least: 3, most: 3, op: |_| Op::Clamp },
];

/// Reads the arguments of a call, whose opening parenthesis is read, and its end.
pub(super) fn call(compiler: &mut Compiler<'_>, name: &str, at: usize) -> Result<Kind, Stop> {
    compiler.must_allow(at, name);
    match name {
        "if" => branch(compiler, at),
        "coalesce" => coalesce(compiler),
        "lookup" => table(compiler, at, RateTableType::Lookup),
        "bracket" => table(compiler, at, RateTableType::Bracket),
        _ => numeric(compiler, name, at),
    }
}

fn numeric(compiler: &mut Compiler<'_>, name: &str, at: usize) -> Result<Kind, Stop> {
    let mut count = 0;
    if compiler.take(&[")"])?.is_none() {
        loop {
            let argument_at = compiler.at;
            let kind = compiler.expression()?;
            compiler.must_be(argument_at, kind, NUMBER);
            count += 1;
            if compiler.take(&[","])?.is_none() {
                break;
            }
        }
        compiler.expect(")")?;
    }
    let Some(function) = FUNCTIONS.iter().find(|function| function.name == name) else {
        compiler.note(at, format!("there is no function `{name}`"));
        return Ok(None);
    };
    if count < function.least || count > function.most {
        compiler.note(at, wrong_count(name, function.least, function.most, count));
    }
    compiler.emit((function.op)(u16::try_from(count).unwrap_or(u16::MAX)))?; // nodes are fewer
    Ok(NUMBER)
}

fn wrong_count(name: &str, least: usize, most: usize, found: usize) -> String {
    let wanted = match (least, most) {
        (least, usize::MAX) => format!("at least {least}"),
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    };
    format!("`{name}` takes {wanted} argument(s), not {found}")
}

/// `if(cond, a, b)`: only the branch that is taken is evaluated.
fn branch(compiler: &mut Compiler<'_>, at: usize) -> Result<Kind, Stop> {
    let condition_at = compiler.at;
    let condition = compiler.expression()?;
    compiler.must_be(condition_at, condition, BOOLEAN);
    if compiler.take(&[","])?.is_none() {
        compiler.note(at, wrong_count("if", 3, 3, 1));
        return Err(Stop);
    }
    let kind = compiler.branches(",")?;
    compiler.expect(")")?;
    Ok(kind)
}

/// `coalesce(a, ...)`: a name that nothing binds is skipped, anything else ends the search.
fn coalesce(compiler: &mut Compiler<'_>) -> Result<Kind, Stop> {
    let (mut kind, mut ends) = (None, Vec::new());
    loop {
        let (at, start) = (compiler.at, compiler.here());
        let next = compiler.expression()?;
        kind = compiler.same(at, kind, next);
        if compiler.take(&[","])?.is_none() {
            break;
        }
        match compiler.program.ops[start..] {
            [Op::Load(variable)] => compiler.program.ops[start] = Op::LoadBound { variable, end: 0 },
            _ => compiler.program.ops.push(Op::Jump(0)),
        }
        ends.push(compiler.here() - 1);
    }
    compiler.expect(")")?;
    for end in ends {
        compiler.program.aim(end);
    }
    Ok(kind)
}

/// `lookup('slug', key, ...)` and `bracket('slug', number)`.
fn table(compiler: &mut Compiler<'_>, at: usize, table_type: RateTableType) -> Result<Kind, Stop> {
    let (slug_at, start) = (compiler.at, compiler.here());
    let kind = compiler.expression()?;
    compiler.must_be(slug_at, kind, TEXT);
    let index = match compiler.program.ops[start..] {
        [Op::Constant(constant)] => compiler.program.text(constant).filter(|slug| is_key(slug)),
        _ => None,
    };
    if index.is_none() && kind.is_some() {
        compiler.note(slug_at, "the slug of a rate table is needed here, such as 'countries'".into());
    }
    compiler.program.ops.truncate(start);
    let mut keys = 0;
    while compiler.take(&[","])?.is_some() {
        let key_at = compiler.at;
        let kind = compiler.expression()?;
        if table_type == RateTableType::Bracket {
            compiler.must_be(key_at, kind, NUMBER);
        }
        keys += 1;
    }
    compiler.expect(")")?;
    match table_type {
        RateTableType::Lookup if keys == 0 => compiler.note(at, wrong_count("lookup", 2, usize::MAX, 1)),
        RateTableType::Bracket if keys != 1 => compiler.note(at, wrong_count("bracket", 2, 2, keys + 1)),
        _ => {}
    }
    let table = compiler.program.table(TableUse { slug: index.unwrap_or_default(), table_type });
    compiler.emit(match table_type {
        RateTableType::Lookup => Op::Lookup { table, keys: u16::try_from(keys).unwrap_or(u16::MAX) },
        RateTableType::Bracket => Op::Bracket(table),
    })?;
    Ok(NUMBER)
}
