//! Tools and thoughts from the request to the answer: the prompt, the stream, the whole message.

use crate::shapes::{done, each, head, speaking, streamed, text, tokens};
use crate::support::{Gateway, talking_model};
use gateway::fields::Fields;
use gateway::model::Model;
use gateway::openai::chat::{ChatShape, read};
use gateway::openai::knobs::Delivery;
use gateway::ring::Event;
use gateway::stream::{outputs, whole};
use serde_json::{Value, json};
use shared::request::Finish;
use std::sync::Arc;

const SAID: &str = "<think>\nHé asks\n</think>\n\nSure.\n<tool_call>\n{\"name\": \"sum\", \
                    \"arguments\": {\"of\": [1, 2]}}\n</tool_call>\n<tool_call>\n{\"name\": \
                    \"sum\", \"arguments\": {}}\n</tool_call>";

fn body(more: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "1 + 2?"}],
        "tools": [{"type": "function", "function": {"name": "sum"}}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A shape for a request with these fields.
fn shape(model: &Arc<Model>, delivery: Delivery, more: &Value) -> ChatShape {
    let mut fields = Fields::parse(body(more).to_string().as_bytes()).unwrap();
    let request = read(&mut fields, model).unwrap();
    let prompt = model.render(&request.conversation, "messages").unwrap();
    ChatShape::new(head(model, "chatcmpl-1"), delivery, false)
        .reading(request.reply(model, &prompt))
}

/// `said` in `tokens_each` tokens an event.
fn events(model: &Model, said: &str, tokens_each: usize, finish: Finish) -> Vec<Event> {
    let tokens = tokens(model, said);
    let chunks = tokens.chunks(tokens_each).map(|chunk| Event::Tokens(chunk.to_vec()));
    chunks.chain([done(finish)]).collect()
}

async fn whole_choice(said: &str, finish: Finish, more: &Value) -> Value {
    let model = talking_model();
    let said = events(&model, said, 64, finish);
    let (one, _line) = speaking(&model, Default::default(), 0, said);
    let mut shape = shape(&model, Delivery::default(), more);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape).await).await;
    serde_json::from_str::<Value>(&body).unwrap()["choices"][0].take()
}

/// Adds up deltas as the clients do.
async fn streamed_choice(said: &str, tokens_each: usize, more: &Value) -> Value {
    let model = talking_model();
    let said = events(&model, said, tokens_each, Finish::Stop);
    let (one, _line) = speaking(&model, Default::default(), 0, said);
    let delivery = Delivery { stream: true, ..Delivery::default() };
    let body = streamed(vec![one], shape(&model, delivery, more)).await;
    let (mut content, mut thought) = (String::new(), String::new());
    let (mut calls, mut reason): (Vec<Value>, _) = (Vec::new(), Value::Null);
    for line in body.split_terminator("\n\n").filter(|line| !line.ends_with("[DONE]")) {
        assert_eq!(reason, Value::Null, "nothing follows the end: {line}");
        let chunk: Value = serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap();
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        thought.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        reason = choice["finish_reason"].clone();
        let Some(call) = delta["tool_calls"].get(0) else { continue };
        let at = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
        let piece = call["function"]["arguments"].as_str().unwrap();
        if call.get("id").is_some() {
            assert_eq!((at, piece), (calls.len(), ""), "{call}");
            calls.push(call.clone());
        } else {
            assert_eq!(at + 1, calls.len(), "{call}");
            assert!(call.get("type").is_none() && call["function"].get("name").is_none());
            let arguments = calls[at]["function"]["arguments"].as_str().unwrap();
            calls[at]["function"]["arguments"] = json!(format!("{arguments}{piece}"));
        }
    }
    json!({"content": content, "reasoning_content": thought, "calls": calls, "reason": reason})
}

fn called(calls: &Value) -> Vec<[&str; 2]> {
    let calls = calls.as_array().map(Vec::as_slice).unwrap_or_default();
    for call in calls {
        let id = call["id"].as_str().unwrap();
        let random = id.strip_prefix("call_").unwrap();
        assert!(random.len() == 24 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(call["type"], "function");
    }
    calls
        .iter()
        .map(|call| ["name", "arguments"].map(|name| call["function"][name].as_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn what_is_cut_of_a_required_call_is_no_text() {
    let call = "<tool_call>\n{\"name\": \"sum\", \"arguments\": {}}\n</tool_call>";
    // The format is of an answer that there is not.
    let more = json!({"tool_choice": "required", "response_format": {"type": "json_object"}});
    for (said, calls) in [(format!("{call}\n<tool_cal"), 1), ("<tool_call>\n{\"na".to_owned(), 0)] {
        let choice = whole_choice(&said, Finish::Length, &more).await;
        assert_eq!(called(&choice["message"]["tool_calls"]), vec![["sum", "{}"]; calls]);
        let content = choice["message"]["content"].as_str().unwrap_or_default();
        assert_eq!((content, &choice["finish_reason"]), ("", &json!("length")), "{said}");
        let streamed = streamed_choice(&said, 1, &more).await;
        assert_eq!((&streamed["content"], called(&streamed["calls"]).len()), (&json!(""), calls));
    }
}

#[tokio::test]
async fn thoughts_text_and_calls_whole() {
    let choice = whole_choice(SAID, Finish::Stop, &json!({})).await;
    let message = &choice["message"];
    assert_eq!(message["reasoning_content"], "Hé asks");
    assert_eq!(message["content"], "Sure.");
    assert_eq!(called(&message["tool_calls"]), [["sum", "{\"of\": [1, 2]}"], ["sum", "{}"]]);
    assert_eq!(choice["finish_reason"], "tool_calls");
    let first = SAID.split("Sure.\n").nth(1).unwrap();
    let choice = whole_choice(first, Finish::Stop, &json!({"parallel_tool_calls": false})).await;
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(called(&choice["message"]["tool_calls"]), [["sum", "{\"of\": [1, 2]}"]]);
    let cut = whole_choice(&first[..first.len() - 60], Finish::Length, &json!({})).await;
    assert_eq!(cut["finish_reason"], "length");
    assert!(cut["message"]["tool_calls"].is_array(), "{cut}");
}

#[tokio::test]
async fn deltas_add_up_to_the_whole_however_tokens_come() {
    for tokens_each in [1, 2, 3, 7, 1000] {
        let choice = streamed_choice(SAID, tokens_each, &json!({})).await;
        assert_eq!(choice["reasoning_content"], "Hé asks");
        assert_eq!(choice["content"], "Sure.");
        assert_eq!(called(&choice["calls"]), [["sum", "{\"of\": [1, 2]}"], ["sum", "{}"]]);
        assert_eq!(choice["reason"], "tool_calls");
        let one = streamed_choice(SAID, tokens_each, &json!({"parallel_tool_calls": false})).await;
        assert_eq!(called(&one["calls"]), [["sum", "{\"of\": [1, 2]}"]]);
    }
}

#[tokio::test]
async fn text_stays_text_where_calls_or_thoughts_are_not_asked_for() {
    let answer = SAID.split("</think>\n\n").nth(1).unwrap();
    for more in [&json!({"tool_choice": "none"}), &json!({"tools": null})] {
        let choice = whole_choice(SAID, Finish::Stop, more).await;
        assert_eq!(choice["message"]["content"], answer);
        assert_eq!(choice["message"].get("tool_calls"), None);
        assert_eq!(choice["finish_reason"], "stop");
    }
    let more = json!({"separate_reasoning": false, "tool_choice": "none"});
    let choice = whole_choice(SAID, Finish::Stop, &more).await;
    assert_eq!(choice["message"], json!({"role": "assistant", "content": SAID}));
    assert_eq!(streamed_choice(SAID, 2, &more).await["content"], SAID);
    let unknown = SAID.replace("\"sum\"", "\"sun\"");
    let choice = streamed_choice(&unknown, 1, &json!({})).await;
    assert_eq!(choice["content"], unknown.split("</think>\n\n").nth(1).unwrap());
    assert_eq!(choice["reason"], "stop");
}

/// Tools, calls and their results reach the template, in the form that transformers gives them.
#[tokio::test]
async fn the_template_sees_tools_and_turns() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let source = "{% for tool in tools %}{{ tool | tojson }};{% endfor %}\
                  {% for m in messages %}{{ m.role }}:{{ m.content }}\
                  {% for c in m.tool_calls %}{% for k, v in c.function.arguments | items %}\
                  {{ c.function.name }}.{{ k }}={{ v }}{% endfor %}{% endfor %};{% endfor %}\
                  {{ enable_thinking }}";
    std::fs::write(file.path(), source).unwrap();
    let gateway =
        Gateway::start(|settings| settings.chat_template = Some(file.path().into())).await;
    let call = json!({"id": "1", "type": "function",
        "function": {"name": "sum", "arguments": "{\"of\": 3}"}});
    let body = body(&json!({
        "messages": [{"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "3"}]}],
        "chat_template_kwargs": {"enable_thinking": false},
    }));
    let tokens = gateway.post("/tokenize", &body.to_string()).await.json();
    let text = gateway.post("/detokenize", &json!({"tokens": tokens["tokens"]}).to_string()).await;
    assert_eq!(
        text.json()["prompt"],
        "{\"type\": \"function\", \"function\": {\"name\": \"sum\"}};user:hi;\
         assistant:sum.of=3;tool:3;False"
    );
}
