// The body of the target `formula`: any text with any bindings ends in a number or a named failure, in bounded time.

use domain::{FormulaVarType, VersionId};
use rating::formula::{Environment, NODES_MAX, Number, Place, Value, Variable};
use rating::rate_table::{Entries, LookupEntry, RateTable, RateTableDefinition};
use rating::{Formula, FormulaVariable};

/// Gives every variable a value that is drawn from the rest of the input.
struct Drawn<'d> {
    data: &'d [u8],
    table: RateTable,
}

impl Environment for Drawn<'_> {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        let sum = variable.name.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let at = sum.checked_rem(self.data.len())?;
        let rest = &self.data[at..];
        match rest[0] % 5 {
            0 => None,
            1 => Some(Value::Boolean(rest[0] > 100)),
            2 => std::str::from_utf8(rest).ok().map(|text| Value::Text(text.into())),
            3 => Some(Value::Text("9".repeat(usize::from(rest[0])).into())),
            _ => Some(Value::Number(Number::from(i64::from(rest[0]) - 128))),
        }
    }

    fn table(&self, slug: &str) -> Option<&RateTable> {
        (slug.len() % 2 == 1).then_some(&self.table)
    }
}

pub fn run(data: &[u8]) {
    let (text, bindings) = data.split_at(data.len() - data.len() / 4);
    let Ok(text) = std::str::from_utf8(text) else { return };
    let table = RateTable::compile(RateTableDefinition {
        slug: "t".into(),
        version_id: VersionId(uuid::Uuid::nil()),
        when_missing: data.first().is_some_and(|first| first % 2 == 0).then_some(domain::Quantity::ONE),
        entries: Entries::Lookup(vec![LookupEntry { key: "de".into(), value: domain::Quantity::ONE }]),
    })
    .expect("a good table");
    let declared = ["a", "b", "c"].map(|name| FormulaVariable {
        name: name.into(),
        var_type: if name == "c" { FormulaVarType::String } else { FormulaVarType::Number },
        default: None,
        required: false,
        description: None,
    });
    for (place, declared) in [(Place::Tier, &[][..]), (Place::Price, &declared[..])] {
        match Formula::compile(text, place, declared) {
            Err(errors) => {
                assert!(!errors.is_empty(), "a refusal without a reason");
                assert!(errors.iter().all(|error| error.position <= text.chars().count()), "{errors:?}");
            }
            Ok(formula) => {
                assert!(formula.variables().len() <= NODES_MAX && formula.tables().len() <= NODES_MAX);
                let drawn = Drawn { data: bindings, table: table.clone() };
                let first = formula.evaluate(&drawn);
                assert_eq!(first, formula.evaluate(&drawn), "the same values give the same result");
                if let Ok(number) = first {
                    let text = number.to_string();
                    assert_eq!(Number::parse(&text), Some(number), "{text}");
                }
            }
        }
    }
}
