//! OpenAI's Responses API, by translation: a request becomes one of chat completions, and the
//! output of that is told as items. Nothing is stored: `previous_response_id` and `store` are
//! refused by name, and a client sends the conversation's items again. No I/O.

mod items;
pub mod request;
mod shape;

pub use shape::ResponseShape;

use crate::openai::chat;
use crate::validate::Dialect;

/// This API's words.
pub const DIALECT: Dialect = Dialect { max_tokens: "max_output_tokens", ..chat::DIALECT };

/// Names of chat completions' fields, and what this API calls them.
pub const NAMES: &[(&str, &str)] = &[
    (".function.parameters", ".parameters"),
    (".function.name", ".name"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
];
