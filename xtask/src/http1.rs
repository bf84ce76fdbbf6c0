//! The little of HTTP/1.1 that a load generator needs: whole requests out, answers with a Content-Length in.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a single blocking exchange may take in each of its steps.
const STEP: Duration = Duration::from_secs(30);

/// What the head of an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Bytes of the head itself, the empty line included.
    pub(crate) head_length: usize,
    pub(crate) body_length: usize,
    /// Whether the server closes the connection after this answer.
    pub(crate) closes: bool,
}

impl Head {
    /// Reads the head at the start of `bytes`; `None` while it is incomplete.
    pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let malformed = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let mut lines = bytes[..end].split(|&byte| byte == b'\n');
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix(b"HTTP/1."))
            .and_then(|rest| rest.get(2..5))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .ok_or_else(|| malformed("the answer does not begin with an HTTP/1.x status line"))?;
        let mut body_length = None;
        let mut closes = false;
        for line in lines {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                let value = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                body_length =
                    Some(value.ok_or_else(|| malformed("the answer's Content-Length is no number"))?);
            } else if name.eq_ignore_ascii_case(b"connection") {
                closes = value.eq_ignore_ascii_case(b"close");
            }
        }
        let body_length = match body_length {
            Some(length) => length,
            None if status == 204 || status == 304 => 0,
            None => {
                return Err(malformed(
                    "the answer has no Content-Length, which is all that is understood here",
                ));
            }
        };
        Ok(Some(Self { status, head_length: end + 4, body_length, closes }))
    }

    /// Bytes of the whole answer.
    pub(crate) fn length(&self) -> usize {
        self.head_length + self.body_length
    }
}

/// An answer read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// A POST of JSON with everything around it, ready to be written to a connection. `key` is an API key or an access token.
pub(crate) fn post(address: SocketAddr, path: &str, key: Option<&str>, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\n{}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        authorization(key),
        body.len()
    )
    .into_bytes()
}

/// A POST of a form with everything around it, ready to be written to a connection.
pub(crate) fn post_form(address: SocketAddr, path: &str, form: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
         content-length: {}\r\n\r\n{form}",
        form.len()
    )
    .into_bytes()
}

/// A GET, ready to be written to a connection.
pub(crate) fn get(address: SocketAddr, path: &str, key: Option<&str>) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{}\r\n", authorization(key)).into_bytes()
}

fn authorization(key: Option<&str>) -> String {
    let header = |key: &str| match key.starts_with("sg_") {
        true => format!("x-api-key: {key}\r\n"),
        false => format!("authorization: Bearer {key}\r\n"),
    };
    key.map(header).unwrap_or_default()
}

/// Sends one request on a connection of its own and waits for the answer.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, STEP)
        .with_context(|| format!("could not connect to {address}"))?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    stream.write_all(request).with_context(|| format!("could not send the request to {address}"))?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let count = stream.read(&mut chunk).with_context(|| format!("no answer from {address}"))?;
        if count == 0 {
            bail!("{address} closed the connection after {} bytes of an answer", bytes.len());
        }
        bytes.extend_from_slice(&chunk[..count]);
        if let Some(head) = Head::parse(&bytes)?
            && bytes.len() >= head.length()
        {
            let body = String::from_utf8_lossy(&bytes[head.head_length..head.length()]).into_owned();
            return Ok(Answer { status: head.status, body });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &str, expected: Result<Option<Head>, &str>) {
        match (Head::parse(bytes.as_bytes()), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{bytes:?}"),
            (Err(found), Err(expected)) => assert!(found.to_string().contains(expected), "{found}"),
            (found, expected) => panic!("{bytes:?}: found {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn heads_are_read_as_they_arrive() {
        let head =
            |status, head_length, body_length, closes| Head { status, head_length, body_length, closes };
        check("HTTP/1.1 200 OK\r\ncontent-len", Ok(None));
        check("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{", Ok(Some(head(200, 39, 12, false))));
        check(
            "HTTP/1.1 503 X\r\nContent-Length:7\r\nConnection: Close\r\n\r\n",
            Ok(Some(head(503, 55, 7, true))),
        );
        check("HTTP/1.0 204 No Content\r\n\r\n", Ok(Some(head(204, 27, 0, false))));
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Err("no Content-Length"));
        check("HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", Err("no number"));
        check("SSH-2.0-OpenSSH\r\n\r\n", Err("status line"));
    }
}
