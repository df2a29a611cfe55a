use super::*;
use crate::reasoning::Style;
use crate::tools::Format;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

const NAMES: [&str; 2] = ["get_weather", "π"];

fn reader(format: Option<Format>, style: Option<Style>, prompt: &str) -> Reader {
    let offered = NAMES.map(str::to_owned);
    Reader {
        thoughts: style.map(|style| Thoughts::new(style, true, prompt)),
        calls: format.map(|format| CallParser::new(format, offered.into())),
    }
}

/// All parts of a text that comes in `pieces`.
fn read<'a>(mut reader: Reader, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
    let mut parts = Parts::default();
    for piece in pieces {
        reader.push(piece).into_iter().for_each(|part| parts.add(part));
    }
    reader.finish().into_iter().for_each(|part| parts.add(part));
    parts.into_vec()
}

fn thought(text: &str) -> Part {
    Part::Thought(text.into())
}

fn text(text: &str) -> Part {
    Part::Text(text.into())
}

fn call(name: &str, arguments: &str) -> [Part; 2] {
    [Part::Call { name: name.into() }, Part::Arguments(arguments.into())]
}

/// The whole text gives `expect`, and so do its pieces of any one length.
#[track_caller]
fn check(reader: &Reader, said: &str, expect: &[Part]) {
    assert_eq!(read(reader.clone(), [said]), expect, "{said}");
    let chars: Vec<char> = said.chars().collect();
    for len in 1..=13 {
        let pieces: Vec<String> = chars.chunks(len).map(|piece| piece.iter().collect()).collect();
        let found = read(reader.clone(), pieces.iter().map(String::as_str));
        assert_eq!(found, expect, "in pieces of {len}: {said}");
    }
}

#[test]
fn qwen3_thinks_speaks_and_calls_twice() {
    let reader = reader(Some(Format::HERMES), Some(Style::Tagged), "<|im_start|>assistant\n");
    let said = "<think>\nThe user wants </b> two.\n</think>\n\nSure.\n<tool_call>\n{\"name\": \
                \"get_weather\", \"arguments\": {\"city\": \"Pa\\\"r}is\", \"n\": [1, {}]}}\n\
                </tool_call>\n<tool_call>\n{\"name\": \"π\", \"arguments\": {}}\n</tool_call>\n";
    let mut expect = vec![thought("The user wants </b> two."), text("Sure.")];
    expect.extend(call("get_weather", "{\"city\": \"Pa\\\"r}is\", \"n\": [1, {}]}"));
    expect.extend(call("π", "{}"));
    check(&reader, said, &expect);
    check(&reader, "Sure <think>", &[text("Sure <think>")]);
    check(&reader, "\n <thin", &[text("\n <thin")]);
    let call_in_thought = "<think>a <tool_call>{\"name\": \"π\"";
    check(&reader, call_in_thought, &[thought(&call_in_thought["<think>".len()..])]);
}

#[test]
fn a_prompt_may_open_or_close_the_thoughts() {
    let tail = |style, prompt| reader(None, Some(style), prompt);
    let opened = tail(Style::Tagged, "…<|im_start|>assistant\n<think>\n");
    check(&opened, "a\n\nb\n</think>\n\nc\n", &[thought("a\n\nb"), text("c\n")]);
    check(&opened, "never closed\n</thi", &[thought("never closed\n</thi")]);
    let closed = tail(Style::Tagged, "…<think>\n\n</think>\n\n");
    check(&closed, "<think>x</think>", &[text("<think>x</think>")]);
    let deepseek = tail(Style::Inside, "<｜User｜>hi<｜Assistant｜>");
    check(&deepseek, " a <thi</think>b", &[thought(" a <thi"), text("b")]);
    check(&deepseek, "\n<think>\na</think>b", &[thought("a"), text("b")]);
    check(&deepseek, "\n<thin", &[thought("\n<thin")]);
    let mut together = deepseek;
    together.thoughts = Some(Thoughts::new(Style::Inside, false, ""));
    check(&together, "<think>\na\n</think>\n\nb", &[text("<think>\na\n</think>\n\nb")]);
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    let reader = reader(Some(Format::HERMES), None, "");
    for said in [
        "a < b, {\"name\": \"π\", \"arguments\": {}}",
        "<tool_call> is a tag</tool_call>",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"π\", \"arguments\": \"{}\"}</tool_call>",
        "<tool_call>{\"name\": \"π\"}</tool_call>",
        "<tool_call>{\"name\": \"π\", \"arg",
        "\n\n<tool_call>{\"colour\": ",
        "<tool_call><tool_call>[]</tool_call>",
        "<tool_ca",
        " \n ",
    ] {
        check(&reader, said, &[text(said)]);
    }
    let expect = [&[text("<tool_call>{\"name\"")][..], &call("π", "{}")].concat();
    let good = "<tool_call>{\"name\": \"π\", \"arguments\": {}}</tool_call>";
    check(&reader, &format!("<tool_call>{{\"name\"{good}"), &expect);
}

#[test]
fn calls_with_flaws_are_calls() {
    let reader = reader(Some(Format::HERMES), None, "");
    let swapped = "<tool_call>{\"arguments\": {\"a\" : 1}, \"name\": \"\\u03c0\", \"id\": \"x\"}";
    check(&reader, swapped, &call("π", "{\"a\" : 1}"));
    let unclosed = "<tool_call>{\"name\": \"π\", \"arguments\": {}";
    check(&reader, unclosed, &call("π", "{}"));
    check(&reader, &format!("{unclosed}</tool_call>"), &call("π", "{}"));
    let both = [call("π", "{}"), call("π", "{}")].concat();
    check(&reader, &format!("{unclosed}}}\n{unclosed}"), &both);
    let cut = "<tool_call>{\"name\": \"π\", \"arguments\": {\"a\": \"b </tool_call>";
    check(&reader, cut, &call("π", "{\"a\": \"b </tool_call>"));
    let broken = "<tool_call>{\"name\": \"π\", \"arguments\": {\"a\": <b}}</tool_call> rest";
    check(&reader, broken, &[&call("π", "{\"a\": <b}}")[..], &[text(" rest")]].concat());
    let slips = "<tool_call>{\"name\": \"π\", \"arguments\": {\"a\": True, \"b\": \"\\'\n\"}}";
    check(&reader, slips, &call("π", "{\"a\": True, \"b\": \"\\'\n\"}"));
    let extra = [&call("π", "{}")[..], &[text("} \nrest")]].concat();
    check(&reader, &format!("{unclosed}}}}} \nrest"), &extra);
}

#[test]
fn llama3_calls_with_and_without_its_tag() {
    let reader = reader(Some(Format::LLAMA3), None, "");
    let one = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}";
    let expect = call("get_weather", "{\"city\": \"Rome\"}");
    check(&reader, one, &expect);
    check(&reader, &format!("\n{one} "), &expect);
    check(&reader, &format!("{{\"type\": \"function\", {}", &one[1..]), &expect);
    let tagged = format!("Sure. <|python_tag|>{one}; {one}");
    let both = [&[text("Sure. ")], &expect[..], &expect[..]].concat();
    check(&reader, &tagged, &both);
    for said in [
        "{\"name\": \"Ada\", \"born\": 1815}",
        "{\"title\": \"\\\"\"}",
        "{not json}",
        "; {",
        "{",
        "<|python_tag|>brave_search.call(query=\"x\")",
        &format!("As JSON: {one}"),
    ] {
        check(&reader, said, &[text(said)]);
    }
    let after = [&expect[..], &[text("; ok")]].concat();
    check(&reader, &format!("{one}; ok"), &after);
}

/// Cuts `text` at these places, whole characters.
fn pieces<'a>(text: &'a str, cuts: &[Index]) -> Vec<&'a str> {
    let borders: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let cuts = cuts.iter().map(|cut| borders[cut.index(borders.len())]);
    let mut cuts: Vec<usize> = cuts.chain([0, text.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect()
}

/// A stretch of an output and what it is.
fn stretch() -> impl Strategy<Value = (String, Vec<Part>)> {
    let plain = "p[a <>{}\"\\\\:é🙂\n/_]{0,8}q".prop_map(|said| (said.clone(), vec![text(&said)]));
    let tags = select(vec!["<tool_call", "</tool_call>", "<", "<think>", "{\"name\": \"π\"}"]);
    let tags = tags.prop_map(|tag| (format!("p{tag}q"), vec![text(&format!("p{tag}q"))]));
    let broken = select(vec![
        "no",
        "[1]",
        "{}",
        "{\"na",
        "{\"name\": \"get\", ",
        "{\"name\": 3}",
        "{\"name\": \"π\"",
        "{\"name\": \"π\", \"arguments\": [1]}",
        "{\"arguments\": {\"a\": {}}, \"x",
        "{\"name\": \"other\", \"arguments\": {}}</tool_call>",
        "{\"arguments\": {}}</tool_call>",
    ]);
    let broken = broken.prop_map(|body| format!("<tool_call>{body}"));
    let broken = broken.prop_map(|said| (said.clone(), vec![text(&said)]));
    prop_oneof![plain, tags, broken, whole_call()]
}

fn whole_call() -> impl Strategy<Value = (String, Vec<Part>)> {
    let value = prop_oneof![
        "[ab\"\\\\{}<>/,:é🙂\n]{0,8}".prop_map(Value::String),
        any::<i16>().prop_map(|n| json!([n, {"deep": [{}, null]}])),
        Just(json!("</tool_call>")),
    ];
    let arguments = proptest::collection::vec(("[a-c\"}]{0,3}", value), 0..3);
    let forms =
        (select(NAMES.to_vec()), arguments, any::<[bool; 3]>(), select(vec!["", "\n", " "]));
    forms.prop_map(|(name, arguments, [pretty, swapped, closed], blank)| {
        let arguments = Value::Object(arguments.into_iter().collect());
        let arguments = if pretty { format!("{arguments:#}") } else { arguments.to_string() };
        let body = match swapped {
            true => format!("{{\"arguments\":{arguments},\"name\":\"{name}\"}}"),
            false => format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}"),
        };
        let close = if closed { "</tool_call>" } else { "" };
        let said = format!("<tool_call>{blank}{body}{blank}{close}{blank}");
        (said, call(name, &arguments).to_vec())
    })
}

fn fragments() -> impl Strategy<Value = String> {
    let fragment = select(vec![
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "<",
        "</",
        "{",
        "}",
        "{\"name\": \"π\", \"arguments\": {",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        ":",
        "\"π\"",
        "\"",
        "\\",
        ",",
        ";",
        "[",
        "]",
        " ",
        "\n",
        "\n\n",
        "1",
        "true",
        "x",
        "é",
        "🙂",
        "{\"name\": \"π\", \"parameters\": {}}",
    ]);
    proptest::collection::vec(fragment, 0..14).prop_map(|list| list.concat())
}

/// All that a client sees.
fn shown(parts: &[Part]) -> String {
    parts
        .iter()
        .map(|part| match part {
            Part::Thought(text) | Part::Text(text) | Part::Arguments(text) => text.as_str(),
            Part::Call { name } => name,
        })
        .collect()
}

fn is_subsequence(shown: &str, said: &str) -> bool {
    let mut said = said.chars();
    shown.chars().all(|c| said.any(|other| other == c))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn calls_and_text_are_told_apart_over_all_cuts(
        stretches in proptest::collection::vec(stretch(), 0..6),
        cuts in proptest::collection::vec(any::<Index>(), 0..10),
    ) {
        let said: String = stretches.iter().map(|(said, _)| said.as_str()).collect();
        let mut expect = Parts::default();
        let mut gap = ""; // blanks after a call are text if text follows
        for (said, parts) in &stretches {
            if let Part::Text(_) = parts[0] {
                expect.text(gap);
            }
            parts.iter().for_each(|part| expect.add(part.clone()));
            gap = "";
            if let Part::Call { .. } = parts[0] {
                gap = &said[said.trim_end().len()..];
            }
        }
        let reader = reader(Some(Format::HERMES), None, "");
        let whole = read(reader.clone(), [said.as_str()]);
        prop_assert_eq!(&read(reader, pieces(&said, &cuts)), &whole);
        prop_assert_eq!(whole, expect.into_vec(), "{}", said);
    }

    #[test]
    fn any_text_survives_all_cuts(
        said in fragments(),
        format in select(vec![None, Some(Format::HERMES), Some(Format::LLAMA3)]),
        style in select(vec![None, Some(Style::Tagged), Some(Style::Inside)]),
        prompt in select(vec!["", "<think>\n", "</think>\n\n"]),
        cuts in proptest::collection::vec(any::<Index>(), 0..10),
    ) {
        let reader = reader(format, style, prompt);
        let whole = read(reader.clone(), [said.as_str()]);
        prop_assert_eq!(&read(reader.clone(), pieces(&said, &cuts)), &whole);
        let chars: Vec<String> = said.chars().map(String::from).collect();
        prop_assert_eq!(&read(reader, chars.iter().map(String::as_str)), &whole);
        // In its order, nothing twice; and where nothing was recognised, all of it.
        if !whole.iter().any(|part| matches!(part, Part::Call { .. })) {
            prop_assert!(is_subsequence(&shown(&whole), &said), "{whole:?}");
        }
        if style.is_none() && whole.iter().all(|part| matches!(part, Part::Text(_))) {
            prop_assert_eq!(shown(&whole), said);
        }
    }
}
