//! What runs, and in which order it stops: parts are stopped in the reverse order of their start, each under the deadline
//! of the whole, so that a source always stops before what it feeds (the door before the log, the log before the database).

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

type StopFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A part of the process that was started.
struct Part {
    name: &'static str,
    stop: Box<dyn FnOnce() -> StopFuture + Send>,
}

/// Why the process must end although nobody asked for it: a part's state can no longer be trusted.
#[derive(Debug)]
pub struct Fatal {
    /// Name of the part.
    pub part: &'static str,
    /// What happened.
    pub reason: String,
}

/// Told when a part fails beyond mending. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Alarm(mpsc::UnboundedSender<Fatal>);

impl Alarm {
    /// Ends the process, after an attempt at an orderly stop.
    pub fn raise(&self, part: &'static str, reason: impl Into<String>) {
        // Without a listener the process is ending already.
        let _ = self.0.send(Fatal { part, reason: reason.into() });
    }
}

/// Pause before a job that broke off begins anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts a job that works until it is told to stop. After a panic it begins anew: what it works off is in the database, and nobody
/// would notice if it stood still.
pub fn start_job<F>(name: &'static str, job: impl Fn() -> F + Send + 'static) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        while AssertUnwindSafe(job()).catch_unwind().await.is_err() {
            error!(job = name, "broke off and begins anew");
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Everything that was started, in order.
pub struct Running {
    parts: Vec<Part>,
    alarm: Alarm,
    alarms: mpsc::UnboundedReceiver<Fatal>,
}

impl Default for Running {
    fn default() -> Self {
        let (sender, alarms) = mpsc::unbounded_channel();
        Self { parts: Vec::new(), alarm: Alarm(sender), alarms }
    }
}

impl Running {
    /// Adds a part that was just started; `stop` returns when it has stopped.
    pub fn add<F>(&mut self, name: &'static str, stop: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.parts.push(Part { name, stop: Box::new(move || Box::pin(stop())) });
    }

    /// Starts a job ([`start_job`]) that works until what it is given turns true, and adds it.
    pub fn add_job<F>(&mut self, name: &'static str, job: impl Fn(watch::Receiver<bool>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let (stop, stopped) = watch::channel(false);
        let working = start_job(name, move || job(stopped.clone()));
        self.add(name, move || async move {
            // It may have ended by itself, which is a stop as well.
            let _ = stop.send(true);
            let _ = working.await;
        });
    }

    /// For parts that may fail on their own.
    #[must_use]
    pub fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    /// The first failure beyond mending; waits while there is none.
    pub async fn fatal(&mut self) -> Fatal {
        match self.alarms.recv().await {
            Some(fatal) => fatal,
            // Never reached: `self.alarm` keeps the channel open.
            None => std::future::pending().await,
        }
    }

    /// Stops everything, the last started first. Returns the names of parts that did not stop before the deadline.
    pub async fn stop(self, limit: Duration) -> Vec<&'static str> {
        let deadline = Instant::now() + limit;
        let mut late = Vec::new();
        for part in self.parts.into_iter().rev() {
            let begun = Instant::now();
            // Each part gets a moment even when those before it used up the time.
            let until = deadline.max(begun + Duration::from_secs(1));
            if tokio::time::timeout_at(until, (part.stop)()).await.is_err() {
                warn!(part = part.name, "did not stop in time");
                late.push(part.name);
            } else {
                info!(part = part.name, elapsed_ms = begun.elapsed().as_secs_f64() * 1e3, "stopped");
            }
        }
        late
    }
}

#[cfg(test)]
mod tests {
    //! Guards against a stop that pulls the floor from under what still works.

    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn parts_stop_in_reverse_and_a_stuck_one_stops_nobody() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut running = Running::default();
        for name in ["database", "ingest", "http"] {
            let order = order.clone();
            running.add(name, move || async move {
                if name == "ingest" {
                    std::future::pending::<()>().await;
                }
                order.lock().unwrap().push(name);
            });
        }
        assert_eq!(running.stop(Duration::from_secs(5)).await, ["ingest"]);
        assert_eq!(*order.lock().unwrap(), ["http", "database"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_panics_begins_anew() {
        let begun = Arc::new(Mutex::new(0));
        let counted = begun.clone();
        let job = start_job("a job", move || {
            let begun = counted.clone();
            async move {
                let times = {
                    let mut begun = begun.lock().unwrap();
                    *begun += 1;
                    *begun
                };
                assert!(times > 2, "a defect");
            }
        });
        job.await.unwrap();
        assert_eq!(*begun.lock().unwrap(), 3);
    }

    #[tokio::test]
    async fn an_alarm_is_heard() {
        let mut running = Running::default();
        running.alarm().raise("ingest", "fsync failed");
        let fatal = running.fatal().await;
        assert_eq!((fatal.part, fatal.reason.as_str()), ("ingest", "fsync failed"));
    }
}
