-- Thresholds that notify and block, usage caps, allowances that end usage (thresholds-and-alerts.md; allowances.md 5.1).

-- Caps of one subscription, in the form of the API; a write replaces all of them.
ALTER TABLE subscription ADD COLUMN usage_caps jsonb NOT NULL DEFAULT '[]';

-- Usage that the door refuses, as the last checkpoint of its window found it: written with the window, gone with its seal.
CREATE TABLE usage_block (
    subscription_id uuid NOT NULL,
    window_start    timestamptz NOT NULL, -- of the usage window
    product_id      uuid NOT NULL,
    metric_key      text NOT NULL,
    starts_at       timestamptz NOT NULL, -- timestamps that are refused: the window, or a sub-window of its meter
    ends_at         timestamptz NOT NULL, -- exclusive
    code            text NOT NULL CHECK (code IN ('USAGE_CAP_REACHED', 'ALLOWANCE_EXHAUSTED')),
    workspace_id    uuid NOT NULL,
    blocked_at      timestamptz NOT NULL,
    PRIMARY KEY (subscription_id, window_start, product_id, metric_key, starts_at, code)
);
-- Whether anything of a workspace is refused at all: the door asks once a second.
CREATE INDEX usage_block_workspace ON usage_block (workspace_id);

-- Mail that waits to be sent. A row is written with its cause and has its id, so that a cause has one mail; whoever sends it
-- sets `sent_at`, and `delivered_at` of a breach.
CREATE TABLE mail_outbox (
    id           uuid PRIMARY KEY,
    workspace_id uuid NOT NULL,
    template     text NOT NULL,     -- 'meter_breach'
    recipient    text NOT NULL,
    entity_type  text NOT NULL,
    entity_id    uuid NOT NULL,
    payload      jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    sent_at      timestamptz
);
CREATE INDEX mail_outbox_waiting ON mail_outbox (created_at, id) WHERE sent_at IS NULL;
