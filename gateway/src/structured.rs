//! Output that has to follow a grammar: the fields that say so, and whether it compiles.
//!
//! 1. [`read`] finds at most one of them: OpenAI's `response_format`, SGLang's `json_schema`,
//!    `regex` and `ebnf`, vLLM's `guided_…` and `structured_outputs`.
//! 2. [`check`] compiles it, so that what is wrong with it is told before any server has
//!    the request. Servers compile it again, for the model's tokens.
//!
//! The output may still be cut by `max_tokens`: then its finish reason is `length`, and it is the
//! beginning of what the grammar allows. A model that thinks goes without: all of its output
//! follows the grammar.

use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::schema::closed;
use grammar::{Compiler, lark_of_ebnf};
use serde_json::{Value, json};
use shared::request::{Grammar, MAX_GRAMMAR};
use std::sync::{Arc, Mutex, PoisonError};

/// What a client wants its output to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where the client said so.
    pub field: String,
    /// What it said.
    pub grammar: Grammar,
}

/// SGLang's and vLLM's fields, each with what it holds.
const FIELDS: &[(&str, Kind)] = &[
    ("json_schema", Kind::Schema),
    ("regex", Kind::Regex),
    ("ebnf", Kind::Ebnf),
    ("guided_json", Kind::Schema),
    ("guided_regex", Kind::Regex),
    ("guided_choice", Kind::Choice),
    ("guided_grammar", Kind::Ebnf),
];

/// The fields of vLLM's `structured_outputs`.
const STRUCTURED: &[(&str, Kind)] = &[
    ("json", Kind::Schema),
    ("regex", Kind::Regex),
    ("choice", Kind::Choice),
    ("grammar", Kind::Ebnf),
    ("json_object", Kind::AnyObject),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A JSON schema, as an object or as text.
    Schema,
    Regex,
    /// EBNF or Lark.
    Ebnf,
    /// A list of strings.
    Choice,
    /// `true`: any JSON object.
    AnyObject,
}

/// Takes out what the client wants its output to be; `None` where it said nothing.
///
/// # Errors
/// A field of the wrong type, or more than one of them.
pub fn read(fields: &mut Fields) -> Result<Option<Wanted>, Invalid> {
    let mut wanted = response_format(fields)?;
    for &(name, kind) in FIELDS {
        take(fields, name, kind, &mut wanted)?;
    }
    let mut structured = fields.object("structured_outputs")?;
    for &(name, kind) in STRUCTURED {
        take(&mut structured, name, kind, &mut wanted)?;
    }
    Ok(wanted)
}

fn take(
    fields: &mut Fields,
    name: &str,
    kind: Kind,
    wanted: &mut Option<Wanted>,
) -> Result<(), Invalid> {
    let Some(value) = fields.take_value(name) else { return Ok(()) };
    let Some(grammar) = grammar(fields, name, kind, &value)? else { return Ok(()) };
    add(wanted, Wanted { field: fields.full_name(name), grammar })
}

/// Adds what was found to what was found before, which has to be nothing.
///
/// # Errors
/// It is not; the later field is named.
pub fn add(wanted: &mut Option<Wanted>, more: Wanted) -> Result<(), Invalid> {
    if let Some(first) = wanted {
        let what = format!("cannot be used together with `{}`; leave one of them out", first.field);
        return Err(Invalid::field(more.field, &what));
    }
    *wanted = Some(more);
    Ok(())
}

fn grammar(
    fields: &Fields,
    name: &str,
    kind: Kind,
    value: &Value,
) -> Result<Option<Grammar>, Invalid> {
    let wrong = |want: &str| {
        let what = format!("must be {want}, got {}", crate::fields::kind(value));
        Err(fields.wrong(name, &what))
    };
    let grammar = match (kind, value) {
        (Kind::Schema, Value::String(text)) => Grammar::JsonSchema(text.clone()),
        (Kind::Schema, Value::Object(_)) => Grammar::JsonSchema(value.to_string()),
        (Kind::Schema, _) => return wrong("a JSON schema"),
        (Kind::Regex, Value::String(text)) => Grammar::Regex(text.clone()),
        (Kind::Regex, _) => return wrong("a regular expression"),
        (Kind::Ebnf, Value::String(text)) => {
            let lark = lark_of_ebnf(text);
            Grammar::Lark(lark.map_err(|bad| fields.wrong(name, &bad.to_string()))?)
        }
        (Kind::Ebnf, _) => return wrong("a grammar as a string"),
        (Kind::Choice, Value::Array(list)) if !list.is_empty() => {
            if let Some(at) = list.iter().position(|choice| !choice.is_string()) {
                let what = format!("must be a string, got {}", crate::fields::kind(&list[at]));
                return Err(fields.wrong(&format!("{name}[{at}]"), &what));
            }
            // A Lark string is quoted as a JSON string is.
            let choices: Vec<_> = list.iter().map(Value::to_string).collect();
            Grammar::Lark(format!("start: {}\n", choices.join(" | ")))
        }
        (Kind::Choice, _) => return wrong("a list of at least one string"),
        (Kind::AnyObject, Value::Bool(true)) => any_object(),
        (Kind::AnyObject, Value::Bool(false)) => return Ok(None),
        (Kind::AnyObject, _) => return wrong("a boolean"),
    };
    Ok(Some(grammar))
}

fn any_object() -> Grammar {
    Grammar::JsonSchema(json!({"type": "object"}).to_string())
}

/// OpenAI's field. A schema is followed whether it is `strict` or not; a strict one is [`closed`].
fn response_format(fields: &mut Fields) -> Result<Option<Wanted>, Invalid> {
    const FIELD: &str = "response_format";
    let Some(format) = fields.take_value(FIELD) else { return Ok(None) };
    let grammar = match (&format, format["type"].as_str()) {
        (Value::Object(_), Some("text")) => return Ok(None),
        (Value::Object(_), Some("json_object")) => any_object(),
        (Value::Object(_), Some("json_schema")) => {
            let schema = &format["json_schema"]["schema"];
            if !schema.is_object() {
                let what = format!("must be a JSON schema object, got {}", kind(schema));
                return Err(fields.wrong("response_format.json_schema.schema", &what));
            }
            let text = match &format["json_schema"]["strict"] {
                Value::Bool(true) => closed(schema).to_string(),
                Value::Bool(false) | Value::Null => schema.to_string(),
                other => {
                    let what = format!("must be a boolean, got {}", kind(other));
                    return Err(fields.wrong("response_format.json_schema.strict", &what));
                }
            };
            let field = fields.full_name("response_format.json_schema.schema");
            return Ok(Some(Wanted { field, grammar: Grammar::JsonSchema(text) }));
        }
        (Value::Object(_), _) => {
            let got = &format["type"];
            let what =
                format!("{got} is no format; want \"text\", \"json_object\" or \"json_schema\"");
            return Err(fields.wrong("response_format.type", &what));
        }
        (other, _) => {
            let what = format!("must be an object, got {}", kind(other));
            return Err(fields.wrong(FIELD, &what));
        }
    };
    Ok(Some(Wanted { field: fields.full_name(FIELD), grammar }))
}

/// Says whether grammars compile; made when the first comes.
#[derive(Debug, Default)]
pub struct Checker(Mutex<Option<Compiler>>);

impl Checker {
    fn compile(&self, grammar: &Grammar) -> Result<(), String> {
        let mut compiler = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let compiler = match &mut *compiler {
            Some(compiler) => compiler,
            none => none.insert(Compiler::of_bytes().map_err(|error| error.to_string())?),
        };
        compiler.matcher(grammar).map(drop).map_err(|error| error.to_string())
    }
}

/// Compiles what is wanted, on a blocking thread.
///
/// # Errors
/// It is too long or does not compile; the field is named, with the compiler's reason.
pub async fn check(checker: &Arc<Checker>, wanted: Option<&Wanted>) -> Result<(), Invalid> {
    let Some(Wanted { field, grammar }) = wanted.cloned() else { return Ok(()) };
    let len = grammar.text().len();
    if len > MAX_GRAMMAR {
        let what = format!("has {len} bytes; at most {MAX_GRAMMAR} fit");
        return Err(Invalid::field(field, &what));
    }
    let checker = Arc::clone(checker);
    let task = move || checker.compile(&grammar);
    let compiled = tokio::task::spawn_blocking(task).await.map_err(|error| error.to_string());
    compiled.and_then(|compiled| compiled).map_err(|why| Invalid::field(field, &why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(body: &Value) -> Result<Option<Wanted>, Invalid> {
        read(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn each_field_is_a_grammar() {
        let check = |body: Value, field: &str, grammar: Grammar| {
            let expected = Wanted { field: field.to_owned(), grammar };
            assert_eq!(wanted(&body).unwrap(), Some(expected), "{body}");
        };
        let schema = || Grammar::JsonSchema(r#"{"type":"object"}"#.to_owned());
        let format = json!({"type": "json_object"});
        check(json!({"response_format": format}), "response_format", schema());
        let named = json!({"name": "a", "strict": true, "schema": {"type": "object"}});
        let format = json!({"type": "json_schema", "json_schema": named});
        let field = "response_format.json_schema.schema";
        check(json!({"response_format": format}), field, schema());
        check(json!({"json_schema": "{\"type\":\"object\"}"}), "json_schema", schema());
        check(json!({"guided_json": {"type": "object"}}), "guided_json", schema());
        let regex = || Grammar::Regex("a+".to_owned());
        check(json!({"regex": "a+"}), "regex", regex());
        check(json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs.regex", regex());
        let lark = |text: &str| Grammar::Lark(text.to_owned());
        check(json!({"ebnf": "root ::= \"a\""}), "ebnf", lark("start: \"a\"\n"));
        let choice = json!({"guided_choice": ["yes", "n\"o"]});
        check(choice, "guided_choice", lark("start: \"yes\" | \"n\\\"o\"\n"));
        for none in [json!({}), json!({"response_format": {"type": "text"}, "regex": null})] {
            assert_eq!(wanted(&none).unwrap(), None);
        }
    }

    #[test]
    fn a_strict_schema_is_closed_at_every_depth() {
        let object = |properties: &Value, closed: bool| match closed {
            true => json!({"properties": properties, "additionalProperties": false}),
            false => json!({"properties": properties}),
        };
        let schema = |closed| object(&json!({"in": object(&json!({"n": {}}), closed)}), closed);
        for (strict, closed) in [(json!(true), true), (json!(false), false), (json!(null), false)] {
            let named = json!({"name": "a", "strict": strict, "schema": schema(false)});
            let format = json!({"type": "json_schema", "json_schema": named});
            let found = wanted(&json!({"response_format": format})).unwrap().unwrap();
            assert_eq!(found.grammar, Grammar::JsonSchema(schema(closed).to_string()));
        }
        let plain = wanted(&json!({"json_schema": schema(false)})).unwrap().unwrap();
        assert_eq!(plain.grammar, Grammar::JsonSchema(schema(false).to_string()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |body: Value, param: &str, part: &str| {
            let error = wanted(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains(part), "{error}");
        };
        let both = json!({"regex": "a", "response_format": {"type": "json_object"}});
        check(both, "regex", "together with `response_format`");
        check(json!({"response_format": "json"}), "response_format", "an object");
        check(json!({"response_format": {"type": "xml"}}), "response_format.type", "\"xml\"");
        let format = json!({"type": "json_schema", "json_schema": {"name": "a"}});
        let field = "response_format.json_schema.schema";
        check(json!({"response_format": format}), field, "null");
        let named = json!({"name": "a", "strict": "yes", "schema": {}});
        let format = json!({"type": "json_schema", "json_schema": named});
        let field = "response_format.json_schema.strict";
        check(json!({"response_format": format}), field, "a string");
        check(json!({"ebnf": "root ::= \"a"}), "ebnf", "line 1");
        check(json!({"guided_choice": ["a", 3]}), "guided_choice[1]", "a number");
        check(json!({"guided_choice": []}), "guided_choice", "at least one");
        check(json!({"regex": 3}), "regex", "a number");
    }

    #[test]
    fn a_grammar_that_does_not_compile_says_why() {
        let checker = Checker::default();
        assert_eq!(checker.compile(&Grammar::Regex("[ab]".to_owned())), Ok(()));
        let why = checker.compile(&Grammar::Regex("[ab".to_owned())).unwrap_err();
        assert!(why.contains("unclosed character class"), "{why}");
    }
}
