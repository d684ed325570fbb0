//! A TCP proxy before PostgreSQL that loses COMMITs, or the answers to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use parking_lot::Mutex;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What is lost of a COMMIT; its connection breaks either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It never reaches the server.
    Commit,
    /// The server carries it out, and nobody hears of it.
    Answer,
}

/// Stands between a client and PostgreSQL.
pub struct Proxy {
    /// Leads to the same database.
    pub url: String,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    next: Mutex<Option<Loss>>,
    lost: AtomicU32,
}

/// Query message with the text that sqlx ends a transaction with.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// ReadyForQuery outside a transaction: whatever was asked for is done.
const READY: &[u8] = b"Z\0\0\0\x05I";

impl Proxy {
    pub async fn before(database_url: &str) -> Self {
        let server: PgConnectOptions = database_url.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let url = server.clone().host("127.0.0.1").port(port).to_url_lossy().to_string();
        let faults = Arc::new(Faults::default());
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let address = (server.get_host().to_owned(), server.get_port());
                let server = TcpStream::connect(address).await.expect("PostgreSQL listens");
                tokio::spawn(relay(client, server, shared.clone()));
            }
        });
        Self { url, faults }
    }

    /// The next COMMIT is lost.
    pub fn lose(&self, loss: Loss) {
        *self.faults.next.lock() = Some(loss);
    }

    /// How many were lost.
    pub fn lost(&self) -> u32 {
        self.faults.lost.load(SeqCst)
    }
}

async fn relay(mut client: TcpStream, mut server: TcpStream, faults: Arc<Faults>) {
    let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let Ok(length @ 1..) = read else { return };
                // A client waits for the answers to all before it ends a transaction, so this is a read of its own.
                let loss = if request[..length] == *COMMIT { faults.next.lock().take() } else { None };
                if loss != Some(Loss::Commit) && server.write_all(&request[..length]).await.is_err() {
                    return;
                }
                if loss == Some(Loss::Answer) {
                    until_ready(&mut server).await;
                }
                if loss.is_some() {
                    faults.lost.fetch_add(1, SeqCst);
                    return;
                }
            }
            read = server.read(&mut answer) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn until_ready(server: &mut TcpStream) {
    let (mut heard, mut answer) = (Vec::new(), [0; 1 << 10]);
    while !heard.ends_with(READY) {
        let length = server.read(&mut answer).await.expect("PostgreSQL answers");
        assert_ne!(length, 0, "PostgreSQL broke the connection");
        heard.extend_from_slice(&answer[..length]);
    }
}
