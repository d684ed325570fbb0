//! What an expression costs when it is evaluated: below 1 µs each, so that a rate of its own per rating key costs about
//! as much as the rest of an event.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use domain::event::VarValue;
use domain::{Quantity, VersionId};
use rating::Formula;
use rating::formula::{Environment, Number, Place, Source, Supplied, Value, Variable};
use rating::rate_table::{BracketEntry, Entries, LookupEntry, RateTable, RateTableDefinition};
use uuid::Uuid;

/// As the rating of an event binds names: supplied ones by kind, those of the event by name.
struct Event {
    quantity: Quantity,
    vars: Vec<(&'static str, VarValue)>,
    tables: Vec<RateTable>,
}

impl Environment for Event {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        match variable.source {
            Source::Supplied(Supplied::Quantity) => Some(Number::from(self.quantity).into()),
            Source::Supplied(_) => None,
            _ => self.vars.iter().find(|(name, _)| *name == variable.name).map(|(_, value)| value.into()),
        }
    }

    fn table(&self, slug: &str) -> Option<&RateTable> {
        self.tables.iter().find(|table| table.slug() == slug)
    }
}

fn table(slug: &str, entries: Entries) -> RateTable {
    let version_id = VersionId(Uuid::from_u128(1));
    RateTable::compile(RateTableDefinition { slug: slug.into(), version_id, when_missing: None, entries })
        .expect("a good table")
}

fn event() -> Event {
    let quantity = |text| Quantity::parse(text).expect("a quantity");
    let entry = |number: i64| LookupEntry { key: format!("region-{number}"), value: Quantity::from_int(number) };
    let range = |number: i64| BracketEntry {
        lower_bound: Some(Quantity::from_int(number * 100)),
        upper_bound: Some(Quantity::from_int(number * 100 + 100)),
        value: quantity("0.05"),
    };
    Event {
        quantity: quantity("1234.5"),
        vars: vec![
            ("cost.amount", VarValue::Number(quantity("10.25"))),
            ("dim.region", VarValue::Text("region-77".into())),
            ("discount", VarValue::Number(quantity("0.15"))),
        ],
        tables: vec![
            table("regions", Entries::Lookup((0..200).map(entry).collect())),
            table("volume", Entries::Bracket((0..200).map(range).collect())),
        ],
    }
}

fn expressions(criterion: &mut Criterion) {
    let event = event();
    for (name, text) in [
        ("rate", "if(quantity > 1000, 0.08, 0.10) * (1 - discount)"),
        ("cost plus", "round(cost.amount * 1.2 / 3, 6)"),
        ("lookup", "lookup('regions', dim.region) * (1 - discount)"),
        ("bracket", "bracket('volume', quantity) * (1 - discount)"),
    ] {
        let formula = Formula::compile(text, Place::Tier, &[]).expect("compiles");
        criterion.bench_function(&format!("formula/{name}"), |b| {
            b.iter(|| black_box(&formula).evaluate_rate(black_box(&event)).expect("a rate"));
        });
    }
    let text = "if(quantity > 1000 and dim.region == 'eu', 0.08, 0.10) * coalesce(discount, 1)";
    criterion.bench_function("formula/compile", |b| {
        b.iter(|| Formula::compile(black_box(text), Place::Tier, &[]).expect("compiles"));
    });
}

criterion_group!(benches, expressions);
criterion_main!(benches);
