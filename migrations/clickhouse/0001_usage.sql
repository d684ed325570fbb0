-- Counted usage events (P8). Instants are UTC with microseconds; nothing is Nullable: an empty string, or the UUID of
-- zeros, is "none".

-- Written once per event (rule C7); merging drops a twin, should two owners of a partition ever write the same record,
-- so FINAL is needed by audits only. Merging costs the same as in a plain MergeTree, since twins are next to never there.
-- Hours lead the key: the newest events of a workspace, and its sums over a time, read those hours and nothing else.
CREATE TABLE IF NOT EXISTS usage_event (
    id                     UUID,
    workspace_id           UUID,
    customer_id            UUID,
    subscription_id        UUID,
    product_id             UUID,
    metric_key             LowCardinality(String),
    quantity               Decimal(38, 12),
    timestamp              DateTime64(6, 'UTC') CODEC(Delta, LZ4),
    ingested_at            DateTime64(6, 'UTC') CODEC(Delta, LZ4),
    idempotency_key        String,
    price_key              LowCardinality(String),
    price_key_remapped     Bool,
    external_cost_amount   String, -- decimal, with all its digits
    external_cost_currency LowCardinality(String),
    wallet_currency        LowCardinality(String),
    hold_id                UUID,
    pricing_vars           String, -- JSON object of flat values
    dimension_vars         String,
    late                   Bool,   -- its own window was sealed before it came
    window_start           DateTime64(6, 'UTC') CODEC(Delta, LZ4),
    partition              UInt16,
    position               Int64 CODEC(Delta, LZ4),
    payload_hash           UInt64,
    INDEX usage_event_position position TYPE minmax GRANULARITY 1,
    INDEX usage_event_window window_start TYPE minmax GRANULARITY 1,
    INDEX usage_event_timestamp timestamp TYPE minmax GRANULARITY 1 -- a minute is a small part of its hour
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(ingested_at)
PRIMARY KEY (workspace_id, toStartOfHour(timestamp), subscription_id)
ORDER BY (workspace_id, toStartOfHour(timestamp), subscription_id, timestamp, id, position)
-- A block that is sent again after its answer was lost is known by its content and not written again.
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000;

-- Which position counted an id (rule B2), for looking up many ids at once: short rows, short granules. A skip index on
-- usage_event could not serve a batch: its ids are spread over all granules.
CREATE TABLE IF NOT EXISTS usage_event_id (
    id           UUID,
    partition    UInt16,
    position     Int64,
    payload_hash UInt64
) ENGINE = ReplacingMergeTree
PRIMARY KEY id
ORDER BY (id, position)
SETTINGS index_granularity = 256, fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000;

-- Counted rows taken out of billing: a copy of PostgreSQL's table for sums; a row may be there twice.
CREATE TABLE IF NOT EXISTS usage_void (
    workspace_id UUID,
    event_id     UUID,
    partition    UInt16,
    position     Int64,
    reason       String,
    voided_at    DateTime64(6, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (workspace_id, event_id, partition, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
