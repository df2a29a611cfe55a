//! From text to a matcher: the tokenizer's table, and the grammars compiled last.

use crate::matcher::Matcher;
use crate::{BadGrammar, BadVocabulary};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{ParserFactory, token_bytes_from_tokenizer_json};
use serde_json::{Value, json};
use shared::request::Grammar;
use std::collections::VecDeque;
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Compiled grammars that are kept, the last used ones.
pub(crate) const KEPT: usize = 64;

/// Compiles grammars for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    /// Words of a mask.
    words: usize,
    /// Last used last.
    pub(crate) compiled: VecDeque<(Grammar, llguidance::Matcher)>,
}

impl Compiler {
    /// For a model of `vocab` tokens whose `tokenizer.json` this is; any of `eos` ends an output.
    ///
    /// # Errors
    /// [`BadVocabulary`].
    pub fn new(tokenizer_json: &[u8], vocab: u32, eos: &[u32]) -> Result<Self, BadVocabulary> {
        let bad = |error: String| BadVocabulary::Tokenizer(error);
        let file: Value =
            serde_json::from_slice(tokenizer_json).map_err(|error| bad(error.to_string()))?;
        let mut bytes =
            token_bytes_from_tokenizer_json(&file).map_err(|error| bad(error.to_string()))?;
        // The model's table is padded; what has no bytes is never allowed.
        bytes.resize(vocab as usize, Vec::new());
        Self::over(&bytes, eos)
    }

    /// Over single bytes: enough to say whether a grammar compiles, which does not depend on the
    /// tokenizer.
    ///
    /// # Errors
    /// [`BadVocabulary`]; none in practice.
    pub fn of_bytes() -> Result<Self, BadVocabulary> {
        let mut bytes: Vec<_> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        bytes.push(b"\xff<end>".to_vec());
        let end = bytes.len() as u32 - 1;
        Self::over(&bytes, &[end])
    }

    fn over(bytes: &[Vec<u8>], eos: &[u32]) -> Result<Self, BadVocabulary> {
        let vocab = bytes.len() as u32;
        let eos: Vec<u32> = eos.iter().copied().filter(|&id| id < vocab).collect();
        let &first = eos.first().ok_or(BadVocabulary::NoEnd)?;
        let trie = TokTrie::from(&TokRxInfo::new(vocab, first), bytes).with_eos_tokens(&eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices())
            .map_err(|error| BadVocabulary::Tokenizer(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, words: (vocab as usize).div_ceil(32), compiled: VecDeque::new() })
    }

    /// A matcher at the start of an output.
    ///
    /// # Errors
    /// [`BadGrammar`] with the compiler's reason.
    pub fn matcher(&mut self, grammar: &Grammar) -> Result<Matcher, BadGrammar> {
        let known = self.compiled.iter().position(|(known, _)| known == grammar);
        let entry = match known.and_then(|at| self.compiled.remove(at)) {
            Some(entry) => entry,
            None => (grammar.clone(), self.compile(grammar)?),
        };
        let inner = entry.1.clone();
        if self.compiled.len() == KEPT {
            self.compiled.pop_front();
        }
        self.compiled.push_back(entry);
        Ok(Matcher::new(inner, self.words))
    }

    fn compile(&self, grammar: &Grammar) -> Result<llguidance::Matcher, BadGrammar> {
        let source = match grammar {
            Grammar::JsonSchema(text) => TopLevelGrammar::from_json_schema(spaced(text)?),
            Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let mut matcher = llguidance::Matcher::new(self.factory.create_parser(source));
        // What can follow nothing at all is found out only by asking.
        if !matcher.is_error() {
            drop(matcher.compute_mask_or_eos());
        }
        match matcher.get_error() {
            Some(why) => Err(BadGrammar::Compile(why)),
            None => Ok(matcher),
        }
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let compiled = self.compiled.len();
        f.debug_struct("Compiler").field("words", &self.words).field("compiled", &compiled).finish()
    }
}

/// Kinds of tokens whose bits are set at once where all of a kind may come: blanks, and text of a
/// JSON string by its length. Where a string has so many characters left, only what is longer and
/// what ends or escapes is looked at token by token. Each length costs memory: a tree of tokens.
fn slices() -> Vec<String> {
    let text = r#"[^"\\\x00-\x1F\x7F]"#;
    let up_to = [3, 6, 10, 15, 30].map(|most| format!("{text}{{1,{most}}}"));
    let mut slices = vec![r"[\x20\x0A\x0D\x09]+".to_owned()];
    slices.extend(up_to);
    slices.push(format!("{text}+"));
    slices
}

/// A schema with the whitespace that it leaves open decided.
fn spaced(text: &str) -> Result<Value, BadGrammar> {
    let mut schema: Value =
        serde_json::from_str(text).map_err(|error| BadGrammar::Json(error.to_string()))?;
    if let Value::Object(map) = &mut schema {
        map.entry("x-guidance").or_insert_with(json_style);
    }
    Ok(schema)
}

/// How JSON is written where a schema does not say: one blank after `:` and `,`, none elsewhere.
pub fn json_style() -> Value {
    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
}
