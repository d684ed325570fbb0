//! A TCP proxy that loses answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Stands between a client and a server.
#[derive(Clone)]
pub struct Proxy {
    pub url: String,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    /// How many answers to inserts of events are still to be lost.
    answers_to_lose: AtomicU32,
    /// Answers that were lost.
    lost: AtomicU32,
    /// Whether nobody gets through.
    closed: AtomicBool,
}

impl Proxy {
    pub async fn before(server: &str) -> Self {
        let server = server.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let faults = Arc::new(Faults::default());
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server.clone(), shared.clone()));
            }
        });
        Self { url, faults }
    }

    /// The server will do what these inserts ask, and nobody will hear of it.
    pub fn lose_answers(&self, count: u32) {
        self.faults.answers_to_lose.store(count, SeqCst);
    }

    pub fn lost(&self) -> u32 {
        self.faults.lost.load(SeqCst)
    }

    pub fn close(&self, closed: bool) {
        self.faults.closed.store(closed, SeqCst);
    }
}

async fn relay(mut client: TcpStream, server: String, faults: Arc<Faults>) {
    if faults.closed.load(SeqCst) {
        return;
    }
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut is_insert = false;
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let Ok(length @ 1..) = read else { return };
                let bytes = &request[..length];
                if bytes.starts_with(b"POST ") {
                    let line = String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().to_owned();
                    is_insert = line.contains("INSERT+INTO+usage_event+") || line.contains("INSERT%20INTO%20usage_event%20");
                }
                if faults.closed.load(SeqCst) || server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                let lose = |left: u32| left.checked_sub(1);
                if is_insert && faults.answers_to_lose.fetch_update(SeqCst, SeqCst, lose).is_ok() {
                    faults.lost.fetch_add(1, SeqCst);
                    return;
                }
                if client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
