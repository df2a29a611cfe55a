//! The fields of a chat request about tools: which there are, and whether the model may call them.

use crate::blocks::letters;
use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::structured::Wanted;
use crate::tools::Format;
use serde_json::Value;
use shared::request::Grammar;
use std::sync::Arc;

/// Longest name of a tool, bytes: OpenAI's bound.
pub const NAME_MAX: usize = 64;

/// Tools of a request.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    /// For the chat template, as the client gave them; `None` where there are none.
    pub definitions: Option<Vec<Value>>,
    /// Names of those that the model may call; empty where calls are not looked for.
    pub callable: Arc<[String]>,
    /// Whether calls after the first are left out: `parallel_tool_calls` is false.
    pub one_call: bool,
    /// Those of which one has to be called, with the schemas of their arguments; empty where the
    /// model may answer.
    pub required: Vec<(String, Value)>,
}

/// Whether the model calls tools.
enum Choice {
    Never,
    Maybe,
    /// One of them, or the one of this name.
    Always(Option<String>),
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
///
/// With `none` the tools are still in the prompt, which so stays the same over a conversation's
/// turns, and what the model writes is text.
///
/// # Errors
/// By field.
pub fn read(fields: &mut Fields) -> Result<Tools, Invalid> {
    let choice = choice(fields)?;
    let one_call = !fields.take_or("parallel_tool_calls", true)?;
    let definitions: Vec<Value> = fields.take_or("tools", Vec::new())?;
    let names = definitions.iter().enumerate().map(|(at, tool)| name(tool, at));
    let names: Vec<String> = names.collect::<Result<_, _>>()?;
    let schemas = definitions.iter().map(|tool| tool["function"]["parameters"].clone());
    let all = names.iter().cloned().zip(schemas);
    let required: Vec<_> = match &choice {
        Choice::Never | Choice::Maybe => Vec::new(),
        Choice::Always(None) => all.collect(),
        Choice::Always(Some(named)) => all.filter(|(name, _)| name == named).take(1).collect(),
    };
    if let (Choice::Always(named), []) = (&choice, &required[..]) {
        let what = match named {
            Some(named) => format!("{named:?} is not among `tools`"),
            None => "\"required\" needs at least one tool in `tools`".to_owned(),
        };
        return Err(fields.wrong("tool_choice", &what));
    }
    Ok(Tools {
        definitions: (!definitions.is_empty()).then_some(definitions),
        callable: if matches!(choice, Choice::Never) { Arc::default() } else { names.into() },
        // A choice by name is of one call, as OpenAI has it.
        one_call: one_call || matches!(choice, Choice::Always(Some(_))),
        required,
    })
}

impl Tools {
    /// What an output has to be where one of the tools has to be called.
    pub fn wanted(&self, format: Format) -> Option<Wanted> {
        let lark = || Grammar::Lark(format.enforcing(&self.required, !self.one_call));
        let field = || "tool_choice".to_owned();
        (!self.required.is_empty()).then(|| Wanted { field: field(), grammar: lark() })
    }
}

fn choice(fields: &mut Fields) -> Result<Choice, Invalid> {
    const WANT: &str = "want \"auto\", \"none\", \"required\" or a function by name";
    let Some(choice) = fields.take_value("tool_choice") else { return Ok(Choice::Maybe) };
    match (choice.as_str(), choice["type"].as_str(), choice["function"]["name"].as_str()) {
        (Some("auto"), ..) => Ok(Choice::Maybe),
        (Some("none"), ..) => Ok(Choice::Never),
        (Some("required"), ..) => Ok(Choice::Always(None)),
        (_, Some("function"), Some(name)) => Ok(Choice::Always(Some(name.to_owned()))),
        (_, Some(kind @ ("allowed_tools" | "custom")), _) => {
            let what = format!("a choice of type {kind:?} is not supported yet; {WANT}");
            let code = Some("unsupported_parameter");
            Err(Invalid { code, ..fields.wrong("tool_choice", &what) })
        }
        _ => Err(fields.wrong("tool_choice", &format!("{choice} is no choice; {WANT}"))),
    }
}

/// Checks one tool as far as its name, which calls are matched with, and its types.
fn name(tool: &Value, at: usize) -> Result<String, Invalid> {
    let wrong = |path: &str, what: &str| Err(Invalid::field(format!("tools[{at}]{path}"), what));
    let function = &tool["function"];
    match (tool, tool["type"].as_str(), function) {
        (Value::Object(_), Some("function"), Value::Object(_)) => {}
        (Value::Object(_), Some("function"), other) => {
            return wrong(".function", &format!("must be an object, got {}", kind(other)));
        }
        (Value::Object(_), Some(other), _) => {
            return wrong(".type", &format!("is {other:?}; want \"function\""));
        }
        (Value::Object(_), None, _) => return wrong(".type", "must be \"function\""),
        (other, ..) => return wrong("", &format!("must be an object, got {}", kind(other))),
    }
    if !matches!(function["parameters"], Value::Null | Value::Object(_)) {
        let what = format!("must be a JSON schema object, got {}", kind(&function["parameters"]));
        return wrong(".function.parameters", &what);
    }
    match function["name"].as_str() {
        Some(name) if (1..=NAME_MAX).contains(&name.len()) => Ok(name.to_owned()),
        Some(name) => {
            let what = format!("has {} bytes; want 1 to {NAME_MAX}", name.len());
            wrong(".function.name", &what)
        }
        None => wrong(".function.name", "must be a string"),
    }
}

/// An id for a call of a tool: `call_` and 24 random letters and digits.
pub fn call_id() -> String {
    format!("call_{}", letters())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tools(body: &Value) -> Result<Tools, Invalid> {
        read(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn tools_stay_as_they_came() {
        let tool = json!({"type": "function", "function": {"strict": true, "name": "a.b"}, "x": 1});
        let read = tools(&json!({"tools": [tool], "tool_choice": "auto"})).unwrap();
        assert_eq!(read.definitions, Some(vec![tool.clone()]));
        assert_eq!((&*read.callable, read.one_call), (&["a.b".to_owned()][..], false));
        let body = json!({"tools": [tool], "tool_choice": "none", "parallel_tool_calls": false});
        let read = tools(&body).unwrap();
        assert!(read.definitions.is_some() && read.callable.is_empty() && read.one_call);
        assert!(tools(&json!({"tools": []})).unwrap().definitions.is_none());
    }

    #[test]
    fn a_choice_that_must_be_kept_is_a_grammar() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let list = json!([tool("f"), tool("g")]);
        let read = tools(&json!({"tools": list, "tool_choice": "required"})).unwrap();
        assert!(read.required.len() == 2 && !read.one_call);
        assert!(read.wanted(Format::HERMES).is_some());
        let named = json!({"type": "function", "function": {"name": "g"}});
        let read = tools(&json!({"tools": list, "tool_choice": named})).unwrap();
        assert!(read.one_call && read.required == [("g".to_owned(), Value::Null)]);
        let read = tools(&json!({"tools": list})).unwrap();
        assert!(read.wanted(Format::HERMES).is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |body: Value, param: &str, part: &str| {
            let error = tools(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(error.message.contains(part), "{error}");
            error.code
        };
        let body = json!({"tool_choice": {"type": "custom"}});
        assert_eq!(check(body, "tool_choice", "custom"), Some("unsupported_parameter"));
        let named = json!({"type": "function", "function": {"name": "f"}});
        check(json!({"tool_choice": named}), "tool_choice", "\"f\" is not among");
        check(json!({"tool_choice": "required"}), "tool_choice", "at least one tool");
        check(json!({"tool_choice": "always"}), "tool_choice", "\"always\" is no choice");
        check(json!({"tool_choice": 3}), "tool_choice", "3 is no choice");
        check(json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "boolean");
        check(json!({"tools": {}}), "tools", "sequence");
        let one = |tool| json!({"tools": [tool]});
        check(one(json!("f")), "tools[0]", "a string");
        check(one(json!({})), "tools[0].type", "must be");
        check(one(json!({"type": "web_search"})), "tools[0].type", "web_search");
        check(one(json!({"type": "function"})), "tools[0].function", "null");
        let function = |function| one(json!({"type": "function", "function": function}));
        check(function(json!({})), "tools[0].function.name", "a string");
        check(function(json!({"name": ""})), "tools[0].function.name", "0 bytes");
        let schema = json!({"name": "f", "parameters": "{}"});
        check(function(schema), "tools[0].function.parameters", "JSON schema");
    }
}
