//! Guards: data that the engine would cut or change, errors that look like answers, and a server that one bad query
//! brings down. Everything goes through the built program, as the service and analysts use it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize};

/// A running program with a data directory of its own.
struct Server {
    child: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Server {
    /// `None`, with a line that says so, when the engine's library cannot be had.
    async fn start() -> Option<Self> {
        let library = engines::testing::clickhouse_library().await?;
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_dev-clickhouse"))
            .args(["--port", "0", "--path"])
            .arg(data.path())
            .arg("--library")
            .arg(library)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Some(Self { child, url: url.trim().to_owned(), _data: data })
    }

    fn client(&self) -> Client {
        Client::default().with_url(&self.url)
    }

    /// Status, exception code and text of the answer to a POST.
    async fn post(&self, address: &str, body: impl Into<reqwest::Body>) -> (u16, Option<String>, Vec<u8>) {
        let url = format!("{}{address}", self.url);
        answer(reqwest::Client::new().post(url).body(body)).await
    }

    async fn text(&self, body: &str) -> String {
        let (status, _, text) = self.post("/", body.to_owned()).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(status, 200, "{body}: {text}");
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Option<String>, Vec<u8>) {
    let response = request.send().await.unwrap();
    let code = response.headers().get("x-clickhouse-exception-code").map(|code| code.to_str().unwrap().to_owned());
    (response.status().as_u16(), code, response.bytes().await.unwrap().to_vec())
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Row)]
struct Event {
    id: u64,
    name: String,
}

/// RowBinary of all strings of two bytes.
fn every_pair() -> Vec<u8> {
    (0..=u16::MAX).flat_map(|pair| [&[2], pair.to_be_bytes().as_slice()].concat()).collect()
}

#[tokio::test]
async fn every_pair_of_bytes_arrives() {
    let Some(server) = Server::start().await else { return };
    server.text("CREATE TABLE pairs (s String) ENGINE = MergeTree ORDER BY s").await;
    let counts = "SELECT count(), uniqExact(s), min(s) = '\\0\\0', max(s) = '\\xff\\xff' FROM pairs";

    // The statement in the address, the data in the body.
    let address = "/?query=INSERT%20INTO%20pairs%20(s)%20FORMAT%20RowBinary";
    assert_eq!(server.post(address, every_pair()).await.0, 200);
    assert_eq!(server.text(counts).await, "65536\t65536\t1\t1\n");

    // Both in the body.
    server.text("TRUNCATE TABLE pairs").await;
    let body = [b"INSERT INTO pairs (s) FORMAT RowBinary\n".to_vec(), every_pair()].concat();
    assert_eq!(server.post("/", body).await.0, 200);
    assert_eq!(server.text(counts).await, "65536\t65536\t1\t1\n");

    // And out again.
    let (_, _, rows) = server.post("/", "SELECT s FROM pairs ORDER BY s FORMAT RowBinary").await;
    assert_eq!(rows, every_pair());
}

#[tokio::test]
async fn the_client_of_the_service_writes_and_reads() {
    let Some(server) = Server::start().await else { return };
    let client = server.client();
    client.query("CREATE DATABASE d").execute().await.unwrap();
    let client = client.with_database("d").with_setting("optimize_on_insert", "0");
    let create = "CREATE TABLE events (id UInt64, name String, seen DateTime DEFAULT now()) \
                  ENGINE = MergeTree ORDER BY id";
    client.query(create).execute().await.unwrap();

    for first in [0, 500] {
        let mut insert = client.insert::<Event>("events").await.unwrap();
        for id in first..first + 500 {
            insert.write(&Event { id, name: format!("\n\n{id}") }).await.unwrap();
        }
        insert.end().await.unwrap();
    }

    let rows: Vec<Event> =
        client.query("SELECT ?fields FROM events WHERE id >= ? ORDER BY id").bind(998).fetch_all().await.unwrap();
    assert_eq!(rows, [998, 999].map(|id| Event { id, name: format!("\n\n{id}") }));
    let defaults: u64 = client.query("SELECT count() FROM events WHERE seen > 0").fetch_one().await.unwrap();
    assert_eq!(defaults, 1000);
    let parts: u64 = client.query("SELECT count() FROM system.parts WHERE table = 'events'").fetch_one().await.unwrap();
    assert_eq!(parts, 2, "one part per insert");

    let error = client.query("SELECT * FROM nowhere").execute().await.unwrap_err();
    assert!(error.to_string().contains("UNKNOWN_TABLE"), "{error}");
}

#[tokio::test]
async fn text_formats_keep_lines_and_fill_defaults() {
    let Some(server) = Server::start().await else { return };
    server.text("CREATE TABLE t (a UInt64, b String DEFAULT 'none') ENGINE = MergeTree ORDER BY a").await;
    server.text("INSERT INTO t VALUES (1, 'x\n\n;y'), (2, 'z')").await;
    server.text("INSERT INTO t FORMAT JSONEachRow\n{\"a\":3}\n\n{\"a\":4,\"b\":\"w\"}\n").await;
    server.text("INSERT INTO t (a) SELECT 5").await;
    server.text("INSERT INTO t FORMAT RowBinary").await;
    let expected = "1\tx\\n\\n;y\n2\tz\n3\tnone\n4\tw\n5\tnone\n";
    assert_eq!(server.text("SELECT * FROM t ORDER BY a").await, expected);
    assert_eq!(server.text("SELECT a FROM t WHERE a = 5 FORMAT JSONEachRow").await, "{\"a\":5}\n");
}

#[tokio::test]
async fn bad_queries_are_answered_and_survived() {
    let Some(server) = Server::start().await else { return };
    server.text("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    let cases = [
        ("/", "SELECT * FROM nowhere", 404, "60"),
        ("/", "SELECT (", 400, "62"),
        ("/", "   ", 400, "62"),
        ("/?database=nowhere", "SELECT 1", 404, "81"),
        ("/?no_such_setting=1", "SELECT 1", 404, "115"),
        ("/?compress=1", "SELECT 1", 501, "48"),
        // A row that is cut short: nothing of the insert stays.
        ("/", "INSERT INTO t FORMAT RowBinary 12345678abc", 400, "33"),
        // Fails after rows were printed.
        ("/", "SELECT throwIf(number = 300000) FROM numbers(1000000)", 500, "395"),
    ];
    for (address, body, status, code) in cases {
        let (got, exception, text) = server.post(address, body).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!((got, exception.as_deref()), (status, Some(code)), "{address} {body}: {text}");
        assert!(text.starts_with(&format!("Code: {code}. DB::Exception: ")), "{text}");
        assert_eq!(server.text("SELECT count() FROM t").await, "0\n", "after {body}");
    }
}

#[tokio::test]
async fn a_request_leaves_nothing_to_the_next() {
    let Some(server) = Server::start().await else { return };
    assert_eq!(server.text("SELECT version() != ''").await, "1\n");
    let (_, _, threads) = server.post("/?max_threads=7", "SELECT getSetting('max_threads')").await;
    assert_eq!(threads, b"7\n");
    assert_ne!(server.text("SELECT getSetting('max_threads')").await, "7\n");
    // Values are written as in TabSeparated, as a server takes them.
    let (_, _, bound) = server.post("/?param_x=a%5Cnb&default_format=JSONEachRow", "SELECT {x:String} AS x").await;
    assert_eq!(bound, b"{\"x\":\"a\\nb\"}\n");

    let http = reqwest::Client::new();
    let url = |path: &str| format!("{}{path}", server.url);
    assert_eq!(answer(http.get(url("/ping"))).await.2, b"Ok.\n");
    assert_eq!(answer(http.get(url("/?query=SELECT%201"))).await.2, b"1\n");
    let (status, code, _) = answer(http.get(url("/?query=CREATE%20DATABASE%20d"))).await;
    assert_eq!((status, code.as_deref()), (403, Some("164")), "GET only reads");
}

#[tokio::test]
async fn queries_run_side_by_side() {
    let Some(server) = Server::start().await else { return };
    server.text("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    let inserts = (0..20).map(|i| {
        let body = format!("INSERT INTO t SELECT number + {i}00000 FROM numbers(10000)");
        let url = server.url.clone();
        tokio::spawn(async move { answer(reqwest::Client::new().post(url).body(body)).await.0 })
    });
    let inserts: Vec<_> = inserts.collect();
    for insert in inserts {
        assert_eq!(insert.await.unwrap(), 200);
    }
    assert_eq!(server.text("SELECT count(), uniqExact(a) FROM t").await, "200000\t200000\n");
}
