-- What a billed window leaves to later ones of its subscription: carried allowances, drawn grants, used commitments.
-- All are written by the transaction that finalizes the window; the keys make a repeat of it harmless.

-- Unused quantity, as the window that begins at available_from may draw it (allowances.md 5.1 rule 4).
CREATE TABLE allowance_lot (
    subscription_id uuid NOT NULL,
    available_from  timestamptz NOT NULL,
    product_id      uuid NOT NULL,
    metric_key      text NOT NULL,
    source_start    timestamptz NOT NULL,  -- of the period that included it
    workspace_id    uuid NOT NULL,
    quantity        numeric NOT NULL CHECK (quantity > 0),
    periods_lived   integer NOT NULL CHECK (periods_lived > 0), -- when the window that begins there is over
    expires_at      timestamptz,           -- null: never
    PRIMARY KEY (subscription_id, available_from, product_id, metric_key, source_start)
);

-- Quantity that a promotion or an add-on gives on top (rule 10).
CREATE TABLE allowance_grant (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    workspace_id    uuid NOT NULL,
    subscription_id uuid NOT NULL REFERENCES subscription,
    product_id      uuid NOT NULL REFERENCES product,
    metric_key      text NOT NULL,
    quantity        numeric NOT NULL CHECK (quantity > 0),
    source          text NOT NULL CHECK (source IN ('ADD_ON', 'PROMOTION')),
    source_id       uuid,
    starts_at       timestamptz NOT NULL,
    expires_at      timestamptz,
    created_at      timestamptz NOT NULL,
    CHECK (expires_at > starts_at)
);
CREATE INDEX allowance_grant_subscription ON allowance_grant (subscription_id);

CREATE TABLE allowance_draw (
    grant_id     uuid NOT NULL REFERENCES allowance_grant,
    window_start timestamptz NOT NULL,
    quantity     numeric NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (grant_id, window_start)
);

-- Promises of a least quantity per commitment period.
CREATE TABLE committed_use_plan (
    id                 uuid PRIMARY KEY,
    organization_id    uuid NOT NULL,
    workspace_id       uuid NOT NULL REFERENCES workspace,
    customer_id        uuid NOT NULL REFERENCES customer,
    subscription_id    uuid NOT NULL REFERENCES subscription,
    product_id         uuid NOT NULL REFERENCES product,
    metric_key         text NOT NULL,
    currency           text NOT NULL,
    committed_quantity numeric NOT NULL CHECK (committed_quantity > 0),
    commitment_period  text NOT NULL CHECK (commitment_period IN ('month', 'quarter', 'year')),
    term_months        integer NOT NULL CHECK (term_months > 0),
    committed_rate     numeric NOT NULL CHECK (committed_rate >= 0),
    overage_price_id   uuid REFERENCES price,
    shortfall_policy   text NOT NULL CHECK (shortfall_policy IN ('BILL_PERIOD', 'BILL_TERM_END')),
    starts_at          timestamptz NOT NULL,
    ends_at            timestamptz NOT NULL CHECK (ends_at > starts_at),
    -- Its end before the term, and whether the period that it cuts short is billed.
    cancelled_at       timestamptz,
    cancel_reason      text,
    bill_shortfall     boolean NOT NULL DEFAULT true,
    version            integer NOT NULL DEFAULT 1,
    metadata           jsonb NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL
);
CREATE INDEX committed_use_plan_list ON committed_use_plan (workspace_id, created_at DESC, id DESC);
CREATE INDEX committed_use_plan_subscription ON committed_use_plan (subscription_id);

-- What a billed window used of a commitment period, by what charged it.
CREATE TABLE committed_use (
    plan_id          uuid NOT NULL REFERENCES committed_use_plan,
    window_start     timestamptz NOT NULL,
    period_start     timestamptz NOT NULL,
    price_version_id uuid NOT NULL,
    wallet_currency  text NOT NULL,  -- '' = no pin
    within           numeric NOT NULL CHECK (within >= 0),
    beyond           numeric NOT NULL CHECK (beyond >= 0),
    PRIMARY KEY (plan_id, window_start, period_start, price_version_id, wallet_currency)
);
