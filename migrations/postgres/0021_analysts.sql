-- What the jobs for analysts on ClickHouse have done (rule C7).

-- Days whose sums by metric and dimension are to be computed (again). A big day is computed in pieces, one transaction each.
CREATE TABLE usage_rollup_day_due (
    workspace_id uuid NOT NULL,
    day          date NOT NULL,
    noted        bigint NOT NULL,      -- a number that grows: a day that is noted again while it is computed stays due
    noted_at     timestamptz NOT NULL,
    since        timestamptz NOT NULL, -- when it became due
    started      bigint,               -- `noted` when the first piece was computed
    pieces       integer,
    done         integer NOT NULL DEFAULT 0,
    PRIMARY KEY (workspace_id, day)
);

-- Which writing of a window that is not billed was rated and copied last. Billed ones are marked in their own row.
CREATE TABLE rated_usage_copy (
    subscription_id   uuid NOT NULL,
    window_start      timestamptz NOT NULL,
    window_updated_at timestamptz NOT NULL,
    PRIMARY KEY (subscription_id, window_start)
) WITH (fillfactor = 70);

-- No checkpoint changes a column of these two, so that its updates stay within their page.
ALTER TABLE usage_window ADD COLUMN mirrored boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN usage_window.mirrored IS 'Whether ClickHouse has what was billed of it; nothing changes it after that';
CREATE INDEX usage_window_unbilled ON usage_window (subscription_id, window_start) WHERE NOT billed;
CREATE INDEX usage_window_mirror ON usage_window (subscription_id, window_start) WHERE billed AND NOT mirrored;

ALTER TABLE meter_breach ADD COLUMN mirrored boolean NOT NULL DEFAULT false;
CREATE INDEX meter_breach_mirror ON meter_breach (id) WHERE NOT mirrored;
