//! A grammar that makes an output calls of tools and nothing else.
//!
//! Each call is written in the model's own [`Format`], its arguments by the tool's schema, so what
//! [`super::CallParser`] reads is always a call.

use super::Format;
use crate::schema::closed;
use serde_json::{Value, json};
use std::fmt::Write;

/// How JSON of arguments is written where a schema does not say.
const STYLE: &str = "x-guidance";

impl Format {
    /// Lark that derives one call of one of `tools` (name, schema of the arguments), or, if
    /// `many`, one or more.
    pub fn enforcing(self, tools: &[(String, Value)], many: bool) -> String {
        let (open, close, between, arguments) = match self.close {
            Some(close) => {
                let (open, close) = (format!("{}\n", self.open), format!("\n{close}"));
                let between = format!("{close}\n{open}");
                (open, close, between, "arguments")
            }
            None => (String::new(), String::new(), "; ".to_owned(), "parameters"),
        };
        let quoted = |text: &str| Value::String(text.to_owned()).to_string();
        let more = if many { format!(" ({} call)*", quoted(&between)) } else { String::new() };
        let mut lark = "start:".to_owned();
        let mut part = |text: &str| {
            if !text.is_empty() {
                let _ = write!(lark, " {}", quoted(text)); // a String takes all
            }
        };
        part(&open);
        lark.push_str(" call");
        lark.push_str(&more);
        if !close.is_empty() {
            let _ = write!(lark, " {}", quoted(&close));
        }
        let names: Vec<_> = (0..tools.len()).map(|at| format!("call_{at}")).collect();
        let _ = write!(lark, "\ncall: {}\n", names.join(" | "));
        for (at, (name, schema)) in tools.iter().enumerate() {
            let head = format!("{{\"name\": {}, \"{arguments}\": ", quoted(name));
            let _ = writeln!(lark, "call_{at}: {} arguments_{at} \"}}\"", quoted(&head));
            let _ = writeln!(lark, "arguments_{at}: %json {}", styled(schema));
        }
        lark
    }
}

/// A tool's schema as the grammar has it, [`closed`]; a tool without one takes no arguments.
fn styled(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(_) => closed(schema),
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    if let Value::Object(map) = &mut schema {
        map.entry("type").or_insert_with(|| json!("object"));
        map.entry(STYLE).or_insert_with(grammar::json_style);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::super::CallParser;
    use super::*;
    use crate::parts::{Part, Parts};
    use grammar::Compiler;
    use shared::ids::TokenId;
    use shared::request::Grammar;

    fn tools() -> Vec<(String, Value)> {
        let city = json!({"$ref": "#/$defs/city"});
        let weather = json!({
            "type": "object", "properties": {"city": city}, "required": ["city"],
            "additionalProperties": false, "$defs": {"city": {"type": "string", "maxLength": 8}},
        });
        vec![("get_weather".to_owned(), weather), ("now".to_owned(), Value::Null)]
    }

    /// Whether `text` can be written, and whether it is whole then.
    fn follow(lark: &str, text: &str) -> (bool, bool) {
        let mut compiler = Compiler::of_bytes().unwrap();
        let mut matcher = compiler.matcher(&Grammar::Lark(lark.to_owned())).unwrap();
        for byte in text.bytes() {
            let mask = matcher.mask().unwrap();
            if mask[usize::from(byte) / 32] >> (byte % 32) & 1 == 0 {
                return (false, false);
            }
            matcher.advance(TokenId::new(byte.into())).unwrap();
        }
        (true, matcher.mask().unwrap()[8] & 1 == 1)
    }

    #[test]
    fn arguments_are_those_that_a_tool_lists() {
        let listed = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let with = |key: &str, value: Value| {
            let mut schema = listed.clone();
            schema[key] = value;
            schema
        };
        let more =
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1, \"m\": 2}}\n</tool_call>";
        for (schema, may) in [
            (listed.clone(), false),
            (with("additionalProperties", json!(true)), true),
            (with("additionalProperties", json!({"type": "string"})), false),
            (json!({"type": "object"}), true),
        ] {
            let tools = [("f".to_owned(), schema.clone())];
            let lark = Format::HERMES.enforcing(&tools, false);
            assert_eq!(follow(&lark, more), (may, may), "{lark}");
            // And so within another object.
            let outer = json!({"properties": {"o": schema}, "required": ["o"]});
            let lark = Format::HERMES.enforcing(&[("f".to_owned(), outer)], false);
            let within = more.replace("{\"n\"", "{\"o\": {\"n\"").replace("2}}", "2}}}");
            assert_eq!(follow(&lark, &within), (may, may), "{lark}");
        }
    }

    #[test]
    fn calls_are_written_as_the_parser_reads_them() {
        let hermes = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\
                      \n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\
                      \n</tool_call>";
        let llama = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}; \
                     {\"name\": \"now\", \"parameters\": {}}";
        for (format, text) in [(Format::HERMES, hermes), (Format::LLAMA3, llama)] {
            let tools = tools();
            assert_eq!(follow(&format.enforcing(&tools, true), text), (true, true), "{text}");
            assert_eq!(follow(&format.enforcing(&tools, false), text), (false, false));
            assert_eq!(follow(&format.enforcing(&tools[1..], true), text), (false, false));
            let names: Vec<_> = tools.into_iter().map(|(name, _)| name).collect();
            let (mut parser, mut parts) = (CallParser::new(format, names.into()), Parts::default());
            parser.push(text, &mut parts);
            parser.finish(&mut parts);
            let calls = [("get_weather", "{\"city\": \"Rome\"}"), ("now", "{}")];
            let call = |(name, arguments): (&str, &str)| {
                [Part::Call { name: name.to_owned() }, Part::Arguments(arguments.to_owned())]
            };
            assert_eq!(parts.into_vec(), calls.map(call).concat());
        }
    }
}
