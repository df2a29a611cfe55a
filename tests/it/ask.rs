//! One request of a test, what must come of it, and what did.
//!
//! The same [`Ask`] goes to the ring as `/generate`'s body and to the bare engine, so that the two
//! can be held against each other.

use crate::http::{self, Answer};
use checkpoint::Checkpoint;
use model::equal::{Agreement, judge};
use model::reference;
use model::reference::Observed;
use model::sample::Drawn;
use model::{CpuEngine, EngineConfig, WeightFormat};
use serde_json::{Value, json};
use shared::ids::TokenId;
use shared::kv::KvDtype;
use shared::request::Sampling;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// A request with token ids. `ignore_eos` is set: only `stop_ids` stop.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub sampling: Sampling,
    pub min_tokens: u32,
    /// Ids ascending.
    pub logit_bias: Vec<(u32, f32)>,
    pub stop_ids: Vec<u32>,
    pub stream: bool,
    pub salt: String,
}

/// What came of a request.
#[derive(Debug)]
pub struct Outcome {
    pub status: u16,
    /// Tokens that arrived.
    pub ids: Vec<u32>,
    /// `meta_info` of the last event.
    pub meta: Value,
    /// OpenAI's error object, as the body or as an event.
    pub error: Option<Value>,
}

impl Ask {
    pub fn greedy(prompt: &[u32], max_tokens: u32) -> Self {
        Self {
            prompt: prompt.to_vec(),
            max_tokens,
            sampling: Sampling::GREEDY,
            min_tokens: 0,
            logit_bias: vec![],
            stop_ids: vec![],
            stream: false,
            salt: String::new(),
        }
    }

    pub fn streamed(self) -> Self {
        Self { stream: true, ..self }
    }

    pub fn body(&self) -> Value {
        let sampling = &self.sampling;
        let bias = self.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias)));
        json!({
            "input_ids": self.prompt,
            "stream": self.stream,
            "cache_salt": self.salt,
            "sampling_params": {
                "max_new_tokens": self.max_tokens,
                "temperature": f64::from(sampling.temperature),
                "top_p": f64::from(sampling.top_p),
                "top_k": if sampling.top_k == 0 { -1 } else { i64::from(sampling.top_k) },
                "min_p": f64::from(sampling.min_p),
                "presence_penalty": f64::from(sampling.presence_penalty),
                "frequency_penalty": f64::from(sampling.frequency_penalty),
                "repetition_penalty": f64::from(sampling.repetition_penalty),
                "logit_bias": bias.collect::<serde_json::Map<_, _>>(),
                "min_new_tokens": self.min_tokens,
                "sampling_seed": sampling.seed,
                "stop_token_ids": self.stop_ids,
                "ignore_eos": true,
            },
        })
    }

    /// Sends it to the gateway at `url` and reads the answer to its end.
    pub fn send(&self, url: SocketAddr) -> io::Result<Outcome> {
        Outcome::read(http::post(url, "/generate", &self.body())?.answer()?)
    }

    /// What the bare engine makes of it.
    pub fn reference(&self, engine: &mut impl Observed) -> Vec<Drawn> {
        let ids = |ids: &[u32]| ids.iter().map(|&id| TokenId::new(id)).collect::<Vec<_>>();
        let (prompt, stop_ids) = (ids(&self.prompt), ids(&self.stop_ids));
        let bias: Vec<_> =
            self.logit_bias.iter().map(|&(id, bias)| (TokenId::new(id), bias)).collect();
        let ask = reference::Ask {
            prompt: &prompt,
            max_tokens: self.max_tokens,
            sampling: self.sampling,
            min_tokens: self.min_tokens,
            logit_bias: &bias,
            stop_ids: &stop_ids,
            logprobs: None,
            logprob_ids: &[],
            chunk: 0,
        };
        reference::generate(engine, &ask).unwrap()
    }
}

impl Outcome {
    /// Reads an answer of `/generate` to its end, streamed or whole.
    pub fn read(mut answer: Answer) -> io::Result<Self> {
        let mut outcome =
            Self { status: answer.status, ids: vec![], meta: Value::Null, error: None };
        if answer.status != 200 {
            outcome.take(&answer.whole()?.json());
            return Ok(outcome);
        }
        if !answer.is_stream() {
            outcome.take(&answer.whole()?.json());
            return Ok(outcome);
        }
        while let Some(event) = answer.event()? {
            if event == "[DONE]" {
                return Ok(outcome);
            }
            outcome.take(&serde_json::from_str(&event)?);
        }
        Err(io::Error::other("the stream ended without [DONE]"))
    }

    fn take(&mut self, body: &Value) {
        if let Some(error) = body.get("error") {
            self.error = Some(error.clone());
            return;
        }
        let ids = body["output_ids"].as_array().expect("output_ids");
        self.ids = ids.iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect();
        self.meta = body["meta_info"].clone();
    }

    /// Fails the test unless the request was finished.
    #[track_caller]
    pub fn assert_done(&self) {
        assert!(self.status == 200 && self.error.is_none(), "{self:?}");
        assert!(self.meta["finish_reason"].is_object(), "{self:?}");
    }

    /// Fails the test unless the tokens are those of the reference, or part from them at a tie.
    #[track_caller]
    pub fn assert_equal(&self, reference: &[Drawn]) -> Agreement {
        self.assert_equal_in(reference, KvDtype::F32)
    }

    /// The same with the ties of an arithmetic.
    #[track_caller]
    pub fn assert_equal_in(&self, reference: &[Drawn], dtype: KvDtype) -> Agreement {
        self.assert_done();
        let found: Vec<_> = self.ids.iter().map(|&id| TokenId::new(id)).collect();
        judge(reference, &found, dtype).unwrap_or_else(|differs| panic!("{differs}: {self:?}"))
    }

    /// Fails the test unless it is whole, with so many tokens, or ended with a typed error.
    #[track_caller]
    pub fn assert_whole_or_typed_error(&self, tokens: usize) {
        if self.error.is_some() {
            return self.assert_typed_error();
        }
        self.assert_done();
        assert_eq!(self.ids.len(), tokens, "{self:?}");
    }

    /// Fails the test unless it ended with an error that a client can act on: a status before the
    /// first byte, an event after.
    #[track_caller]
    pub fn assert_typed_error(&self) {
        let error = self.error.as_ref().unwrap_or_else(|| panic!("no error: {self:?}"));
        assert!(self.status == 200 || self.status >= 500, "{self:?}");
        for field in ["message", "type", "code"] {
            assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        }
        let code = error["code"].as_str().unwrap();
        assert!(["peer_lost", "not_ready", "deadline"].contains(&code), "{self:?}");
    }
}

/// The bare engine, of one thread, with the weights of the golden data.
pub fn engine(model: &Path, tokens: u32) -> CpuEngine {
    engine_with(model, tokens, WeightFormat::Bf16)
}

/// The same with weights kept as is said.
pub fn engine_with(model: &Path, tokens: u32, weights: WeightFormat) -> CpuEngine {
    let checkpoint = Checkpoint::open(model).unwrap();
    let config = EngineConfig {
        dtype: KvDtype::F32,
        weights,
        pages: tokens.div_ceil(16),
        page_tokens: 16,
        threads: Some(1),
        memory: None,
    };
    CpuEngine::load(&checkpoint, config, &mut |_, _| {}).unwrap()
}
