//! Chat templates: messages to prompt text, as transformers' `apply_chat_template` has it.
//!
//! Compiled once at start. Blocks are trimmed as in transformers (`trim_blocks`, `lstrip_blocks`);
//! Python's string and dict methods work; `raise_exception`, `strftime_now` and `tojson` are ours.

mod strftime;
mod tojson;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use serde_json::Map;
use std::time::{SystemTime, UNIX_EPOCH};

/// Steps that one rendering may take: bounds a template that loops.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat";

/// A compiled chat template with the model's special tokens.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    special_tokens: Map<String, serde_json::Value>,
}

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Messages, each an object with at least `role`; `content` is a string or absent.
    pub messages: Vec<serde_json::Value>,
    /// Tools as the client gave them.
    pub tools: Option<Vec<serde_json::Value>>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// `chat_template_kwargs`: variables that the client sets; they win over ours.
    pub kwargs: Map<String, serde_json::Value>,
}

/// Why a template did not compile or render.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

impl From<minijinja::Error> for TemplateError {
    fn from(err: minijinja::Error) -> Self {
        let line = err.line().map_or(String::new(), |line| format!(" (template line {line})"));
        match (err.kind(), err.detail()) {
            (ErrorKind::InvalidOperation, Some(detail)) => Self(format!("{detail}{line}")),
            (kind, Some(detail)) => Self(format!("{kind}: {detail}{line}")),
            (kind, None) => Self(format!("{kind}{line}")),
        }
    }
}

impl Template {
    /// Compiles `source`. `special_tokens` become variables (`bos_token`, `eos_token`, …).
    ///
    /// # Errors
    /// The source is no valid template; the message has the line.
    pub fn compile(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, source.to_owned())?;
        Ok(Self { environment, special_tokens })
    }

    /// The prompt text of a conversation.
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`) or cannot render it.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let ours = context! {
            messages => Serde(&conversation.messages),
            tools => Serde(&conversation.tools),
            documents => Value::from(()),
            add_generation_prompt => conversation.add_generation_prompt,
        };
        let tokens = Value::from(Serde(&self.special_tokens));
        let theirs = Value::from(Serde(&conversation.kwargs));
        let context = context! { ..theirs, ..ours, ..tokens };
        Ok(self.environment.get_template(NAME)?.render(context)?)
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime::strftime(format, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokens() -> Map<String, serde_json::Value> {
        let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
        tokens.as_object().expect("an object").clone()
    }

    fn render(source: &str, conversation: &Conversation) -> Result<String, TemplateError> {
        Template::compile(source, tokens())?.render(conversation)
    }

    fn user(content: &str) -> Conversation {
        Conversation {
            messages: vec![json!({"role": "user", "content": content})],
            add_generation_prompt: true,
            ..Conversation::default()
        }
    }

    #[test]
    fn chatml_with_trimmed_blocks_and_python_methods() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n\
            {{ m['role'].title() }}: {{ m.content.strip().split('x')[0] }}\n  {% endif %}\n\
            {% endfor %}\n{% if add_generation_prompt %}Bot:{% endif %}";
        assert_eq!(render(source, &user("  hixx ")).unwrap(), "<s>User: hi\nBot:");
    }

    #[test]
    fn tojson_writes_pythons_form_in_the_given_order() {
        let source = "{{ tools | tojson }}|{{ tools[0].b | tojson(indent=2) }}";
        let conversation = Conversation {
            tools: Some(vec![json!({"z": "<é'&>", "a": [1, 2.5, null, true], "b": {"k": []}})]),
            ..user("")
        };
        assert_eq!(
            render(source, &conversation).unwrap(),
            "[{\"z\": \"<é'&>\", \"a\": [1, 2.5, null, true], \"b\": {\"k\": []}}]|\
             {\n  \"k\": []\n}"
        );
    }

    #[test]
    fn raise_exception_is_the_message_and_kwargs_win() {
        let raised = render("{{ raise_exception('Roles must alternate') }}", &user(""));
        assert!(raised.unwrap_err().to_string().starts_with("Roles must alternate"));
        let mut conversation = user("");
        conversation.kwargs.insert("enable_thinking".into(), json!(false));
        let source =
            "{% if enable_thinking is defined and enable_thinking is false %}off{% endif %}";
        assert_eq!(render(source, &conversation).unwrap(), "off");
    }

    #[test]
    fn endless_templates_run_out_of_fuel() {
        let source =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(render(source, &user("")).unwrap_err().to_string().contains("fuel"));
    }

    #[test]
    fn a_broken_template_tells_its_line() {
        let broken = Template::compile("one\n{% if %}", tokens()).unwrap_err();
        assert!(broken.to_string().contains("line 2"), "{broken}");
    }
}
