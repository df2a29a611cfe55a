use super::*;
use crate::compiler::KEPT;
use serde_json::json;
use shared::ids::TokenId;
use shared::request::Grammar;

/// The outputs, by bytes, that a walk through `text` passes: whether all of it is allowed, and
/// whether the output may end there.
fn follow(matcher: &mut Matcher, text: &str) -> (bool, bool) {
    const END: usize = 256;
    let allows = |matcher: &mut Matcher, id: usize| {
        matcher.mask().is_ok_and(|mask| mask[id / 32] >> (id % 32) & 1 == 1)
    };
    for byte in text.bytes() {
        if !allows(matcher, byte.into()) {
            return (false, false);
        }
        matcher.advance(TokenId::new(byte.into())).unwrap();
    }
    (true, allows(matcher, END))
}

fn check(grammar: &Grammar, text: &str, expected: (bool, bool)) {
    let mut compiler = Compiler::of_bytes().unwrap();
    let mut matcher = compiler.matcher(grammar).unwrap();
    assert_eq!(follow(&mut matcher, text), expected, "{text:?} by {grammar:?}");
}

#[test]
fn each_kind_allows_what_it_says() {
    let schema = Grammar::JsonSchema(
        json!({
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 3}},
            "required": ["a", "b"],
            "additionalProperties": false,
        })
        .to_string(),
    );
    check(&schema, r#"{"a": 1, "b": "xyz"}"#, (true, true));
    check(&schema, r#"{"a": 1, "b": "xy"#, (true, false));
    check(&schema, r#"{"a": 1, "b": "xyzz"#, (false, false));
    check(&schema, r#"{ "a""#, (false, false));
    let regex = Grammar::Regex(r"\d{2}/[a-c]+".to_owned());
    check(&regex, "12/ab", (true, true));
    check(&regex, "12", (true, false));
    check(&regex, "1x", (false, false));
    let lark = lark_of_ebnf("root ::= \"yes\" | no \nno ::= \"n\" [o0]{1,2}").unwrap();
    check(&Grammar::Lark(lark.clone()), "no0", (true, true));
    check(&Grammar::Lark(lark), "noo0", (false, false));
}

#[test]
fn a_complete_output_allows_its_end_alone() {
    let mut compiler = Compiler::of_bytes().unwrap();
    let mut matcher = compiler.matcher(&Grammar::Regex("ab".to_owned())).unwrap();
    assert_eq!(follow(&mut matcher, "ab"), (true, true));
    assert!(matcher.is_complete());
    let mask = matcher.mask().unwrap();
    assert_eq!(mask.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
    for _ in 0..3 {
        matcher.advance(TokenId::new(256)).unwrap();
        assert_eq!(matcher.mask().unwrap(), mask);
    }
}

#[test]
fn what_does_not_compile_says_why() {
    let mut compiler = Compiler::of_bytes().unwrap();
    let mut check = |grammar: Grammar, part: &str| {
        let why = compiler.matcher(&grammar).unwrap_err().to_string();
        assert!(why.contains(part), "{why}");
    };
    check(Grammar::JsonSchema("{".to_owned()), "not valid JSON");
    check(Grammar::JsonSchema(r#"{"type": "thing"}"#.to_owned()), "thing");
    check(Grammar::Regex("(".to_owned()), "unclosed group");
    check(Grammar::Lark("start: nothing".to_owned()), "nothing");
}

#[test]
fn a_matcher_of_a_kept_grammar_starts_afresh() {
    let mut compiler = Compiler::of_bytes().unwrap();
    let grammar = Grammar::Regex("abc?".to_owned());
    for _ in 0..3 {
        let mut matcher = compiler.matcher(&grammar).unwrap();
        assert_eq!(follow(&mut matcher, "ab"), (true, true));
    }
    for number in 0..2 * KEPT {
        compiler.matcher(&Grammar::Regex(number.to_string())).unwrap();
    }
    assert_eq!(compiler.compiled.len(), KEPT);
    let error = compiler.matcher(&grammar).unwrap().advance(TokenId::new(u32::from(b'x')));
    assert!(error.is_err());
}
