-- Runs whose drafts follow the totals of a usage window until they are finalized (rule C2).

CREATE TABLE followed_run (
    subscription_id uuid NOT NULL,
    reason          text NOT NULL,        -- with subscription and period the key of the run
    period_start    timestamptz NOT NULL,
    period_end      timestamptz NOT NULL,
    workspace_id    uuid NOT NULL,
    window_start    timestamptz NOT NULL, -- of the usage that its drafts charge
    -- `updated_at` of the window that they were computed from; null when it had no row yet.
    window_read_at  timestamptz,
    PRIMARY KEY (subscription_id, reason, period_start, period_end)
) WITH (fillfactor = 70);
