//! A Responses request as one of chat completions, and what the answer repeats of it.

use super::items;
use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::validate::{Neutral, refuse_unless_neutral};
use serde_json::{Map, Value, json};

/// Known to OpenAI, and not implemented.
const NOT_YET: &[(&str, Neutral)] = &[
    ("previous_response_id", Neutral::Absent),
    ("conversation", Neutral::Absent),
    ("store", Neutral::False),
    ("background", Neutral::False),
    ("prompt", Neutral::Absent),
    ("max_tool_calls", Neutral::Absent),
    ("top_logprobs", Neutral::Number(0.0)),
    ("context_management", Neutral::Empty),
];

/// Fields that the answer has as the request had them.
const REPEATED: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
];

/// The chat request, and the fields that the answer repeats.
///
/// # Errors
/// By this API's field.
pub fn chat(mut fields: Fields) -> Result<(Fields, Map<String, Value>), Invalid> {
    refuse_unless_neutral(&fields, NOT_YET)?;
    if fields.get("truncation").is_some_and(|value| value != "disabled") {
        return Err(fields.unsupported("truncation"));
    }
    let wants_logprobs = |list: &Vec<Value>| list.contains(&json!("message.output_text.logprobs"));
    if fields.get("include").and_then(Value::as_array).is_some_and(wants_logprobs) {
        return Err(fields.unsupported("include"));
    }
    let repeated = repeated(&fields);
    let mut messages = Vec::new();
    if let Some(instructions) = fields.take::<String>("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match fields.take_value("input") {
        Some(input) => items::add(input, &mut messages)?,
        None => return Err(fields.wrong("input", "is required")),
    }
    fields.set("messages", Value::Array(messages));
    fields.take_value("stream_options"); // of chat's, which has others
    if let Some(tokens) = fields.take_value("max_output_tokens") {
        fields.set("max_tokens", tokens);
    }
    tools(&mut fields)?;
    format(&mut fields)?;
    if let Some(effort) = fields.object("reasoning")?.take::<String>("effort")? {
        fields.set("reasoning_effort", json!(effort));
    }
    Ok((fields, repeated))
}

fn repeated(fields: &Fields) -> Map<String, Value> {
    let value = |name: &str| match (fields.get(name), name) {
        (Some(value), _) => value.clone(),
        (None, "metadata") => json!({}),
        (None, "parallel_tool_calls") => json!(true),
        (None, "reasoning") => json!({"effort": null, "summary": null}),
        (None, "text") => json!({"format": {"type": "text"}}),
        (None, "tool_choice") => json!("auto"),
        (None, "tools") => json!([]),
        (None, _) => Value::Null,
    };
    REPEATED.iter().map(|&name| (name.to_owned(), value(name))).collect()
}

/// `tools` and `tool_choice`; names and schemas are checked by chat.
fn tools(fields: &mut Fields) -> Result<(), Invalid> {
    let tools: Vec<Value> = fields.take_or("tools", Vec::new())?;
    let tools = tools.into_iter().enumerate().map(|(at, tool)| {
        let field = format!("tools[{at}]");
        match (&tool, tool["type"].as_str()) {
            (Value::Object(_), Some("function")) => {
                let mut function = tool;
                function.as_object_mut().and_then(|function| function.shift_remove("type"));
                Ok(json!({"type": "function", "function": function}))
            }
            (Value::Object(_), _) => {
                Err(Invalid::unsupported(format!("{field}.type"), &tool["type"].to_string()))
            }
            (other, _) => {
                Err(Invalid::field(field, &format!("must be an object, got {}", kind(other))))
            }
        }
    });
    let tools: Vec<Value> = tools.collect::<Result<_, _>>()?;
    fields.set("tools", Value::Array(tools));
    if let Some(choice) = fields.take_value("tool_choice") {
        let of_function = choice["type"] == "function" && choice["name"].is_string();
        let choice = match of_function {
            true => json!({"type": "function", "function": {"name": choice["name"]}}),
            false => choice,
        };
        fields.set("tool_choice", choice);
    }
    Ok(())
}

/// `text.format` is chat's `response_format`, but for its nesting.
fn format(fields: &mut Fields) -> Result<(), Invalid> {
    let Some(format) = fields.object("text")?.take::<Map<String, Value>>("format")? else {
        return Ok(());
    };
    let kind = format.get("type").cloned().unwrap_or_default();
    let nested = match kind.as_str() {
        Some("json_schema") => json!({"type": kind, "json_schema": format}),
        _ => json!({"type": kind}),
    };
    fields.set("response_format", nested);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<(Fields, Map<String, Value>), Invalid> {
        chat(Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn a_request_is_chats_and_is_repeated() {
        let tool = json!({"type": "function", "name": "sum", "parameters": {}, "strict": true});
        let (fields, repeated) = read(&json!({
            "instructions": "Be brief", "input": "1 + 2?", "max_output_tokens": 9, "tools": [tool],
            "tool_choice": {"type": "function", "name": "sum"}, "store": false,
            "reasoning": {"effort": "low"}, "stream_options": {"include_obfuscation": false},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
        }))
        .unwrap();
        let get = |name: &str| fields.get(name).cloned().unwrap_or_default();
        assert_eq!(
            get("messages"),
            json!([
            {"role": "system", "content": "Be brief"}, {"role": "user", "content": "1 + 2?"}])
        );
        let function = json!({"name": "sum", "parameters": {}, "strict": true});
        assert_eq!(get("tools"), json!([{"type": "function", "function": function}]));
        let choice = json!({"type": "function", "function": {"name": "sum"}});
        assert_eq!(get("tool_choice"), choice);
        assert_eq!((get("max_tokens"), get("reasoning_effort")), (json!(9), json!("low")));
        assert_eq!(get("response_format")["json_schema"]["name"], "n");
        assert_eq!(get("stream_options"), Value::Null);
        assert_eq!(repeated["tools"], json!([tool]));
        assert_eq!(repeated["instructions"], "Be brief");
        assert_eq!(repeated["parallel_tool_calls"], true);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |more: Value, param: &str| {
            let mut body = json!({"input": "x"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert_eq!(read(&body).unwrap_err().param.as_deref(), Some(param));
        };
        check(json!({"input": null}), "input");
        check(json!({"instructions": 3}), "instructions");
        check(json!({"previous_response_id": "resp_1"}), "previous_response_id");
        check(json!({"store": true}), "store");
        check(json!({"background": true}), "background");
        check(json!({"truncation": "auto"}), "truncation");
        check(json!({"include": ["message.output_text.logprobs"]}), "include");
        check(json!({"tools": [{"type": "web_search"}]}), "tools[0].type");
        check(json!({"tools": ["f"]}), "tools[0]");
        check(json!({"reasoning": {"effort": 3}}), "reasoning.effort");
        check(json!({"text": {"format": "json"}}), "text.format");
    }
}
