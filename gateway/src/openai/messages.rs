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
    parse_arguments(&mut message);
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

/// OpenAI sends a call's arguments as JSON in a string; templates iterate over them.
fn parse_arguments(message: &mut Map<String, Value>) {
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else { return };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = parsed;
        }
    }
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
