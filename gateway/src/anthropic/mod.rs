//! Anthropic's Messages API, by translation: a request becomes one of chat completions, and the
//! output of that is told in Anthropic's words. No I/O.

pub mod error;
pub mod request;
mod shape;

pub use shape::MessageShape;

/// Whether requests to `path` are answered in this API's words, errors included.
pub fn serves(path: &str) -> bool {
    path == "/v1/messages" || path.starts_with("/v1/messages/")
}

/// Names of chat completions' fields, and what this API calls them.
pub const NAMES: &[(&str, &str)] = &[
    (".function.parameters", ".input_schema"),
    (".function.name", ".name"),
    ("stop[", "stop_sequences["),
    ("response_format.json_schema", "output_format"),
    ("response_format", "output_format"),
];
