//! The assistant's message: parts of an output as OpenAI's deltas, or as one message.

use super::tools::call_id;
use crate::parts::Part;
use crate::reply::Reply;
use serde::Serialize;

/// What is new in a message.
#[derive(Debug, Default, Serialize)]
pub(super) struct MessageDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta; 1]>,
}

#[derive(Debug, Serialize)]
struct CallDelta {
    index: usize,
    #[serde(flatten)]
    opening: Option<CallOpening>,
    function: FunctionDelta,
}

#[derive(Debug, Serialize)]
struct CallOpening {
    id: String,
    r#type: &'static str,
}

#[derive(Debug, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// A whole message.
#[derive(Debug, Serialize)]
pub(super) struct Message {
    role: &'static str,
    /// Null where there are calls alone.
    content: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Debug, Serialize)]
struct Call {
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl MessageDelta {
    /// What opens a message.
    pub(super) fn opening() -> Self {
        Self { role: Some("assistant"), ..Self::text(String::new()) }
    }

    /// Text of the answer.
    pub(super) fn text(text: String) -> Self {
        Self { content: Some(text), ..Self::default() }
    }

    /// Whether it is text of the answer.
    pub(super) fn is_text(&self) -> bool {
        self.content.is_some()
    }

    /// `begun` counts the calls of the message so far.
    fn new(part: Part, begun: &mut usize) -> Self {
        let call = |begun: usize, opening, name, arguments| {
            let function = FunctionDelta { name, arguments };
            let call = CallDelta { index: begun.saturating_sub(1), opening, function };
            Self { tool_calls: Some([call]), ..Self::default() }
        };
        match part {
            Part::Thought(text) => Self { reasoning_content: Some(text), ..Self::default() },
            Part::Text(text) => Self::text(text),
            Part::Call { name } => {
                *begun += 1;
                let opening = CallOpening { id: call_id(), r#type: "function" };
                call(*begun, Some(opening), Some(name), String::new())
            }
            Part::Arguments(text) => call(*begun, None, None, text),
        }
    }
}

impl Reply {
    /// Takes the next text, the last one if `ended`.
    pub(super) fn deltas(&mut self, text: &str, ended: bool) -> Vec<MessageDelta> {
        let mut begun = self.calls();
        let parts = self.parts(text, ended).into_iter();
        parts.map(|part| MessageDelta::new(part, &mut begun)).collect()
    }

    /// Takes all text at once.
    pub(super) fn message(&mut self, text: &str) -> Message {
        let role = "assistant";
        let (mut content, mut reasoning_content) = (String::new(), String::new());
        let mut tool_calls: Vec<Call> = Vec::new();
        for part in self.parts(text, true) {
            match part {
                Part::Thought(text) => reasoning_content.push_str(&text),
                Part::Text(text) => content.push_str(&text),
                Part::Call { name } => {
                    let function = Function { name, arguments: String::new() };
                    tool_calls.push(Call { id: call_id(), r#type: "function", function });
                }
                Part::Arguments(text) => {
                    if let Some(call) = tool_calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        let content = (!content.is_empty() || tool_calls.is_empty()).then_some(content);
        Message { role, content, reasoning_content, tool_calls }
    }
}
