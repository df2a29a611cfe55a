//! How a text is cut into words before the merges, by hand: what a `tokenizer.json` says as a
//! regular expression costs more to match than everything that follows.
//!
//! Known are the patterns of GPT-2, with single digits or without, and of cl100k and its children,
//! Llama 3 and Qwen 2; a file is compared with them letter by letter, and any other is not known.

use regex_syntax::hir::{Class as HirClass, HirKind};
use serde_json::Value;

/// Cuts texts as one `pre_tokenizer` says.
#[derive(Debug)]
pub struct Words {
    rule: Rule,
    classes: Classes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// GPT-2's pattern; every digit may be cut out before.
    Gpt2 { single_digits: bool },
    /// cl100k's pattern, with at most so many digits together.
    Cl100k { digits: usize },
}

/// What the patterns tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

impl Words {
    /// The cutter of a file's `pre_tokenizer`, if it is a known one.
    pub fn new(pre_tokenizer: &Value) -> Option<Self> {
        let rule = match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
            None if is_byte_level(pre_tokenizer, true) => Rule::Gpt2 { single_digits: false },
            Some([digits, bytes]) if digits["type"] == "Digits" && is_byte_level(bytes, true) => {
                let single_digits = digits["individual_digits"] == true;
                single_digits.then_some(Rule::Gpt2 { single_digits })?
            }
            Some([split, bytes]) if split["type"] == "Split" && is_byte_level(bytes, false) => {
                cl100k(split)?
            }
            _ => return None,
        };
        Some(Self { rule, classes: Classes::new() })
    }

    /// Gives `take` every word of `text`, in order; joined, they are the text. Ends early where
    /// `take` gives `None`.
    pub fn each(&self, text: &str, mut take: impl FnMut(&str) -> Option<()>) -> Option<()> {
        let mut rest = text;
        while !rest.is_empty() {
            // A pattern that looks ahead sees no further than its part.
            let (mut part, others) = rest.split_at(self.part(rest));
            while !part.is_empty() {
                let (word, more) = part.split_at(self.first(part));
                take(word)?;
                part = more;
            }
            rest = others;
        }
        Some(())
    }

    /// Length of what the pattern gets at a time, bytes: a digit or what is before the next.
    fn part(&self, text: &str) -> usize {
        if self.rule != (Rule::Gpt2 { single_digits: true }) {
            return text.len();
        }
        let plain = plain_len(text);
        match find(&text[plain..], char::is_numeric).map(|at| plain + at) {
            Some(0) => first_len(text),
            Some(at) => at,
            None => text.len(),
        }
    }

    /// Length of the first word, bytes.
    fn first(&self, text: &str) -> usize {
        match self.rule {
            Rule::Gpt2 { .. } => self.first_of_gpt2(text),
            Rule::Cl100k { digits } => self.first_of_cl100k(text, digits),
        }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    fn first_of_gpt2(&self, text: &str) -> usize {
        if let Some(len) = contraction(text) {
            return len;
        }
        let space = usize::from(text.starts_with(' '));
        match self.class(&text[space..]) {
            None | Some(Class::Space) => self.spaces(text),
            Some(class) => space + self.run(&text[space..], class),
        }
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
    /// \s*[\r\n]+|\s+(?!\S)|\s+`
    fn first_of_cl100k(&self, text: &str, digits: usize) -> usize {
        if let Some(len) = contraction_in_any_case(text) {
            return len;
        }
        let Some(class) = self.class(text) else { return 0 };
        let (first, rest) = text.split_at(first_len(text));
        let next = self.class(rest);
        match class {
            Class::Letter => return self.run(text, Class::Letter),
            Class::Number => {
                let numbers = &text[..self.run(text, Class::Number)];
                return numbers.char_indices().nth(digits).map_or(numbers.len(), |(at, _)| at);
            }
            Class::Space | Class::Other => {}
        }
        if next == Some(Class::Letter) && !matches!(first, "\r" | "\n") {
            return first.len() + self.run(rest, Class::Letter);
        }
        let space = usize::from(first == " " && next == Some(Class::Other));
        if class == Class::Other || space == 1 {
            let end = space + self.run(&text[space..], Class::Other);
            let newlines = text[end..].bytes().take_while(|byte| matches!(byte, b'\r' | b'\n'));
            return end + newlines.count();
        }
        let last_newline = text[..self.run(text, Class::Space)].rfind(['\r', '\n']);
        last_newline.map_or_else(|| self.spaces(text), |at| at + 1)
    }

    /// `\s+(?!\S)|\s+`: all spaces that begin the text, less the last where a word follows it.
    fn spaces(&self, text: &str) -> usize {
        let run = self.run(text, Class::Space);
        let last = text[..run].char_indices().next_back().map_or(0, |(at, _)| at);
        if run == text.len() || last == 0 { run } else { last }
    }

    /// Length of what begins the text with this class, bytes.
    fn run(&self, text: &str, class: Class) -> usize {
        find(text, |c| self.classes.of(c) != class).unwrap_or(text.len())
    }

    /// Of the first character.
    fn class(&self, text: &str) -> Option<Class> {
        text.chars().next().map(|c| self.classes.of(c))
    }
}

fn is_byte_level(part: &Value, use_regex: bool) -> bool {
    let uses = part["use_regex"].as_bool().unwrap_or(true); // absent in files before it was there
    part["type"] == "ByteLevel" && part["add_prefix_space"] == false && uses == use_regex
}

fn cl100k(split: &Value) -> Option<Rule> {
    if split["behavior"] != "Isolated" || split["invert"] != false {
        return None;
    }
    let pattern = split["pattern"]["Regex"].as_str()?;
    let rest =
        pattern.strip_prefix(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}")?;
    let digits = rest.strip_suffix(r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")?;
    match digits {
        "" => Some(Rule::Cl100k { digits: 1 }),
        "{1,3}" => Some(Rule::Cl100k { digits: 3 }),
        _ => None,
    }
}

/// Where the first character is that `is` one. ASCII, the most of most texts, is not decoded.
fn find(text: &str, is: impl Fn(char) -> bool) -> Option<usize> {
    let ascii = text.bytes().position(|byte| !byte.is_ascii() || is(char::from(byte)))?;
    let (_, rest) = text.split_at(ascii);
    rest.char_indices().find(|&(_, c)| is(c)).map(|(at, _)| ascii + at)
}

/// Bytes that begin the text, a vector at a time, and are ASCII without a digit.
fn plain_len(text: &str) -> usize {
    const VECTOR: usize = 32;
    let is_plain = |byte: &u8| byte.is_ascii() & !byte.is_ascii_digit();
    // Without a branch for each byte, so that a vector is compared at once.
    let all = |bytes: &&[u8]| bytes.iter().fold(true, |all, byte| all & is_plain(byte));
    VECTOR * text.as_bytes().chunks_exact(VECTOR).take_while(all).count()
}

fn first_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

fn contraction(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let known = ["s", "t", "re", "ve", "m", "ll", "d"];
    known.iter().find(|ending| rest.starts_with(**ending)).map(|ending| 1 + ending.len())
}

fn contraction_in_any_case(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    if rest.starts_with('ſ') {
        return Some(1 + 'ſ'.len_utf8()); // an `s` in lower case, as Unicode has it
    }
    let ending = rest.as_bytes();
    let known = ["s", "t", "re", "ve", "m", "ll", "d"].map(str::as_bytes);
    let fits = |known: &&[u8]| {
        ending.get(..known.len()).is_some_and(|ending| ending.eq_ignore_ascii_case(known))
    };
    known.iter().find(|known| fits(known)).map(|known| 1 + known.len())
}

/// Classes of characters, from the tables that the `tokenizers` crate matches by.
#[derive(Debug)]
struct Classes {
    ascii: [Class; 128],
    /// Sorted, both ends within.
    letters: Vec<(char, char)>,
    numbers: Vec<(char, char)>,
}

impl Classes {
    fn new() -> Self {
        let (letters, numbers) = (ranges(r"\p{L}"), ranges(r"\p{N}"));
        let mut classes = Self { ascii: [Class::Other; 128], letters, numbers };
        classes.ascii = std::array::from_fn(|at| classes.look_up(char::from(at as u8)));
        classes
    }

    fn of(&self, c: char) -> Class {
        match self.ascii.get(c as usize) {
            Some(&class) => class,
            None => self.look_up(c),
        }
    }

    fn look_up(&self, c: char) -> Class {
        let has = |ranges: &[(char, char)]| {
            let after = ranges.partition_point(|&(first, _)| first <= c);
            after > 0 && c <= ranges[after - 1].1
        };
        if has(&self.letters) {
            Class::Letter
        } else if has(&self.numbers) {
            Class::Number
        } else if c.is_whitespace() {
            Class::Space
        } else {
            Class::Other
        }
    }
}

fn ranges(class: &str) -> Vec<(char, char)> {
    let parsed = regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind);
    let Ok(HirKind::Class(HirClass::Unicode(class))) = parsed else {
        unreachable!("`{class}` is a class of characters")
    };
    class.ranges().iter().map(|range| (range.start(), range.end())).collect()
}
