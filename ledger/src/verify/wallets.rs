//! Balances against entries, movements and holds.
//!
//! The stored balances of some wallets are read in one statement, which is the picture too in which their entries and movements
//! are walked, however many those are (`picture.rs`).

use std::collections::HashMap;

use domain::{AccountId, Result, TransferId, WalletId, WalletTransactionId};
use rust_decimal::Decimal;
use sqlx::{AssertSqlSafe, FromRow};
use store::{Store, StoreError};
use uuid::Uuid;

use super::{Check, Report, Tell};
use crate::account::WalletAccount;
use crate::picture::{Picture, TAKEN, stood, sum_entries};

/// Wallets of one picture.
const CHUNK: i64 = 200;

/// Movements of one wallet that one statement reads.
const PAGE: i64 = 1_000;

/// A wallet as it is stored, and its PENDING holds.
#[derive(FromRow)]
struct Stored {
    id: WalletId,
    cash_balance: Decimal,
    promotional_balance: Decimal,
    held_balance: Decimal,
    pending: Decimal,
    #[sqlx(flatten)]
    picture: Picture,
}

#[derive(FromRow)]
struct Movement {
    id: WalletTransactionId,
    wallet_id: WalletId,
    amount: Decimal,
    is_cash: bool,
    cash_balance_after: Decimal,
    promotional_balance_after: Decimal,
    transfer_id: TransferId,
    is_booked: bool,
}

/// What the movements of a wallet have added up to so far.
#[derive(Default)]
struct Followed {
    cash: Decimal,
    promotional: Decimal,
    /// Its first movement that does not follow from those before it was found: what comes after it need not be named.
    is_broken: bool,
}

pub(super) async fn check(store: &Store, report: &mut Report, progress: &mut Tell<'_>) -> Result<()> {
    let mut after = WalletId(Uuid::nil());
    loop {
        let ids: Vec<WalletId> = sqlx::query_scalar("SELECT id FROM wallet WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after)
            .bind(CHUNK)
            .fetch_all(store.pool())
            .await
            .context("walking wallets")?;
        let Some(last) = ids.last().copied() else { return Ok(()) };
        let first = look(store, &ids, &mut |movements| {
            report.movements += movements;
            progress(Check::Balance, report.movements);
        })
        .await?;
        // A picture may be wrong about a few rows, so only what is wrong in a second one, too, is wrong.
        let doubtful: Vec<WalletId> = first.into_keys().collect();
        let mut second = look(store, &doubtful, &mut |_| {}).await?;
        for wallet in doubtful {
            for (check, subject, expected, found) in second.remove(&wallet).unwrap_or_default() {
                report.add(check, subject, expected, found);
            }
        }
        report.wallets += ids.len() as u64;
        after = last;
    }
}

/// A check, what it is about, what was expected and what was found.
type Doubt = (Check, String, String, String);

/// What is wrong with these wallets in a picture of now.
async fn look(
    store: &Store,
    ids: &[WalletId],
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<HashMap<WalletId, Vec<Doubt>>> {
    let wallets = if ids.is_empty() { Vec::new() } else { stored(store, ids).await? };
    let Some(picture) = wallets.first().map(|wallet| wallet.picture.clone()) else { return Ok(HashMap::new()) };
    let mut doubts: HashMap<WalletId, Vec<Doubt>> = HashMap::new();
    let followed = follow(store, &picture, &wallets, &mut doubts, told).await?;
    let accounts: Vec<AccountId> = wallets
        .iter()
        .flat_map(|wallet| {
            [WalletAccount::Cash, WalletAccount::Promotional, WalletAccount::Held].map(|a| a.id(wallet.id))
        })
        .collect();
    let entries = sum_entries(store.pool(), &picture, &accounts, None, &mut |_| {}).await?;
    // Accounts of wallets stand on the credit side.
    let booked = |id, kind: WalletAccount| entries.get(&kind.id(id)).map(|t| -t.balance()).unwrap_or_default();
    for wallet in wallets {
        let sums = &followed[&wallet.id];
        for (check, name, found, expected) in [
            (Check::Balance, "cash_balance, by entries", wallet.cash_balance, booked(wallet.id, WalletAccount::Cash)),
            (Check::Movement, "cash_balance, by movements", wallet.cash_balance, sums.cash),
            (Check::Balance, "held_balance, by entries", wallet.held_balance, booked(wallet.id, WalletAccount::Held)),
            (Check::Movement, "held_balance, by holds", wallet.held_balance, wallet.pending),
            (
                Check::Balance,
                "promotional_balance, by entries",
                wallet.promotional_balance,
                booked(wallet.id, WalletAccount::Promotional),
            ),
            (Check::Movement, "promotional_balance, by movements", wallet.promotional_balance, sums.promotional),
        ] {
            if found != expected {
                let doubt = (check, format!("wallet {} {name}", wallet.id), expected.to_string(), found.to_string());
                doubts.entry(wallet.id).or_default().push(doubt);
            }
        }
    }
    Ok(doubts)
}

async fn stored(store: &Store, ids: &[WalletId]) -> Result<Vec<Stored>> {
    let sql = format!(
        "SELECT id, cash_balance, promotional_balance, held_balance, {TAKEN}, (
             SELECT coalesce(sum(amount), 0) FROM wallet_hold h WHERE h.wallet_id = wallet.id AND h.status = 'PENDING'
         ) AS pending
         FROM wallet WHERE id = ANY($1) ORDER BY id"
    );
    sqlx::query_as(AssertSqlSafe(sql)).bind(ids).fetch_all(store.pool()).await.context("reading balances")
}

/// Follows the movements of wallets from the first on, step by step.
async fn follow(
    store: &Store,
    picture: &Picture,
    wallets: &[Stored],
    doubts: &mut HashMap<WalletId, Vec<Doubt>>,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<HashMap<WalletId, Followed>> {
    let sql = format!(
        "SELECT movement.*, EXISTS (SELECT FROM ledger_transfer WHERE id = movement.transfer_id) AS is_booked
         FROM unnest($3::uuid[], $4::uuid[]) WITH ORDINALITY AS wallet (id, after, place)
         CROSS JOIN LATERAL (
             SELECT t.id, t.wallet_id, t.amount, t.balance_kind = 'CASH' AS is_cash, t.cash_balance_after,
                 t.promotional_balance_after, t.transfer_id, t.created_at
             FROM wallet_transaction t
             WHERE t.wallet_id = wallet.id AND {} AND (wallet.after IS NULL OR (t.created_at, t.id) >
                 (SELECT last.created_at, last.id FROM wallet_transaction last WHERE last.id = wallet.after))
             ORDER BY t.created_at, t.id LIMIT {PAGE}) AS movement
         ORDER BY wallet.place, movement.created_at, movement.id",
        stood("t")
    );
    let mut followed: HashMap<WalletId, Followed> = wallets.iter().map(|w| (w.id, Followed::default())).collect();
    let mut open: Vec<(WalletId, Option<WalletTransactionId>)> = wallets.iter().map(|w| (w.id, None)).collect();
    while !open.is_empty() {
        let (ids, after): (Vec<WalletId>, Vec<Option<WalletTransactionId>>) = open.iter().copied().unzip();
        let movements: Vec<Movement> = sqlx::query_as(AssertSqlSafe(sql.clone()))
            .bind(picture.next())
            .bind(picture.open())
            .bind(ids)
            .bind(after)
            .fetch_all(store.pool())
            .await
            .context("following movements")?;
        told(movements.len() as u64);
        open.clear();
        for steps in movements.chunk_by(|one, next| one.wallet_id == next.wallet_id) {
            let (Some(last), Some(sums)) = (steps.last(), followed.get_mut(&steps[0].wallet_id)) else { continue };
            for movement in steps {
                doubts_of(movement, sums)
                    .into_iter()
                    .for_each(|doubt| doubts.entry(last.wallet_id).or_default().push(doubt));
            }
            if steps.len() as i64 == PAGE {
                open.push((last.wallet_id, Some(last.id)));
            }
        }
    }
    Ok(followed)
}

/// Takes a movement to the sums; what does not follow from them, or was never booked.
fn doubts_of(movement: &Movement, sums: &mut Followed) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    if movement.is_cash {
        sums.cash += movement.amount;
    } else {
        sums.promotional += movement.amount;
    }
    let subject = || format!("wallet {} movement {}", movement.wallet_id, movement.id);
    let after = (movement.cash_balance_after, movement.promotional_balance_after);
    if !sums.is_broken && (sums.cash, sums.promotional) != after {
        sums.is_broken = true;
        let subject = format!("{}, cash and promotional balance after it", subject());
        let expected = format!("{} and {}", sums.cash, sums.promotional);
        doubts.push((Check::Movement, subject, expected, format!("{} and {}", after.0, after.1)));
    }
    if !movement.is_booked {
        doubts.push((Check::Movement, subject(), format!("transfer {}", movement.transfer_id), "none".to_owned()));
    }
    doubts
}
