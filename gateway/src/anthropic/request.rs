//! A Messages request as one of chat completions. Fields that both have, and ours beside the
//! API's (`seed`, `chat_template_kwargs`, …), pass as they are.

use crate::error::Invalid;
use crate::fields::{Fields, kind};
use crate::validate::{Neutral, refuse_unless_neutral};
use serde_json::{Map, Value, json};

/// Known to Anthropic, and not implemented.
const NOT_YET: &[(&str, Neutral)] = &[
    ("container", Neutral::Absent),
    ("context_management", Neutral::Absent),
    ("mcp_servers", Neutral::Empty),
];

/// The chat request of `POST /v1/messages`.
///
/// # Errors
/// By Anthropic's field.
pub fn create(mut fields: Fields) -> Result<Fields, Invalid> {
    if fields.get("max_tokens").is_none() {
        return Err(fields.wrong("max_tokens", "is required"));
    }
    if let Some(stop) = fields.take::<Vec<String>>("stop_sequences")? {
        fields.set("stop", json!(stop));
    }
    conversation(fields)
}

/// The same, of `POST /v1/messages/count_tokens`, which bounds no output.
///
/// # Errors
/// By Anthropic's field.
pub fn conversation(mut fields: Fields) -> Result<Fields, Invalid> {
    refuse_unless_neutral(&fields, NOT_YET)?;
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = fields.take_value("system") {
        let content = texts(system, "system")?;
        messages.push(json!({"role": "system", "content": content}));
    }
    for (at, message) in list(&mut fields, "messages")?.into_iter().enumerate() {
        turn(message, &format!("messages[{at}]"), &mut messages)?;
    }
    if messages.last().is_some_and(|last| last["role"] == "assistant") {
        let what = "to go on with a message of the assistant is not supported yet; end with one \
                    of the user";
        return Err(fields.wrong("messages", what));
    }
    fields.set("messages", Value::Array(messages));
    tools(&mut fields)?;
    thinking(&mut fields)?;
    let format = fields.object("output_config")?.take_value("format");
    if let Some(format) = fields.take_value("output_format").or(format) {
        let wrapped = json!({"name": "output", "strict": true, "schema": format["schema"]});
        fields.set("response_format", json!({"type": format["type"], "json_schema": wrapped}));
    }
    Ok(fields)
}

/// One turn, as the one or more messages that chat makes of it: results of tools are messages.
fn turn(message: Value, field: &str, messages: &mut Vec<Value>) -> Result<(), Invalid> {
    let Value::Object(mut message) = message else {
        return Err(Invalid::field(field, &format!("must be an object, got {}", kind(&message))));
    };
    let content = message.swap_remove("content").unwrap_or_default();
    let field_of_content = format!("{field}.content");
    match (message.get("role").and_then(Value::as_str), content) {
        (Some(role @ ("user" | "assistant" | "system")), Value::String(text)) => {
            messages.push(json!({"role": role, "content": text}));
            Ok(())
        }
        (Some("user"), Value::Array(blocks)) => of_user(blocks, &field_of_content, messages),
        (Some("assistant"), Value::Array(blocks)) => {
            messages.push(of_assistant(blocks, &field_of_content)?);
            Ok(())
        }
        (Some("system"), content @ Value::Array(_)) => {
            let content = texts(content, &field_of_content)?;
            messages.push(json!({"role": "system", "content": content}));
            Ok(())
        }
        (Some("user" | "assistant" | "system"), other) => {
            let what = format!("must be a string or a list of blocks, got {}", kind(&other));
            Err(Invalid::field(field_of_content, &what))
        }
        (_, _) => Err(Invalid::field(
            format!("{field}.role"),
            "must be \"user\", \"assistant\" or \"system\"",
        )),
    }
}

fn of_user(blocks: Vec<Value>, field: &str, messages: &mut Vec<Value>) -> Result<(), Invalid> {
    let mut said: Vec<String> = Vec::new();
    let speak = |said: &mut Vec<String>, messages: &mut Vec<Value>| {
        if !said.is_empty() {
            let content = std::mem::take(said).join("\n");
            messages.push(json!({"role": "user", "content": content}));
        }
    };
    let is_empty = blocks.is_empty();
    for (at, mut block) in blocks.into_iter().enumerate() {
        let field = format!("{field}[{at}]");
        match block["type"].as_str() {
            Some("text") => said.push(string(&block, "text", &field)?),
            Some("tool_result") => {
                speak(&mut said, messages);
                let id = string(&block, "tool_use_id", &field)?;
                let content = match block["content"].take() {
                    Value::Null => String::new(),
                    content => texts(content, &format!("{field}.content"))?,
                };
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            _ => return Err(unknown(&block, &field)),
        }
    }
    if is_empty {
        return Err(Invalid::field(field, "is empty; want at least one block"));
    }
    speak(&mut said, messages);
    Ok(())
}

fn of_assistant(blocks: Vec<Value>, field: &str) -> Result<Value, Invalid> {
    let (mut said, mut thought, mut calls) = (Vec::new(), String::new(), Vec::new());
    for (at, mut block) in blocks.into_iter().enumerate() {
        let field = format!("{field}[{at}]");
        match block["type"].as_str() {
            Some("text") => said.push(string(&block, "text", &field)?),
            Some("thinking") => thought.push_str(&string(&block, "thinking", &field)?),
            Some("redacted_thinking") => {} // nobody here can read it
            Some("tool_use") => {
                let (id, name) = (string(&block, "id", &field)?, string(&block, "name", &field)?);
                let input = match block["input"].take() {
                    input @ Value::Object(_) => input,
                    other => {
                        let what = format!("must be an object, got {}", kind(&other));
                        return Err(Invalid::field(format!("{field}.input"), &what));
                    }
                };
                let function = json!({"name": name, "arguments": input});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            _ => return Err(unknown(&block, &field)),
        }
    }
    let mut message = json!({"role": "assistant", "content": said.join("\n")});
    if !thought.is_empty() {
        message["reasoning_content"] = json!(thought);
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    Ok(message)
}

/// Text that is a string, or blocks of text.
fn texts(content: Value, field: &str) -> Result<String, Invalid> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(blocks) => {
            let texts = blocks.iter().enumerate().map(|(at, block)| {
                let field = format!("{field}[{at}]");
                match block["type"].as_str() {
                    Some("text") => string(block, "text", &field),
                    _ => Err(unknown(block, &field)),
                }
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        other => {
            let what = format!("must be a string or a list of blocks, got {}", kind(&other));
            Err(Invalid::field(field, &what))
        }
    }
}

/// `tools`, and `tool_choice` with what it says of parallel calls.
fn tools(fields: &mut Fields) -> Result<(), Invalid> {
    if fields.get("tools").is_some() {
        let tools = list(fields, "tools")?.into_iter().enumerate();
        let tools: Vec<Value> =
            tools.map(|(at, tool)| function(tool, at)).collect::<Result<_, _>>()?;
        fields.set("tools", Value::Array(tools));
    }
    let mut choice = fields.object("tool_choice")?;
    if choice.take_or("disable_parallel_tool_use", false)? {
        fields.set("parallel_tool_calls", json!(false));
    }
    let name: Option<String> = choice.take("name")?;
    let kind: Option<String> = choice.take("type")?;
    let chosen = match (kind.as_deref(), name) {
        (None, _) => return Ok(()),
        (Some(same @ ("auto" | "none")), _) => json!(same),
        (Some("any"), _) => json!("required"),
        (Some("tool"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        (Some("tool"), None) => return Err(choice.wrong("name", "is required")),
        (Some(other), _) => {
            let what =
                format!("{other:?} is no choice; want \"auto\", \"any\", \"tool\" or \"none\"");
            return Err(choice.wrong("type", &what));
        }
    };
    fields.set("tool_choice", chosen);
    Ok(())
}

/// One tool of the client's as chat's function; names and schemas are checked there.
fn function(mut tool: Value, at: usize) -> Result<Value, Invalid> {
    let field = format!("tools[{at}]");
    if !tool.is_object() {
        return Err(Invalid::field(field, &format!("must be an object, got {}", kind(&tool))));
    }
    if !matches!(tool["type"].as_str(), None | Some("custom")) {
        return Err(Invalid::unsupported(format!("{field}.type"), &tool["type"].to_string()));
    }
    let mut function = Map::new();
    for (theirs, ours) in
        [("name", "name"), ("description", "description"), ("input_schema", "parameters")]
    {
        match tool[theirs].take() {
            Value::Null => {}
            value => drop(function.insert(ours.to_owned(), value)),
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

/// `thinking` sets the variable that templates look at; budgets are the model's own affair.
fn thinking(fields: &mut Fields) -> Result<(), Invalid> {
    let mut thinking = fields.object("thinking")?;
    let thinks = match thinking.take::<String>("type")?.as_deref() {
        None => return Ok(()),
        Some("enabled" | "adaptive" | "between_tools") => true,
        Some("disabled") => false,
        Some(other) => {
            let what =
                format!("{other:?} is unknown; want \"enabled\", \"adaptive\" or \"disabled\"");
            return Err(thinking.wrong("type", &what));
        }
    };
    let mut kwargs: Map<String, Value> = fields.take_or("chat_template_kwargs", Map::new())?;
    kwargs.entry("enable_thinking").or_insert(json!(thinks));
    fields.set("chat_template_kwargs", Value::Object(kwargs));
    Ok(())
}

fn list(fields: &mut Fields, name: &str) -> Result<Vec<Value>, Invalid> {
    match fields.take_value(name) {
        None => Err(fields.wrong(name, "is required")),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(fields.wrong(name, &format!("must be a list, got {}", kind(&other)))),
    }
}

fn string(block: &Value, name: &str, field: &str) -> Result<String, Invalid> {
    match &block[name] {
        Value::String(text) => Ok(text.clone()),
        other => {
            let what = format!("must be a string, got {}", kind(other));
            Err(Invalid::field(format!("{field}.{name}"), &what))
        }
    }
}

/// A block that this place does not take.
fn unknown(block: &Value, field: &str) -> Invalid {
    match &block["type"] {
        Value::String(kind) => Invalid::unsupported(format!("{field}.type"), &format!("{kind:?}")),
        other => {
            let what = format!("must be a string, got {}", kind(other));
            Invalid::field(format!("{field}.type"), &what)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(body: &Value) -> Result<Fields, Invalid> {
        create(Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn a_conversation_with_tools_is_chats() {
        let body = json!({
            "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}],
            "messages": [
                {"role": "user", "content": "1 + 2?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "Well"},
                    {"type": "tool_use", "id": "t1", "name": "sum", "input": {"of": [1, 2]}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1",
                     "content": [{"type": "text", "text": "3"}]},
                    {"type": "text", "text": "So?"}]},
            ],
            "tools": [{"name": "sum", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "thinking": {"type": "disabled"},
            "stop_sequences": ["x"],
            "max_tokens": 9,
            "temperature": 0.5,
        });
        let chat = translated(&body).unwrap();
        let call = json!({"id": "t1", "type": "function",
            "function": {"name": "sum", "arguments": {"of": [1, 2]}}});
        assert_eq!(
            chat.get("messages").unwrap(),
            &json!([
                {"role": "system", "content": "Be\nbrief"},
                {"role": "user", "content": "1 + 2?"},
                {"role": "assistant", "content": "Well", "reasoning_content": "hm",
                 "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "t1", "content": "3"},
                {"role": "user", "content": "So?"},
            ])
        );
        let tool = json!({"type": "function",
            "function": {"name": "sum", "parameters": {"type": "object"}}});
        assert_eq!(chat.get("tools").unwrap(), &json!([tool]));
        assert_eq!(chat.get("tool_choice").unwrap(), "required");
        assert_eq!(chat.get("parallel_tool_calls").unwrap(), false);
        assert_eq!(chat.get("chat_template_kwargs").unwrap(), &json!({"enable_thinking": false}));
        assert_eq!(chat.get("stop").unwrap(), &json!(["x"]));
        assert_eq!(chat.get("temperature").unwrap(), 0.5);
    }

    #[test]
    fn what_is_wrong_is_named_in_anthropics_words() {
        let check = |more: Value, param: &str| {
            let mut body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 9});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert_eq!(translated(&body).unwrap_err().param.as_deref(), Some(param), "{more}");
        };
        let turn =
            |role: &str, content: Value| json!({"messages": [{"role": role, "content": content}]});
        let block = |role: &str, block: Value| turn(role, json!([block]));
        check(json!({"max_tokens": null}), "max_tokens");
        check(json!({"stop_sequences": "x"}), "stop_sequences");
        check(json!({"messages": null}), "messages");
        check(json!({"messages": [3]}), "messages[0]");
        check(turn("tool", json!("x")), "messages[0].role");
        check(turn("system", json!([3])), "messages[0].content[0].type");
        check(turn("user", Value::Null), "messages[0].content");
        check(turn("user", json!([])), "messages[0].content");
        check(turn("assistant", json!("Sure, ")), "messages");
        check(block("user", json!(3)), "messages[0].content[0].type");
        check(block("user", json!({"type": "image"})), "messages[0].content[0].type");
        check(block("user", json!({"type": "text"})), "messages[0].content[0].text");
        let result = |more| block("user", json!({"type": "tool_result", "tool_use_id": more}));
        check(result(json!(1)), "messages[0].content[0].tool_use_id");
        let call = json!({"type": "tool_use", "id": "a", "name": "f", "input": "{}"});
        check(block("assistant", call), "messages[0].content[0].input");
        check(json!({"system": [{"type": "text", "text": 1}]}), "system[0].text");
        check(json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "tools[0].type");
        check(json!({"tool_choice": {"type": "tool"}}), "tool_choice.name");
        check(json!({"tool_choice": {"type": "some"}}), "tool_choice.type");
        check(json!({"thinking": {"type": "much"}}), "thinking.type");
        check(json!({"mcp_servers": [{}]}), "mcp_servers");
    }
}
