//! Which trace a request is part of, as [W3C Trace Context](https://www.w3.org/TR/trace-context/)
//! has it: taken over from a client's `traceparent`, or begun here.

use crate::random::random;
use std::fmt;

/// A request's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Of the whole trace; not 0.
    pub id: u128,
    /// The client's span, if it named one.
    pub parent: Option<u64>,
    /// The request's own; not 0.
    pub span: u64,
    /// Whether it is to be exported.
    pub sampled: bool,
}

impl Trace {
    /// A new trace, sampled.
    pub fn begin() -> Self {
        let id = u128::from(random()) << 64 | u128::from(random()) | 1;
        Self { id, parent: None, span: random() | 1, sampled: true }
    }

    /// A span in the trace that the value of a `traceparent` names; a new one if it is none.
    pub fn within(traceparent: Option<&str>) -> Self {
        traceparent.and_then(Self::parse).unwrap_or_else(Self::begin)
    }

    /// Another request of the same call.
    #[must_use]
    pub fn sibling(self) -> Self {
        Self { span: random() | 1, ..self }
    }

    /// `version-id-parent-flags`, all in lower-case hex. Of a version after 00 more may follow.
    fn parse(value: &str) -> Option<Self> {
        let (version, rest) = (hex(value.get(..2)?)?, value.get(2..)?);
        let known =
            version != 0xff && if version == 0 { rest.len() == 53 } else { rest.len() >= 53 };
        let mut parts = rest.strip_prefix('-')?.split('-');
        let (id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = known && (id.len(), parent.len(), flags.len()) == (32, 16, 2);
        let (id, parent, flags) = (hex(id)?, hex(parent)? as u64, hex(flags)?);
        let named = fits && id != 0 && parent != 0;
        named.then(|| Self {
            id,
            parent: Some(parent),
            span: random() | 1,
            sampled: flags & 1 == 1,
        })
    }
}

/// The `traceparent` of what comes after this span.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.id, self.span, u8::from(self.sampled))
    }
}

fn hex(text: &str) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let all = !text.is_empty() && text.bytes().all(lower);
    all.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_clients_trace_goes_on() {
        let trace = Trace::within(Some(&format!("00-{ID}-00f067aa0ba902b7-01")));
        assert_eq!(format!("{:032x}", trace.id), ID);
        assert_eq!((trace.parent, trace.sampled), (Some(0x00f0_67aa_0ba9_02b7), true));
        let next = trace.to_string();
        assert_eq!(next, format!("00-{ID}-{:016x}-01", trace.span));
        assert_eq!(Trace::within(Some(&next)).parent, Some(trace.span));
        assert!(!Trace::within(Some(&format!("00-{ID}-00f067aa0ba902b7-00"))).sampled);
        let later = Trace::within(Some(&format!("01-{ID}-00f067aa0ba902b7-03-more")));
        assert_eq!(later.parent, trace.parent);
        assert_ne!(trace.sibling().span, trace.span);
    }

    #[test]
    fn what_names_no_trace_begins_one() {
        let zeros = "0".repeat(32);
        let bad = [
            String::new(),
            "00".to_owned(),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("00-{ID}-00f067aa0ba902b7-01-more"),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{ID}-00f067aa0ba902b7-0é"),
            format!("00-{}-000f067aa0ba902b7-01", &ID[1..]),
        ];
        for value in bad {
            let trace = Trace::within(Some(&value));
            assert!(trace.parent.is_none() && trace.sampled && trace.id != 0, "{value}");
        }
    }
}
