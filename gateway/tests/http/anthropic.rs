//! Anthropic's Messages: the answer whole and as events, errors in its shape.

use crate::shapes::{done, each, head, speaking, streamed, text, tokens};
use crate::support::{Gateway, SAID, talking_model};
use gateway::anthropic::{MessageShape, request};
use gateway::fields::Fields;
use gateway::model::Model;
use gateway::openai::chat;
use gateway::ring::{Event, Failure, FailureKind};
use gateway::stream::{outputs, whole};
use gateway::validate::Knobs;
use serde_json::{Value, json};
use shared::request::Finish;
use std::sync::Arc;

fn shape(model: &Arc<Model>) -> MessageShape {
    let body = json!({
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "1 + 2?"}],
        "tools": [{"name": "sum", "input_schema": {"type": "object"}}],
    });
    let fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    let mut chat = request::create(fields).unwrap();
    let request = chat::read(&mut chat, model).unwrap();
    let prompt = model.render(&request.conversation, "messages").unwrap();
    MessageShape::new(head(model, "msg_1"), request.reply(model, &prompt))
}

/// Events of a stream, each by its name, which its data repeats.
fn parsed(body: &str) -> Vec<Value> {
    let events = body.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    });
    events.collect()
}

#[tokio::test]
async fn a_message_has_thoughts_text_and_calls() {
    let model = talking_model();
    let said = vec![Event::Tokens(tokens(&model, SAID)), done(Finish::Stop)];
    let (one, _line) = speaking(&model, Knobs::default(), 0, said);
    let body = text(whole(outputs(vec![one], ()), each(1), &mut shape(&model)).await).await;
    let mut body: Value = serde_json::from_str(&body).unwrap();
    let id = body["content"][2]["id"].take();
    assert!(id.as_str().unwrap().starts_with("toolu_"), "{id}");
    let said = tokens(&model, SAID).len();
    assert_eq!(
        body,
        json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "tiny",
            "content": [
                {"type": "thinking", "thinking": "Hé asks", "signature": ""},
                {"type": "text", "text": "Sure."},
                {"type": "tool_use", "id": null, "name": "sum", "input": {"of": [1, 2]}},
            ],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 1, "cache_creation_input_tokens": 0,
                      "cache_read_input_tokens": 2, "output_tokens": said},
        })
    );
}

#[tokio::test]
async fn a_stream_tells_the_same_block_by_block() {
    let model = talking_model();
    let tokens = tokens(&model, SAID);
    let said = tokens.chunks(3).map(|some| Event::Tokens(some.to_vec()));
    let said = said.chain([done(Finish::Stop)]).collect();
    let (one, _line) = speaking(&model, Knobs::default(), 0, said);
    let events = parsed(&streamed(vec![one], shape(&model)).await);
    let names = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((names("message_start"), names("message_stop")), (1, 1));
    assert_eq!((names("content_block_start"), names("content_block_stop")), (3, 3));
    let joined = |index: usize, field: &str| -> String {
        let of = events.iter().filter(|event| event["index"] == index);
        of.filter_map(|event| event["delta"][field].as_str()).collect()
    };
    assert_eq!(joined(0, "thinking"), "Hé asks");
    assert_eq!(joined(1, "text"), "Sure.");
    assert_eq!(joined(2, "partial_json"), "{\"of\": [1, 2]}");
    let [.., delta, stop] = &events[..] else { panic!("{events:?}") };
    assert_eq!(delta["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
    assert_eq!(delta["usage"]["output_tokens"], tokens.len());
    assert_eq!(stop["type"], "message_stop");
    assert_eq!(events[0]["message"]["usage"]["cache_read_input_tokens"], 2);
}

#[tokio::test]
async fn what_ended_it_is_told() {
    let model = talking_model();
    let check = async |stop: &str, finish: Finish, reason: &str, sequence: Value| {
        let said = vec![Event::Tokens(tokens(&model, "one STOP")), done(finish)];
        let knobs = Knobs { stop: vec![stop.into()], ..Knobs::default() };
        let (one, _line) = speaking(&model, knobs, 0, said);
        let body = text(whole(outputs(vec![one], ()), each(1), &mut shape(&model)).await).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["stop_reason"], &body["stop_sequence"]), (&json!(reason), &sequence));
    };
    check("STOP", Finish::Length, "stop_sequence", json!("STOP")).await;
    check("never", Finish::Length, "max_tokens", Value::Null).await;
    check("never", Finish::Stop, "end_turn", Value::Null).await;
}

#[tokio::test]
async fn errors_have_anthropics_shape_also_in_mid_stream() {
    let model = talking_model();
    let failure = Failure { kind: FailureKind::PeerLost, message: "decode-0 is lost".into() };
    let said = vec![Event::Tokens(tokens(&model, "a")), Event::Failed(failure)];
    let (one, _line) = speaking(&model, Knobs::default(), 0, said);
    let events = parsed(&streamed(vec![one], shape(&model)).await);
    let error = json!({"type": "api_error", "message": "decode-0 is lost"});
    assert_eq!(events.last().unwrap(), &json!({"type": "error", "error": error}));

    let gateway = Gateway::start(|settings| settings.api_key = Some("sesame".into())).await;
    let post = async |key: &str, body: &Value| {
        let headers = format!("x-api-key: {key}\r\nx-request-id: r1\r\n");
        gateway.request("POST", "/v1/messages", &headers, &body.to_string()).await
    };
    let check = async |key: &str, body: Value, status: u16, kind: &str, part: &str| {
        let answer = post(key, &body).await;
        let told = answer.json();
        assert_eq!((answer.status, &told["error"]["type"]), (status, &json!(kind)), "{told}");
        assert_eq!((&told["type"], &told["request_id"]), (&json!("error"), &json!("r1")));
        assert!(told["error"]["message"].as_str().unwrap().contains(part), "{told}");
    };
    let ask = |more: Value| {
        let mut body = json!({"max_tokens": 4, "messages": [{"role": "user", "content": "a"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let invalid = "invalid_request_error";
    check("wrong", ask(json!({})), 401, "authentication_error", "key").await;
    check("sesame", ask(json!({})), 503, "overloaded_error", "").await;
    check("sesame", ask(json!({"model": "other"})), 404, "not_found_error", "other").await;
    check("sesame", ask(json!({"max_tokens": null})), 400, invalid, "max_tokens: ").await;
    check("sesame", ask(json!({"stop_sequences": [""]})), 400, invalid, "stop_sequences[0]: ")
        .await;
    let unnamed = json!({"tools": [{"name": ""}]});
    check("sesame", ask(unnamed), 400, invalid, "tools[0].name: ").await;
    let missing = gateway.request("GET", "/v1/messages", "x-api-key: sesame\r\n", "").await;
    assert_eq!((missing.status, &missing.json()["type"]), (405, &json!("error")));
}

#[tokio::test]
async fn tokens_are_counted_as_the_template_makes_them() {
    let gateway = Gateway::start(|_| {}).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let ask = json!({"messages": messages, "system": "Be brief"});
    let count = gateway.post("/v1/messages/count_tokens", &ask.to_string()).await.json();
    let same = json!({"messages": [{"role": "system", "content": "Be brief"}, messages[0]]});
    let tokens = gateway.post("/tokenize", &same.to_string()).await.json();
    assert_eq!(count, json!({"input_tokens": tokens["count"]}));
}
