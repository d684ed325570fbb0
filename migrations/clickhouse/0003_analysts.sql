-- Sums per day, rated usage and breaches for analysts (rule C7): each filled by a job of the ingest nodes that replaces
-- whole rows under a higher version, never by adding. Read the views: in the tables lie older versions, too.

-- Each event once with an empty dimension, and once per dimension that the meters of its metric list. A day is replaced in
-- pieces of customers, each in one INSERT; what is no longer there has a count of 0.
CREATE TABLE IF NOT EXISTS usage_rollup_day (
    workspace_id UUID,
    day          Date32, -- of the events' timestamps, UTC
    product_id   UUID,
    metric_key   LowCardinality(String),
    dimension    LowCardinality(String), -- empty: all events
    value        String,                 -- empty: events without the dimension
    customer_id  UUID,
    event_count  UInt64,
    quantity     Decimal(38, 12),
    version      UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYear(day)
PRIMARY KEY (workspace_id, day)
ORDER BY (workspace_id, day, product_id, metric_key, dimension, value, customer_id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE VIEW IF NOT EXISTS usage_per_day AS
SELECT workspace_id, day, product_id, metric_key, dimension, value, customer_id, event_count, quantity
FROM usage_rollup_day FINAL WHERE event_count > 0;

-- The lines of usage windows, as the API and invoices show them.
CREATE TABLE IF NOT EXISTS rated_usage_version (
    workspace_id      UUID,
    subscription_id   UUID,
    window_start      DateTime64(6, 'UTC'),
    product_id        UUID,
    metric_key        LowCardinality(String),
    price_key         LowCardinality(String), -- empty: none
    wallet_currency   LowCardinality(String), -- empty: not pinned
    customer_id       UUID,
    window_end        DateTime64(6, 'UTC'),
    status            LowCardinality(String), -- open, ended, sealed, billed
    is_trial          Bool,
    quantity          Decimal(38, 12),
    included_quantity Decimal(38, 12),
    billable_quantity Decimal(38, 12),
    event_count       UInt64,
    amount            Decimal(38, 12),
    currency          LowCardinality(String),
    rated_at          DateTime64(6, 'UTC'),
    is_gone           Bool, -- the window has no such line any more
    version           UInt64
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYear(window_start)
PRIMARY KEY (workspace_id, subscription_id, window_start)
ORDER BY (workspace_id, subscription_id, window_start, product_id, metric_key, price_key, wallet_currency)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE VIEW IF NOT EXISTS rated_usage AS
SELECT workspace_id, subscription_id, customer_id, window_start, window_end, status, is_trial, product_id, metric_key, price_key,
       wallet_currency, quantity, included_quantity, billable_quantity, event_count, amount, currency, rated_at
FROM rated_usage_version FINAL WHERE NOT is_gone;

-- Thresholds that were crossed; a row may be there twice and is the same then.
CREATE TABLE IF NOT EXISTS meter_breach_copy (
    workspace_id    UUID,
    occurred_at     DateTime64(6, 'UTC'),
    id              UUID,
    meter_id        UUID,
    meter_key       LowCardinality(String),
    product_id      UUID, -- zeros: none
    subscription_id UUID,
    threshold_name  LowCardinality(String),
    threshold_value Decimal(38, 12),
    comparator      LowCardinality(String),
    observed_value  Decimal(38, 12),
    window_start    DateTime64(6, 'UTC'),
    window_end      DateTime64(6, 'UTC'),
    action_kind     LowCardinality(String)
) ENGINE = ReplacingMergeTree
PARTITION BY toYear(occurred_at)
ORDER BY (workspace_id, occurred_at, id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

CREATE VIEW IF NOT EXISTS meter_breach AS
SELECT workspace_id, id, occurred_at, meter_id, meter_key, product_id, subscription_id, threshold_name, threshold_value, comparator,
       observed_value, window_start, window_end, action_kind
FROM meter_breach_copy FINAL;
