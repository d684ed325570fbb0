-- The event log's checkpoints, metering windows, rejections, breaches and the PostgreSQL usage store (ingest).
-- Append tables carry no foreign keys (P10); `kontorion ledger verify` checks what they would.

CREATE TABLE event_log (
    id         uuid PRIMARY KEY,
    -- Order of creation: positions compare by it first (rule A6).
    ordinal    smallint GENERATED ALWAYS AS IDENTITY UNIQUE CHECK (ordinal BETWEEN 1 AND 32767),
    kind       text NOT NULL CHECK (kind IN ('local', 'kafka')),
    -- Directory or topic: a new one is a new log.
    name       text NOT NULL,
    partitions integer NOT NULL CHECK (partitions BETWEEN 1 AND 1024),
    -- Seals our own records where others may write too (rule A7).
    secret     bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()) CHECK (octet_length(secret) = 16),
    created_at timestamptz NOT NULL,
    UNIQUE (kind, name, id)
);

CREATE TABLE partition_checkpoint (
    log_id      uuid NOT NULL REFERENCES event_log,
    partition   integer NOT NULL,
    epoch       bigint NOT NULL,      -- raised by whoever takes the partition (rule A1)
    next_offset bigint NOT NULL,      -- the first offset that is not counted yet
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (log_id, partition)
) WITH (fillfactor = 50);

-- One row per (subscription, window): all meter states in one versioned bytea (P6).
CREATE TABLE usage_window (
    subscription_id uuid NOT NULL,
    window_start    timestamptz NOT NULL,
    window_end      timestamptz NOT NULL,
    workspace_id    uuid NOT NULL,
    customer_id     uuid NOT NULL,
    partition       integer NOT NULL,
    -- open: counting; ended: PeriodEnd has passed, drafts are computed; sealed: final (rule C2).
    status          text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'ended', 'sealed')),
    position        bigint NOT NULL,  -- of the record that changed it last
    sealed_position bigint,
    -- Its invoice is finalized: nothing may change the window any more, nor open it again.
    billed          boolean NOT NULL DEFAULT false,
    checked_position bigint,          -- events up to here were compared with the other partitions' (rule B5)
    event_count     bigint NOT NULL,
    state           bytea NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (subscription_id, window_start)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Unbounded parts of a state: distinct values (rule C6). Set, not added.
CREATE TABLE meter_member (
    subscription_id uuid NOT NULL,
    window_start    timestamptz NOT NULL,
    meter_id        uuid NOT NULL,
    member          uuid NOT NULL,    -- 128-bit hash of the value
    count           bigint NOT NULL,
    PRIMARY KEY (subscription_id, window_start, meter_id, member)
) WITH (fillfactor = 70);

-- What the invoice of a window would draw (rule D3). wallet_currency '' = no pin.
CREATE TABLE usage_accrual (
    subscription_id uuid NOT NULL,
    window_start    timestamptz NOT NULL,
    wallet_currency text NOT NULL,
    workspace_id    uuid NOT NULL,
    customer_id     uuid NOT NULL,
    wallet_id       uuid,             -- the wallet that will pay, if there is one
    currency        text NOT NULL,
    net             numeric NOT NULL,
    tax             numeric NOT NULL DEFAULT 0,
    accrued         numeric NOT NULL,
    closed          boolean NOT NULL DEFAULT false,
    PRIMARY KEY (subscription_id, window_start, wallet_currency)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX usage_accrual_wallet ON usage_accrual (wallet_id) WHERE NOT closed;

CREATE TABLE meter_breach (
    id                uuid PRIMARY KEY,
    organization_id   uuid NOT NULL,
    workspace_id      uuid NOT NULL,
    meter_id          uuid NOT NULL,
    product_id        uuid,
    subscription_id   uuid NOT NULL,
    meter_key         text NOT NULL,
    threshold_name    text NOT NULL,
    threshold_value   numeric NOT NULL,
    comparator        text NOT NULL,
    observed_value    numeric NOT NULL,
    window_start      timestamptz NOT NULL,
    window_end        timestamptz NOT NULL,
    occurred_at       timestamptz NOT NULL,
    action_kind       text NOT NULL,
    action_target     text,
    action_event_type text,
    delivered_at      timestamptz
);
CREATE INDEX meter_breach_list ON meter_breach (workspace_id, occurred_at DESC, id DESC);
CREATE INDEX meter_breach_meter ON meter_breach (meter_id, occurred_at DESC, id DESC);
CREATE INDEX meter_breach_subscription ON meter_breach (workspace_id, subscription_id, occurred_at DESC, id DESC);

-- Accepted and then not billable; a replay of the log writes it once: id = UUIDv5(event id, position) (rule B2).
CREATE TABLE usage_rejection (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    workspace_id    uuid NOT NULL,
    event_id        uuid NOT NULL,
    customer_id     uuid,
    subscription_id uuid,
    product_id      uuid,
    metric_key      text,
    code            text NOT NULL,
    message         text NOT NULL,
    payload         jsonb NOT NULL,
    status          text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replayed', 'discarded')),
    reason          text,
    partition       integer NOT NULL,
    position        bigint NOT NULL,
    rejected_at     timestamptz NOT NULL,
    resolved_at     timestamptz,
    resolved_by     uuid
);
CREATE INDEX usage_rejection_list ON usage_rejection (workspace_id, rejected_at DESC, id DESC);
CREATE INDEX usage_rejection_status ON usage_rejection (workspace_id, status, rejected_at DESC, id DESC);
CREATE INDEX usage_rejection_event ON usage_rejection (event_id);

-- Records that no workspace could be told from (foreign Kafka messages without a valid signature): kept for the operator.
CREATE TABLE unattributed_record (
    log_ordinal smallint NOT NULL,
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    code        text NOT NULL,
    message     text NOT NULL,
    key         bytea,
    value       bytea NOT NULL,
    rejected_at timestamptz NOT NULL,
    PRIMARY KEY (log_ordinal, partition, "offset")
);

-- The PostgreSQL usage store (P7): partitioned by day of ingested_at (usage_event_YYYYMMDD), made ahead by the writer.
CREATE TABLE usage_event (
    id                     uuid NOT NULL,
    workspace_id           uuid NOT NULL,
    customer_id            uuid NOT NULL,
    subscription_id        uuid NOT NULL,
    product_id             uuid NOT NULL,
    metric_key             text NOT NULL,
    quantity               numeric NOT NULL,
    "timestamp"            timestamptz NOT NULL,
    ingested_at            timestamptz NOT NULL,
    idempotency_key        text NOT NULL,
    price_key              text,
    price_key_remapped     boolean NOT NULL,
    external_cost_amount   numeric,
    external_cost_currency text,
    wallet_currency        text,
    hold_id                uuid,
    pricing_vars           text,          -- JSON, or null when there are none
    dimension_vars         text,
    late                   boolean NOT NULL,
    window_start           timestamptz NOT NULL,
    partition              smallint NOT NULL,
    position               bigint NOT NULL,
    payload_hash           bigint NOT NULL
) PARTITION BY RANGE (ingested_at);
CREATE INDEX usage_event_id ON usage_event (id);
CREATE INDEX usage_event_subscription ON usage_event (subscription_id, "timestamp", id);
-- Block ranges are summarized as they fill, not when a vacuum comes: what is not summarized is read whole.
CREATE INDEX usage_event_timestamp ON usage_event USING brin ("timestamp") WITH (autosummarize = on);
CREATE INDEX usage_event_position ON usage_event USING brin (position) WITH (autosummarize = on);

-- The partitions that exist, and the days (both inclusive) that the timestamps in each span.
CREATE TABLE usage_event_day (
    day       date PRIMARY KEY,
    first_day date NOT NULL,
    last_day  date NOT NULL
);

-- Counted rows that are taken out of billing. A row, not an id: one key under two customers is counted in two partitions,
-- and only one of the two is taken back (rule B5).
CREATE TABLE usage_void (
    event_id     uuid NOT NULL,
    partition    smallint NOT NULL,
    position     bigint NOT NULL,
    workspace_id uuid NOT NULL,
    reason       text NOT NULL,
    voided_at    timestamptz NOT NULL,
    voided_by    uuid,
    -- Whether ClickHouse has it too, which leaves voided events out of its sums.
    mirrored     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (event_id, partition, position)
);
CREATE INDEX usage_void_mirror ON usage_void (event_id) WHERE NOT mirrored;

-- Rollups of the ClickHouse usage store (rule C7): how far each partition's rows have their minutes noted, and the minutes
-- that are to be computed (again).
CREATE TABLE usage_rollup_position (
    partition     smallint PRIMARY KEY,
    next_position bigint NOT NULL
);
CREATE TABLE usage_rollup_due (
    workspace_id uuid NOT NULL,
    minute       timestamptz NOT NULL,
    -- A number that grows: a minute that is noted again while it is computed stays due.
    noted        bigint NOT NULL,
    noted_at     timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, minute)
);
CREATE SEQUENCE usage_rollup_number;
