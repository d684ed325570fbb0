//! Usage that is refused until its window ends: thresholds with BLOCK, usage caps, and allowances beyond which nothing is sold
//! (thresholds-and-alerts.md 4; allowances.md 5.1 rule 7). What is refused is what the last checkpoints found, so a limit may be
//! passed by what comes within a second or two; behind the door nothing is refused for it any more (rule B6).

use std::collections::HashMap;

use domain::{BlockCode, Error, Instant, ProductId, Result, Scope, SubscriptionId, UsageEvent};
use rating::Block;
use sqlx::FromRow;
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
                own.find(|block| block.refuses(event))
            });
            if let Some(block) = block {
                *one = Judged::Bad(refusal(block));
            }
        }
        Ok(())
    }
}

#[derive(FromRow)]
struct Row {
    subscription_id: SubscriptionId,
    product_id: ProductId,
    metric_key: String,
    price_key: Option<String>,
    except_keys: Vec<String>,
    code: BlockCode,
    starts_at: Instant,
    ends_at: Instant,
}

type BlocksOf = HashMap<SubscriptionId, Vec<Block>>;

async fn load(scope: &Scope, store: &Store, ids: &[SubscriptionId]) -> Result<BlocksOf> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT subscription_id, product_id, metric_key, nullif(price_key, '') AS price_key, except_keys, code, starts_at, ends_at
         FROM usage_block WHERE workspace_id = $1 AND subscription_id = ANY($2) ORDER BY code",
    )
    .bind(scope.workspace_id)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(store.pool())
    .await
    .context("looking for blocked usage")?;
    let mut blocks = BlocksOf::new();
    for Row { subscription_id, product_id, metric_key, price_key, except_keys, code, starts_at, ends_at } in rows {
        let block = Block { product_id, metric_key, price_key, except_keys, code, starts_at, ends_at };
        blocks.entry(subscription_id).or_default().push(block);
    }
    Ok(blocks)
}

fn refusal(block: &Block) -> Error {
    let reason = match block.code {
        BlockCode::UsageCapReached => "a usage cap is reached",
        BlockCode::AllowanceExhausted => "the allowance is used up, and the plan sells nothing beyond it",
    };
    let of_key = block.price_key.as_ref().map(|key| format!(" with price key {key:?}")).unwrap_or_default();
    let detail = format!(
        "{reason}: usage of product {} for metric {:?}{of_key} is refused until {}",
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
