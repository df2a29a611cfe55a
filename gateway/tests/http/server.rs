//! Routes, limits, authentication, drain.

use crate::support::{Gateway, read_to_end};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn health_speaks_of_itself_and_readiness_of_the_fleet() {
    let gateway = Gateway::start(|_| {}).await;
    assert_eq!(gateway.get("/health").await.status, 200);
    let ready = gateway.get("/ready").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["ready"], false);
    assert!(ready.error()["message"].as_str().unwrap().contains("prefill"), "{}", ready.body);
    assert!(ready.head.contains("retry-after"), "{}", ready.head);
    assert_eq!(gateway.get("/metrics").await.status, 200);
}

#[tokio::test]
async fn models_and_infos() {
    let gateway = Gateway::start(|settings| settings.context_length = Some(1000)).await;
    let models = gateway.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 1000);
    assert_eq!(gateway.get("/v1/models/tiny").await.json()["object"], "model");
    let missing = gateway.get("/v1/models/org/other").await;
    assert_eq!((missing.status, missing.error()["code"].clone()), (404, json!("model_not_found")));
    for path in ["/model_info", "/get_model_info"] {
        let info = gateway.get(path).await.json();
        assert_eq!(info["is_generation"], true);
        assert_eq!(info["vocab_size"], 512);
        assert_eq!(info["model_type"], "qwen3");
        assert_eq!(info["architectures"], json!(["Qwen3ForCausalLM"]));
    }
    for path in ["/server_info", "/get_server_info"] {
        assert_eq!(gateway.get(path).await.json()["served_model_name"], "tiny");
    }
}

#[tokio::test]
async fn without_servers_nothing_is_generated_and_nothing_is_loaded() {
    let gateway = Gateway::start(|_| {}).await;
    let answer = gateway.get("/health_generate").await;
    assert_eq!((answer.status, answer.error()["code"].clone()), (503, json!("not_ready")));
    let loads = gateway.get("/v1/loads").await.json();
    assert_eq!(loads["loads"], json!([]));
    assert_eq!(loads["aggregate"]["total_reqs"], 0);
}

#[tokio::test]
async fn tokenize_and_back() {
    let gateway = Gateway::start(|_| {}).await;
    let body = json!({"prompt": "Grüße 🙂", "return_token_strs": true});
    let tokens = gateway.post("/tokenize", &body.to_string()).await.json();
    assert_eq!(tokens["count"].as_u64(), Some(tokens["tokens"].as_array().unwrap().len() as u64));
    assert_eq!(
        tokens["token_strs"].as_array().unwrap().len(),
        tokens["tokens"].as_array().unwrap().len()
    );
    let body = json!({"tokens": tokens["tokens"]});
    let text = gateway.post("/detokenize", &body.to_string()).await.json();
    assert_eq!(text["prompt"], "Grüße 🙂");
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let chat = gateway.post("/tokenize", &body.to_string()).await.json();
    let text = gateway.post("/detokenize", &json!({"tokens": chat["tokens"]}).to_string()).await;
    assert_eq!(text.json()["prompt"], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let bad = gateway.post("/detokenize", r#"{"tokens": [1, 512]}"#).await;
    assert_eq!((bad.status, bad.error()["param"].clone()), (400, json!("tokens[1]")));
    let bad = gateway.post("/tokenize", "{}").await;
    assert_eq!((bad.status, bad.error()["param"].clone()), (400, json!("prompt")));
}

#[tokio::test]
async fn unknown_routes_and_methods_have_openais_shape() {
    let gateway = Gateway::start(|_| {}).await;
    let missing = gateway.get("/v1/nothing").await;
    assert_eq!((missing.status, missing.error()["code"].clone()), (404, json!("not_found")));
    let wrong = gateway.get("/v1/completions").await;
    assert_eq!((wrong.status, wrong.error()["code"].clone()), (405, json!("method_not_allowed")));
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let gateway = Gateway::start(|_| {}).await;
    let given = gateway.request("GET", "/health", "x-request-id: abc-1\r\n", "").await;
    assert!(given.head.contains("x-request-id: abc-1"), "{}", given.head);
    for header in ["", "x-request-id: two words\r\n"] {
        let made = gateway.request("GET", "/health", header, "").await;
        let line = made.head.lines().find(|line| line.starts_with("x-request-id: ")).unwrap();
        assert_eq!(line.len(), "x-request-id: ".len() + 32);
    }
}

#[tokio::test]
async fn a_body_too_large_is_413_whether_or_not_its_length_is_told() {
    let gateway = Gateway::start(|settings| settings.max_body_bytes = Some(1000)).await;
    let answer = gateway.post("/v1/completions", &"x".repeat(1001)).await;
    assert_eq!((answer.status, answer.error()["code"].clone()), (413, json!("body_too_large")));
    let mut stream = gateway.connect().await;
    let chunked = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
        connection: close\r\n\r\n";
    stream.write_all(chunked.as_bytes()).await.unwrap();
    for _ in 0..3 {
        let chunk = format!("190\r\n{}\r\n", "x".repeat(400));
        let _ = stream.write_all(chunk.as_bytes()).await;
    }
    assert_eq!(read_to_end(&mut stream).await.status, 413);
}

#[tokio::test]
async fn slow_headers_and_bodies_are_cut() {
    let short = |settings: &mut gateway::config::Settings| {
        (settings.headers_ms, settings.body_ms) = (Some(50), Some(50));
    };
    let gateway = Gateway::start(short).await;
    let mut stream = gateway.connect().await;
    stream.write_all(b"GET /health HTTP/1.1\r\nho").await.unwrap();
    assert_ne!(read_to_end(&mut stream).await.status, 200);
    let mut stream = gateway.connect().await;
    let head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{";
    stream.write_all(head).await.unwrap();
    assert_eq!(read_to_end(&mut stream).await.status, 408);
}

#[tokio::test]
async fn the_key_guards_all_but_health_and_metrics() {
    let gateway = Gateway::start(|settings| settings.api_key = Some("sesame".into())).await;
    assert_eq!(gateway.get("/health").await.status, 200);
    assert_eq!(gateway.get("/metrics").await.status, 200);
    for path in ["/v1/models", "/server_info", "/flush_cache"] {
        let answer = gateway.get(path).await;
        assert_eq!(
            (answer.status, answer.error()["code"].clone()),
            (401, json!("invalid_api_key"))
        );
    }
    let right = gateway.request("GET", "/v1/models", "authorization: Bearer sesame\r\n", "").await;
    assert_eq!(right.status, 200);
}

#[tokio::test]
async fn flush_and_abort_on_an_empty_fleet() {
    let gateway = Gateway::start(|_| {}).await;
    assert_eq!(gateway.get("/flush_cache").await.status, 200);
    assert_eq!(gateway.post("/flush_cache", "").await.status, 200);
    let abort = gateway.post("/abort_request", r#"{"rid": "x"}"#).await;
    assert_eq!((abort.status, abort.json()["aborted"].clone()), (200, json!(0)));
    assert_eq!(gateway.post("/abort_request", r#"{"abort_all": true}"#).await.status, 200);
    assert_eq!(gateway.post("/abort_request", "{}").await.error()["param"], "rid");
}

#[tokio::test]
async fn the_drain_closes_idle_connections_and_cuts_slow_ones_at_its_deadline() {
    let gateway = Gateway::start(|_| {}).await;
    let mut idle = gateway.connect().await;
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let address = gateway.address;
    assert_eq!(gateway.stop().await, 0);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());

    let gateway = Gateway::start(|settings| settings.drain_seconds = Some(0)).await;
    let mut busy = gateway.connect().await;
    let head =
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n";
    busy.write_all(head).await.unwrap();
    let mut first = [0; 12];
    busy.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100", "the handler waits for the body");
    let app = std::sync::Arc::clone(&gateway.app);
    assert_eq!(gateway.stop().await, 1);
    assert!(app.is_draining());
}
