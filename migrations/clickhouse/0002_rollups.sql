-- Usage per minute for analysts (rule C7, P9), filled by a job of the ingest nodes from usage_event.

-- A minute is replaced as a whole: the job writes all its rows anew with a higher version, and what is no longer there with
-- a count of 0. Replacing by version, not by deleting and inserting, because one INSERT is there or not, so that no crash
-- and no reader sees a minute half; and because a late event costs one small part, where a deletion rewrites old ones.
CREATE TABLE IF NOT EXISTS usage_rollup_minute (
    workspace_id    UUID,
    minute          DateTime64(0, 'UTC'), -- of the events' timestamps
    subscription_id UUID,
    customer_id     UUID,
    product_id      UUID,
    metric_key      LowCardinality(String),
    price_key       LowCardinality(String), -- empty: none
    event_count     UInt64,
    quantity        Decimal(38, 12),
    version         UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYear(minute)
PRIMARY KEY (workspace_id, minute)
ORDER BY (workspace_id, minute, subscription_id, customer_id, product_id, metric_key, price_key)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- What analysts read: the last version of every minute.
CREATE VIEW IF NOT EXISTS usage_per_minute AS
SELECT workspace_id, minute, subscription_id, customer_id, product_id, metric_key, price_key, event_count, quantity
FROM usage_rollup_minute FINAL WHERE event_count > 0;
