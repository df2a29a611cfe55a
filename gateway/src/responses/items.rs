//! Items of `input` as chat's messages.
//!
//! What the model said in one turn is several items (reasoning, a message, calls) and one message.

use crate::error::Invalid;
use crate::fields::kind;
use serde_json::{Value, json};

/// The messages of `input`, a string or a list of items, added to `messages`.
///
/// # Errors
/// By the item's field.
pub fn add(input: Value, messages: &mut Vec<Value>) -> Result<(), Invalid> {
    match input {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for (at, item) in items.into_iter().enumerate() {
                one(&item, &format!("input[{at}]"), messages)?;
            }
        }
        other => {
            let what = format!("must be a string or a list of items, got {}", kind(&other));
            return Err(Invalid::field("input", &what));
        }
    }
    Ok(())
}

fn one(item: &Value, field: &str, messages: &mut Vec<Value>) -> Result<(), Invalid> {
    if !item.is_object() {
        return Err(Invalid::field(field, &format!("must be an object, got {}", kind(item))));
    }
    match &item["type"] {
        Value::Null => message(item, field, messages),
        Value::String(name) => match name.as_str() {
            "message" => message(item, field, messages),
            "reasoning" => reasoning(item, field, messages),
            "function_call" => {
                let (id, name) = (string(item, "call_id", field)?, string(item, "name", field)?);
                let arguments = string(item, "arguments", field)?;
                let function = json!({"name": name, "arguments": arguments});
                let call = json!({"id": id, "type": "function", "function": function});
                let turn = turn(messages, |_| true);
                match turn["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => turn["tool_calls"] = json!([call]),
                }
                Ok(())
            }
            "function_call_output" => {
                let id = string(item, "call_id", field)?;
                let content = texts(&item["output"], &["input_text"], &format!("{field}.output"))?;
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
                Ok(())
            }
            other => Err(Invalid::unsupported(format!("{field}.type"), &format!("{other:?}"))),
        },
        other => {
            let what = format!("must be a string, got {}", kind(other));
            Err(Invalid::field(format!("{field}.type"), &what))
        }
    }
}

fn message(item: &Value, field: &str, messages: &mut Vec<Value>) -> Result<(), Invalid> {
    let content = || {
        let types = &["input_text", "output_text", "text"];
        texts(&item["content"], types, &format!("{field}.content"))
    };
    match string(item, "role", field)?.as_str() {
        "assistant" => {
            let content = content()?;
            let begun = |turn: &Value| turn["content"] == "" && turn["tool_calls"].is_null();
            turn(messages, begun)["content"] = json!(content);
        }
        "user" => messages.push(json!({"role": "user", "content": content()?})),
        // Templates know one role for what is above the user.
        "system" | "developer" => messages.push(json!({"role": "system", "content": content()?})),
        other => {
            let what =
                format!("is {other:?}; want \"user\", \"assistant\", \"system\" or \"developer\"");
            return Err(Invalid::field(format!("{field}.role"), &what));
        }
    }
    Ok(())
}

/// Thoughts open a turn; a summary stands in where there is no more of them.
fn reasoning(item: &Value, field: &str, messages: &mut Vec<Value>) -> Result<(), Invalid> {
    let thought = match (&item["content"], &item["summary"]) {
        (Value::Null, Value::Null) => String::new(),
        (Value::Null, summary) => texts(summary, &["summary_text"], &format!("{field}.summary"))?,
        (content, _) => texts(content, &["reasoning_text"], &format!("{field}.content"))?,
    };
    if !thought.is_empty() {
        let message = json!({"role": "assistant", "content": "", "reasoning_content": thought});
        messages.push(message);
    }
    Ok(())
}

/// The assistant's turn that an item belongs to: the last message, if it `fits`, or a new one.
fn turn(messages: &mut Vec<Value>, fits: impl Fn(&Value) -> bool) -> &mut Value {
    let goes_on = messages.last().is_some_and(|last| last["role"] == "assistant" && fits(last));
    if !goes_on {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    messages.last_mut().expect("one was there or was pushed")
}

/// Text that is a string, or parts of one of the `types`, one a line.
fn texts(content: &Value, types: &[&str], field: &str) -> Result<String, Invalid> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().enumerate().map(|(at, part)| {
                let field = format!("{field}[{at}]");
                match string(part, "type", &field)? {
                    kind if types.contains(&kind.as_str()) => string(part, "text", &field),
                    other => {
                        Err(Invalid::unsupported(format!("{field}.type"), &format!("{other:?}")))
                    }
                }
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        other => {
            let what = format!("must be a string or a list of parts, got {}", kind(other));
            Err(Invalid::field(field, &what))
        }
    }
}

fn string(object: &Value, name: &str, field: &str) -> Result<String, Invalid> {
    match &object[name] {
        Value::String(text) => Ok(text.clone()),
        other => {
            let what = format!("must be a string, got {}", kind(other));
            Err(Invalid::field(format!("{field}.{name}"), &what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_a_turn_are_one_message() {
        let mut messages = Vec::new();
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "sum", "arguments": "{}"});
        let input = json!([
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": [{"type": "input_text", "text": "1 + 2?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "Well", "annotations": []}]},
            call("a"), call("b"),
            {"type": "function_call_output", "call_id": "a", "output": "3"},
            call("c"),
        ]);
        add(input, &mut messages).unwrap();
        let called = |id: &str| json!({"id": id, "type": "function", "function": {"name": "sum", "arguments": "{}"}});
        assert_eq!(
            Value::Array(messages),
            json!([
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "1 + 2?"},
                {"role": "assistant", "content": "Well", "reasoning_content": "hm",
                 "tool_calls": [called("a"), called("b")]},
                {"role": "tool", "tool_call_id": "a", "content": "3"},
                {"role": "assistant", "content": "", "tool_calls": [called("c")]},
            ])
        );
    }

    #[test]
    fn what_is_no_item_is_named() {
        let check = |input: Value, param: &str| {
            let error = add(input, &mut Vec::new()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        };
        check(json!(3), "input");
        check(json!([3]), "input[0]");
        check(json!([{}]), "input[0].role");
        check(json!([{"role": "tool", "content": "x"}]), "input[0].role");
        check(json!([{"role": "user"}]), "input[0].content");
        check(json!([{"type": 3}]), "input[0].type");
        check(json!([{"type": "item_reference", "id": "x"}]), "input[0].type");
        let image = json!([{"role": "user", "content": [{"type": "input_image"}]}]);
        check(image, "input[0].content[0].type");
        check(json!([{"type": "function_call", "call_id": "a", "name": 1}]), "input[0].name");
        check(json!([{"type": "function_call_output", "call_id": "a"}]), "input[0].output");
    }
}
