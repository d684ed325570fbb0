-- Due work (scheduler).

CREATE TABLE due_work (
    id           uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspace,
    -- Its agenda: a customer's due rows run in (due_at, kind order, id) (rule E1).
    customer_id  uuid NOT NULL,
    kind         text NOT NULL,
    kind_order   smallint NOT NULL,
    subject_id   uuid NOT NULL,
    due_at       timestamptz NOT NULL,
    clock_id     uuid REFERENCES test_clock, -- null = real time
    payload      jsonb NOT NULL DEFAULT '{}',
    attempts     integer NOT NULL DEFAULT 0,
    retry_at     timestamptz,
    last_error   text,
    created_at   timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX due_work_agenda ON due_work (clock_id, due_at, kind_order, id);
CREATE INDEX due_work_customer ON due_work (customer_id, due_at, kind_order, id);
-- Two runs of one subscription may be due at one instant: the end of a trial and the first period in advance.
CREATE UNIQUE INDEX due_work_key ON due_work (kind, subject_id, due_at, (coalesce(payload ->> 'reason', '')));
