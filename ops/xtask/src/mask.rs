//! Rust text with its comments and literals blanked out.
//!
//! Masking keeps every byte offset and every line break, so a place found in the masked text is
//! the same place in the file. It is a scanner, not a parser: enough to tell code from prose and
//! to match braces, which is all that the checks ask.

use std::ops::Range;

/// `text` with the inside of comments, strings and character literals replaced by spaces.
pub fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut masked = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skip(bytes, at);
        if end > at {
            blank(&mut masked[at..end]);
        }
        at = end.max(at + 1);
    }
    String::from_utf8(masked).expect("blanks replace whole literals, so no character is cut")
}

/// The end of the comment or literal that starts at `at`, or `at` where none starts.
fn skip(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment(rest),
        [b'"', ..] => at + string(rest),
        [b'\'', ..] => at + character(rest),
        [b'r', b'"' | b'#', ..] if starts_word(bytes, at) => at + raw_string(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if starts_word(bytes, at) => at + raw_string(rest, 2),
        _ => at,
    }
}

fn starts_word(bytes: &[u8], at: usize) -> bool {
    at == 0 || !is_word(bytes[at - 1])
}

/// Whether the byte can be part of an identifier.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A lifetime is left alone: it has no closing quote right after one character.
fn character(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', ..] => {
            let close = rest.iter().skip(3).position(|b| *b == b'\'');
            close.map_or(0, |offset| offset + 4)
        }
        [_, first, ..] => {
            let width = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
        }
        _ => 0,
    }
}

/// `prefix` is the length of `r` or `br`. A raw identifier (`r#type`) is not a string.
fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return 0;
    }
    let body = prefix + hashes + 1;
    let mut at = body;
    while at < rest.len() {
        let closes = rest[at] == b'"'
            && rest[at + 1..].iter().take(hashes).filter(|b| **b == b'#').count() == hashes;
        if closes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    rest.len()
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|b| **b != b'\n') {
        *byte = b' ';
    }
}

/// The offset just past the bracket that closes the one at `open`; the end where none does.
pub fn matching_brace(masked: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (offset, byte) in masked.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return offset + 1;
        }
    }
    masked.len()
}

/// Where `word` stands in `text` as a whole word.
pub fn words<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let bytes = text.as_bytes();
        let before = at.checked_sub(1).map(|i| bytes[i]);
        let after = bytes.get(at + word.len()).copied();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The line, counted from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count() + 1
}

/// The byte ranges of items that are compiled for tests only.
pub fn test_regions(masked: &str) -> Vec<Range<usize>> {
    let mut regions: Vec<Range<usize>> = Vec::new();
    for (start, _) in masked.match_indices("#[cfg(test)]") {
        let rest = &masked[start..];
        let Some(open) = rest.find(['{', ';']) else { continue };
        let end = match rest.as_bytes()[open] {
            b'{' => matching_brace(masked, start + open),
            _ => start + open + 1,
        };
        if regions.last().is_none_or(|last| last.end <= start) {
            regions.push(start..end);
        }
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_stays_and_prose_goes() {
        for (text, expected) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"f("unsafe \" {", x)"#, "f( , x)"),
            ("r#\"a \" {\"# b", "b"),
            ("r#type b\"x\" br\"{\" .", "r#type b ."),
            ("'{' '\\'' '\\u{7b}' 'é' &'a T", "&'a T"),
        ] {
            let masked = mask(text);
            let code: Vec<&str> = masked.split_whitespace().collect();
            assert_eq!(code.join(" "), expected, "{text}");
            assert_eq!(masked.len(), text.len(), "{text}");
            assert_eq!(masked.lines().count(), text.lines().count(), "{text}");
        }
    }

    #[test]
    fn a_test_module_is_a_region() {
        let masked = mask("fn a() {}\n#[cfg(test)]\nmod tests { fn b() { \"}\" } }\nfn c() {}");
        let regions = test_regions(&masked);
        assert_eq!(regions.len(), 1);
        assert!(masked[regions[0].clone()].contains("fn b"));
        assert!(!masked[regions[0].clone()].contains("fn c"));
    }

    #[test]
    fn a_word_is_whole() {
        assert_eq!(words("unsafe_code unsafe x_unsafe", "unsafe").collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn lines_count_from_one() {
        assert_eq!(line_of("a\nb\nc", 2), 2);
    }
}
