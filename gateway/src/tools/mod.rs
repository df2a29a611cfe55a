//! Calls of tools in what a model writes.
//!
//! 1. [`ToolCallParser`] is the setting; [`ToolCallParser::format`] finds the model's [`Format`]
//!    by its chat template.
//! 2. [`CallParser`] reads the text as it comes and tells calls from content.
//! 3. Where a call is required, [`Format::enforcing`] is the grammar that leaves nothing else.
//! 4. [`json`] follows a JSON object character by character, so that arguments stream.

mod calls;
mod enforce;
pub mod json;

pub use calls::{CallParser, Format};

use serde::Deserialize;

/// How a model writes calls of tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ToolCallParser {
    /// As the chat template has it; calls stay text where it has none of the others.
    #[default]
    Auto,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen2.5, Qwen3.
    Hermes,
    /// `{"name": …, "parameters": …}`, alone or after `<|python_tag|>`: Llama 3.
    Llama3,
    /// Calls stay text.
    None,
}

impl ToolCallParser {
    /// The format of a model with this chat template; `None` leaves calls in the text.
    pub fn format(self, template: Option<&str>) -> Option<Format> {
        let template = template.unwrap_or_default();
        let has = |part: &str| template.contains(part);
        // Templates that put XML between the same tags: Qwen3-Coder's and GLM's.
        let xml = has("<function=") || has("<arg_key>");
        match self {
            Self::Hermes => Some(Format::HERMES),
            Self::Auto if has("<tool_call>") && !xml => Some(Format::HERMES),
            Self::Llama3 => Some(Format::LLAMA3),
            Self::Auto if has("<|python_tag|>") => Some(Format::LLAMA3),
            Self::Auto if has("<|start_header_id|>") && has("\"parameters\":") => {
                Some(Format::LLAMA3)
            }
            Self::Auto | Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_tells_the_format() {
        let check = |template: &str, format: Option<Format>| {
            assert_eq!(ToolCallParser::Auto.format(Some(template)), format, "{template}");
        };
        check(
            "… within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \
               \"arguments\": <args-json-object>}\n</tool_call>",
            Some(Format::HERMES),
        );
        check("<tool_call>\n<function=example_function_name>\n<parameter=…>", None);
        check("{{- \"<|python_tag|>\" + tool_call.name + \".call(\" }}", Some(Format::LLAMA3));
        check(
            "{{- '<|start_header_id|>' }}{{- 'Respond in the format {\"name\": function name, \
               \"parameters\": dictionary of argument name and its value}.' }}",
            Some(Format::LLAMA3),
        );
        check("<|im_start|>{{ message['content'] }}", None);
        assert_eq!(ToolCallParser::Auto.format(None), None);
        assert_eq!(ToolCallParser::Hermes.format(None), Some(Format::HERMES));
        assert_eq!(ToolCallParser::None.format(Some("<tool_call>")), None);
    }
}
