//! Chat messages as the template wants them: `content` a string, tool calls' arguments objects.

use crate::error::Invalid;
use crate::fields::kind;
use serde_json::{Map, Value};

/// Checks and normalises `messages`.
///
/// # Errors
/// The first element that is no message, by its path.
pub fn normalised(messages: Option<Value>) -> Result<Vec<Value>, Invalid> {
    match messages {
        None => Err(Invalid::field("messages", "is required")),
        Some(Value::Array(list)) if list.is_empty() => {
            Err(Invalid::field("messages", "is empty; want at least one message"))
        }
        Some(Value::Array(list)) => list.into_iter().enumerate().map(message).collect(),
        Some(other) => {
            Err(Invalid::field("messages", &format!("must be a list, got {}", kind(&other))))
        }
    }
}

fn message((at, value): (usize, Value)) -> Result<Value, Invalid> {
    let Value::Object(mut message) = value else {
        let what = format!("must be an object, got {}", kind(&value));
        return Err(Invalid::field(format!("messages[{at}]"), &what));
    };
    match message.get("role") {
        Some(Value::String(_)) => {}
        Some(other) => {
            let what = format!("must be a string, got {}", kind(other));
            return Err(Invalid::field(format!("messages[{at}].role"), &what));
        }
        None => return Err(Invalid::field(format!("messages[{at}].role"), "is required")),
    }
    let content = match message.swap_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => joined(&parts, at)?,
        Some(Value::Null) | None if message["role"] == "assistant" => String::new(),
        Some(Value::Null) | None => {
            return Err(Invalid::field(format!("messages[{at}].content"), "is required"));
        }
        Some(other) => {
            let what = format!("must be a string or a list of parts, got {}", kind(&other));
            return Err(Invalid::field(format!("messages[{at}].content"), &what));
        }
    };
    message.insert("content".into(), Value::String(content));
    tool_calls(&mut message, at)?;
    Ok(Value::Object(message))
}

/// The texts of the parts, one a line, as vLLM joins them.
fn joined(parts: &[Value], at: usize) -> Result<String, Invalid> {
    let texts = parts.iter().enumerate().map(|(part_at, part)| {
        let field = |name| format!("messages[{at}].content[{part_at}]{name}");
        match (part, part["type"].as_str()) {
            (Value::String(text), _) => Ok(text.as_str()),
            (_, Some("text")) => match part["text"].as_str() {
                Some(text) => Ok(text),
                None => Err(Invalid::field(field(".text"), "must be a string")),
            },
            (_, Some(other)) => Err(Invalid::unsupported(field(".type"), &format!("{other:?}"))),
            (_, None) => Err(Invalid::field(field(".type"), "is required")),
        }
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// Checks the calls of an earlier turn. An empty list goes: templates look whether there is one.
fn tool_calls(message: &mut Map<String, Value>, at: usize) -> Result<(), Invalid> {
    let field = format!("messages[{at}].tool_calls");
    match message.get_mut("tool_calls") {
        None => return Ok(()),
        Some(Value::Array(calls)) if !calls.is_empty() => {
            let mut calls = calls.iter_mut().enumerate();
            return calls.try_for_each(|(at, call)| tool_call(call, &format!("{field}[{at}]")));
        }
        Some(Value::Array(_) | Value::Null) => {}
        Some(other) => {
            return Err(Invalid::field(field, &format!("must be a list, got {}", kind(other))));
        }
    }
    message.shift_remove("tool_calls");
    Ok(())
}

/// OpenAI sends a call's arguments as JSON in a string; templates iterate over them. A model's own
/// text that is no JSON stays as it is: it was cut, or the model erred, and the turn goes on.
fn tool_call(call: &mut Value, field: &str) -> Result<(), Invalid> {
    let wrong = |path: &str, want: &str, got: &Value| {
        let what = format!("must be {want}, got {}", kind(got));
        Err(Invalid::field(format!("{field}{path}"), &what))
    };
    let Some(Value::Object(function)) = call.get_mut("function") else {
        return wrong(".function", "an object", &call["function"]);
    };
    match function.get("name") {
        Some(Value::String(_)) => {}
        name => return wrong(".function.name", "a string", name.unwrap_or(&Value::Null)),
    }
    let arguments = function.entry("arguments").or_insert(Value::Null);
    match arguments {
        Value::Object(_) => {}
        Value::Null => *arguments = Value::Object(Map::new()),
        Value::String(text) if text.trim().is_empty() => *arguments = Value::Object(Map::new()),
        Value::String(text) => {
            if let Ok(parsed) = serde_json::from_str::<Map<String, Value>>(text) {
                *arguments = Value::Object(parsed);
            }
        }
        other => return wrong(".function.arguments", "a string of JSON", other),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contents_become_strings() {
        let messages = json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        ]);
        let normal = Value::Array(normalised(Some(messages)).unwrap());
        insta::assert_snapshot!(normal, @r#"[{"role":"user","content":"a\nb"},{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}],"content":""}]"#);
    }

    #[test]
    fn calls_of_earlier_turns_are_ready_for_a_template() {
        let turn = |calls: Value| {
            let list = json!([{"role": "assistant", "content": null, "tool_calls": calls}]);
            normalised(Some(list)).map(|mut list| list.remove(0))
        };
        let call = |function: Value| json!([{"id": "1", "type": "function", "function": function}]);
        let arguments = |given: Value| {
            let turn = turn(call(json!({"name": "f", "arguments": given}))).unwrap();
            turn["tool_calls"][0]["function"]["arguments"].clone()
        };
        assert_eq!(arguments(json!("{\"b\": 1, \"a\": 2}")).to_string(), "{\"b\":1,\"a\":2}");
        assert_eq!(arguments(json!({"a": 1})), json!({"a": 1}));
        assert_eq!(arguments(json!("")), json!({}));
        assert_eq!(arguments(json!("{\"a\": ")), json!("{\"a\": "), "what a model wrote stays");
        for none in [json!([]), Value::Null] {
            assert_eq!(turn(none).unwrap(), json!({"role": "assistant", "content": ""}));
        }
        let check = |calls: Value, path: &str| {
            let param = turn(calls).unwrap_err().param.unwrap();
            assert_eq!(param, format!("messages[0].tool_calls{path}"));
        };
        check(json!({}), "");
        check(json!([3]), "[0].function");
        check(call(json!("f")), "[0].function");
        check(call(json!({})), "[0].function.name");
        check(call(json!({"name": "f", "arguments": 3})), "[0].function.arguments");
    }

    #[test]
    fn what_is_no_message_is_named() {
        let check = |messages: Value, field: &str| {
            let param = normalised(Some(messages)).unwrap_err().param;
            assert_eq!(param.as_deref(), Some(field));
        };
        check(json!("hi"), "messages");
        check(json!([]), "messages");
        check(json!([{"role": "user", "content": "x"}, 3]), "messages[1]");
        check(json!([{"content": "x"}]), "messages[0].role");
        check(json!([{"role": 1, "content": "x"}]), "messages[0].role");
        check(json!([{"role": "user"}]), "messages[0].content");
        check(json!([{"role": "user", "content": {}}]), "messages[0].content");
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
        check(image, "messages[0].content[0].type");
        let missing = json!([{"role": "user", "content": [{"type": "text"}]}]);
        check(missing, "messages[0].content[0].text");
        assert_eq!(normalised(None).unwrap_err().param.as_deref(), Some("messages"));
    }
}
