//! Guards: rates of a broken document, a feed that is asked without end, and a start without a connection that leaves no
//! rates. A server of our own says what the European Central Bank would.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::Instant;
use engines::testing::TestDatabase;
use scheduler::exchange_rates::{Look, RatesFeed, RatesOptions};
use store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fixture::at;

/// How the server behaves.
#[derive(Clone)]
enum Behaviour {
    /// Both documents, with an ETag.
    Serves(Vec<(&'static str, &'static str)>),
    /// The head promises more than comes.
    BreaksOff,
    /// A whole answer with half a document.
    Half,
    Status(&'static str),
    Says(&'static str),
    /// Takes the question and never answers.
    Silent,
}

struct Server {
    url: String,
    behaviour: Arc<Mutex<Behaviour>>,
    /// Paths that were asked for, with `+` where the question was conditional.
    asked: Arc<Mutex<Vec<String>>>,
}

fn document(days: &[(&str, &str)]) -> String {
    let cubes: String = days
        .iter()
        .map(|(date, rate)| {
            format!("<Cube time='{date}'>\n<Cube currency='USD' rate='{rate}'/>\n<Cube currency='JPY' rate='163.45'/>\n</Cube>\n")
        })
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<gesmes:Envelope xmlns:gesmes=\"http://www.gesmes.org/xml/2002-08-01\" \
         xmlns=\"http://www.ecb.int/vocabulary/2002-08-01/eurofxref\">\n<gesmes:subject>Reference rates</gesmes:subject>\n\
         <gesmes:Sender><gesmes:name>European Central Bank</gesmes:name></gesmes:Sender>\n<Cube>\n{cubes}</Cube>\n</gesmes:Envelope>"
    )
}

/// The answer to one question; none leaves the question open.
fn answer(behaviour: &Behaviour, path: &str, known: Option<&str>) -> Option<String> {
    let whole = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    match behaviour {
        Behaviour::Serves(days) => {
            let days = if path.ends_with("daily.xml") { &days[..1] } else { &days[..] };
            let etag = format!("\"{}\"", days[0].0);
            if known == Some(etag.as_str()) {
                return Some(whole("304 Not Modified", ""));
            }
            let body = document(days);
            let head = format!(
                "Content-Type: text/xml\r\nETag: {etag}\r\nContent-Length: {}\r\nConnection: close",
                body.len()
            );
            Some(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"))
        }
        Behaviour::BreaksOff => {
            let body = document(&[("2026-03-02", "1.09")]);
            Some(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", body.len(), &body[..body.len() / 2]))
        }
        Behaviour::Half => {
            let body = document(&[("2026-03-02", "1.09")]);
            Some(whole("200 OK", &body[..body.len() - "</Cube>\n</gesmes:Envelope>".len()]))
        }
        Behaviour::Status(status) => Some(whole(status, &document(&[("2026-03-02", "1.09")]))),
        Behaviour::Says(text) => Some(whole("200 OK", text)),
        Behaviour::Silent => None,
    }
}

impl Server {
    async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/stats/eurofxref/", listener.local_addr().unwrap());
        let (behaviour, asked) = (Arc::new(Mutex::new(behaviour)), Arc::new(Mutex::new(Vec::new())));
        let (acts, notes) = (behaviour.clone(), asked.clone());
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                        _ => break,
                    }
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let header = |line: &str| line.to_ascii_lowercase().starts_with("if-none-match:");
                let known = request.lines().find(|line| header(line)).and_then(|line| line.split_once(": "));
                let known = known.map(|(_, value)| value.trim());
                let conditional = if known.is_some() { "+" } else { "" };
                let name = path.rsplit('/').next().unwrap_or_default();
                notes.lock().unwrap().push(format!("{name}{conditional}"));
                let said = answer(&acts.lock().unwrap(), &path, known);
                match said {
                    Some(text) => drop(stream.write_all(text.as_bytes()).await),
                    None => open.push(stream),
                }
            }
        });
        Self { url, behaviour, asked }
    }

    fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

struct Feed {
    feed: RatesFeed,
    store: Store,
    _database: TestDatabase,
}

impl Feed {
    async fn new(url: &str) -> Self {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 4).await.unwrap();
        let patience = Duration::from_secs(1);
        let options = RatesOptions { connect_timeout: patience, timeout: patience, ..RatesOptions::new(url) };
        Self { feed: RatesFeed::new(store.clone(), &options), store, _database: database }
    }

    async fn look(&self, now: &str) -> Look {
        self.feed.look(at(now)).await.unwrap()
    }

    async fn next_at(&self) -> Instant {
        sqlx::query_scalar("SELECT next_at FROM fx_feed").fetch_one(self.store.pool()).await.unwrap()
    }

    async fn rates(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM fx_snapshot").fetch_one(self.store.pool()).await.unwrap()
    }
}

const HISTORY: &[(&str, &str)] = &[("2026-02-27", "1.0853"), ("2026-02-26", "1.08"), ("2026-02-25", "1.07")];

#[tokio::test]
async fn the_first_start_takes_ninety_days_and_then_each_day() {
    let server = Server::start(Behaviour::Serves(HISTORY.to_vec())).await;
    let feed = Feed::new(&server.url).await;
    assert_eq!(feed.feed.age(at("2026-02-27")).await.unwrap(), "none are known yet");
    assert_eq!(feed.look("2026-02-27T17:00:00Z").await, Look::Taken(6));
    assert_eq!(server.asked(), ["eurofxref-hist-90d.xml"]);
    assert_eq!(feed.next_at().await, at("2026-03-02T15:05:00Z"), "the weekend passes");
    assert_eq!(feed.look("2026-03-02T15:04:59Z").await, Look::NotDue);
    // Monday: not out yet, then out, then known.
    assert_eq!(feed.look("2026-03-02T15:05:00Z").await, Look::Taken(0));
    assert_eq!(feed.next_at().await, at("2026-03-02T15:20:00Z"));
    assert_eq!(feed.look("2026-03-02T15:20:00Z").await, Look::Unchanged);
    server.becomes(Behaviour::Serves(vec![("2026-03-02", "1.09")]));
    assert_eq!(feed.look("2026-03-02T15:35:00Z").await, Look::Taken(2));
    assert_eq!(server.asked(), ["eurofxref-daily.xml", "eurofxref-daily.xml+", "eurofxref-daily.xml+"]);
    assert_eq!(feed.next_at().await, at("2026-03-03T15:05:00Z"));
    assert_eq!(feed.feed.age(at("2026-03-05T12:00:00Z")).await.unwrap(), "the newest are of 2026-03-02, 3 day(s) old");
    // A week away: what is missing comes with the history.
    assert!(matches!(feed.look("2026-03-10T16:00:00Z").await, Look::Taken(_)));
    assert_eq!(server.asked(), ["eurofxref-hist-90d.xml"]);
}

#[tokio::test]
async fn what_is_no_document_changes_nothing_and_is_asked_again() {
    let server = Server::start(Behaviour::Serves(HISTORY.to_vec())).await;
    let feed = Feed::new(&server.url).await;
    assert_eq!(feed.look("2026-02-27T17:00:00Z").await, Look::Taken(6));
    let mut now = at("2026-03-02T15:05:00Z");
    for (behaviour, why, minutes) in [
        (Behaviour::BreaksOff, "", 1),
        (Behaviour::Half, "breaks off", 2),
        (Behaviour::Status("500 Internal Server Error"), "500", 4),
        (Behaviour::Status("404 Not Found"), "404", 8),
        (Behaviour::Says("nonsense"), "no exchange rates", 16),
        (Behaviour::Says("<html><body>Maintenance</body></html>"), "no exchange rates", 32),
        (Behaviour::Says(""), "no exchange rates", 60),
        (Behaviour::Silent, "", 60),
    ] {
        server.becomes(behaviour);
        let Look::Failed(reason) = feed.feed.look(now).await.unwrap() else { panic!("must fail: {why}") };
        assert!(reason.contains(why) && reason.contains("eurofxref-daily.xml"), "{reason}");
        assert_eq!(feed.rates().await, 6, "{reason}");
        let noted: String =
            sqlx::query_scalar("SELECT last_error FROM fx_feed").fetch_one(feed.store.pool()).await.unwrap();
        assert_eq!(noted, reason);
        let next = feed.next_at().await;
        assert_eq!((next - now).num_minutes(), minutes, "{reason}");
        now = next;
    }
    server.becomes(Behaviour::Serves(vec![("2026-03-02", "1.09")]));
    assert_eq!(feed.feed.look(now).await.unwrap(), Look::Taken(2));
    let left: (i32, Option<String>) =
        sqlx::query_as("SELECT failures, last_error FROM fx_feed").fetch_one(feed.store.pool()).await.unwrap();
    assert_eq!(left, (0, None));
}

/// Rates that were fetched go on without a connection, and two schedulers ask once.
#[tokio::test]
async fn an_offline_start_has_what_was_fetched_and_one_scheduler_asks() {
    let server = Server::start(Behaviour::Serves(HISTORY.to_vec())).await;
    let feed = Feed::new(&server.url).await;
    let now = at("2026-02-27T17:00:00Z");
    let (one, other) = futures::join!(feed.feed.look(now), feed.feed.look(now));
    let looks = [one.unwrap(), other.unwrap()];
    assert!(looks.contains(&Look::Taken(6)) && looks.contains(&Look::NotDue), "{looks:?}");
    let offline = RatesFeed::new(feed.store.clone(), &RatesOptions::new("http://127.0.0.1:1"));
    assert!(matches!(offline.look(at("2026-03-02T15:05:00Z")).await.unwrap(), Look::Failed(_)));
    assert_eq!(offline.age(at("2026-03-02T15:05:00Z")).await.unwrap(), "the newest are of 2026-02-27, 3 day(s) old");
    assert_eq!(feed.rates().await, 6);
}
