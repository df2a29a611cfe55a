//! Bad input: the status, OpenAI's error object and the field's name.

use crate::support::Gateway;
use serde_json::{Value, json};
use std::collections::BTreeMap;

async fn check(gateway: &Gateway, path: &str, body: &Value, status: u16, param: Value) {
    let answer = gateway.post(path, &body.to_string()).await;
    assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
    assert_eq!(answer.error()["param"], param, "{path} {body}: {}", answer.body);
    assert!(answer.error()["message"].is_string());
}

#[tokio::test]
async fn completions_name_the_field() {
    let many: BTreeMap<String, i32> = (0..301).map(|id| (id.to_string(), 1)).collect();
    let gateway = Gateway::start(|_| {}).await;
    let cases = [
        (json!({}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ["a", 3]}), "prompt[1]"),
        (json!({"prompt": [1, "a"]}), "prompt[1]"),
        (json!({"prompt": [1, 2, 512]}), "prompt[2]"),
        (json!({"prompt": [[1], [-1]]}), "prompt[1][0]"),
        (json!({"prompt": ["a", ""]}), "prompt[1]"),
        (json!({"prompt": {"a": 1}}), "prompt"),
        (json!({"prompt": "a", "model": 3}), "model"),
        (json!({"prompt": "a", "temperature": "hot"}), "temperature"),
        (json!({"prompt": "a", "temperature": 2.1}), "temperature"),
        (json!({"prompt": "a", "temperature": -0.1}), "temperature"),
        (json!({"prompt": "a", "top_p": 0}), "top_p"),
        (json!({"prompt": "a", "top_p": 1.5}), "top_p"),
        (json!({"prompt": "a", "top_k": -2}), "top_k"),
        (json!({"prompt": "a", "min_p": 1.1}), "min_p"),
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "a", "max_tokens": -1}), "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 1.5}), "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 2048}), "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 5_000_000_000_u64}), "max_tokens"),
        (json!({"prompt": "a", "max_tokens": 4, "min_tokens": 5}), "min_tokens"),
        (json!({"prompt": "a", "stop": ""}), "stop[0]"),
        (json!({"prompt": "a", "stop": ["x", 3]}), "stop[1]"),
        (json!({"prompt": "a", "stop": "x".repeat(1025)}), "stop[0]"),
        (json!({"prompt": "a", "stop": vec!["x"; 65]}), "stop"),
        (json!({"prompt": "a", "stop_token_ids": [5, 512]}), "stop_token_ids[1]"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs"),
        (json!({"prompt": "a", "cache_salt": "x".repeat(257)}), "cache_salt"),
        (json!({"prompt": "a", "stream_options": {"include_usage": true}}), "stream_options"),
        (
            json!({"prompt": "a", "stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"prompt": "a", "echo": "yes"}), "echo"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "logit_bias": {"5": 101}}), "logit_bias"),
        (json!({"prompt": "a", "logit_bias": {"512": 1}}), "logit_bias"),
        (json!({"prompt": "a", "logit_bias": {"five": 1}}), "logit_bias.five"),
        (json!({"prompt": "a", "logit_bias": {"5": "1"}}), "logit_bias.5"),
        (json!({"prompt": "a", "logit_bias": [5]}), "logit_bias"),
        (json!({"prompt": "a", "logit_bias": many}), "logit_bias"),
        (json!({"prompt": "a", "presence_penalty": 2.5}), "presence_penalty"),
        (json!({"prompt": "a", "frequency_penalty": -2.5}), "frequency_penalty"),
        (json!({"prompt": "a", "frequency_penalty": "x"}), "frequency_penalty"),
        (json!({"prompt": "a", "repetition_penalty": 0}), "repetition_penalty"),
        (json!({"prompt": "a", "repetition_penalty": 1e300}), "repetition_penalty"),
        (json!({"prompt": "a", "response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"prompt": "a", "regex": "(", "max_tokens": 2}), "regex"),
        (json!({"prompt": "a", "regex": "a", "guided_choice": ["b"]}), "guided_choice"),
        (json!({"prompt": "a", "ebnf": "root ::= other"}), "ebnf"),
        (json!({"prompt": "a", "json_schema": "{\"type\": \"thing\"}"}), "json_schema"),
        (json!({"prompt": "a", "structured_outputs": {"json": 3}}), "structured_outputs.json"),
    ];
    for (body, param) in cases {
        check(&gateway, "/v1/completions", &body, 400, json!(param)).await;
    }
    let model = json!({"prompt": "a", "model": "gpt-4"});
    check(&gateway, "/v1/completions", &model, 404, json!("model")).await;
}

#[tokio::test]
async fn numbers_of_outputs_name_the_field() {
    let gateway = Gateway::start(|_| {}).await;
    let cases = [
        (json!({"prompt": "a", "n": 0}), "n"),
        (json!({"prompt": "a", "n": 129}), "n"),
        (json!({"prompt": ["a", "b", "c", "d", "e"], "n": 103}), "n"),
        (json!({"prompt": "a", "n": 3, "best_of": 2}), "best_of"),
        (json!({"prompt": "a", "best_of": 129}), "best_of"),
        (json!({"prompt": "a", "best_of": 2, "stream": true}), "best_of"),
        (json!({"prompt": ["a", "b", "c", "d", "e"], "best_of": 103}), "best_of"),
    ];
    for (body, field) in cases {
        check(&gateway, "/v1/completions", &body, 400, json!(field)).await;
    }
}

#[tokio::test]
async fn chat_and_generate_name_the_field() {
    let gateway = Gateway::start(|_| {}).await;
    let hi = json!([{"role": "user", "content": "hi"}]);
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let cases = [
        (json!({}), "messages"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"messages": hi, "tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"messages": hi, "tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"messages": hi, "tool_choice": "required"}), "tool_choice"),
        (
            json!({"messages": hi, "tools": tool, "tool_choice": "required", "regex": "a"}),
            "tool_choice",
        ),
        (json!({"messages": hi, "separate_reasoning": "no"}), "separate_reasoning"),
        (json!({"messages": hi, "top_logprobs": 2}), "top_logprobs"),
        (json!({"messages": hi, "logprobs": 1}), "logprobs"),
        (json!({"messages": hi, "chat_template": "x"}), "chat_template"),
        (json!({"messages": hi, "continue_final_message": true}), "continue_final_message"),
        (json!({"messages": hi, "chat_template_kwargs": []}), "chat_template_kwargs"),
        (json!({"messages": hi, "max_completion_tokens": 4000}), "max_completion_tokens"),
        (json!({"messages": hi, "max_tokens": 4000}), "max_tokens"),
        (json!({"messages": hi, "logprobs": true, "top_logprobs": 21}), "top_logprobs"),
    ];
    for (body, param) in cases {
        check(&gateway, "/v1/chat/completions", &body, 400, json!(param)).await;
    }
    let cases = [
        (json!({}), "text"),
        (json!({"text": "a", "input_ids": [1]}), "text"),
        (json!({"input_ids": [1, 600]}), "input_ids[1]"),
        (
            json!({"text": "a", "sampling_params": {"temperature": "x"}}),
            "sampling_params.temperature",
        ),
        (json!({"text": "a", "sampling_params": {"regex": "["}}), "sampling_params.regex"),
        (
            json!({"text": "a", "sampling_params": {"max_new_tokens": 9999}}),
            "sampling_params.max_new_tokens",
        ),
        (json!({"text": "a", "sampling_params": []}), "sampling_params"),
        (
            json!({"text": "a", "sampling_params": {"temperature": 3}}),
            "sampling_params.temperature",
        ),
        (json!({"text": "a", "sampling_params": {"top_k": -2}}), "sampling_params.top_k"),
        (
            json!({"text": "a", "sampling_params": {"presence_penalty": 3}}),
            "sampling_params.presence_penalty",
        ),
        (
            json!({"text": "a", "sampling_params": {"logit_bias": {"5": -101}}}),
            "sampling_params.logit_bias",
        ),
        (
            json!({"text": "a", "sampling_params": {"max_new_tokens": 2, "min_new_tokens": 3}}),
            "sampling_params.min_new_tokens",
        ),
        (json!({"text": "a", "sampling_params": {"stop": [""]}}), "sampling_params.stop[0]"),
        (json!({"text": "a", "return_logprob": true, "top_logprobs_num": 21}), "top_logprobs_num"),
        (json!({"text": "a", "image_data": "x"}), "image_data"),
    ];
    for (body, param) in cases {
        check(&gateway, "/generate", &body, 400, json!(param)).await;
    }
}

#[tokio::test]
async fn what_is_told_once_is_not_copied_for_each_prompt_without_end() {
    let gateway = Gateway::start(|_| {}).await;
    let body = json!({"text": vec!["a"; 512], "return_logprob": vec![false; 512],
        "cache_salt": "x".repeat(40_000)});
    check(&gateway, "/generate", &body, 400, json!("sampling_params")).await;
}

#[tokio::test]
async fn a_prompt_that_cannot_fit_is_refused_with_openais_code() {
    let gateway = Gateway::start(|_| {}).await;
    for prompt in [json!("word ".repeat(3000)), json!(vec![7; 2048])] {
        let body = json!({"prompt": prompt, "max_tokens": 1});
        let answer = gateway.post("/v1/completions", &body.to_string()).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.error()["code"], "context_length_exceeded");
        assert_eq!(answer.error()["param"], "prompt");
    }
}

#[tokio::test]
async fn neutral_values_and_unknown_fields_pass_and_meet_an_empty_fleet() {
    let gateway = Gateway::start(|_| {}).await;
    let body = json!({
        "model": "tiny", "prompt": "a", "n": 1, "best_of": 1, "logprobs": null, "echo": false,
        "suffix": null, "stop": null, "presence_penalty": 0, "frequency_penalty": 0.0,
        "repetition_penalty": 1.0, "logit_bias": {}, "user": "u", "no_such_field": {"a": [1]},
        "top_k": -1, "seed": -1, "stream": false, "stream_options": null, "max_tokens": 3,
        "response_format": {"type": "text"},
    });
    let answer = gateway.post("/v1/completions", &body.to_string()).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.error()["code"], "not_ready");
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    let body = json!({
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "tools": [],
        "tool_choice": "none", "logprobs": false, "top_logprobs": 0, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        "max_completion_tokens": 5, "max_tokens": null,
    });
    let answer = gateway.post("/v1/chat/completions", &body.to_string()).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let call = json!({"id": "1", "type": "function",
        "function": {"name": "f", "arguments": "{}"}});
    let body = json!({
        "messages": [{"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "3"}],
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto",
        "parallel_tool_calls": true, "separate_reasoning": true,
    });
    let answer = gateway.post("/v1/chat/completions", &body.to_string()).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let body = json!({"input_ids": [[1, 2], [3]], "rid": ["x", "y"], "return_logprob": false,
        "logprob_start_len": -1, "sampling_params": {"top_k": 1 << 30, "n": 1}});
    let answer = gateway.post("/generate", &body.to_string()).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
}

#[tokio::test]
async fn broken_json_tells_the_position() {
    let gateway = Gateway::start(|_| {}).await;
    for (body, part) in [("{\"prompt\": \"a\",}", "column 16"), ("", "EOF"), ("[]", "JSON object")]
    {
        let answer = gateway.post("/v1/completions", body).await;
        assert_eq!(answer.status, 400);
        let error = answer.error();
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        assert_eq!(error["param"], Value::Null);
    }
}

#[tokio::test]
async fn embeddings_and_scores_name_the_field() {
    let gateway = Gateway::start(|_| {}).await;
    let cases = [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": ["a", 3]}), "input[1]"),
        (json!({"input": [1, 512]}), "input[1]"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "a", "dimensions": 3}), "dimensions"),
        (json!({"input": "a", "pooling": "max"}), "pooling"),
        (json!({"input": "a", "cache_salt": "x".repeat(257)}), "cache_salt"),
        (json!({"input": vec!["a"; 513]}), "input"),
    ];
    for (body, param) in cases {
        check(&gateway, "/v1/embeddings", &body, 400, json!(param)).await;
    }
    let labels = [1, 2];
    let cases = [
        (json!({}), "query"),
        (json!({"query": "a", "text_1": "b"}), "query"),
        (json!({"query": "a", "items": ["b"]}), "label_token_ids"),
        (json!({"query": "a", "items": ["b"], "label_token_ids": []}), "label_token_ids"),
        (json!({"query": "a", "items": ["b"], "label_token_ids": [512]}), "label_token_ids[0]"),
        (json!({"query": "a", "label_token_ids": labels}), "items"),
        (json!({"query": "a", "items": ["b", [3]], "label_token_ids": labels}), "items[1]"),
        (json!({"query": 3, "items": ["b"], "label_token_ids": labels}), "query"),
        (json!({"query": "", "items": ["b", ""], "label_token_ids": labels}), "items[1]"),
        (json!({"text_1": "a"}), "text_2"),
        (json!({"text_1": ["a", "b"], "text_2": ["c"]}), "text_1"),
        (json!({"text_1": "a", "text_2": ["c", 3]}), "text_2[1]"),
    ];
    for (body, param) in cases {
        check(&gateway, "/v1/score", &body, 400, json!(param)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_told_of_a_prompt_is_named() {
    let gateway = Gateway::start(|_| {}).await;
    let cases = [
        (json!({"prompt": "a", "prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"prompt": "a", "prompt_logprobs": -1}), "prompt_logprobs"),
        (json!({"prompt": "a", "prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
    ];
    for (body, param) in cases {
        check(&gateway, "/v1/completions", &body, 400, json!(param)).await;
    }
    for asked in [true, false] {
        let body = json!({"text": "a", "return_logprob": asked, "token_ids_logprob": [5, 512]});
        check(&gateway, "/generate", &body, 400, json!("token_ids_logprob[1]")).await;
    }
    let body = json!({"text": "a", "return_logprob": true, "logprob_start_len": -2});
    check(&gateway, "/generate", &body, 400, json!("logprob_start_len")).await;
}

#[tokio::test]
async fn lists_of_generate_name_the_field_and_the_place() {
    let gateway = Gateway::start(|_| {}).await;
    let cases = [
        (json!({"sampling_params": [{}]}), "sampling_params", "1 values, and there are 2 prompts"),
        (json!({"sampling_params": [{}, 3]}), "sampling_params[1]", "a number"),
        (
            json!({"sampling_params": [{}, {"temperature": "x"}]}),
            "sampling_params[1].temperature",
            "\"x\"",
        ),
        (json!({"sampling_params": [{}, {"top_k": -2}]}), "sampling_params[1].top_k", "-2"),
        (
            json!({"sampling_params": [{}, {"stop": ["a", ""]}]}),
            "sampling_params[1].stop[1]",
            "got 0",
        ),
        (json!({"sampling_params": [{}, {"regex": "["}]}), "sampling_params[1].regex", "unclosed"),
        (
            json!({"sampling_params": [{}, {"max_new_tokens": 9999}]}),
            "sampling_params[1].max_new_tokens",
            "9999",
        ),
        (json!({"sampling_params": [{"n": 2}, {}]}), "sampling_params[1].n", "2 as the first"),
        (json!({"return_logprob": [true, false, true]}), "return_logprob", "3 values"),
        (json!({"return_logprob": [true, 1]}), "return_logprob[1]", "boolean"),
        (json!({"logprob_start_len": [0, -2]}), "logprob_start_len[1]", "-2"),
        (json!({"top_logprobs_num": []}), "top_logprobs_num", "0 values"),
        (json!({"top_logprobs_num": [1, -1]}), "top_logprobs_num[1]", "-1"),
        (json!({"top_logprobs_num": [1, 21], "return_logprob": true}), "top_logprobs_num[1]", "21"),
        (json!({"token_ids_logprob": [[1]]}), "token_ids_logprob", "1 values"),
        (json!({"token_ids_logprob": [[1], [2, 512]]}), "token_ids_logprob[1][1]", "512"),
        (json!({"token_ids_logprob": [[1], 2]}), "token_ids_logprob[1]", "sequence"),
        (json!({"cache_salt": ["a", "x".repeat(257)]}), "cache_salt[1]", "257"),
        (json!({"rid": ["a"]}), "rid", "one for each"),
        (json!({"rid": ["a", "a"]}), "rid[1]", "\"a\" is `rid[0]` too"),
        (json!({"rid": ["a", null]}), "rid[1]", "must be a name"),
    ];
    for (mut body, param, part) in cases {
        body["text"] = json!(["a", "b"]);
        check(&gateway, "/generate", &body, 400, json!(param)).await;
        let answer = gateway.post("/generate", &body.to_string()).await;
        let message = answer.error()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(param) && message.contains(part), "{param} {part}: {message}");
    }
}
