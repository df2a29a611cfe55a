//! Fields of `/generate` that have one value for all prompts, or a list with one for each.

use crate::error::Invalid;
use crate::fields::Fields;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A field's value, or values.
#[derive(Debug)]
pub enum Each<T> {
    /// One for all prompts.
    All(T),
    /// One for each.
    Own(Vec<T>),
}

impl<T> Each<T> {
    /// That of a prompt.
    pub fn of(&self, prompt: usize) -> &T {
        match self {
            Self::All(one) => one,
            Self::Own(list) => &list[prompt],
        }
    }
}

/// What the prompts of a call have each of their own.
#[derive(Debug, Clone, Default)]
pub struct Lists {
    prompts: usize,
    /// Fields that came as lists.
    fields: Vec<&'static str>,
    /// The client's names for the prompts; empty where it has none.
    names: Vec<String>,
}

impl Lists {
    /// None yet, of so many prompts.
    pub fn new(prompts: usize) -> Self {
        Self { prompts, ..Self::default() }
    }

    /// For how many prompts there is something to know: of one where all are alike.
    pub fn rows(&self) -> usize {
        if self.fields.is_empty() { 1 } else { self.prompts }
    }

    /// Takes out a field that is no list itself.
    ///
    /// # Errors
    /// Neither a `T` nor as many as there are prompts; the element is named.
    pub fn take<T: DeserializeOwned>(
        &mut self,
        fields: &mut Fields,
        name: &'static str,
        absent: T,
    ) -> Result<Each<T>, Invalid> {
        let Some(Value::Array(list)) = fields.get(name) else {
            return fields.take_or(name, absent).map(Each::All);
        };
        self.note(fields, name, list.len())?;
        fields.take_or(name, Vec::new()).map(Each::Own)
    }

    /// The same of a field that is a list itself: one that has a list is a list of them.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_lists<T: DeserializeOwned>(
        &mut self,
        fields: &mut Fields,
        name: &'static str,
    ) -> Result<Each<Vec<T>>, Invalid> {
        let list = fields.get(name).and_then(Value::as_array);
        match list.is_some_and(|list| list.iter().any(Value::is_array)) {
            true => self.take(fields, name, Vec::new()),
            false => fields.take_or(name, Vec::new()).map(Each::All),
        }
    }

    /// The same of a field that is an object, whose own fields `read` reads.
    ///
    /// # Errors
    /// As [`Self::take`], and those of `read`.
    pub fn take_objects<T>(
        &mut self,
        fields: &mut Fields,
        name: &'static str,
        read: impl Fn(&mut Fields) -> Result<T, Invalid>,
    ) -> Result<Each<T>, Invalid> {
        let list = match fields.take_value(name) {
            Some(Value::Array(list)) => list,
            other => {
                other.into_iter().for_each(|one| fields.set(name, one));
                return read(&mut fields.object(name)?).map(Each::All);
            }
        };
        self.note(fields, name, list.len())?;
        let one = |(at, one)| {
            fields.set(name, one);
            let object = fields.object(name).and_then(|mut object| read(&mut object));
            object.map_err(|invalid| self.at(at, invalid))
        };
        list.into_iter().enumerate().map(one).collect::<Result<_, _>>().map(Each::Own)
    }

    /// Takes out `rid`: the name of the call, or none where each prompt has its own.
    ///
    /// # Errors
    /// As [`Self::take`], or two prompts have one name.
    pub fn take_rid(&mut self, fields: &mut Fields) -> Result<Option<String>, Invalid> {
        const FIELD: &str = "rid";
        let names = match self.take(fields, FIELD, None)? {
            Each::All(name) => return Ok(name),
            Each::Own(names) => {
                names.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>()
            }
        };
        for (at, name) in names.iter().enumerate() {
            let what = match names[..at].iter().position(|other| other == name) {
                _ if name.is_empty() => "must be a name, got none".to_owned(),
                Some(first) => format!("{name:?} is `rid[{first}]` too; want a name for each"),
                None => continue,
            };
            return Err(fields.wrong(&format!("{FIELD}[{at}]"), &what));
        }
        self.names = names;
        Ok(None)
    }

    /// The client's name for a prompt.
    pub fn name(&self, prompt: usize) -> Option<&str> {
        self.names.get(prompt).map(String::as_str)
    }

    /// All of them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What is wrong with a value of `prompt`, by its place where its field came as a list.
    pub fn at(&self, prompt: usize, invalid: Invalid) -> Invalid {
        let param = invalid.param.as_deref().unwrap_or_default();
        match self.fields.iter().find(|field| param.starts_with(**field)) {
            Some(field) => invalid.renamed(&[(field, &format!("{field}[{prompt}]"))]),
            None => invalid,
        }
    }

    /// Field `name` came as a list of `len`.
    fn note(&mut self, fields: &Fields, name: &'static str, len: usize) -> Result<(), Invalid> {
        if len != self.prompts {
            let what = format!(
                "has {len} values, and there are {} prompts; want one value for all of them, or a \
                 list with one for each",
                self.prompts
            );
            return Err(fields.wrong(name, &what));
        }
        self.fields.push(name);
        Ok(())
    }
}
