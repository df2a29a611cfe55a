//! A small HTTP client that can be watched and dropped at any point of a call: the socket is all
//! it has, one call a connection.

use serde_json::Value;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer that takes longer fails the test.
const PATIENCE: Duration = Duration::from_secs(120);

/// A call whose request is sent and of whose answer nothing is read. Dropping it hangs up.
pub struct Call(TcpStream);

/// An answer's head; its body is read as it comes.
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: BufReader<Body>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

pub fn get(address: SocketAddr, path: &str) -> io::Result<Reply> {
    Call::send(address, ("GET", path), "", "")?.answer()?.whole()
}

/// Sends a JSON body.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> io::Result<Call> {
    Call::send(address, ("POST", path), "", &body.to_string())
}

/// The same with another header, like `name: value`.
pub fn post_with(address: SocketAddr, path: &str, header: &str, body: &Value) -> io::Result<Call> {
    Call::send(address, ("POST", path), &format!("{header}\r\n"), &body.to_string())
}

impl Call {
    fn send(
        address: SocketAddr,
        (method, path): (&str, &str),
        headers: &str,
        body: &str,
    ) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        stream.write_all((head + body).as_bytes())?;
        Ok(Self(stream))
    }

    /// Waits for the head.
    pub fn answer(self) -> io::Result<Answer> {
        let mut stream = BufReader::new(self.0);
        let status = line(&mut stream)?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| malformed("no status"))?;
        let mut headers = Vec::new();
        loop {
            let header = line(&mut stream)?;
            match header.split_once(':') {
                Some((name, value)) => {
                    headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                None if header.is_empty() => break,
                None => return Err(malformed(&header)),
            }
        }
        let find = |name| headers.iter().find(|(have, _)| have == name).map(|(_, value)| value);
        let length = find("content-length").and_then(|value| value.parse().ok());
        let left = match length {
            Some(bytes) => Left::Bytes(bytes),
            None if find("transfer-encoding").is_some() => Left::Chunks(0),
            None => Left::UntilEnd,
        };
        Ok(Answer { status, headers, body: BufReader::new(Body { stream, left }) })
    }

    /// Waits for all of it.
    pub fn whole(self) -> io::Result<Reply> {
        self.answer()?.whole()
    }
}

impl Answer {
    /// Whether server-sent events follow.
    pub fn is_stream(&self) -> bool {
        let kind = self.headers.iter().find(|(name, _)| name == "content-type");
        kind.is_some_and(|(_, value)| value.starts_with("text/event-stream"))
    }

    pub fn whole(mut self) -> io::Result<Reply> {
        let mut body = String::new();
        self.body.read_to_string(&mut body)?;
        Ok(Reply { status: self.status, headers: self.headers, body })
    }

    /// The next server-sent event; `None` at the end of the body.
    pub fn event(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.body.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Ok(Some(data.trim_end().to_owned()));
            }
        }
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: status {}, body {:?}", self.status, self.body))
    }
}

/// A body as HTTP/1.1 delimits it.
struct Body {
    stream: BufReader<TcpStream>,
    left: Left,
}

enum Left {
    /// So many of the body.
    Bytes(u64),
    /// So many of this chunk, then the next.
    Chunks(u64),
    UntilEnd,
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Left::Chunks(0) = self.left {
            let size = line(&mut self.stream)?;
            let size = u64::from_str_radix(&size, 16).map_err(|_| malformed(&size))?;
            self.left = if size > 0 { Left::Chunks(size) } else { Left::Bytes(0) };
        }
        let (Left::Bytes(left) | Left::Chunks(left)) = &mut self.left else {
            return self.stream.read(into);
        };
        if *left == 0 {
            return Ok(0);
        }
        let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let read = self.stream.read(&mut into[..most])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        if matches!(self.left, Left::Chunks(0)) {
            line(&mut self.stream)?;
        }
        Ok(read)
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not HTTP: {what:?}"))
}
