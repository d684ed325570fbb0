//! Sends over HTTP: each connection takes the next due request, and repeats it with the same keys until it is
//! acknowledged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::usage::IngestAnswer;
use tokio::time::{Instant, sleep, sleep_until};

use crate::body::{Bodies, Second, digits};
use crate::http::{Answer, Connection, post_head};
use crate::plan::Plan;
use crate::tally::{Due, Schedule, Sent, Tally};

/// What senders share.
#[derive(Debug)]
pub struct Target {
    /// Where the server listens.
    pub address: SocketAddr,
    /// API key.
    pub key: String,
    /// The stream.
    pub plan: Plan,
    /// Its texts.
    pub bodies: Bodies,
    /// Whether several events go into one request.
    pub batches: bool,
    /// How long one request is repeated.
    pub patience: Duration,
}

/// Sends everything that the schedule hands out.
pub async fn send(target: Arc<Target>, schedule: Arc<Schedule>, connections: u64) -> Sent {
    let begun = Instant::now();
    let senders: Vec<_> =
        (0..connections).map(|_| tokio::spawn(Sender::new(target.clone()).run(schedule.clone()))).collect();
    let mut tally = Tally::default();
    for sender in senders {
        match sender.await {
            Ok(one) => tally.add(&one),
            Err(error) => tally.problem(format!("a sender broke: {error}")),
        }
    }
    let elapsed = tally.last.map_or(Duration::ZERO, |last| last - begun);
    Sent { tally, positions: schedule.positions(), elapsed }
}

struct Sender {
    target: Arc<Target>,
    connection: Option<Connection>,
    tally: Tally,
    body: Vec<u8>,
    request: Vec<u8>,
    head: Vec<u8>,
    second: Second,
}

/// What an answer means for its request.
enum Verdict {
    Done,
    Refused(u64, String),
    Again(Option<Duration>, String),
}

impl Sender {
    fn new(target: Arc<Target>) -> Self {
        let head = post_head("/v1/usage-events", &target.address.to_string(), &target.key);
        let (body, request, second) = (Vec::new(), Vec::new(), Second::default());
        Self { target, connection: None, tally: Tally::default(), body, request, head, second }
    }

    async fn run(mut self, schedule: Arc<Schedule>) -> Tally {
        while let Some(due) = schedule.next() {
            self.write(due);
            if due.at > Instant::now() {
                sleep_until(due.at).await;
            }
            self.until_acknowledged(due).await;
        }
        self.tally
    }

    /// The whole request, head and body, into one buffer and so one packet or few.
    fn write(&mut self, due: Due) {
        let target = &self.target;
        self.body.clear();
        if target.batches {
            self.body.extend_from_slice(br#"{"events":["#);
        }
        for position in due.first..due.first + due.count {
            if position > due.first {
                self.body.push(b',');
            }
            target.bodies.write(&mut self.body, &target.plan, target.plan.event_at(position), &mut self.second);
        }
        if target.batches {
            self.body.extend_from_slice(b"]}");
        }
        self.request.clear();
        self.request.extend_from_slice(&self.head);
        digits(&mut self.request, self.body.len() as u64);
        self.request.extend_from_slice(b"\r\n\r\n");
        self.request.extend_from_slice(&self.body);
    }

    async fn until_acknowledged(&mut self, due: Due) {
        let give_up = Instant::now() + self.target.patience;
        let mut pause = Duration::from_millis(5);
        loop {
            let (wait, why) = match self.exchange().await {
                Ok(answer) => match judge(&answer, due.count) {
                    Verdict::Done => return self.tally.acknowledged(due.count, &due),
                    Verdict::Refused(refused, why) => {
                        self.tally.refused += refused;
                        self.tally.problem(why);
                        return self.tally.acknowledged(due.count - refused, &due);
                    }
                    Verdict::Again(wait, why) => (wait, why),
                },
                Err(error) => {
                    self.connection = None;
                    (None, error.to_string())
                }
            };
            if Instant::now() >= give_up {
                self.tally.refused += due.count;
                self.tally.problem(format!("gave up after {:?}: {why}", self.target.patience));
                return;
            }
            self.tally.retries += 1;
            sleep(wait.unwrap_or(pause).min(Duration::from_secs(1))).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    async fn exchange(&mut self) -> std::io::Result<Answer> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(self.target.address).await?),
        };
        connection.exchange(&self.request).await
    }
}

/// Reads of an acknowledged batch only that nothing was refused; the rest of it is as long as the batch.
fn judge(answer: &Answer, events: u64) -> Verdict {
    let text = || String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
    match answer.status {
        202 if all_accepted(&answer.body, events) => Verdict::Done,
        202 => judge_each(&answer.body),
        429 | 503 => Verdict::Again(answer.retry_after.map(Duration::from_secs), text()),
        // Our own server is answering for the first moments of its life, or its last.
        500 | 502 => Verdict::Again(None, text()),
        status => Verdict::Refused(events, format!("{status}: {}", text())),
    }
}

fn all_accepted(body: &[u8], events: u64) -> bool {
    let mut wanted = br#""accepted":"#.to_vec();
    digits(&mut wanted, events);
    wanted.push(b',');
    // The counts stand before the results.
    let start = &body[..body.len().min(200)];
    start.windows(wanted.len()).any(|window| window == wanted)
}

fn judge_each(body: &[u8]) -> Verdict {
    #[derive(serde::Deserialize)]
    struct Envelope {
        data: IngestAnswer,
    }
    let answer: Envelope = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => return Verdict::Again(None, format!("the answer cannot be read: {error}")),
    };
    let mut refused = 0;
    let mut why = String::new();
    for result in &answer.data.results {
        match &result.error {
            Some(problem) if problem.passes() => return Verdict::Again(None, problem.to_string()),
            _ if result.status == "ACCEPTED" => {}
            problem => {
                refused += 1;
                let text = || problem.as_ref().map_or_else(|| result.status.clone(), ToString::to_string);
                why = if why.is_empty() { text() } else { why };
            }
        }
    }
    if refused == 0 { Verdict::Done } else { Verdict::Refused(refused, why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, retry_after: Some(2), body: body.as_bytes().to_vec() }
    }

    #[test]
    fn only_a_whole_acknowledgement_is_one() {
        let body = r#"{"data":{"accepted":50,"dropped":0,"rejected":0,"results":[]}}"#;
        assert!(matches!(judge(&answer(202, body), 50), Verdict::Done));
        assert!(!all_accepted(body.as_bytes(), 5), "5 is the beginning of 50");
        assert!(matches!(judge(&answer(503, ""), 50), Verdict::Again(Some(wait), _) if wait.as_secs() == 2));
        assert!(matches!(judge(&answer(401, "no"), 50), Verdict::Refused(50, why) if why == "401: no"));
    }

    #[test]
    fn a_batch_is_judged_event_by_event() {
        let body = |error: &str| {
            format!(
                r#"{{"data":{{"accepted":1,"dropped":0,"rejected":1,"results":[{{"index":0,"status":"ACCEPTED"}},
                {{"index":1,"status":"REJECTED","error":{error}}}]}}}}"#
            )
        };
        let gone = body(r#"{"status":404,"code":"NOT_FOUND","detail":"gone"}"#);
        assert!(matches!(judge(&answer(202, &gone), 2), Verdict::Refused(1, why) if why.contains("gone")));
        let full = body(r#"{"status":503,"code":"SERVICE_UNAVAILABLE"}"#);
        assert!(matches!(judge(&answer(202, &full), 2), Verdict::Again(..)));
    }
}
