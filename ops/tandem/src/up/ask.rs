//! One question to the ring, its answer streamed to the terminal as it comes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::fleet::Fleet;
use super::ready::agent;

const TOKENS_MAX: u32 = 64;
const FIRST_BYTE_MAX: Duration = Duration::from_secs(60);

/// No event of the stream is longer: one delta and its logprobs.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// # Errors
/// Where the ring does not answer, answers with an error, or streams no text.
pub fn ask(fleet: &Fleet, question: &str) -> anyhow::Result<()> {
    println!("\n> {question}");
    let request = json!({
        "model": fleet.model_name,
        "messages": [{ "role": "user", "content": question }],
        "max_tokens": TOKENS_MAX,
        "temperature": 0,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let start = Instant::now();
    let mut response = agent(FIRST_BYTE_MAX)
        .post(format!("{}/v1/chat/completions", fleet.url))
        .header("authorization", fleet.authorization())
        .header("content-type", "application/json")
        .send(request.to_string())
        .context("send a chat request")?;
    let status = response.status();
    let reader = response.body_mut().as_reader();
    if !status.is_success() {
        let mut body = String::new();
        reader.take(LINE_BYTES_MAX).read_to_string(&mut body)?;
        bail!("the gateway answered {status}: {body}");
    }
    let mut terminal = io::stdout().lock();
    let answer = print_stream(BufReader::new(reader), &mut terminal, start);
    writeln!(terminal)?;
    let answer = answer?;
    writeln!(terminal, "\n{}", answer.summary(start.elapsed()))?;
    ensure!(answer.tokens > 0, "the ring streamed no text");
    Ok(())
}

#[derive(Debug, Default)]
struct Answer {
    first: Option<Duration>,
    /// Completion tokens, as the usage says.
    tokens: u64,
}

impl Answer {
    fn summary(&self, total: Duration) -> String {
        let first = self.first.unwrap_or(total);
        let rest = (total - first).as_secs_f64();
        let steps = self.tokens.saturating_sub(1);
        let speed = if rest > 0.0 { steps as f64 / rest } else { 0.0 };
        let (tokens, first) = (self.tokens, first.as_millis());
        format!("({tokens} tokens, first after {first} ms, then {speed:.1} a second)")
    }
}

/// Copies the text of server-sent events as it arrives, until `[DONE]`.
fn print_stream(
    mut events: impl BufRead,
    terminal: &mut impl Write,
    start: Instant,
) -> anyhow::Result<Answer> {
    let mut answer = Answer::default();
    let mut line = String::new();
    loop {
        line.clear();
        let read = events.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
        ensure!(read > 0, "the stream ended without [DONE]");
        let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(answer);
        }
        let event: Value = serde_json::from_str(data).context("an event that is not JSON")?;
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("the stream broke off: {message}");
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            answer.first.get_or_insert_with(|| start.elapsed());
            write!(terminal, "{text}")?;
            terminal.flush()?;
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            answer.tokens = tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(events: &str) -> anyhow::Result<(String, u64)> {
        let mut out = Vec::new();
        let answer = print_stream(events.as_bytes(), &mut out, Instant::now())?;
        Ok((String::from_utf8(out)?, answer.tokens))
    }

    #[test]
    fn text_is_copied_until_done() {
        let events = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n\
            : a comment\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"is\"}}]}\r\n\r\n\
            data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n\
            data: [DONE]\n\n";
        assert_eq!(stream(events).unwrap(), ("Paris".to_owned(), 2));
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        let cut = "data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\n";
        assert!(stream(cut).unwrap_err().to_string().contains("[DONE]"));
        let failed = "data: {\"error\":{\"message\":\"decode-0 was lost\"}}\n\n";
        assert!(stream(failed).unwrap_err().to_string().contains("decode-0 was lost"));
        assert!(stream("data: {\n\n").is_err());
    }
}
