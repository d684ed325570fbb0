//! One run: set up, send (and kill), wait, compare, bill, report.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeZone, Utc};
use client::sample::{self, Catalog, Subscriber, SubscriberOptions};
use client::{Api, ClientError, OwnServer};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::args::{Args, Mode, PerMille};
use crate::body::Bodies;
use crate::cpu::{self, Group, Sample};
use crate::failure::{Failure, failed};
use crate::metering::Meter;
use crate::moving::{self, Moved};
use crate::plan::Plan;
use crate::report::{self, Outcome};
use crate::reserve::{Reserved, Reserving};
use crate::tally::{Schedule, Sent};
use crate::verify::{self, Books};
use crate::visible::Watcher;
use crate::{door, kafka, metering};

/// Requests of the set-up under way at once.
const SETUP_CONNECTIONS: usize = 16;

/// The simulated month of runs that bill.
struct Month {
    clock: Uuid,
    start: DateTime<Utc>,
}

/// Where the load goes and as whom.
struct Place {
    api: Api,
    address: SocketAddr,
    workspace: Option<String>,
    secret: Option<String>,
    topic: String,
}

/// Everything that was created for the run.
struct Scene {
    meters: Vec<Meter>,
    subscribers: Vec<Subscriber>,
    month: Option<Month>,
    watcher: Option<Watcher>,
    reserving: Option<Arc<Reserving>>,
    plan: Plan,
}

/// Time and CPU time since a moment.
struct Measured {
    groups: Vec<Group>,
    before: Sample,
    begun: Instant,
}

impl Measured {
    fn begin(args: &Args, server: Option<&OwnServer>) -> Self {
        let groups = groups(args, server);
        Self { before: cpu::sample(&groups), groups, begun: Instant::now() }
    }

    /// Time passed, and CPU seconds by group.
    fn end(&self) -> (Duration, Vec<(&'static str, f64)>) {
        (self.begun.elapsed(), cpu::sample(&self.groups).since(&self.before))
    }
}

/// A watcher at work beside the load.
struct Watching {
    ended: watch::Sender<bool>,
    task: JoinHandle<Result<Histogram<u64>, ClientError>>,
}

impl Watching {
    fn begin(watcher: Watcher, warm_up: Duration) -> Self {
        let (ended, is_ended) = watch::channel(false);
        Self { ended, task: tokio::spawn(watcher.measure(warm_up, is_ended)) }
    }

    async fn end(self) -> Result<Histogram<u64>, Failure> {
        // The watcher may have failed, which its answer tells.
        let _ = self.ended.send(true);
        self.task.await.map_err(failed("watching a total"))?.map_err(failed("watching a total"))
    }
}

/// The whole run; returns whether everything was exact.
///
/// # Errors
/// When it could not be brought to its end.
pub async fn run(mut args: Args) -> Result<bool, Failure> {
    let run = Uuid::new_v4().simple().to_string()[..8].to_owned();
    let topic = args.topic.clone().unwrap_or_else(|| match args.spawn {
        true => format!("usage-events-{run}"),
        false => "usage-events".to_owned(),
    });
    if args.spawn && args.mode == Mode::Kafka {
        args.set.push("log_kind=kafka".to_owned());
        args.set.push(format!("kafka_brokers={}", args.brokers));
        args.set.push(format!("kafka_topic={topic}"));
    }
    let mut server = match args.spawn {
        true => Some(start_server(&args, &run).await?),
        false => None,
    };
    let outcome = run_at(&args, &run, topic, &mut server).await;
    if let Some(mut server) = server {
        let is_exact = matches!(outcome, Ok(true));
        if !is_exact {
            println!("data and log of the server are kept in {}", server.data_dir.display());
        }
        server.stop().await?;
        if is_exact && args.data_dir.is_none() {
            std::fs::remove_dir_all(&server.data_dir).map_err(failed("removing the data directory"))?;
        }
    }
    outcome
}

/// In the directory that was asked for, or in one for this run.
async fn start_server(args: &Args, run: &str) -> Result<OwnServer, Failure> {
    let own = || std::env::temp_dir().join(format!("kontorion-load-{run}"));
    let data_dir = args.data_dir.clone().unwrap_or_else(own);
    let begun = Instant::now();
    let server = OwnServer::start(&args.server_program(), &data_dir, &args.set).await?;
    println!("The server was ready after {:.2?}", begun.elapsed());
    Ok(server)
}

async fn run_at(args: &Args, run: &str, topic: String, server: &mut Option<OwnServer>) -> Result<bool, Failure> {
    let place = place(args, topic, server.as_ref()).await?;
    let scene = create_scene(args, run, &place).await?;
    if let Some(server) = server.as_mut().filter(|_| args.drain) {
        server.restart_with("api").await?;
    }
    let mut measured = Measured::begin(args, server.as_ref());
    let watching = scene.watcher.clone().map(|watcher| Watching::begin(watcher, args.warm_up));
    let reserving = scene.reserving.clone().filter(|_| args.reserve > 0).map(|of| begin_reserving(args, of));
    let moving = scene.reserving.clone().filter(|_| args.wallet_operations > 0).map(|of| begin_moving(args, of));
    let (sent, restarts) = send(args, &place, &scene, server).await?;
    let reserved = match reserving {
        Some(reserving) => Some(reserving.await.map_err(failed("reserving"))?),
        None => None,
    };
    let moved = match moving {
        Some(moving) => Some(moving.await.map_err(failed("moving money"))?),
        None => None,
    };
    let visible = match watching {
        Some(watching) => Some(watching.end().await?),
        None => None,
    };
    if let Some(server) = server.as_mut().filter(|_| args.drain) {
        server.restart_with("api,ingest,scheduler").await?;
        measured = Measured::begin(args, Some(server));
    }
    let expected = scene.plan.expected(sent.positions);
    let books = Books {
        api: &place.api,
        meters: &scene.meters,
        subscribers: &scene.subscribers,
        expected: &expected,
        at: scene.month.as_ref().map(|month| wire(month.start)),
        patience: args.patience,
        // Whoever measures the pipeline alone asks it seldom.
        pause: Duration::from_millis(if args.drain { 100 } else { 20 }),
    };
    println!("Waiting until everything is counted");
    books.wait(&scene.plan, sent.positions).await?;
    let (counted_in, cpu) = measured.end();
    let cpu = if restarts.is_empty() { cpu } else { Vec::new() };
    let server_memory = server.as_ref().and_then(OwnServer::pid).and_then(cpu::peak_memory);
    println!("Comparing the totals of {} subscriptions", scene.subscribers.len());
    let mut differences = books.verify().await?;
    if let Some(holders) = &scene.reserving {
        println!("Comparing {} wallets", holders.holders.len());
        let comparing = "comparing wallets";
        if let Some(reserved) = &reserved {
            differences.extend(holders.verify(reserved).await.map_err(failed(comparing))?);
        }
        if let Some(moved) = &moved {
            differences.extend(moving::verify(holders, moved).await.map_err(failed(comparing))?);
        }
        if let Some(server) = server {
            println!("{}", server.verify_ledger().await?);
        }
    }
    let mut invoices = None;
    if let Some(month) = &scene.month {
        println!("Advancing the test clock over the end of the month");
        let (count, found) = books.bill(month.clock, &wire(month_end(month.start)?)).await?;
        invoices = Some(count);
        differences.extend(found);
        if let Some(server) = server {
            println!("{}", server.verify_ledger().await?);
        }
    }
    verify::list(&differences);
    let of_wallets = [reserved.as_ref().map(|reserved| &reserved.reserve), moved.as_ref().map(|moved| &moved.tally)];
    let refused = sent.tally.refused + of_wallets.into_iter().flatten().map(|tally| tally.refused).sum::<u64>();
    let exact = differences.is_empty() && refused == 0;
    let outcome = Outcome { sent, counted_in, cpu, server_memory, restarts, visible, reserved, moved, invoices, exact };
    report::print(&outcome, &scene.plan);
    Ok(exact)
}

async fn place(args: &Args, topic: String, server: Option<&OwnServer>) -> Result<Place, Failure> {
    let (base, key, workspace, secret) = match server {
        Some(server) => {
            let sandbox = server.create_organization("Load").await?.sandbox;
            let base = format!("http://{}", server.address);
            (base, sandbox.key, Some(sandbox.workspace_id), Some(sandbox.ingest_secret))
        }
        None => {
            let base = args.url.trim_end_matches('/').to_owned();
            (base, args.key.clone().unwrap_or_default(), args.workspace.clone(), args.ingest_secret.clone())
        }
    };
    let host = base.strip_prefix("http://").ok_or_else(|| Failure::new("only http:// is spoken here"))?;
    let mut addresses = host.to_socket_addrs().map_err(failed(format!("finding {host}")))?;
    let address = addresses.next().ok_or_else(|| Failure::new(format!("{host} has no address")))?;
    let api = Api::new(base, key).map_err(failed("making a client"))?.with_patience(Duration::from_secs(120));
    Ok(Place { api, address, workspace, secret, topic })
}

async fn create_scene(args: &Args, run: &str, place: &Place) -> Result<Scene, Failure> {
    let doing = "creating the catalog and customers";
    let api = &place.api;
    let month = if args.bills() { Some(create_month(api).await?) } else { None };
    let catalog = sample::create_catalog(api, run).await.map_err(failed(doing))?;
    let meters = metering::create(api, &catalog, run, args.shape()).await.map_err(failed(doing))?;
    let options = SubscriberOptions {
        prefix: run.to_owned(),
        test_clock_id: month.as_ref().map(|month| month.clock),
        prepaid: 0,
        started_at: None,
        anchor_day: month.as_ref().map(|_| 1),
    };
    let count = usize::try_from(args.customers).map_err(failed(doing))? + usize::from(args.visible);
    let bar = progress(args.customers, "customers created");
    let created = sample::create_subscribers(api, &catalog, count, &options, SETUP_CONNECTIONS, || bar.inc(1)).await;
    let mut subscribers = created.map_err(failed(doing))?;
    bar.finish_and_clear();
    let watched = if args.visible { subscribers.pop() } else { None };
    let watcher = watched.map(|subscriber| Watcher { api: api.clone(), catalog, subscriber, run: run.to_owned() });
    let reserving = match args.reserve + args.wallet_operations {
        0 => None,
        _ => Some(Arc::new(create_holders(args, run, place, catalog).await?)),
    };
    let base = match &month {
        Some(month) => {
            // The clock goes ahead of every event, or they would come from the future.
            let ahead = month.start + chrono::TimeDelta::days(20);
            verify::advance(api, month.clock, &wire(ahead)).await?;
            month.start + chrono::TimeDelta::hours(1)
        }
        #[allow(clippy::disallowed_methods, reason = "a load of the present: the generator stands above every clock")]
        None => Utc::now(),
    };
    let PerMille(duplicates) = args.duplicates;
    let (run, shape) = (run.to_owned(), args.shape());
    let plan = Plan { seed: args.seed, run, customers: args.customers, duplicates, shape, base };
    Ok(Scene { meters, subscribers, month, watcher, reserving, plan })
}

/// Customers that pay in advance, with money in their wallets.
async fn create_holders(args: &Args, run: &str, place: &Place, catalog: Catalog) -> Result<Reserving, Failure> {
    let doing = "creating customers with wallets";
    let count = usize::try_from(args.wallets).map_err(failed(doing))?;
    let options = SubscriberOptions {
        prefix: format!("{run}-holder"),
        test_clock_id: None,
        prepaid: count,
        started_at: None,
        anchor_day: None,
    };
    let api = place.api.clone();
    let created = sample::create_subscribers(&api, &catalog, count, &options, SETUP_CONNECTIONS, || {}).await;
    let reserving = Reserving {
        api,
        address: place.address,
        catalog,
        holders: Arc::new(created.map_err(failed(doing))?),
        run: run.to_owned(),
        patience: args.patience,
    };
    reserving.credit().await.map_err(failed("crediting wallets"))?;
    Ok(reserving)
}

fn begin_reserving(args: &Args, reserving: Arc<Reserving>) -> JoinHandle<Reserved> {
    let schedule = Schedule::new(Instant::now(), args.duration, args.warm_up, args.reserve, 1);
    tokio::spawn(reserving.run(Arc::new(schedule)))
}

fn begin_moving(args: &Args, of: Arc<Reserving>) -> JoinHandle<Moved> {
    let schedule = Schedule::new(Instant::now(), args.duration, args.warm_up, args.wallet_operations, 1);
    tokio::spawn(moving::run(of, Arc::new(schedule)))
}

async fn create_month(api: &Api) -> Result<Month, Failure> {
    let start = Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).single().ok_or_else(|| Failure::new("no such instant"))?;
    Ok(Month { clock: verify::create_clock(api, &wire(start)).await?, start })
}

/// Past the end of the month and the grace of its invoices.
fn month_end(start: DateTime<Utc>) -> Result<DateTime<Utc>, Failure> {
    let end = start.checked_add_months(chrono::Months::new(1)).ok_or_else(|| Failure::new("no such instant"))?;
    Ok(end + chrono::TimeDelta::hours(2))
}

fn groups(args: &Args, server: Option<&OwnServer>) -> Vec<Group> {
    let mut groups = vec![Group { name: "generator", pid: nix::unistd::getpid().as_raw() }];
    if let Some(server) = server {
        groups.extend(server.pid().map(|pid| Group { name: "server", pid }));
        groups.extend(cpu::postmaster(&server.data_dir).map(|pid| Group { name: "postgres", pid }));
    }
    groups.extend(args.pids.iter().map(|pid| Group { name: "other", pid: *pid }));
    groups
}

/// Sends everything, and kills the server meanwhile if that was asked for.
async fn send(
    args: &Args,
    place: &Place,
    scene: &Scene,
    server: &mut Option<OwnServer>,
) -> Result<(Sent, Vec<Duration>), Failure> {
    let rate = if args.rate == 0 { "as fast as they are taken".to_owned() } else { format!("{}/s", args.rate) };
    println!("Sending events for {:?}, {rate}", args.duration);
    let schedule =
        Arc::new(Schedule::new(Instant::now(), args.duration, args.warm_up, args.rate, args.events_per_request()));
    let bodies = Bodies::new(&scene.meters, &scene.subscribers);
    let sending = match args.mode {
        Mode::Single | Mode::Batch => {
            let target = door::Target {
                address: place.address,
                key: place.api.key().to_owned(),
                plan: scene.plan.clone(),
                bodies,
                batches: args.mode == Mode::Batch,
                patience: args.patience.max(Duration::from_secs(120)),
            };
            let sending = door::send(Arc::new(target), schedule, args.connections);
            tokio::spawn(async move { Ok(sending.await) })
        }
        Mode::Kafka => {
            let target = kafka_target(args, place, scene, bodies)?;
            tokio::task::spawn_blocking(move || {
                kafka::send(&target, &schedule).map_err(failed("producing to the topic"))
            })
        }
    };
    let restarts = match server {
        Some(server) => kill_at_random(args, server).await?,
        None => Vec::new(),
    };
    let sent: Result<Sent, Failure> = sending.await.map_err(failed("sending"))?;
    Ok((sent?, restarts))
}

fn kafka_target(args: &Args, place: &Place, scene: &Scene, bodies: Bodies) -> Result<kafka::Target, Failure> {
    let missing = || Failure::new("--mode kafka needs --workspace and --ingest-secret, or --spawn");
    let secret = place.secret.as_ref().ok_or_else(missing)?;
    Ok(kafka::Target {
        brokers: args.brokers.clone(),
        topic: place.topic.clone(),
        workspace: place.workspace.clone().ok_or_else(missing)?,
        secret: hex::decode(secret).map_err(failed("reading the ingest secret"))?,
        plan: scene.plan.clone(),
        bodies,
        customers: scene.subscribers.iter().map(|subscriber| subscriber.customer_id.to_string()).collect(),
        patience: args.patience.max(Duration::from_secs(120)),
    })
}

/// Kills and restarts at moments drawn from the seed; returns how long each restart took.
async fn kill_at_random(args: &Args, server: &mut OwnServer) -> Result<Vec<Duration>, Failure> {
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut moments: Vec<f64> = (0..args.chaos).map(|_| random.random_range(0.02..0.98)).collect();
    moments.sort_by(f64::total_cmp);
    let begun = Instant::now();
    let mut restarts = Vec::new();
    for moment in moments {
        sleep_until(begun + args.duration.mul_f64(moment)).await;
        let took = server.kill_and_restart().await?;
        println!("  killed the server after {:.2} s, ready again in {took:.2?}", args.duration.as_secs_f64() * moment);
        restarts.push(took);
    }
    Ok(restarts)
}

fn wire(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn progress(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what);
    match ProgressStyle::with_template("  {bar:40} {human_pos}/{human_len} {msg} ({per_sec:.0}, {elapsed})") {
        Ok(style) => bar.with_style(style),
        // A plainer line does as well.
        Err(_) => bar,
    }
}
