//! Which tokens a grammar allows next.
//!
//! 1. A [`Compiler`] is made once a process, from a tokenizer: the trie over all tokens' bytes.
//! 2. [`Compiler::matcher`] compiles a [`Grammar`], or takes it from those compiled last.
//! 3. [`Matcher::advance`] takes each token of the output, [`Matcher::mask`] says which may follow.
//!    Once the output is complete, that is an end of sequence and nothing else.
//!
//! A matcher is derived from the grammar and the tokens alone, so a replay continues it exactly.
//! llguidance does the matching; whitespace of JSON is one blank after `:` and `,`, as in most of
//! what models are trained on, so that no output is lost in endless blanks.
#![forbid(unsafe_code)]

mod compiler;
mod ebnf;
mod matcher;

pub use compiler::{Compiler, json_style};
pub use ebnf::{BadEbnf, lark_of_ebnf};
pub use matcher::Matcher;

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadGrammar {
    /// A JSON schema that is no JSON.
    #[error("the schema is not valid JSON: {0}")]
    Json(String),
    /// It does not compile, or asks for what is not supported.
    #[error("{0}")]
    Compile(String),
}

/// Why no grammar can be used with a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadVocabulary {
    /// The bytes of its tokens are not known.
    #[error("tokenizer.json: {0}")]
    Tokenizer(String),
    /// An output that is complete could not be ended.
    #[error("the model names no end-of-sequence token, which a grammar needs")]
    NoEnd,
}

/// A token that the grammar does not allow, or a grammar that became too complex on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grammar cannot be followed any further: {0}")]
pub struct Broken(String);

#[cfg(test)]
mod tests;
