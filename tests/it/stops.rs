//! What stops an output, through the ring: stop strings across the borders of tokens and stop ids,
//! cut off or kept as the client says, the same whole and streamed.

use crate::plan::{Plan, demo_model};
use crate::ring::Ring;
use serde_json::{Value, json};

const PROMPT: &str = "Once upon a time";
const LENGTH: usize = 24;

/// A route, and its name for "keep what stopped it".
#[derive(Clone, Copy, Debug)]
enum Route {
    Generate,
    Completions(&'static str),
    Chat(&'static str),
}

const ROUTES: [Route; 5] = [
    Route::Generate,
    Route::Completions("include_stop_str_in_output"),
    Route::Completions("no_stop_trim"),
    Route::Chat("include_stop_str_in_output"),
    Route::Chat("no_stop_trim"),
];

/// What an output says, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    finish: Value,
    matched: Value,
    tokens: Value,
}

impl Route {
    fn path(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::Completions(_) => "/v1/completions",
            Self::Chat(_) => "/v1/chat/completions",
        }
    }

    fn body(self, stop: &Value, keep: bool) -> Value {
        let mut body = stop.clone();
        body["temperature"] = json!(0);
        let (length, name) = match self {
            Self::Generate => ("max_new_tokens", "no_stop_trim"),
            Self::Completions(name) | Self::Chat(name) => ("max_tokens", name),
        };
        body[length] = json!(LENGTH);
        body[name] = json!(keep);
        match self {
            Self::Generate => return json!({"text": PROMPT, "sampling_params": body}),
            Self::Completions(_) => body["prompt"] = json!(PROMPT),
            Self::Chat(_) => body["messages"] = json!([{"role": "user", "content": PROMPT}]),
        }
        body
    }

    #[track_caller]
    fn whole(self, ring: &Ring, body: &Value) -> Value {
        let reply = ring.post(self.path(), body).whole().unwrap();
        assert_eq!(reply.status, 200, "{self:?} {body}: {}", reply.body);
        reply.json()
    }

    /// An answer, or an event of OpenAI's with its delta.
    fn said(self, answer: &Value) -> Said {
        let choice = &answer["choices"][0];
        let (text, finish, matched, usage) = match self {
            Self::Generate => {
                let (meta, text) = (&answer["meta_info"], &answer["text"]);
                (text, &meta["finish_reason"]["type"], &meta["finish_reason"]["matched"], meta)
            }
            Self::Completions(_) | Self::Chat(_) => {
                let chat = &choice["message"]["content"];
                let delta = &choice["delta"]["content"];
                let text = [&choice["text"], chat, delta].into_iter().find(|text| !text.is_null());
                let (finish, matched) = (&choice["finish_reason"], &choice["stop_reason"]);
                (text.unwrap_or(&Value::Null), finish, matched, &answer["usage"])
            }
        };
        Said {
            text: text.as_str().unwrap_or_default().to_owned(),
            finish: finish.clone(),
            matched: matched.clone(),
            tokens: usage["completion_tokens"].clone(),
        }
    }

    /// The same of a stream. Nothing that one event says is taken back by a later one.
    fn streamed(self, ring: &Ring, mut body: Value) -> Said {
        body["stream"] = json!(true);
        if !matches!(self, Self::Generate) {
            body["stream_options"] = json!({"include_usage": true});
        }
        let (mut answer, mut said) =
            (ring.post(self.path(), &body).answer().unwrap(), Said::default());
        while let Some(event) = answer.event().unwrap().filter(|event| event != "[DONE]") {
            let next = self.said(&serde_json::from_str(&event).unwrap());
            if matches!(self, Self::Generate) {
                assert!(next.text.starts_with(&said.text), "{said:?}, then {next:?}");
                said = next;
                continue;
            }
            said.text.push_str(&next.text);
            said.tokens = next.tokens;
            if !next.finish.is_null() {
                (said.finish, said.matched) = (next.finish, next.matched);
            }
        }
        said
    }

    /// The texts of the tokens that come without a stop.
    fn pieces(self, ring: &Ring) -> Vec<String> {
        let route = if let Self::Completions(_) = self { Self::Generate } else { self };
        let mut body = route.body(&json!({"ignore_eos": true}), false);
        let (rows, at) = if let Self::Chat(_) = route {
            body["logprobs"] = json!(true);
            let rows = &route.whole(ring, &body)["choices"][0]["logprobs"]["content"];
            (rows.clone(), "/token")
        } else {
            body["return_logprob"] = json!(true);
            body["return_text_in_logprobs"] = json!(true);
            (route.whole(ring, &body)["meta_info"]["output_token_logprobs"].clone(), "/2")
        };
        let text = |row: &Value| row.pointer(at).unwrap().as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(text).collect()
    }

    /// Checks all ways to ask for an output that `stop` ends: its text without and with what
    /// stopped it.
    #[track_caller]
    fn check(
        self,
        ring: &Ring,
        (stop, matched): (&Value, &Value),
        texts: [&str; 2],
        tokens: usize,
    ) {
        for (text, keep) in texts.into_iter().zip([false, true]) {
            let body = self.body(stop, keep);
            let expected = Said {
                text: text.to_owned(),
                finish: json!("stop"),
                matched: matched.clone(),
                tokens: json!(tokens),
            };
            assert_eq!(self.said(&self.whole(ring, &body)), expected, "{self:?} {body}");
            assert_eq!(self.streamed(ring, body.clone()), expected, "{self:?} {body}");
        }
    }
}

#[test]
fn a_stop_string_across_tokens_is_cut_off_or_kept() {
    let ring = Plan::new(demo_model()).servers("threads", 2).start();
    for route in ROUTES {
        let pieces = route.pieces(&ring);
        let said = pieces.concat();
        // From within one token to within the one after the next.
        let across = (3..pieces.len() - 2).find_map(|first| {
            let [one, two, three] = &pieces[first..first + 3] else { unreachable!() };
            let last = one.char_indices().next_back().filter(|(at, _)| *at > 0)?;
            let next = three.chars().next().filter(|c| c.len_utf8() < three.len())?;
            let stop = format!("{}{two}{next}", last.1);
            let start = pieces[..first].concat().len() + last.0;
            (said.find(&stop) == Some(start)).then_some((stop, start, first + 3))
        });
        let (stop, start, tokens) = across.unwrap_or_else(|| panic!("no such tokens: {pieces:?}"));
        let texts = [&said[..start], &said[..start + stop.len()]];
        route.check(&ring, (&json!({"stop": stop}), &json!(stop)), texts, tokens);
        // Of several that which ends first, and one that never comes holds nothing back.
        let stops = [&said[start..start + stop.len() + 1], "\u{0}never", &stop];
        route.check(&ring, (&json!({"stop": stops}), &json!(stop)), texts, tokens);
    }
    ring.wait_settled();
}

#[test]
fn the_text_of_a_stop_id_is_cut_off_or_kept() {
    let ring = Plan::new(demo_model()).servers("threads", 2).start();
    for route in [Route::Generate, Route::Completions("include_stop_str_in_output")] {
        let pieces = route.pieces(&ring);
        let answer = Route::Generate.whole(&ring, &Route::Generate.body(&json!({}), false));
        let ids = answer["output_ids"].as_array().unwrap();
        let at = (4..ids.len()).find(|&at| !ids[..at].contains(&ids[at])).unwrap();
        let (before, with) = (pieces[..at].concat(), pieces[..=at].concat());
        let stop = json!({"stop_token_ids": [ids[at]]});
        route.check(&ring, (&stop, &ids[at]), [&before, &with], at + 1);
    }
    ring.wait_settled();
}
