//! Shape of the events of a meter (meters.md 5, event_schema): JSON Schema, draft 2020-12, compiled once.

use domain::event::{VarValue, Vars};
use domain::{FieldError, Quantity, error::FieldErrorCode as Code};
use jsonschema::Validator;
use serde_json::{Value, json};

/// Violations that are told of one event.
const VIOLATIONS_MAX: usize = 20;

/// The members of an event that a schema sees.
#[derive(Clone, Copy, Debug)]
pub struct EventShape<'a> {
    /// Amount consumed.
    pub quantity: Quantity,
    /// Dimension variables.
    pub dimension_vars: &'a Vars,
    /// Pricing variables.
    pub pricing_vars: &'a Vars,
}

/// A compiled `event_schema`.
#[derive(Clone, Debug)]
pub struct EventSchema(Validator);

impl EventSchema {
    /// Compiles a schema. References lead nowhere outside it: nothing is fetched.
    ///
    /// # Errors
    /// What is wrong with the schema, and where in it.
    pub fn compile(schema: &Value) -> Result<Self, FieldError> {
        jsonschema::draft202012::new(schema).map(Self).map_err(|error| FieldError {
            field: path_of("event_schema", &error.instance_path().to_string()),
            code: Code::InvalidFormat,
            message: format!("must be a JSON Schema (draft 2020-12): {error}"),
        })
    }

    /// What is wrong with the variables and the quantity of an event; nothing when it fits. Numbers are compared as JSON
    /// numbers, which have the precision of a double.
    #[must_use]
    pub fn violations(&self, event: EventShape<'_>) -> Vec<FieldError> {
        let event = json!({
            "quantity": number(event.quantity), "dimension_vars": variables(event.dimension_vars),
            "pricing_vars": variables(event.pricing_vars),
        });
        let violation = |error: jsonschema::ValidationError<'_>| FieldError {
            field: path_of("", &error.instance_path().to_string()),
            code: Code::InvalidFormat,
            message: format!("breaks the event_schema of the meter: {error}"),
        };
        self.0.iter_errors(&event).take(VIOLATIONS_MAX).map(violation).collect()
    }
}

/// A JSON pointer as a field path: `/dimension_vars/region` is `dimension_vars.region`.
fn path_of(base: &str, pointer: &str) -> String {
    let parts = pointer.split('/').filter(|part| !part.is_empty());
    let path: Vec<&str> = std::iter::once(base).filter(|base| !base.is_empty()).chain(parts).collect();
    path.join(".")
}

fn number(quantity: Quantity) -> Value {
    serde_json::from_str(&quantity.to_string()).unwrap_or(Value::Null) // a quantity is a JSON number
}

fn variables(vars: &Vars) -> Value {
    vars.iter()
        .map(|(name, value)| {
            let value = match value {
                VarValue::Bool(value) => Value::Bool(*value),
                VarValue::Number(value) => number(*value),
                VarValue::Text(value) => Value::String(value.clone()),
            };
            (name.clone(), value)
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> EventSchema {
        EventSchema::compile(&json!({
            "type": "object",
            "properties": {
                "quantity": {"type": "number", "minimum": 0, "maximum": 100},
                "dimension_vars": {
                    "type": "object", "required": ["region"], "properties": {"region": {"enum": ["eu", "us"]}},
                },
            },
        }))
        .expect("a good schema")
    }

    fn vars(region: &str) -> Vars {
        Vars::from([("region".to_owned(), VarValue::Text(region.to_owned()))])
    }

    #[test]
    fn events_are_compared_with_the_schema() {
        let violations = |quantity: &str, vars: &Vars| -> Vec<String> {
            let quantity = Quantity::parse(quantity).expect("a quantity");
            let event = EventShape { quantity, dimension_vars: vars, pricing_vars: &Vars::new() };
            schema().violations(event).into_iter().map(|error| error.field).collect()
        };
        assert_eq!(violations("100", &vars("eu")), Vec::<String>::new());
        assert_eq!(violations("100.5", &vars("mars")), ["dimension_vars.region", "quantity"]);
        assert_eq!(violations("1", &Vars::new()), ["dimension_vars"]);
    }

    #[test]
    fn bad_schemas_say_where() {
        let error =
            EventSchema::compile(&json!({"properties": {"quantity": {"type": "nummer"}}})).expect_err("refused");
        assert_eq!(error.field, "event_schema.properties.quantity.type");
        assert!(
            EventSchema::compile(&json!({"$ref": "https://example.com/schema.json"})).is_err(),
            "nothing is fetched"
        );
    }
}
