//! The Responses API: the answer whole and as numbered events, errors by its fields' names.

use crate::shapes::{done, each, head, speaking, streamed, text, tokens};
use crate::support::{Gateway, SAID, talking_model};
use gateway::fields::Fields;
use gateway::model::Model;
use gateway::openai::chat;
use gateway::responses::{ResponseShape, request};
use gateway::ring::{Event, Failure, FailureKind};
use gateway::stream::{outputs, whole};
use gateway::validate::Knobs;
use serde_json::{Value, json};
use shared::request::Finish;
use std::sync::Arc;

fn shape(model: &Arc<Model>) -> ResponseShape {
    let body = json!({
        "input": "1 + 2?",
        "tools": [{"type": "function", "name": "sum", "parameters": {}}],
        "metadata": {"a": "b"},
    });
    let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    let (mut chat, repeated) = request::chat(fields).unwrap();
    let request = chat::read(&mut chat, model).unwrap();
    let prompt = model.render(&request.conversation, "messages").unwrap();
    ResponseShape::new(head(model, "resp_1"), repeated, request.reply(model, &prompt))
}

/// Events of a stream, in order of their numbers, each by its name, which its data repeats.
fn parsed(body: &str) -> Vec<Value> {
    let events = body.split_terminator("\n\n").enumerate().map(|(at, event)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        assert_eq!(data["sequence_number"], at);
        data
    });
    events.collect()
}

/// Items with their random ids taken out, which must be of the item's kind.
fn anonymous(mut items: Value) -> Value {
    for item in items.as_array_mut().unwrap() {
        let prefix = match item["type"].as_str().unwrap() {
            "reasoning" => "rs_",
            "message" => "msg_",
            _ => "fc_",
        };
        assert!(item["id"].take().as_str().unwrap().starts_with(prefix));
        if item["call_id"].is_string() {
            assert!(item["call_id"].take().as_str().unwrap().starts_with("call_"));
        }
    }
    items
}

fn items() -> Value {
    json!([
        {"type": "reasoning", "id": null, "status": "completed", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Hé asks"}]},
        {"type": "message", "id": null, "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Sure.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": null, "status": "completed", "call_id": null,
         "name": "sum", "arguments": "{\"of\": [1, 2]}"},
    ])
}

#[tokio::test]
async fn a_response_has_an_item_a_thought_text_and_call() {
    let model = talking_model();
    let said = vec![Event::Tokens(tokens(&model, SAID)), done(Finish::Stop)];
    let (one, _line) = speaking(&model, Knobs::default(), 0, said);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape(&model)).await).await;
    let mut body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(anonymous(body["output"].take()), items());
    assert_eq!((&body["id"], &body["object"]), (&json!("resp_1"), &json!("response")));
    assert_eq!((&body["status"], &body["store"]), (&json!("completed"), &json!(false)));
    assert_eq!(body["metadata"], json!({"a": "b"}));
    assert_eq!(body["tools"][0]["name"], "sum");
    let (usage, made) = (&body["usage"], tokens(&model, SAID).len());
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(3), &json!(made)));
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], 2);
    let thought = usage["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!((1..made as u64).contains(&thought), "{usage}");
}

#[tokio::test]
async fn a_stream_builds_the_same_items() {
    let model = talking_model();
    let tokens = tokens(&model, SAID);
    let said = tokens.chunks(3).map(|some| Event::Tokens(some.to_vec()));
    let said = said.chain([done(Finish::Stop)]).collect();
    let (one, _line) = speaking(&model, Knobs::default(), 0, said);
    let mut events = parsed(&streamed(vec![one], shape(&model)).await);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["response.created", "response.in_progress"]);
    assert_eq!(kinds.last(), Some(&"response.completed"));
    let joined = |kind: &str| -> String {
        let of = events.iter().filter(|event| event["type"] == kind);
        of.map(|event| event["delta"].as_str().unwrap()).collect()
    };
    assert_eq!(joined("response.reasoning_text.delta"), "Hé asks");
    assert_eq!(joined("response.output_text.delta"), "Sure.");
    assert_eq!(joined("response.function_call_arguments.delta"), "{\"of\": [1, 2]}");
    for (at, kind) in ["reasoning", "message", "function_call"].iter().enumerate() {
        let of = |name: &str| {
            events.iter().find(|event| event["type"] == name && event["output_index"] == at)
        };
        let (added, done) = (of("response.output_item.added"), of("response.output_item.done"));
        let (added, done) = (&added.unwrap()["item"], &done.unwrap()["item"]);
        assert_eq!((&added["type"], &added["id"]), (&json!(kind), &done["id"]));
        assert_eq!(
            (&added["status"], &done["status"]),
            (&json!("in_progress"), &json!("completed"))
        );
        assert!(added["content"].as_array().is_none_or(Vec::is_empty), "{added}");
    }
    let last = events.last_mut().unwrap();
    assert_eq!(anonymous(last["response"]["output"].take()), items());
}

#[tokio::test]
async fn a_cut_response_is_incomplete_and_a_lost_one_failed() {
    let model = talking_model();
    let check = async |last: Event| -> Value {
        let said = vec![Event::Tokens(tokens(&model, "a")), last];
        let (one, _line) = speaking(&model, Knobs::default(), 0, said);
        let events = parsed(&streamed(vec![one], shape(&model)).await);
        events.last().unwrap().clone()
    };
    let cut = check(done(Finish::Length)).await;
    assert_eq!(cut["type"], "response.incomplete");
    assert_eq!(cut["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(cut["response"]["output"][0]["status"], "incomplete");
    let failure = Failure { kind: FailureKind::PeerLost, message: "decode-0 is lost".into() };
    let lost = check(Event::Failed(failure)).await;
    assert_eq!(
        (&lost["type"], &lost["response"]["status"]),
        (&json!("response.failed"), &json!("failed"))
    );
    let error = json!({"code": "server_error", "message": "decode-0 is lost"});
    assert_eq!(lost["response"]["error"], error);
}

#[tokio::test]
async fn fields_have_this_apis_names_in_errors() {
    let gateway = Gateway::start(|_| {}).await;
    let check = async |more: Value, status: u16, param: Value| {
        let mut body = json!({"input": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = gateway.post("/v1/responses", &body.to_string()).await;
        let told = (answer.status, answer.error()["param"].clone());
        assert_eq!(told, (status, param), "{}", answer.body);
    };
    check(json!({}), 503, Value::Null).await;
    check(json!({"store": true}), 400, json!("store")).await;
    check(json!({"input": []}), 400, json!("input")).await;
    check(json!({"input": "x".repeat(100_000)}), 400, json!("input")).await;
    check(json!({"max_output_tokens": "x"}), 400, json!("max_output_tokens")).await;
    check(json!({"max_output_tokens": 100_000}), 400, json!("max_output_tokens")).await;
    check(json!({"tools": [{"type": "function"}]}), 400, json!("tools[0].name")).await;
    check(json!({"temperature": 3}), 400, json!("temperature")).await;
}
