//! What a gateway is asked while it counts where its time goes, so that it can be compiled by these
//! counts: every API as clients use it, against a ring of real processes.
//!
//! The compiler keeps code that never ran small and out of the way. So every path that the
//! gateway's `/openapi.json` has a body for is asked here, or the rehearsal fails.

use crate::fleet::client::Client;
use crate::fleet::{Fleet, Plan};
use crate::numbers::Random;
use crate::place::{Place, PlaceOptions};
use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// `tandem-bench rehearse`
#[derive(Args)]
pub struct Rehearse {
    #[command(flatten)]
    place: PlaceOptions,
}

const ROUNDS: usize = 64;
/// Clients at a time.
const WIDTH: usize = 8;
/// Bytes of a prompt, at most.
const PROMPT_MAX: usize = 400;
const TOKENS: u32 = 16;
/// What is looked at beside calls: by probes, Prometheus, and the page.
const GETS: [&str; 10] = [
    "/health",
    "/ready",
    "/metrics",
    "/v1/models",
    "/v1/loads",
    "/server_info",
    "/model_info",
    "/",
    "/ring",
    "/ring/requests",
];
/// What is asked about: prose, lists and a little code.
const TEXT: &str = include_str!("../../ARCHITECTURE.md");
/// After some prompts, since not all that people write is ASCII.
const FOREIGN: &str = " Übersetze: naïve café, 東京, Привет, 🙂";

impl Rehearse {
    /// Asks all of it, then stops the gateway, which writes its counts as it ends.
    ///
    /// # Errors
    /// A request fails, or a path is not asked.
    pub fn run(self) -> anyhow::Result<()> {
        let place = Place::open(self.place)?;
        let plan = Plan::new(place.demo()?, "bf16").set("weights", "auto");
        let mut fleet = Fleet::start(&place, &plan)?;
        let (client, rounds) = (&fleet.client, place.rounds(ROUNDS));
        knows_all_paths(client)?;
        let next = AtomicUsize::new(0);
        let work = || -> anyhow::Result<()> {
            loop {
                let round = next.fetch_add(1, Ordering::Relaxed);
                if round >= rounds {
                    return Ok(());
                }
                if let Err(error) = ask_all(client, &mut Random::new(round as u64)) {
                    next.store(rounds, Ordering::Relaxed); // nobody begins another
                    return Err(error);
                }
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WIDTH).map(|_| scope.spawn(work)).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().try_for_each(join)
        })?;
        let gateway = fleet.processes().last().context("there is a gateway")?;
        gateway.must_live()?;
        let ended = gateway.stop()?;
        ensure!(ended.success(), "the gateway: {ended}\n{}", gateway.tail());
        Ok(())
    }
}

fn knows_all_paths(client: &Client) -> anyhow::Result<()> {
    let document: Value =
        serde_json::from_str(&client.get(&format!("{}/openapi.json", client.url()))?)?;
    let paths = document["paths"].as_object().context("/openapi.json has no `paths`")?;
    let asked: Vec<&str> = calls(&mut Random::new(0)).iter().map(|(path, _)| *path).collect();
    for (path, methods) in paths {
        let has_body = methods["post"]["requestBody"].is_object();
        ensure!(!has_body || asked.contains(&path.as_str()), "{path} is not rehearsed");
    }
    Ok(())
}

/// All calls once, and those that most clients make some more times.
fn ask_all(client: &Client, random: &mut Random) -> anyhow::Result<()> {
    for _ in 0..4 {
        let text = prompt(random);
        client.ask("/v1/chat/completions", &chat(&text, json!({"stream": true})))?;
        client.ask("/v1/completions", &completion(&json!(text), json!({"stream": true})))?;
    }
    for (path, body) in calls(random) {
        client.ask(path, &body)?;
    }
    for path in GETS {
        client.get(&format!("{}{path}", client.url()))?;
    }
    Ok(())
}

/// A stretch of the text.
fn prompt(random: &mut Random) -> String {
    let start = random.below(TEXT.len() - PROMPT_MAX);
    let length = 8 + random.below(PROMPT_MAX - 8);
    let foreign = if random.chance(10) { FOREIGN } else { "" };
    // A character that is cut in two is one that is unknown.
    String::from_utf8_lossy(&TEXT.as_bytes()[start..start + length]).into_owned() + foreign
}

/// `body` with all of `more`.
fn with(mut body: Value, more: Value) -> Value {
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

fn chat(text: &str, more: Value) -> Value {
    let message = json!({"role": "user", "content": text});
    with(json!({"messages": [message], "max_tokens": TOKENS}), more)
}

fn completion(prompt: &Value, more: Value) -> Value {
    with(json!({"prompt": prompt, "max_tokens": TOKENS}), more)
}

/// One of each kind, with bodies that are valid.
fn calls(random: &mut Random) -> Vec<(&'static str, Value)> {
    let text = prompt(random);
    let ids = random.ids(40, 1000, 20_000);
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    let conversation = json!({"messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And then?"},
    ], "stop": ["\n\n", "###"], "temperature": 0.7, "top_p": 0.9, "seed": 7, "logprobs": true,
        "top_logprobs": 3});
    let tokens = json!({"max_new_tokens": TOKENS, "temperature": 0});
    let mut calls = vec![
        ("/v1/chat/completions", chat(&text, json!({}))),
        ("/v1/chat/completions", chat(&text, usage.clone())),
        ("/v1/chat/completions", chat(&text, with(conversation, json!({"n": 2})))),
        ("/v1/completions", completion(&json!(text), usage)),
        ("/v1/completions", completion(&json!(ids), json!({"echo": true, "logprobs": 2}))),
        ("/v1/completions", completion(&json!([text, "One, two,"]), json!({"stop": "five"}))),
        ("/v1/responses", json!({"input": text, "max_output_tokens": TOKENS})),
        ("/v1/responses", json!({"input": text, "max_output_tokens": TOKENS, "stream": true})),
        ("/v1/embeddings", json!({"input": [text, "Another text."]})),
        ("/v1/score", json!({"query": text, "items": ["Yes"], "label_token_ids": [1000, 2000]})),
        ("/generate", json!({"text": text, "sampling_params": tokens, "stream": true})),
        ("/generate", json!({"input_ids": ids, "sampling_params": tokens, "return_logprob": true})),
        ("/tokenize", json!({"prompt": text})),
        ("/detokenize", json!({"tokens": ids})),
        ("/abort_request", json!({"rid": "nobody"})),
    ];
    calls.extend(structured(&text));
    calls.extend(messages(&text));
    calls
}

/// Tools, and answers by a schema.
fn structured(text: &str) -> [(&'static str, Value); 4] {
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "w", "schema": schema}});
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": schema}});
    let body = |more| ("/v1/chat/completions", chat(text, with(json!({"max_tokens": 48}), more)));
    [
        body(json!({"response_format": format, "stream": true})),
        body(json!({"tools": [tool], "tool_choice": "auto", "stream": true})),
        body(json!({"tools": [tool], "tool_choice": "required", "stream": true})),
        body(json!({"regex": "[a-z]{4,8}", "stream": true})),
    ]
}

/// Anthropic's.
fn messages(text: &str) -> [(&'static str, Value); 3] {
    let body = json!({
        "system": "Be brief.", "messages": [{"role": "user", "content": text}],
    });
    let call = |more| with(body.clone(), with(json!({"max_tokens": TOKENS}), more));
    [
        ("/v1/messages", call(json!({}))),
        ("/v1/messages", call(json!({"stream": true}))),
        ("/v1/messages/count_tokens", body.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_pieces_of_text_of_all_lengths() {
        let mut random = Random::new(1);
        let lengths: Vec<_> = (0..500).map(|_| prompt(&mut random).len()).collect();
        assert!(lengths.iter().min() < Some(&30) && lengths.iter().max() > Some(&PROMPT_MAX));
    }
}
