//! Guards against a connection that goes back to the pool in the middle of something: the next to use it would read
//! answers that are not its own.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use store::Store;

#[tokio::test]
async fn a_copy_that_was_cut_off_leaves_no_connection_behind() {
    let database = engines::testing::database().await;
    let store = Store::connect(database.url(), 1).await.unwrap();
    sqlx::raw_sql("CREATE TABLE copied (number bigint)").execute(store.pool()).await.unwrap();
    for _ in 0..3 {
        let copying = async {
            let mut tx = store.begin("copying").await.unwrap();
            tx.set_copying(true);
            let mut copy = tx.conn().copy_in_raw("COPY copied FROM STDIN").await.unwrap();
            copy.send(&b"1\n2\n"[..]).await.unwrap();
            std::future::pending::<()>().await;
        };
        assert!(tokio::time::timeout(Duration::from_millis(100), copying).await.is_err());
        for number in 0..5_i64 {
            let answer: i64 = sqlx::query_scalar("SELECT $1").bind(number).fetch_one(store.pool()).await.unwrap();
            assert_eq!(answer, number);
        }
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM copied").fetch_one(store.pool()).await.unwrap();
        assert_eq!(rows, 0, "rolled back");
    }
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_rolled_back_and_its_connection_is_used_again() {
    let database = engines::testing::database().await;
    let store = Store::connect(database.url(), 1).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept (number bigint)").execute(store.pool()).await.unwrap();
    let pid = async || -> i32 { sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(store.pool()).await.unwrap() };
    let before = pid().await;
    for commits in [false, true] {
        let mut tx = store.begin("keeping").await.unwrap();
        sqlx::query("INSERT INTO kept VALUES (1)").execute(tx.conn()).await.unwrap();
        if commits {
            tx.commit().await.unwrap();
        }
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(store.pool()).await.unwrap();
    assert_eq!((rows, pid().await), (1, before));
}

/// Whoever is cancelled while its transaction begins must not leave it behind: what the next one writes outside a transaction
/// would stand in it, unseen by everybody else, and be gone with the connection.
#[tokio::test]
async fn a_transaction_that_was_cut_off_as_it_began_is_not_left_to_the_next() {
    let database = engines::testing::database().await;
    let store = Store::connect(database.url(), 1).await.unwrap();
    let other = Store::connect(database.url(), 1).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept (number bigint)").execute(store.pool()).await.unwrap();
    for polls in 1..6_i64 {
        polled(store.begin("beginning"), polls).await;
        sqlx::query("INSERT INTO kept VALUES ($1)").bind(polls).execute(store.pool()).await.unwrap();
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(other.pool()).await.unwrap();
        assert_eq!(rows, polls, "cut off after {polls} polls");
    }
}

/// Drops a future after so many polls, or when it is done.
async fn polled(future: impl Future, polls: i64) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await {
            return;
        }
        tokio::task::yield_now().await;
    }
}
