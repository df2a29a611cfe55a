//! An HTTP server that streams completions at the echo's pace, and says yes to every question.

use anyhow::Context;
use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// What is read of a request.
#[derive(Deserialize)]
struct Asked {
    max_tokens: usize,
}

/// Serves for ever.
///
/// # Errors
/// The address cannot be had.
pub async fn serve(address: SocketAddr, step: Duration) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, step));
            // Its error is the client's to tell.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body<S> = Either<Full<Bytes>, StreamBody<S>>;

async fn answer(
    request: Request<Incoming>,
    step: Duration,
) -> Result<Response<Body<impl Stream<Item = Result<Frame<Bytes>, Infallible>>>>, hyper::Error> {
    let (method, about) = (request.method().clone(), request.uri().path().to_owned());
    let body = request.into_body().collect().await?.to_bytes();
    let asked = serde_json::from_slice::<Asked>(&body);
    Ok(match asked {
        Ok(asked) if method == Method::POST => {
            let mut response = Response::new(Either::Right(StreamBody::new(tokens(asked, step))));
            let kind = hyper::header::HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        _ => {
            let models = json!({"object": "list", "data": [{"id": "echo", "object": "model"}]});
            let known = if about == "/v1/models" { models } else { json!({"model_path": "echo"}) };
            let mut response = Response::new(Either::Left(Full::new(known.to_string().into())));
            let kind = hyper::header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
    })
}

fn tokens(asked: Asked, step: Duration) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let mut clock = interval_at(Instant::now() + step, step);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((asked, clock, 0), |(asked, mut clock, made)| async move {
        if made == asked.max_tokens {
            return None;
        }
        if made > 0 {
            clock.tick().await;
        }
        let made = made + 1;
        let ends = made == asked.max_tokens;
        let chunk = json!({
            "id": "cmpl-echo",
            "object": "text_completion",
            "created": 0,
            "model": "echo",
            "choices": [{
                "index": 0,
                "text": " word",
                "logprobs": null,
                "finish_reason": ends.then_some("length"),
            }],
            "usage": {"prompt_tokens": 64, "completion_tokens": made, "total_tokens": 64 + made},
        });
        let end = if ends { "data: [DONE]\n\n" } else { "" };
        let frame = Frame::data(Bytes::from(format!("data: {chunk}\n\n{end}")));
        Some((Ok(frame), (asked, clock, made)))
    })
}
