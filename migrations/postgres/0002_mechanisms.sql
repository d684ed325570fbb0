-- What every room shares (store): catalog revision, versions, idempotency keys, outbox.

-- One row; a catalog transaction increments it last, so revisions are numbered in commit order (rule B6).
CREATE TABLE catalog_revision (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision  bigint NOT NULL
);
INSERT INTO catalog_revision (revision) VALUES (1);

-- What changed with each revision; every revision has a row. Only the last ones are kept: whoever finds that the next one is
-- gone reads everything anew.
CREATE TABLE catalog_change (
    revision     bigint NOT NULL,
    workspace_id uuid NOT NULL,
    -- 'catalog' (anything of the compiled workspace catalog) or 'subscription' / 'customer' with its id.
    entity_type  text NOT NULL CHECK (entity_type IN ('catalog', 'subscription', 'customer')),
    entity_id    uuid NOT NULL,
    PRIMARY KEY (revision, entity_type, entity_id)
);

-- Versions of every versioned entity (scheduled-changes.md): the frozen state is the snapshot.
CREATE TABLE entity_version (
    id              uuid PRIMARY KEY,
    workspace_id    uuid NOT NULL REFERENCES workspace,
    entity_type     text NOT NULL CHECK (entity_type IN ('product', 'plan', 'price', 'meter', 'binding')),
    entity_id       uuid NOT NULL,
    version         integer NOT NULL CHECK (version >= 1),
    status          text NOT NULL CHECK (status IN ('draft', 'scheduled', 'active', 'archived')),
    effective_from  timestamptz,
    effective_to    timestamptz,
    published_at    timestamptz,
    published_by    uuid,
    created_at      timestamptz NOT NULL,
    created_by      uuid,
    archived_reason text,
    cancelled_at    timestamptz,
    warnings        jsonb NOT NULL DEFAULT '[]',
    snapshot        jsonb NOT NULL,
    UNIQUE (entity_id, version)
);
CREATE INDEX entity_version_workspace ON entity_version (workspace_id, entity_type, entity_id);

-- Written and completed in the transaction of the effect (rule D5).
CREATE TABLE idempotency_key (
    workspace_id uuid NOT NULL,
    operation    text NOT NULL, -- 'POST /v1/customers' (method and path), or the operation of a body member
    key          text NOT NULL,
    request_hash bytea NOT NULL,
    status       smallint NOT NULL,
    body         bytea NOT NULL,
    created_at   timestamptz NOT NULL,
    -- A header's key is forgotten after a day, a body's never.
    lapses       boolean NOT NULL,
    PRIMARY KEY (workspace_id, operation, key)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX idempotency_key_lapsing ON idempotency_key (created_at) WHERE lapses;

-- Partitioned by day (outbox_YYYYMMDD), made ahead and dropped by the scheduler's housekeeping (P13). By real time, because
-- `created_at` is the time of the event, which a test clock may put anywhere.
CREATE TABLE outbox (
    id           uuid NOT NULL, -- UUIDv7: order of creation
    workspace_id uuid NOT NULL,
    event_type   text NOT NULL, -- 'invoice.finalized'
    entity_type  text NOT NULL,
    entity_id    uuid NOT NULL,
    payload      jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, recorded_at)
) PARTITION BY RANGE (recorded_at);
-- For days that nobody has made: an event must never fail for want of housekeeping.
CREATE TABLE outbox_rest PARTITION OF outbox DEFAULT;
