//! A JSON body as named fields, each read into its type on its own.
//!
//! One pass over the body; a field of the wrong type is an [`Invalid`] that names it down to the
//! element (`messages[1].content`). `null` is the same as absent, unknown fields are ignored.

use crate::error::Invalid;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// The fields of one JSON object.
#[derive(Debug)]
pub struct Fields {
    prefix: &'static str,
    /// In [`order`] of their names, each once. A request has a handful, and far more are asked
    /// for.
    named: Vec<(String, Value)>,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// Not JSON (with line and column) or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let named = json.deserialize_map(Named).and_then(|named| json.end().map(|()| named));
        let named = named.map_err(|err| match err.is_data() {
            true => Invalid::body("The body must be a JSON object".to_owned()),
            false => Invalid::body(format!("The body is not valid JSON: {err}")),
        })?;
        Ok(Self::new("", named))
    }

    /// Of a name that comes twice the last one counts.
    fn new(prefix: &'static str, mut named: Vec<(String, Value)>) -> Self {
        named.reverse();
        named.sort_by(|a, b| order(&a.0).cmp(&order(&b.0)));
        named.dedup_by(|later, first| later.0 == first.0);
        Self { prefix, named }
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.named.binary_search_by(|(known, _)| order(known).cmp(&order(name)))
    }

    fn remove(&mut self, name: &str) -> Option<Value> {
        self.find(name).ok().map(|at| self.named.remove(at).1)
    }

    /// Sets field `name`.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.find(name) {
            Ok(at) => self.named[at].1 = value,
            Err(at) => self.named.insert(at, (name.to_owned(), value)),
        }
    }

    /// The object in field `name`, whose own fields are reported as `name.field`; empty if absent.
    ///
    /// # Errors
    /// The field is there and not an object.
    pub fn object(&mut self, name: &'static str) -> Result<Self, Invalid> {
        match self.remove(name) {
            None | Some(Value::Null) => Ok(Self::new(name, Vec::new())),
            Some(Value::Object(map)) => Ok(Self::new(name, map.into_iter().collect())),
            Some(other) => {
                Err(self.wrong(name, &format!("must be an object, got {}", kind(&other))))
            }
        }
    }

    /// Takes field `name` out as a `T`.
    ///
    /// # Errors
    /// The field is there and does not fit `T`.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Invalid> {
        match self.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_path_to_error::deserialize(value).map(Some).map_err(|err| {
                let path = err.path().to_string();
                let field = match path.as_str() {
                    "." => name.to_owned(),
                    path if path.starts_with('[') => format!("{name}{path}"),
                    path => format!("{name}.{path}"),
                };
                self.wrong(&field, &err.into_inner().to_string())
            }),
        }
    }

    /// Takes field `name` out as a `T`, or `absent` where it is not given.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_or<T: DeserializeOwned>(&mut self, name: &str, absent: T) -> Result<T, Invalid> {
        Ok(self.take(name)?.unwrap_or(absent))
    }

    /// Takes field `name` out as it stands.
    pub fn take_value(&mut self, name: &str) -> Option<Value> {
        self.remove(name).filter(|value| !value.is_null())
    }

    /// Looks at field `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.find(name).ok().map(|at| &self.named[at].1).filter(|value| !value.is_null())
    }

    /// An error about field `name` of this object.
    pub fn wrong(&self, name: &str, what: &str) -> Invalid {
        Invalid::field(self.full_name(name), what)
    }

    /// Field `name` of this object is known, would change the result, and is not implemented.
    pub fn unsupported(&self, name: &str) -> Invalid {
        const SHOWN: usize = 60;
        let mut value = self.get(name).map_or_else(|| "null".to_owned(), Value::to_string);
        if value.chars().count() > SHOWN {
            value = value.chars().take(SHOWN).chain(['…']).collect();
        }
        Invalid::unsupported(self.full_name(name), &value)
    }

    /// The client's name for field `name` of this object.
    pub fn full_name(&self, name: &str) -> String {
        match self.prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}.{name}"),
        }
    }
}

/// Shorter names first: seldom are letters compared.
fn order(name: &str) -> (usize, &str) {
    (name.len(), name)
}

/// Reads an object as it stands.
struct Named;

impl<'de> Visitor<'de> for Named {
    type Value = Vec<(String, Value)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut named = Vec::with_capacity(16);
        while let Some(field) = map.next_entry()? {
            named.push(field);
        }
        Ok(named)
    }
}

/// What a value is, in JSON's words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<impl Sized, Invalid>) -> (Option<String>, String) {
        let invalid = result.err().expect("an error");
        (invalid.param, invalid.message)
    }

    #[test]
    fn syntax_errors_tell_the_position() {
        let (param, text) = message(Fields::parse(b"{\n  \"a\": tru }"));
        assert_eq!(param, None);
        assert!(text.contains("line 2 column"), "{text}");
        assert!(message(Fields::parse(b"[1]")).1.contains("JSON object"));
        assert!(message(Fields::parse(b"{} {}")).1.contains("trailing characters"));
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(message(Fields::parse(deep.as_bytes())).1.contains("recursion limit"));
    }

    #[test]
    fn of_a_name_that_comes_twice_the_last_counts() {
        let mut fields = Fields::parse(br#"{"n": 1, "a": 5, "n": 2, "n": 3}"#).unwrap();
        assert_eq!(fields.take::<u32>("n").unwrap(), Some(3));
        assert_eq!(fields.take::<u32>("n").unwrap(), None);
        fields.set("n", 4.into());
        fields.set("a", 6.into());
        assert_eq!(fields.take::<u32>("n").unwrap(), Some(4));
        assert_eq!(fields.get("a"), Some(&Value::from(6)));
    }

    #[test]
    fn wrong_types_name_the_field_down_to_the_element() {
        let body =
            br#"{"temperature": "hot", "ids": [1, -2], "stream_options": {"include_usage": 3},
            "n": null}"#;
        let mut fields = Fields::parse(body).unwrap();
        assert_eq!(fields.take::<u32>("n").unwrap(), None);
        let (param, text) = message(fields.take::<f32>("temperature"));
        assert_eq!(param.as_deref(), Some("temperature"));
        assert!(text.contains("\"hot\""), "{text}");
        assert_eq!(message(fields.take::<Vec<u32>>("ids")).0.as_deref(), Some("ids[1]"));
        let mut options = fields.object("stream_options").unwrap();
        let (param, _) = message(options.take::<bool>("include_usage"));
        assert_eq!(param.as_deref(), Some("stream_options.include_usage"));
    }
}
