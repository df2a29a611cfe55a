//! Schemas of requests' bodies. What breaks one is refused. What keeps it may still be: by rules
//! between fields and by the model, which the error then names. A field that is not listed is
//! ignored or refused by name.
#![expect(clippy::needless_pass_by_value, reason = "a schema is made of its parts, used up")]

use crate::model::Model;
use crate::openai::tools::NAME_MAX;
use crate::ring::Limits;
use crate::validate::{MAX_OUTPUTS, MAX_PROMPTS, MAX_STOP_LEN, MAX_STOPS};
use serde_json::{Map, Value, json};
use shared::request::{MAX_LOGIT_BIAS, MAX_NEXT, MAX_SALT, MAX_STOP_IDS, MAX_TOP_LOGPROBS};

/// By name.
pub(super) fn schemas(model: &Model, limits: Limits) -> Map<String, Value> {
    let fields = Schemas { model, limits };
    let named = [
        ("ChatRequest", fields.chat()),
        ("CompletionsRequest", fields.completions()),
        ("ResponsesRequest", fields.responses()),
        ("MessagesRequest", fields.messages()),
        ("CountTokensRequest", fields.count_tokens()),
        ("EmbeddingsRequest", fields.embeddings()),
        ("ScoreRequest", fields.score()),
        ("GenerateRequest", fields.generate()),
        ("TokenizeRequest", fields.tokenize()),
        ("DetokenizeRequest", fields.detokenize()),
        ("AbortRequest", abort()),
    ];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

struct Schemas<'a> {
    model: &'a Model,
    limits: Limits,
}

impl Schemas<'_> {
    fn chat(&self) -> Value {
        let mut fields = self.openai();
        fields.extend(object(json!({
            "messages": chat_messages(),
            "max_completion_tokens": self.tokens(),
            "logprobs": kind("boolean"),
            "top_logprobs": within("integer", 0, MAX_TOP_LOGPROBS),
            "response_format": kind("object"),
            "tools": list(json!({
                "type": "object", "required": ["type", "function"],
                "properties": {"type": {"const": "function"}, "function": function("parameters")},
            })),
            "tool_choice": {"type": ["string", "object", "null"]},
            "parallel_tool_calls": kind("boolean"),
            "chat_template_kwargs": kind("object"),
            "separate_reasoning": kind("boolean"),
            "add_generation_prompt": kind("boolean"),
        })));
        body(fields, &["messages"], json!({"messages": [{"role": "user", "content": "Hi"}]}))
    }

    fn completions(&self) -> Value {
        let mut fields = self.openai();
        fields.extend(object(json!({
            "prompt": self.prompts(),
            "logprobs": within("integer", 0, MAX_TOP_LOGPROBS),
            "add_special_tokens": kind("boolean"),
            "echo": kind("boolean"),
            "max_tokens": self.tokens_or_0(),
            "return_tokens_as_token_ids": kind("boolean"),
        })));
        body(fields, &["prompt"], json!({"prompt": "Once"}))
    }

    fn responses(&self) -> Value {
        let fields = object(json!({
            "model": self.model(),
            "input": {"type": ["string", "array"]},
            "instructions": kind("string"),
            "max_output_tokens": self.tokens(),
            "temperature": within("number", 0, 2),
            "top_p": above_0(1),
            "stream": kind("boolean"),
            "store": {"enum": [false, null]},
            "tools": list(json!({
                "type": "object", "required": ["type", "name"],
                "properties": {"type": {"const": "function"}, "name": tool_name(),
                               "parameters": kind("object")},
            })),
            "tool_choice": {"type": ["string", "object", "null"]},
            "parallel_tool_calls": kind("boolean"),
            "metadata": {},
            "reasoning": nested(json!({"effort": kind("string")})),
            "text": nested(json!({"format": kind("object")})),
            "truncation": {"enum": ["disabled", null]},
        }));
        body(fields, &["input"], json!({"input": "Hi"}))
    }

    fn messages(&self) -> Value {
        let mut fields = self.turns();
        fields.extend(object(json!({
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": self.tokens_max()},
            "stop_sequences": at_most(MAX_STOPS, stop()),
            "stream": kind("boolean"),
            "temperature": within("number", 0, 2),
            "top_p": above_0(1),
            "top_k": at_least("integer", -1),
            "metadata": {},
        })));
        let example = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4});
        body(fields, &["messages", "max_tokens"], example)
    }

    fn count_tokens(&self) -> Value {
        let example = json!({"messages": [{"role": "user", "content": "Hi"}]});
        body(self.turns(), &["messages"], example)
    }

    /// What makes the prompt of Anthropic's messages.
    fn turns(&self) -> Map<String, Value> {
        object(json!({
            "model": self.model(),
            "messages": {"type": "array", "minItems": 1, "items": {
                "type": "object", "required": ["role", "content"],
                "properties": {"role": {"enum": ["user", "assistant", "system"]},
                               "content": strings_or(block())},
            }},
            "system": {"anyOf": [kind("string"), {"type": "array", "items": text_part()}]},
            "tools": list(json!({
                "type": "object", "required": ["name"],
                "properties": {"name": tool_name(), "input_schema": kind("object")},
            })),
            "tool_choice": nested(json!({
                "type": {"enum": ["auto", "none", "any", "tool", null]}, "name": kind("string"),
                "disable_parallel_tool_use": kind("boolean"),
            })),
            "thinking": nested(json!({
                "type": {"enum": ["enabled", "adaptive", "between_tools", "disabled", null]},
            })),
        }))
    }

    fn embeddings(&self) -> Value {
        let mut fields = self.reading();
        fields.extend(object(json!({
            "input": self.prompts(),
            "encoding_format": {"enum": ["float", "base64", null]},
            "dimensions": {"enum": [self.model.hidden, null]},
            "add_special_tokens": kind("boolean"),
        })));
        body(fields, &["input"], json!({"input": "Once"}))
    }

    fn score(&self) -> Value {
        let mut fields = self.reading();
        let text = json!({"type": "string", "minLength": 1});
        let texts = json!({"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]});
        let labels = json!({
            "type": ["array", "null"], "items": self.id(), "minItems": 1, "maxItems": MAX_NEXT,
        });
        fields.extend(object(json!({
            "query": or_null(json!({"anyOf": [text, {"type": "array", "items": self.id()}]})),
            "items": or_null(self.prompts()),
            "label_token_ids": labels,
            "apply_softmax": kind("boolean"),
            "item_first": kind("boolean"),
            "text_1": or_null(texts.clone()),
            "text_2": or_null(texts),
        })));
        let example = json!({"query": "Once", "items": [" upon"], "label_token_ids": [1, 2]});
        let mut schema = body(fields, &[], example);
        schema["oneOf"] = one_of("query", "text_1");
        schema
    }

    /// What the calls share that read prompts and make no output.
    fn reading(&self) -> Map<String, Value> {
        object(json!({
            "model": self.model(),
            "pooling": {"enum": ["last", "mean", null]},
            "cache_salt": salt(),
            "priority": priority(),
            "user": {},
        }))
    }

    fn generate(&self) -> Value {
        let mut sampling = self.sampling();
        sampling.extend(object(json!({
            "max_new_tokens": self.tokens_or_0(),
            "sampling_seed": seed(),
            "min_new_tokens": self.tokens_or_0(),
            "n": within("integer", 1, MAX_OUTPUTS),
        })));
        let fields = object(json!({
            "text": or_null(self.prompts()),
            "input_ids": or_null(self.prompts()),
            "sampling_params": each_object(Value::Object(sampling)),
            "stream": kind("boolean"),
            "rid": each(json!({"type": "string"})),
            "return_logprob": each(json!({"type": "boolean"})),
            "logprob_start_len": each(json!({"type": "integer", "minimum": -1})),
            "top_logprobs_num": each(json!({"type": "integer", "minimum": 0})),
            "token_ids_logprob": each(json!({
                "type": "array", "items": self.id(), "maxItems": MAX_NEXT,
            })),
            "return_text_in_logprobs": kind("boolean"),
            "cache_salt": each(json!({"type": "string", "maxLength": MAX_SALT})),
            "priority": priority(),
        }));
        let mut schema = body(fields, &[], json!({"text": "Once"}));
        schema["oneOf"] = one_of("text", "input_ids");
        schema
    }

    fn tokenize(&self) -> Value {
        let fields = object(json!({
            "model": self.model(),
            "prompt": kind("string"),
            "messages": or_null(chat_messages()),
            "add_special_tokens": kind("boolean"),
            "return_token_strs": kind("boolean"),
        }));
        let mut schema = body(fields, &[], json!({"prompt": "Once"}));
        schema["oneOf"] = one_of("prompt", "messages");
        schema
    }

    fn detokenize(&self) -> Value {
        let fields = object(json!({
            "model": self.model(),
            "tokens": {"type": "array", "items": self.id()},
            "skip_special_tokens": kind("boolean"),
        }));
        body(fields, &["tokens"], json!({"tokens": [1, 2]}))
    }

    /// What chat and completions share.
    fn openai(&self) -> Map<String, Value> {
        let mut fields = self.sampling();
        fields.extend(object(json!({
            "model": self.model(),
            "max_tokens": self.tokens(),
            "min_tokens": self.tokens_or_0(),
            "n": within("integer", 1, MAX_OUTPUTS),
            "best_of": within("integer", 1, MAX_OUTPUTS),
            "seed": seed(),
            "prompt_logprobs": within("integer", 0, MAX_TOP_LOGPROBS),
            "stream": kind("boolean"),
            "include_stop_str_in_output": kind("boolean"),
            "cache_salt": salt(),
            "priority": priority(),
            "user": {},
        })));
        fields
    }

    fn sampling(&self) -> Map<String, Value> {
        object(json!({
            "temperature": within("number", 0, 2),
            "top_p": above_0(1),
            "top_k": at_least("integer", -1),
            "min_p": within("number", 0, 1),
            "presence_penalty": within("number", -2, 2),
            "frequency_penalty": within("number", -2, 2),
            "repetition_penalty": {"type": ["number", "null"], "exclusiveMinimum": 0},
            "logit_bias": {
                "type": ["object", "null"], "maxProperties": MAX_LOGIT_BIAS,
                "propertyNames": {"pattern": "^[+]?[0-9]+$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
            "stop": {"anyOf": [stop(), at_most(MAX_STOPS, stop())]},
            "stop_token_ids": at_most(MAX_STOP_IDS, self.id()),
            "ignore_eos": kind("boolean"),
            "skip_special_tokens": kind("boolean"),
            "no_stop_trim": kind("boolean"),
        }))
    }

    fn model(&self) -> Value {
        json!({"enum": [self.model.served_name, "", null]})
    }

    fn id(&self) -> Value {
        json!({"type": "integer", "minimum": 0, "maximum": self.limits.vocab.saturating_sub(1)})
    }

    /// A prompt as text or ids, or a list of such.
    fn prompts(&self) -> Value {
        let text = json!({"type": "string", "minLength": 1});
        let some = |items: &Value| json!({"type": "array", "items": items, "minItems": 1});
        let ids = some(&self.id());
        let either = json!({"anyOf": [text, ids]});
        json!({"anyOf": [text, ids, some(&either)]})
    }

    fn tokens_max(&self) -> u32 {
        self.limits.context_length.min(self.limits.pool_tokens)
    }

    fn tokens(&self) -> Value {
        within("integer", 1, self.tokens_max())
    }

    fn tokens_or_0(&self) -> Value {
        within("integer", 0, self.tokens_max())
    }
}

fn abort() -> Value {
    let fields = object(json!({"rid": kind("string"), "abort_all": kind("boolean")}));
    let mut schema = body(fields, &[], json!({"rid": "x"}));
    let named = json!({"required": ["rid"], "properties": {"rid": {"type": "string"}}});
    let all = json!({"required": ["abort_all"], "properties": {"abort_all": {"const": true}}});
    schema["anyOf"] = json!([named, all]);
    schema
}

fn chat_messages() -> Value {
    json!({"type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["role"],
        "properties": {
            "role": {"type": "string"},
            "content": {"anyOf": [
                kind("string"),
                {"type": "array", "items": {"anyOf": [{"type": "string"}, text_part()]}},
            ]},
        },
    }})
}

fn text_part() -> Value {
    json!({"type": "object", "required": ["type", "text"],
           "properties": {"type": {"const": "text"}, "text": {"type": "string"}}})
}

/// A content block of Anthropic's.
fn block() -> Value {
    let block = |kind: &str, fields: Value| {
        let mut fields = object(fields);
        fields.insert("type".to_owned(), json!({"const": kind}));
        let names: Vec<&String> = fields.keys().collect();
        json!({"type": "object", "required": names, "properties": fields})
    };
    let string = || json!({"type": "string"});
    let input = json!({"type": "object"});
    json!({"anyOf": [
        text_part(),
        block("tool_use", json!({"id": string(), "name": string(), "input": input})),
        block("tool_result", json!({"tool_use_id": string()})),
        block("thinking", json!({"thinking": string()})),
        block("redacted_thinking", json!({})),
    ]})
}

/// Exactly one of the two fields is given.
fn one_of(one: &str, other: &str) -> Value {
    let given = |given: &str, absent: &str| {
        json!({"required": [given], "properties": {
            given: {"not": {"type": "null"}}, absent: {"type": "null"},
        }})
    };
    json!([given(one, other), given(other, one)])
}

fn function(schema: &str) -> Value {
    json!({"type": "object", "required": ["name"],
           "properties": {"name": tool_name(), schema: kind("object")}})
}

fn tool_name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": NAME_MAX})
}

fn stop() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_LEN})
}

fn salt() -> Value {
    json!({"type": ["string", "null"], "maxLength": MAX_SALT})
}

fn priority() -> Value {
    within("integer", i32::MIN, i32::MAX)
}

fn seed() -> Value {
    within("integer", i64::MIN, i64::MAX)
}

fn body(fields: Map<String, Value>, required: &[&str], example: Value) -> Value {
    json!({"type": "object", "required": required, "properties": fields, "examples": [example]})
}

/// A type, or null, which is the same as absent.
fn kind(name: &str) -> Value {
    json!({"type": [name, "null"]})
}

/// An object, or null, whose own fields may be left out.
fn nested(properties: Value) -> Value {
    json!({"type": ["object", "null"], "properties": properties})
}

fn within<T: serde::Serialize>(name: &str, least: T, most: impl serde::Serialize) -> Value {
    json!({"type": [name, "null"], "minimum": least, "maximum": most})
}

fn at_least(name: &str, least: i64) -> Value {
    json!({"type": [name, "null"], "minimum": least})
}

fn above_0(most: u32) -> Value {
    json!({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": most})
}

fn list(items: Value) -> Value {
    json!({"type": ["array", "null"], "items": items})
}

fn at_most(count: usize, items: Value) -> Value {
    json!({"type": ["array", "null"], "items": items, "maxItems": count})
}

fn or_null(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

/// A string, or a list of something richer.
fn strings_or(items: Value) -> Value {
    json!({"anyOf": [{"type": "string"}, {"type": "array", "items": items}]})
}

/// One for all prompts, or a list with one for each.
fn each(one: Value) -> Value {
    let list = json!({"type": "array", "items": one, "minItems": 1, "maxItems": MAX_PROMPTS});
    or_null(json!({"anyOf": [one, list]}))
}

/// The same of an object whose own fields may be left out.
fn each_object(properties: Value) -> Value {
    let one = nested(properties.clone());
    json!({"type": ["object", "array", "null"], "properties": properties,
           "items": one, "minItems": 1, "maxItems": MAX_PROMPTS})
}

fn object(properties: Value) -> Map<String, Value> {
    match properties {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
