//! Outputs that follow a grammar, of a model that would not: the demo model through the ring.

use crate::http::Reply;
use crate::plan::{Plan, demo_model};
use crate::process::wait_for;
use crate::ring::Ring;
use serde_json::{Value, json};

/// Asks for a chat answer that follows `more`, by a seed.
#[track_caller]
fn chat(ring: &Ring, seed: u32, more: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Describe the city of Rome."}],
        "max_tokens": 120, "temperature": 1, "seed": seed,
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let Reply { status, body, .. } = ring.post("/v1/chat/completions", &body).whole().unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["choices"][0].clone()
}

/// The text of an answer that must be whole.
#[track_caller]
fn whole(choice: &Value) -> &str {
    assert_eq!(choice["finish_reason"], "stop", "{choice}");
    choice["message"]["content"].as_str().unwrap()
}

/// Strings of at most eight characters, a number within bounds, and a word of three.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "people": {"type": "integer", "minimum": 1, "maximum": 9999},
            "size": {"enum": ["small", "large"]},
        },
        "required": ["name", "people", "size"], "additionalProperties": false,
    })
}

#[track_caller]
fn assert_city(text: &str) {
    let city: Value = serde_json::from_str(text).unwrap();
    assert_eq!(city.as_object().unwrap().len(), 3, "{city}");
    assert!(city["name"].as_str().unwrap().chars().count() <= 8, "{city}");
    assert!((1..=9999).contains(&city["people"].as_i64().unwrap()), "{city}");
    assert!(["small", "large"].contains(&city["size"].as_str().unwrap()), "{city}");
}

#[test]
fn the_demo_model_follows_grammars() {
    check_grammars(&Plan::new(demo_model()).servers("threads", 2).start());
}

/// Every kind of grammar, a few seeds each.
#[track_caller]
pub fn check_grammars(ring: &Ring) {
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "city", "schema": schema()}});
    for seed in 0..4 {
        assert_city(whole(&chat(ring, seed, &json!({"response_format": format}))));
        let text = chat(ring, seed, &json!({"regex": "[A-Z][a-z]{2,5}, \\d{4}"}));
        let text = whole(&text).to_owned();
        let (name, year) = text.split_once(", ").unwrap();
        assert!(year.len() == 4 && year.parse::<u32>().is_ok(), "{text}");
        assert!(name.len() <= 6 && name.starts_with(char::is_uppercase), "{text}");
        let choices = ["Rome", "Paris", "New York"];
        let choice = chat(ring, seed, &json!({"guided_choice": choices}));
        assert!(choices.contains(&whole(&choice)), "{choice}");
        let ebnf = "root ::= item (\", \" item){0,3}\nitem ::= [a-z]{1,6} \"!\"";
        let list = chat(ring, seed, &json!({"ebnf": ebnf, "min_tokens": 2}));
        assert!(whole(&list).split(", ").all(|item| item.ends_with('!')), "{list}");
        // What it may hold is not bounded, so it may be cut.
        let object = chat(ring, seed, &json!({"response_format": {"type": "json_object"}}));
        let text = object["message"]["content"].as_str().unwrap();
        assert!(text.starts_with('{'), "{object}");
        let value = serde_json::from_str::<Value>(text);
        assert!(object["finish_reason"] == "length" || value.is_ok(), "{object}");
    }
    ring.wait_settled();
}

#[test]
fn the_demo_model_calls_what_it_has_to() {
    let ring = Plan::new(demo_model()).servers("threads", 2).start();
    let tool = |name: &str| {
        let function = json!({"name": name, "description": "A city.", "parameters": schema()});
        json!({"type": "function", "function": function})
    };
    let tools = json!([tool("small_city"), tool("large_city")]);
    let ask = |seed, choice: Value| {
        let more = json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false});
        let choice = chat(&ring, seed, &more);
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap().clone();
        assert_eq!(calls.len(), 1, "{choice}");
        assert_city(calls[0]["function"]["arguments"].as_str().unwrap());
        calls[0]["function"]["name"].as_str().unwrap().to_owned()
    };
    for seed in 0..3 {
        let name = ask(seed, json!("required"));
        assert!(["small_city", "large_city"].contains(&name.as_str()), "{name}");
        let named = json!({"type": "function", "function": {"name": "large_city"}});
        assert_eq!(ask(seed, named), "large_city");
    }
    ring.wait_settled();
}

/// Decode is killed in the middle: the client gets what it would have got, from another one.
#[test]
fn a_replay_goes_on_with_the_grammar() {
    let mut ring = Plan::new(demo_model()).of(1, 2).on_gateway("retries", 2).start();
    let item = json!({"type": "string", "maxLength": 9});
    let list = json!({"type": "array", "items": item, "minItems": 12, "maxItems": 12});
    let body = |stream: bool| {
        let sampling = json!({
            "max_new_tokens": 150, "temperature": 0.8, "sampling_seed": 5, "json_schema": list,
        });
        json!({"text": "A list of cities:", "sampling_params": sampling, "stream": stream})
    };
    let text = |answer: &Value| answer["text"].as_str().unwrap().to_owned();
    let expected = text(&ring.post("/generate", &body(false)).whole().unwrap().json());
    let cities: Vec<String> = serde_json::from_str(&expected).unwrap();
    assert!(cities.len() == 12 && cities.iter().all(|city| city.chars().count() <= 9));

    let mut answer = ring.post("/generate", &body(true)).answer().unwrap();
    for _ in 0..8 {
        answer.event().unwrap().unwrap();
    }
    let at = wait_for("the decode server that makes tokens", || {
        let runs = |member: &crate::process::Member| {
            member.metric("tandem_running_requests", &[]).is_some_and(|running| running > 0.0)
        };
        ring.decode.iter().position(runs)
    });
    ring.decode[at].kill();
    let mut last = Value::Null;
    while let Some(event) = answer.event().unwrap().filter(|event| event != "[DONE]") {
        last = serde_json::from_str(&event).unwrap();
    }
    assert_eq!(last["text"], json!(expected), "{last}");
    assert_eq!(last["meta_info"]["finish_reason"]["type"], "stop", "{last}");
}
