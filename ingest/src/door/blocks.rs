//! Usage that is refused until its window ends: thresholds with BLOCK, usage caps, and allowances beyond which nothing is sold
//! (thresholds-and-alerts.md 4; allowances.md 5.1 rule 7). What is refused is what the last checkpoints found, so a limit may be
//! passed by what comes within a second or two; behind the door nothing is refused for it any more (rule B6).

use std::collections::HashMap;

use domain::{BlockCode, Error, Instant, ProductId, Result, Scope, SubscriptionId, UsageEvent};
use rating::Block;
use store::{Store, StoreError};

use super::Judged;
use super::presence::Presence;

/// Which workspaces have usage that is refused.
#[derive(Debug)]
pub(super) struct Blocks(Presence);

impl Default for Blocks {
    fn default() -> Self {
        Self(Presence::new("SELECT EXISTS (SELECT FROM usage_block WHERE workspace_id = $1)"))
    }
}

impl Blocks {
    /// Refuses good events whose timestamps lie where the usage of their subscription, product and metric is refused.
    pub(super) async fn refuse(&self, scope: &Scope, store: &Store, judged: &mut [Judged]) -> Result<()> {
        let mut ids: Vec<_> = judged.iter().filter_map(good_event).map(|event| event.subscription_id).collect();
        if ids.is_empty() || !self.0.has_any(scope, store).await? {
            return Ok(());
        }
        ids.sort_unstable();
        ids.dedup();
        let blocks = load(scope, store, &ids).await?;
        for one in judged {
            let block = good_event(one).and_then(|event| {
                let mut own = blocks.get(&event.subscription_id).into_iter().flatten();
                own.find(|block| block.refuses(event.product_id, &event.metric_key, event.timestamp))
            });
            if let Some(block) = block {
                *one = Judged::Bad(refusal(block));
            }
        }
        Ok(())
    }
}

type BlocksOf = HashMap<SubscriptionId, Vec<Block>>;

async fn load(scope: &Scope, store: &Store, ids: &[SubscriptionId]) -> Result<BlocksOf> {
    let rows: Vec<(SubscriptionId, ProductId, String, BlockCode, Instant, Instant)> = sqlx::query_as(
        "SELECT subscription_id, product_id, metric_key, code, starts_at, ends_at FROM usage_block
         WHERE workspace_id = $1 AND subscription_id = ANY($2) ORDER BY code",
    )
    .bind(scope.workspace_id)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("looking for blocked usage")?;
    let mut blocks = BlocksOf::new();
    for (id, product_id, metric_key, code, starts_at, ends_at) in rows {
        blocks.entry(id).or_default().push(Block { product_id, metric_key, code, starts_at, ends_at });
    }
    Ok(blocks)
}

fn refusal(block: &Block) -> Error {
    let reason = match block.code {
        BlockCode::UsageCapReached => "a usage cap is reached",
        BlockCode::AllowanceExhausted => "the allowance is used up, and the plan sells nothing beyond it",
    };
    let detail = format!(
        "{reason}: usage of product {} for metric {:?} is refused until {}",
        block.product_id, block.metric_key, block.ends_at
    );
    Error::rule(block.code.as_str(), detail).with("blocked_until", block.ends_at)
}

fn good_event(judged: &Judged) -> Option<&UsageEvent> {
    match judged {
        Judged::Good { event, .. } => Some(event),
        _ => None,
    }
}
