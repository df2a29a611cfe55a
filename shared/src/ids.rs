//! Newtyped ids. Private fields: an id is made where the thing is made, and nowhere else.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a raw number; the caller vouches for where it came from.
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }
            /// The raw number, for arithmetic and the wire.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// An entry of the model's vocabulary.
    TokenId(u32), "{}"
);
id!(
    /// Index of a page in one server's pool; means nothing without that server and its epoch.
    PageId(u32), "p{}"
);
id!(
    /// One grant of target pages by a decode server; unique within that server's epoch.
    TicketId(u64), "t{}"
);
id!(
    /// A server's incarnation: random 64 bits a start, compared for equality only.
    Epoch(u64), "{:016x}"
);
id!(
    /// How many times a request has been sent round before: 0 is the first try.
    Attempt(u16), "a{}"
);

impl Attempt {
    /// The attempt that follows this one; saturates, since retries are budgeted far below.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A request, unique across gateways: the gateway's epoch and a counter there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    gateway: u64,
    number: u64,
}

impl RequestId {
    /// The `number`-th request of the gateway incarnation `gateway`.
    pub const fn new(gateway: Epoch, number: u64) -> Self {
        Self { gateway: gateway.get(), number }
    }
    /// The gateway incarnation that drew this id.
    pub const fn gateway(self) -> Epoch {
        Epoch::new(self.gateway)
    }
    /// The counter within that gateway.
    pub const fn number(self) -> u64 {
        self.number
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.gateway >> 32, self.number)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A server's configured name, stable over restarts (`prefill-0`); the epoch tells lives apart.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerId(Arc<str>);

impl ServerId {
    /// Longest accepted name, bytes.
    pub const MAX_LEN: usize = 64;

    /// Accepts 1 to [`Self::MAX_LEN`] of `[A-Za-z0-9._-]`.
    ///
    /// # Errors
    /// [`BadServerId`] with the name, if it is empty, too long or holds another character.
    pub fn new(name: impl Into<String>) -> Result<Self, BadServerId> {
        let name = name.into();
        let fits = (1..=Self::MAX_LEN).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits { Ok(Self(name.into())) } else { Err(BadServerId(name)) }
    }
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ServerId {
    type Error = BadServerId;
    fn try_from(name: String) -> Result<Self, BadServerId> {
        Self::new(name)
    }
}

impl Serialize for ServerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A server name that [`ServerId::new`] refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("server name {0:?}: want 1 to 64 of letters, digits, '.', '_', '-'")]
pub struct BadServerId(pub String);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
