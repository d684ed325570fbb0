-- Exchange rates (fx.md): what was published, for every workspace alike, and what a workspace has set for itself.

-- Units of the target for one of the source. Written once: documents pin its id.
CREATE TABLE fx_snapshot (
    id              uuid PRIMARY KEY,
    snapshot_date   date NOT NULL,
    source_currency text NOT NULL,
    target_currency text NOT NULL,
    rate            numeric NOT NULL CHECK (rate > 0),
    source          text NOT NULL, -- who published it: ECB
    created_at      timestamptz NOT NULL,
    UNIQUE (source_currency, target_currency, snapshot_date)
);
CREATE INDEX fx_snapshot_date ON fx_snapshot (snapshot_date, created_at DESC, id DESC);
CREATE TRIGGER fx_snapshot_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON fx_snapshot
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE fx_override (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    workspace_id    uuid NOT NULL REFERENCES workspace,
    source_currency text NOT NULL,
    target_currency text NOT NULL CHECK (target_currency <> source_currency),
    rate            numeric NOT NULL CHECK (rate > 0),
    snapshot_date   date,
    valid_from      timestamptz NOT NULL,
    valid_to        timestamptz CHECK (valid_to > valid_from),
    reason          text,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    deleted_at      timestamptz,
    -- When it is in effect: its window, and with a snapshot_date of that no more than the one day in UTC.
    active          tstzrange NOT NULL GENERATED ALWAYS AS (
        tstzrange(valid_from, valid_to) * CASE WHEN snapshot_date IS NULL THEN tstzrange(NULL, NULL) ELSE
            tstzrange(snapshot_date::timestamp AT TIME ZONE 'UTC', (snapshot_date + 1)::timestamp AT TIME ZONE 'UTC') END) STORED
);
CREATE INDEX fx_override_list ON fx_override (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX fx_override_pair ON fx_override (workspace_id, source_currency, target_currency, valid_from DESC)
    WHERE deleted_at IS NULL;

-- Where the published rates come from, and when they are asked for next; one row, claimed by any scheduler.
CREATE TABLE fx_feed (
    source        text PRIMARY KEY,
    next_at       timestamptz NOT NULL,
    etag          text,            -- of the daily document as it was taken last
    last_modified text,
    failures      integer NOT NULL DEFAULT 0, -- since the last success
    last_error    text,
    asked_at      timestamptz,
    taken_at      timestamptz      -- last success
);
INSERT INTO fx_feed (source, next_at) VALUES ('ECB', '-infinity');

-- When each of the organization's settings was written: by key, as RFC 3339.
ALTER TABLE organization ADD COLUMN settings_changed_at jsonb NOT NULL DEFAULT '{}';

-- Units of the wallet's currency for one of the accrual's, where the usage is pinned to a wallet of another currency (rule D3).
-- Null: none is known, and the row counts for no wallet; or it was written before, in the wallet's own currency.
ALTER TABLE usage_accrual ADD COLUMN fx_rate numeric;
