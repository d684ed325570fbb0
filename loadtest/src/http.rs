//! A keep-alive HTTP/1.1 connection with one request under way: a general client costs more per request than the door that is
//! to be measured. It understands what Kontorion answers (a `Content-Length`) and nothing more.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Without an answer for so long, a connection is given up.
const LIMIT: Duration = Duration::from_secs(30);

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
    /// Its body.
    pub body: Vec<u8>,
}

struct Head {
    length: usize,
    body_length: usize,
    status: u16,
    retry_after: Option<u64>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = timeout(LIMIT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(16 << 10) })
    }

    /// Sends a request and reads its answer. After an error the connection is of no more use.
    ///
    /// # Errors
    /// When the connection breaks, the answer is no HTTP/1.1, or it does not come.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        timeout(LIMIT, self.exchange_unlimited(request)).await?
    }

    async fn exchange_unlimited(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.received.clear();
        let head = loop {
            if let Some(head) = parse_head(&self.received)? {
                break head;
            }
            self.read().await?;
        };
        while self.received.len() < head.length + head.body_length {
            self.read().await?;
        }
        let body = self.received[head.length..head.length + head.body_length].to_vec();
        Ok(Answer { status: head.status, retry_after: head.retry_after, body })
    }

    async fn read(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The head, once it is whole.
fn parse_head(received: &[u8]) -> Result<Option<Head>> {
    let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let bad = |what: &str| Error::new(ErrorKind::InvalidData, what.to_owned());
    let text = std::str::from_utf8(&received[..end]).map_err(|_| bad("the answer's head is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let mut head = Head {
        length: end + 4,
        body_length: 0,
        status: status.ok_or_else(|| bad("the answer is not HTTP/1.1"))?,
        retry_after: None,
    };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a header without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.body_length = value.parse().map_err(|_| bad("a bad Content-Length"))?;
        } else if name.eq_ignore_ascii_case("retry-after") {
            head.retry_after = value.parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(bad("the answer comes in chunks"));
        }
    }
    Ok(Some(head))
}

/// The beginning of a POST of JSON, up to the length of its body.
#[must_use]
pub fn post_head(path: &str, host: &str, key: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: "
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_read_whole_also_in_pieces() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut seen = [0; 5];
            for piece in ["HTTP/1.1 202 Accepted\r\ncontent-", "length: 11\r\n\r\nhello", " world"] {
                if piece.starts_with("HTTP") {
                    peer.read_exact(&mut seen).await.unwrap();
                }
                peer.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            peer.read_exact(&mut seen).await.unwrap();
            peer.write_all(b"HTTP/1.1 503 X\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            peer.read_exact(&mut seen).await.unwrap();
        });
        let mut connection = Connection::open(address).await.unwrap();
        let answer = connection.exchange(b"first").await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (202, b"hello world".as_slice()));
        let answer = connection.exchange(b"again").await.unwrap();
        assert_eq!((answer.status, answer.retry_after), (503, Some(2)));
        assert!(connection.exchange(b"final").await.is_err(), "the server has gone");
        server.await.unwrap();
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap().is_none());
        assert!(parse_head(b"SSH-2.0\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n").is_err());
    }
}
