-- Usage that is authorized before it is delivered, and usage that is taken back (reserve.md; rules C5, D1, D2).

-- Records for the event log, written in the transaction of their cause and appended to their home partition by a relay:
-- at least once, and harmless when it is twice.
CREATE TABLE usage_outbox (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id uuid NOT NULL,
    home_partition  integer NOT NULL,
    record          bytea NOT NULL,
    created_at      timestamptz NOT NULL
);
CREATE INDEX usage_outbox_subscription ON usage_outbox (subscription_id);

-- What an allowance covers is reserved without money.
ALTER TABLE wallet_hold DROP CONSTRAINT wallet_hold_amount_check;
ALTER TABLE wallet_hold ADD CONSTRAINT wallet_hold_amount_check CHECK (amount >= 0);
-- Whether a workspace reserves usage at all: the door asks once a second.
CREATE INDEX wallet_hold_reserved ON wallet_hold (workspace_id) WHERE status = 'PENDING' AND subscription_id IS NOT NULL;

-- The usage that a hold authorizes. The hold has the state; from its capture on the row stands for the usage event that
-- the capture has handed to the outbox, until the checkpoint that counts it, and then until its window is billed.
CREATE TABLE usage_reservation (
    hold_id         uuid PRIMARY KEY,
    workspace_id    uuid NOT NULL,
    subscription_id uuid NOT NULL,
    product_id      uuid NOT NULL,
    metric_key      text NOT NULL,
    wallet_id       uuid NOT NULL,
    wallet_currency text NOT NULL,            -- pin of the usage event; '' = none
    window_start    timestamptz NOT NULL,     -- window that it was priced in
    event           bytea NOT NULL,           -- the usage event, as a record of the log
    basis           bytea NOT NULL,           -- running totals of the metric that it was priced on top of
    net             numeric NOT NULL,
    tax             numeric NOT NULL,
    tax_rate        numeric NOT NULL,
    captured_net    numeric,                  -- from here on: of the capture
    captured_tax    numeric,
    wallet_transaction_id uuid,               -- movement of the capture or release
    release_reason  text,
    occurred_at     timestamptz,              -- timestamp of the captured event
    counted_in      timestamptz,              -- window that has counted it
    settled_at      timestamptz               -- when the invoice of that window was finalized
);
-- Captured and not counted yet: with the PENDING holds what the next reservation is priced on top of (rule D1).
CREATE INDEX usage_reservation_promised ON usage_reservation (subscription_id, product_id, metric_key)
    WHERE captured_net IS NOT NULL AND counted_in IS NULL;
-- Captured, counted and not billed: what is no longer accrued, and what the invoice settles (rule D3).
CREATE INDEX usage_reservation_counted ON usage_reservation (subscription_id, counted_in)
    WHERE counted_in IS NOT NULL AND settled_at IS NULL;

-- A void by hand is open until its window is counted anew without the event; no seal completes meanwhile (rule C5).
ALTER TABLE usage_void ADD COLUMN subscription_id uuid, ADD COLUMN window_start timestamptz,
    ADD COLUMN open boolean NOT NULL DEFAULT false;
CREATE INDEX usage_void_open ON usage_void (subscription_id, window_start) WHERE open;
