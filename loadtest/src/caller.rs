//! One connection whose requests are repeated until they are answered for good.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::http::{Answer, Connection, post_head};

/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// One client.
#[derive(Debug)]
pub struct Caller {
    address: SocketAddr,
    key: String,
    /// How long one request is repeated.
    patience: Duration,
    connection: Option<Connection>,
    /// Requests that were repeated.
    pub retries: u64,
}

impl Caller {
    /// A client that opens its connection with its first request.
    #[must_use]
    pub fn new(address: SocketAddr, key: &str, patience: Duration) -> Self {
        Self { address, key: key.to_owned(), patience, connection: None, retries: 0 }
    }

    /// Posts a body, again after 429, 5xx and a broken connection: what it asks for must be harmless twice.
    ///
    /// # Errors
    /// Any other answer, or none within the patience; for people.
    pub async fn post(&mut self, path: &str, body: &str) -> Result<Answer, String> {
        let mut request = post_head(path, &self.address.to_string(), &self.key);
        request.extend_from_slice(format!("{}\r\n\r\n{body}", body.len()).as_bytes());
        let give_up = Instant::now() + self.patience;
        loop {
            let why = match self.exchange(&request).await {
                Ok(answer) if matches!(answer.status, 200 | 201) => return Ok(answer),
                Ok(answer) if matches!(answer.status, 429 | 500 | 502 | 503) => text_of(&answer),
                Ok(answer) => return Err(text_of(&answer)),
                Err(error) => {
                    self.connection = None;
                    error.to_string()
                }
            };
            if Instant::now() >= give_up {
                return Err(format!("gave up after {:?}: {why}", self.patience));
            }
            self.retries += 1;
            sleep(PAUSE).await;
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(self.address).await?),
        };
        connection.exchange(request).await
    }
}

fn text_of(answer: &Answer) -> String {
    format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>())
}
