//! What nobody waits for: payments whose outcome is open, after a crash or at a provider that takes its time, wallets that want an
//! automatic top-up, and invoices that are to be charged. No input, idempotent, bounded: any number of processes may sweep side by side.

use billing::invoice::collect;
use domain::{Instant, Result};
use futures::StreamExt;
use ledger::wallet::topup;
use store::StoreError;

use crate::Payments;
use crate::charge::{Attempt, Open};
use crate::transaction;

/// Rows of one sweep.
const BATCH: i64 = 50;
/// Gateways that are asked at the same time.
const CONCURRENCY: usize = 8;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Open payments that were asked for.
    pub asked: usize,
    /// Automatic top-ups that were started.
    pub topups: usize,
    /// Charges of invoices that were started.
    pub charges: usize,
    /// What could not be done; the next sweep tries again.
    pub failed: usize,
}

impl Payments {
    /// Starts the top-ups that wallets want and the charges that invoices want, then asks for every payment that is open and due. `real` is the machine's
    /// time: providers know no test clocks.
    ///
    /// # Errors
    /// When nothing could be looked for; failures of single rows are logged and counted.
    pub async fn sweep(&self, real: Instant) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut conn = self.store.pool().acquire().await.context("waiting for a database connection")?;
        let wanted = topup::wanted(&mut conn, real, BATCH).await?;
        let invoices = collect::wanted(&mut conn, real, BATCH).await?;
        drop(conn);
        for (workspace, wallet) in wanted {
            match self.auto_topup(workspace, wallet, real).await {
                Ok(started) => swept.topups += usize::from(started),
                Err(error) => {
                    swept.failed += 1;
                    tracing::warn!(wallet.id = %wallet, %error, "an automatic top-up could not be started");
                }
            }
        }
        let charged = invoices.into_iter().map(|(workspace, id)| async move {
            let charged = self.collect(workspace, id, real).await;
            charged.inspect_err(|error| tracing::warn!(invoice.id = %id, %error, "an invoice could not be charged"))
        });
        let charged: Vec<_> = futures::stream::iter(charged).buffer_unordered(CONCURRENCY).collect().await;
        swept.charges = charged.iter().filter(|one| matches!(one, Ok(true))).count();
        swept.failed += charged.iter().filter(|one| one.is_err()).count();
        let due = transaction::claim_due(self.store.pool(), real, BATCH).await?;
        let asked: Vec<_> =
            futures::stream::iter(due).map(|open| self.resume(open)).buffer_unordered(CONCURRENCY).collect().await;
        swept.asked = asked.iter().filter(|is_done| **is_done).count();
        swept.failed += asked.len() - swept.asked;
        Ok(swept)
    }

    /// Goes on with a claimed payment; false when that was not possible, and its lease says when it is tried again.
    async fn resume(&self, (workspace, id): Open) -> bool {
        let resumed = async {
            let scope = self.system_scope(workspace).await?;
            self.ask(&scope, id, Attempt::Again).await
        };
        match resumed.await {
            Ok(_) => true,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(transaction.id = %id, %error, cause, "an open payment could not be asked for");
                false
            }
        }
    }
}
