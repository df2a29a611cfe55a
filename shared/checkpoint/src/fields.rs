//! Typed look-ups in JSON-like maps. An error names the file, the field, its value and the cure;
//! `null` counts as absent, as Hugging Face has it.

use crate::error::Error;
use serde_json::{Map, Value};
use std::path::Path;

/// A map of a file: `config.json`, a part of it, or the scalars of a GGUF header.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub path: &'a Path,
    /// Put before every key, in look-ups and messages: `llama.` in a GGUF file.
    pub prefix: &'a str,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The value, unless absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let value = match self.prefix {
            "" => self.map.get(key),
            prefix => self.map.get(&format!("{prefix}{key}")),
        };
        value.filter(|value| !value.is_null())
    }

    /// An error about `key`.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        let field = format!("{}{key}", self.prefix);
        match self.get(key) {
            None => Error::missing(self.path, &field, expected),
            Some(value) => Error::field(self.path, field, value, expected),
        }
    }

    /// A refusal of what `key` asks for.
    pub fn refuse(&self, key: &str, known: &str) -> Error {
        let value = self.get(key).unwrap_or(&Value::Null);
        Error::unsupported(self.path, format!("{}{key}", self.prefix), value, known)
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.wrong(key, expected))
    }

    /// A size in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<Option<usize>, Error> {
        let within = |value: &Value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n))
        };
        self.read(key, &format!("a whole number in 1..={max}"), within)
    }

    /// A size in `1..=max` that must be there.
    pub fn need_size(&self, key: &str, max: usize) -> Result<usize, Error> {
        let expected = format!("a whole number in 1..={max}");
        self.size(key, max)?.ok_or_else(|| self.wrong(key, &expected))
    }

    /// A finite number above 0.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        let within = |value: &Value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        self.read(key, "a number above 0", within)
    }

    /// A finite number above 0 that must be there.
    pub fn need_positive(&self, key: &str) -> Result<f64, Error> {
        self.positive(key)?.ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// A finite number in `low..=high`.
    pub fn within(&self, key: &str, low: f64, high: f64) -> Result<Option<f64>, Error> {
        let expected = format!("a number in {low}..={high}");
        self.read(key, &expected, |value| value.as_f64().filter(|x| (low..=high).contains(x)))
    }

    /// true or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.read(key, "a string", Value::as_str)
    }

    /// A token id.
    pub fn id(&self, key: &str) -> Result<Option<u32>, Error> {
        self.read(key, "a token id", token_id)
    }

    /// Token ids: none, one, or a list of them.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let all = |value: &Value| match value {
            Value::Array(list) => list.iter().map(token_id).collect(),
            one => token_id(one).map(|id| vec![id]),
        };
        Ok(self.read(key, "a token id or a list of them", all)?.unwrap_or_default())
    }

    /// A nested map.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, Error> {
        let map = self.read(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { path: self.path, prefix: "", map }))
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
