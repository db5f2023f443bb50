//! As much of HTTP/1.1 as a proxy needs that looks at whole messages: heads, and bodies by length or in chunks.

use std::io::{BufRead, Error, Read, Result};

/// Longest head and longest line of a chunk, in bytes.
const MAX_HEAD: u64 = 64 << 10;
/// Longest body, in bytes.
const MAX_BODY: u64 = 256 << 20;

/// The first line and the headers, as they came, with the empty line.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) text: String,
}

impl Head {
    /// `None` where the other side ends the connection between messages.
    pub(super) fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut text = String::new();
        loop {
            let before = text.len();
            from.by_ref().take(MAX_HEAD).read_line(&mut text)?;
            let line = text.get(before..).unwrap_or_default();
            match line {
                "" if before == 0 => return Ok(None),
                "\r\n" if before > 0 => return Ok(Some(Self { text })),
                line if !line.ends_with("\r\n") || text.len() as u64 > MAX_HEAD => {
                    return Err(Error::other("no HTTP head"));
                }
                _ => {}
            }
        }
    }

    /// The words of the first line.
    pub(super) fn word(&self, index: usize) -> &str {
        let line = self.text.lines().next().unwrap_or_default();
        line.split(' ').nth(index).unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    pub(super) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    /// The same head announcing a body of `length` bytes.
    pub(super) fn with_length(&self, length: u64) -> String {
        let mut text = String::new();
        for line in self.text.trim_end().lines() {
            let name = line.split(':').next().unwrap_or_default();
            let framing = ["content-length", "transfer-encoding"];
            if !framing
                .iter()
                .any(|header| name.eq_ignore_ascii_case(header))
            {
                text += line;
                text += "\r\n";
            }
        }
        text + &format!("Content-Length: {length}\r\n\r\n")
    }
}

/// A whole answer. A body in chunks is joined; it can be sent with its length.
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    /// It may announce a length without a body.
    pub(super) to_head_request: bool,
}

impl Answer {
    pub(super) fn read(from: &mut impl BufRead, method: &str) -> Result<Self> {
        let head = loop {
            let head = Head::read(from)?.ok_or_else(|| Error::other("no answer"))?;
            // 100 Continue and the like come before the answer.
            if !head.word(1).starts_with('1') {
                break head;
            }
        };
        let to_head_request = method == "HEAD";
        let mut body = Vec::new();
        if to_head_request || matches!(head.word(1), "204" | "304") {
        } else if head.is_chunked() {
            read_chunks(from, &mut body)?;
        } else if let Some(length) = head.length() {
            read_exactly(from, length, &mut body)?;
        } else {
            from.by_ref().take(MAX_BODY).read_to_end(&mut body)?;
        }
        Ok(Self {
            head,
            body,
            to_head_request,
        })
    }

    pub(super) fn status(&self) -> u16 {
        self.head.word(1).parse().unwrap_or(0)
    }

    /// The head under which the body can be sent as it is here.
    pub(super) fn framed(&self) -> String {
        if self.to_head_request || matches!(self.head.word(1), "204" | "304") {
            return self.head.text.clone();
        }
        self.head.with_length(self.body.len() as u64)
    }
}

fn read_exactly(from: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    if length > MAX_BODY {
        return Err(Error::other("too long a body"));
    }
    let read = from.by_ref().take(length).read_to_end(body)?;
    match read as u64 == length {
        true => Ok(()),
        false => Err(Error::other("the body ends early")),
    }
}

fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut line = String::new();
        from.by_ref().take(MAX_HEAD).read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(Error::other)?;
        read_exactly(from, size, body)?;
        let mut end = String::new();
        from.by_ref().take(MAX_HEAD).read_line(&mut end)?;
        if size == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_whole_and_framed_anew() {
        let mut bytes: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno";
        let answer = Answer::read(&mut bytes, "GET").expect("an answer");
        assert_eq!(
            (answer.status(), answer.body.as_slice()),
            (200, &b"abcde"[..])
        );
        assert_eq!(
            answer.framed(),
            "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n"
        );
        let answer = Answer::read(&mut bytes, "GET").expect("an answer");
        assert_eq!((answer.status(), answer.body.as_slice()), (404, &b"no"[..]));
        assert!(Head::read(&mut bytes).expect("an end").is_none());
        let mut cut: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc";
        assert!(Answer::read(&mut cut, "GET").is_err());
        let mut head: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let answer = Answer::read(&mut head, "HEAD").expect("an answer without a body");
        assert!(answer.framed().contains("Content-Length: 5\r\n"));
    }
}
