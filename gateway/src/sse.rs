//! Server-sent events, written where they leave from: what a delta shows is one buffer and one
//! write to the socket.

use axum::body::Bytes;
use serde::Serialize;

/// Bytes that most texts fit in.
const USUAL: usize = 512;

/// Events that leave together. The buffer is used again and again.
#[derive(Debug)]
pub struct Events(Vec<u8>);

/// The `data:` of an event, one line.
#[derive(Debug)]
pub struct Data<'a>(&'a mut Vec<u8>);

impl Default for Events {
    fn default() -> Self {
        Self(Vec::with_capacity(USUAL))
    }
}

impl Events {
    /// Adds an event, with a name where the API names its events.
    pub fn add(&mut self, name: Option<&str>, write: impl FnOnce(&mut Data<'_>)) {
        if let Some(name) = name {
            self.0.extend_from_slice(b"event: ");
            self.0.extend_from_slice(name.as_bytes());
            self.0.push(b'\n');
        }
        self.0.extend_from_slice(b"data: ");
        write(&mut Data(&mut self.0));
        self.0.extend_from_slice(b"\n\n");
    }

    /// Adds an event whose data is a JSON value.
    pub fn add_json(&mut self, name: Option<&str>, value: &impl Serialize) {
        self.add(name, |data| data.json(value));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes them all.
    pub fn take(&mut self) -> Bytes {
        let taken = Bytes::copy_from_slice(&self.0);
        self.0.clear();
        taken
    }
}

impl Data<'_> {
    /// The same as a text, for a body that is no event.
    pub fn text_of(write: impl FnOnce(&mut Data<'_>)) -> String {
        let mut text = Vec::with_capacity(USUAL);
        write(&mut Data(&mut text));
        String::from_utf8(text).expect("of texts and JSON")
    }

    /// Adds text as it stands.
    pub fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Adds a field: `name` with all that is around it, as it stands, then its value. A stream
    /// says the same names with every token, and serde would look for what to escape in them.
    pub fn field(&mut self, name: &str, value: &impl Serialize) {
        self.text(name);
        self.json(value);
    }

    /// Adds a list's items.
    pub fn items<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        for (at, item) in items.iter().enumerate() {
            self.text(if at > 0 { "," } else { "" });
            write(self, item);
        }
    }

    /// Adds one of our own types as JSON.
    pub fn json(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut *self.0, value)
            .expect("our own types have string keys and finite numbers");
    }
}
