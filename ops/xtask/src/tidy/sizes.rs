//! How long files, functions and lines may be.

use crate::finding::Finding;
use crate::mask::{is_word, line_of, matching_brace, words};
use crate::sources::Source;

const FILE_LINES_MAX: usize = 600;
const LIB_LINES_MAX: usize = 120;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = columns(source);
    if source.is_test() {
        return findings;
    }
    let code = source.product_code();
    let lines = product_lines(source, &code);
    let is_lib = source.path.ends_with("src/lib.rs");
    let most = if is_lib { LIB_LINES_MAX } else { FILE_LINES_MAX };
    if lines > most {
        let what = format!("{lines} lines outside tests; at most {most}");
        findings.push(Finding::file(&source.path, what));
    }
    findings.extend(functions(&source.path, &code));
    findings
}

/// Lines of the file less those of its test-only items.
fn product_lines(source: &Source, code: &str) -> usize {
    let in_tests = |(masked, code): (&str, &str)| code.trim().is_empty() && masked != code;
    let blanked = source.masked.lines().zip(code.lines()).filter(|pair| in_tests(*pair)).count();
    source.text.lines().count() - blanked
}

/// A line that an address or a string makes long may be long: breaking it would not make it
/// easier to read.
fn columns(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().zip(source.masked.lines()).enumerate();
    let long = lines.filter(|(_, (line, masked))| {
        line.chars().count() > COLUMNS_MAX
            && !line.contains("://")
            && columns_without_strings(line, masked) > COLUMNS_MAX
    });
    long.map(|(index, (line, _))| {
        let what = format!("{} columns; at most {COLUMNS_MAX}", line.chars().count());
        Finding::line(&source.path, index + 1, what)
    })
    .collect()
}

/// Columns less those of literals; a comment counts, although it is masked too.
fn columns_without_strings(line: &str, masked: &str) -> usize {
    let all = line.chars().count();
    let code_end = masked.trim_end().len();
    let is_comment = line[code_end..].trim_start().starts_with("//");
    let literals_end = if is_comment { code_end } else { line.len() };
    let blanked = line.bytes().zip(masked.bytes()).take(literals_end);
    all - blanked.filter(|(byte, mask)| byte != mask && byte & 0xc0 != 0x80).count()
}

/// From the line of `fn` to that of the closing brace, both counted.
fn functions(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for start in words(code, "fn") {
        let Some(name) = function_name(&code[start..]) else { continue };
        let Some(open) = body(code, start) else { continue };
        let line = line_of(code, start);
        let lines = line_of(code, matching_brace(code, open) - 1) + 1 - line;
        if lines > FUNCTION_LINES_MAX {
            let what = format!("`{name}` has {lines} lines; at most {FUNCTION_LINES_MAX}");
            findings.push(Finding::line(path, line, what));
        }
    }
    findings
}

/// None for a function pointer type, which has no name.
fn function_name(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("fn")?.trim_start();
    let end = rest.bytes().position(|byte| !is_word(byte)).unwrap_or(rest.len());
    (end > 0).then(|| &rest[..end])
}

/// The brace that opens the body; none where a `;` ends the signature, as in a trait.
fn body(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(path, text)).iter().map(ToString::to_string).collect()
    }

    fn function(lines: usize) -> String {
        format!("fn long(a: [u8; 4]) -> u32 {{\n{}}}\n", "    a();\n".repeat(lines - 2))
    }

    #[test]
    fn a_function_of_the_limit_passes_and_one_more_does_not() {
        assert!(found("a.rs", &function(70)).is_empty());
        assert_eq!(found("a.rs", &function(71)), ["a.rs:1: `long` has 71 lines; at most 70"]);
    }

    #[test]
    fn braces_in_text_do_not_count() {
        let text = function(70).replace("a();\n    a();", "b(\"}\"); // }\n    c('}');");
        assert!(found("a.rs", &text).is_empty());
        assert!(!found("a.rs", &format!("{}\n", text.replace("b(", "x();\n    b("))).is_empty());
    }

    #[test]
    fn a_signature_without_a_body_is_no_function() {
        let text = format!("trait T {{\n    fn a(&self) -> fn(u8);\n{}}}\n", "\n".repeat(90));
        assert!(found("a.rs", &text).is_empty());
    }

    #[test]
    fn files_have_a_limit_that_tests_do_not_count_against() {
        let long = "//! x\n".repeat(601);
        assert_eq!(found("a.rs", &long).len(), 1);
        assert_eq!(found("gateway/src/lib.rs", &"//! x\n".repeat(121)).len(), 1);
        let tests =
            format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    const A: u8 = 1;\n".repeat(700));
        assert!(found("a.rs", &tests).is_empty());
        assert!(found("gateway/tests/a.rs", &long).is_empty());
    }

    #[test]
    fn a_long_line_is_found_unless_a_literal_makes_it_long() {
        assert_eq!(found("a.rs", &format!("// {}\n", "é".repeat(98))).len(), 1);
        assert!(found("a.rs", &format!("// {}\n", "é".repeat(97))).is_empty());
        assert!(found("a.rs", &format!("a(\"{}\");\n", "é".repeat(98))).is_empty());
        let two_lines = format!("a(\"x\\\n  {}\\\n\");\n", "e".repeat(98));
        assert!(found("a.rs", &two_lines).is_empty());
        assert_eq!(found("a.rs", &format!("a(); // {}\n", "e".repeat(98))).len(), 1);
        assert!(found("a.rs", &format!("// https://x/{}\n", "e".repeat(98))).is_empty());
    }
}
