//! Tokens on their way out: one frame a step and gateway, merged a request while a gateway is slow.

use shared::wire::messages::{DecodeToGateway, Emitted};

/// Merges tokens into the tokens before them; anything else stays apart.
pub(crate) fn merge(
    last: &mut DecodeToGateway,
    message: DecodeToGateway,
) -> Option<DecodeToGateway> {
    match (last, message) {
        (DecodeToGateway::Tokens(have), DecodeToGateway::Tokens(more)) => {
            more.into_iter().for_each(|emitted| add(have, emitted));
            None
        }
        (_, message) => Some(message),
    }
}

fn add(have: &mut Vec<Emitted>, more: Emitted) {
    match have.iter_mut().find(|emitted| emitted.key == more.key) {
        Some(emitted) => {
            emitted.tokens.extend(more.tokens);
            emitted.finish = more.finish;
        }
        None => have.push(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::{Attempt, Epoch, RequestId, TokenId};
    use shared::request::{Finish, Token};
    use shared::wire::messages::{Load, RequestKey};

    fn tokens(request: u64, ids: &[u32], end: bool) -> DecodeToGateway {
        let id = RequestId::new(Epoch::new(1), request);
        let key = RequestKey { id, attempt: Attempt::new(0) };
        let token = |&id| Token { id: TokenId::new(id), logprob: 0.0, top: vec![] };
        let finish = end.then_some(Finish::Stop);
        let tokens = ids.iter().map(token).collect();
        DecodeToGateway::Tokens(vec![Emitted {
            key,
            cached_tokens: 0,
            tokens,
            finish,
            times: None,
        }])
    }

    #[test]
    fn tokens_merge_a_request_and_nothing_else_merges() {
        let mut last = tokens(1, &[10], false);
        assert_eq!(merge(&mut last, tokens(2, &[20], false)), None);
        assert_eq!(merge(&mut last, tokens(1, &[11, 12], true)), None);
        let DecodeToGateway::Tokens(merged) = &last else { panic!("still tokens") };
        let lengths: Vec<_> = merged.iter().map(|e| (e.tokens.len(), e.finish.is_some())).collect();
        assert_eq!(lengths, [(3, true), (1, false)]);
        let load = DecodeToGateway::Load(Load::default());
        assert_eq!(merge(&mut last, load.clone()), Some(load));
    }
}
