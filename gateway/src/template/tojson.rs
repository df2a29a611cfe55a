//! `tojson` as transformers defines it: Python's `json.dumps(value, ensure_ascii=False)`, so
//! `", "` and `": "` between items, keys in their order, no HTML escapes.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io;

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands a filter its Kwargs by value")]
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Python's other options do not occur with another value than the default.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = kwargs.get(name)?;
    }
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let form = PythonForm { indent: indent.map(|spaces| spaces.min(16)), depth: 0, filled: false };
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut out, form))
        .map_err(|err| Error::new(ErrorKind::BadSerialization, err.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

struct PythonForm {
    indent: Option<usize>,
    depth: usize,
    filled: bool,
}

impl PythonForm {
    fn open(&mut self) {
        self.depth += 1;
        self.filled = false;
    }

    fn item<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.filled = true;
        match self.indent {
            None if first => Ok(()),
            None => writer.write_all(b", "),
            Some(spaces) => {
                writer.write_all(if first { b"\n" } else { b",\n" })?;
                writer.write_all(" ".repeat(spaces * self.depth).as_bytes())
            }
        }
    }

    fn close<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if let (Some(spaces), true) = (self.indent, self.filled) {
            writer.write_all(b"\n")?;
            writer.write_all(" ".repeat(spaces * self.depth).as_bytes())?;
        }
        self.filled = true; // the enclosing list or object has this one in it
        Ok(())
    }
}

impl Formatter for PythonForm {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"[")
    }
    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer)?;
        writer.write_all(b"]")
    }
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }
    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"{")
    }
    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer)?;
        writer.write_all(b"}")
    }
    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }
    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
