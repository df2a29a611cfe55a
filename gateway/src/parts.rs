//! What an output is made of: thoughts, text, and calls of tools.

/// A piece of an output. Equal kinds that follow each other are pieces of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text of the chain of thought.
    Thought(String),
    /// Text of the answer.
    Text(String),
    /// A call begins; its arguments follow.
    Call {
        /// The tool that is called.
        name: String,
    },
    /// Text of the arguments of the call that began last.
    Arguments(String),
}

/// Parts in order; what continues the last one is added to it.
#[derive(Debug, Clone, Default)]
pub struct Parts(Vec<Part>);

impl Parts {
    /// Adds a thought.
    pub fn thought(&mut self, more: &str) {
        match self.0.last_mut() {
            _ if more.is_empty() => {}
            Some(Part::Thought(text)) => text.push_str(more),
            _ => self.0.push(Part::Thought(more.to_owned())),
        }
    }

    /// Adds text of the answer.
    pub fn text(&mut self, more: &str) {
        match self.0.last_mut() {
            _ if more.is_empty() => {}
            Some(Part::Text(text)) => text.push_str(more),
            _ => self.0.push(Part::Text(more.to_owned())),
        }
    }

    /// Begins a call.
    pub fn call(&mut self, name: String) {
        self.0.push(Part::Call { name });
    }

    /// Adds to the arguments of the last call.
    pub fn arguments(&mut self, more: &str) {
        match self.0.last_mut() {
            _ if more.is_empty() => {}
            Some(Part::Arguments(text)) => text.push_str(more),
            _ => self.0.push(Part::Arguments(more.to_owned())),
        }
    }

    /// Adds a part that was made elsewhere.
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Thought(text) => self.thought(&text),
            Part::Text(text) => self.text(&text),
            Part::Call { name } => self.call(name),
            Part::Arguments(text) => self.arguments(&text),
        }
    }

    /// The parts.
    pub fn into_vec(self) -> Vec<Part> {
        self.0
    }
}
