//! When two token sequences count as equal: the same, or first differing at a near-tie.
//!
//! Arithmetic in another order rounds differently, so two right engines may part where two tokens
//! are almost as likely; after that they follow different texts. One judge for all tests.

use crate::sample::Drawn;
use shared::ids::TokenId;
use shared::kv::KvDtype;

/// Margin below which a draw is a near-tie.
pub const fn near_tie(dtype: KvDtype) -> f32 {
    match dtype {
        KvDtype::F32 => 1e-3,
        KvDtype::Bf16 => 0.05,
    }
}

/// How two sequences agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Token by token.
    Same,
    /// Up to a near-tie, at this index.
    NearTie(usize),
}

/// Where two sequences part without a tie.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("token {at}: expected {expected:?} with margin {margin:?}, found {found:?}")]
pub struct Differs {
    /// Index of the first difference.
    pub at: usize,
    /// The reference's token; absent if it had ended.
    pub expected: Option<TokenId>,
    /// What the reference's draw was decided by.
    pub margin: Option<f32>,
    /// The other's token; absent if it had ended.
    pub found: Option<TokenId>,
}

/// Holds `found` against a reference whose draws carry margins.
///
/// # Errors
/// [`Differs`] at the first token that no near-tie excuses, or where one of them ends early.
pub fn judge(reference: &[Drawn], found: &[TokenId], dtype: KvDtype) -> Result<Agreement, Differs> {
    let expected: Vec<_> = reference.iter().map(|d| (d.token.id, d.margin)).collect();
    judge_margins(&expected, found, near_tie(dtype))
}

/// As [`judge`], over (token, margin) pairs and any tolerance.
///
/// # Errors
/// As [`judge`].
pub fn judge_margins(
    reference: &[(TokenId, f32)],
    found: &[TokenId],
    tolerance: f32,
) -> Result<Agreement, Differs> {
    for at in 0..reference.len().max(found.len()) {
        let (expected, found) = (reference.get(at).copied(), found.get(at).copied());
        if expected.map(|(token, _)| token) == found {
            continue;
        }
        let margin = expected.map(|(_, margin)| margin);
        if found.is_some() && margin.is_some_and(|margin| margin < tolerance) {
            return Ok(Agreement::NearTie(at));
        }
        return Err(Differs { at, expected: expected.map(|(token, _)| token), margin, found });
    }
    Ok(Agreement::Same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &[u32], expect: Result<Agreement, usize>) {
        let reference = [(5, 1.0), (6, 0.0005), (7, 1.0)].map(|(id, m)| (TokenId::new(id), m));
        let found: Vec<_> = found.iter().map(|&id| TokenId::new(id)).collect();
        let verdict = judge_margins(&reference, &found, near_tie(KvDtype::F32));
        assert_eq!(verdict.map_err(|differs| differs.at), expect, "{found:?}");
    }

    #[test]
    fn only_ties_excuse() {
        check(&[5, 6, 7], Ok(Agreement::Same));
        check(&[5, 9, 1, 2, 3], Ok(Agreement::NearTie(1)));
        check(&[4, 6, 7], Err(0));
        check(&[5, 6, 8], Err(2));
        check(&[5], Err(1));
        check(&[5, 6, 7, 7], Err(3));
    }
}
