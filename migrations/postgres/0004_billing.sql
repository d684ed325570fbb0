-- Customers, subscriptions and test clocks (billing, scheduler).

CREATE TABLE test_clock (
    id           uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspace,
    name         text,
    frozen_at    timestamptz NOT NULL,
    -- Where an advance is going; kept, so that any scheduler resumes it after a crash (rule E3).
    target       timestamptz,
    status       text NOT NULL CHECK (status IN ('active', 'advancing', 'completed')),
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    CHECK ((status = 'advancing') = (target IS NOT NULL))
);
CREATE INDEX test_clock_list ON test_clock (workspace_id, created_at DESC, id DESC);

CREATE TABLE customer (
    id                             uuid PRIMARY KEY,
    organization_id                uuid NOT NULL,
    workspace_id                   uuid NOT NULL REFERENCES workspace,
    external_id                    text,
    email                          text NOT NULL,
    name                           text NOT NULL,
    customer_type                  text NOT NULL CHECK (customer_type IN ('BUSINESS', 'CONSUMER', 'UNKNOWN')),
    billing_model                  text NOT NULL CHECK (billing_model IN ('PREPAID', 'POSTPAID', 'HYBRID')),
    mode                           text NOT NULL CHECK (mode IN ('PREPAID', 'POSTPAID')),
    status                         text NOT NULL CHECK (status IN ('ACTIVE', 'INACTIVE', 'ARCHIVED', 'MERGED')),
    billing_address                jsonb,
    tax_identifiers                jsonb NOT NULL DEFAULT '{}',
    preferred_currency             text,
    locale                         text,
    payment_terms_days             integer,
    peppol_id                      text,
    einvoice_email                 text,
    prefer_einvoice                boolean NOT NULL DEFAULT false,
    preferred_provider             text,
    disabled_providers             text[] NOT NULL DEFAULT '{}',
    default_auto_topup_enabled     boolean,
    default_auto_topup_amount      numeric,
    default_credit_limit           numeric,
    default_low_balance_threshold  numeric,
    default_max_balance            numeric,
    default_max_single_credit      numeric,
    vat_validation_status          text NOT NULL DEFAULT 'UNVALIDATED',
    vat_validation_disabled        boolean NOT NULL DEFAULT false,
    vat_validation_disabled_reason text,
    tag_ids                        uuid[] NOT NULL DEFAULT '{}',
    test_clock_id                  uuid REFERENCES test_clock,
    merged_into_id                 uuid,
    custom_fields                  jsonb NOT NULL DEFAULT '{}',
    metadata                       jsonb NOT NULL DEFAULT '{}',
    created_at                     timestamptz NOT NULL,
    updated_at                     timestamptz NOT NULL,
    deleted_at                     timestamptz
);
CREATE UNIQUE INDEX customer_external_id ON customer (workspace_id, external_id) WHERE deleted_at IS NULL;
CREATE INDEX customer_list ON customer (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX customer_status ON customer (workspace_id, status, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX customer_email ON customer (workspace_id, email);

CREATE TABLE subscription (
    id                     uuid PRIMARY KEY,
    organization_id        uuid NOT NULL,
    workspace_id           uuid NOT NULL REFERENCES workspace,
    customer_id            uuid NOT NULL REFERENCES customer,
    -- murmur2(customer id) mod N when it was created; never changed (rule A5).
    home_partition         integer NOT NULL CHECK (home_partition >= 0),
    name                   text,
    description            text,
    public_description     text,
    plan_id                uuid NOT NULL REFERENCES plan,
    plan_version           integer NOT NULL,
    plan_version_id        uuid NOT NULL REFERENCES entity_version,
    currency               text NOT NULL,
    billing_interval_unit  text NOT NULL CHECK (billing_interval_unit IN ('daily', 'weekly', 'monthly', 'yearly', 'one_time')),
    billing_interval_count integer NOT NULL CHECK (billing_interval_count >= 1),
    billing_anchor_day     integer NOT NULL CHECK (billing_anchor_day BETWEEN 1 AND 28),
    anchor_is_explicit     boolean NOT NULL DEFAULT false, -- asked for, or else the day of the first period's start
    billing_timing         text NOT NULL CHECK (billing_timing IN ('IN_ADVANCE', 'IN_ARREARS')),
    timezone               text NOT NULL, -- of the organization when it was created: boundaries are at its midnight
    auto_renew             boolean NOT NULL,
    trial_duration_days    integer,
    trial_ends_at          timestamptz,
    started_at             timestamptz NOT NULL,
    -- Start of the first charged period: started_at, or the end of the trial.
    first_period_start     timestamptz NOT NULL,
    -- When periods began anew after a pause, in order.
    schedule_restarts      timestamptz[] NOT NULL DEFAULT '{}',
    activated_at           timestamptz,
    current_period_start   timestamptz,
    current_period_end     timestamptz,
    next_billing_date      timestamptz,
    -- Events at or after this instant are refused: cancellation or expiry.
    ended_at               timestamptz,
    status                 text NOT NULL CHECK (status IN ('PENDING', 'TRIALING', 'ACTIVE', 'PAUSED', 'DUNNING', 'CANCELLED', 'EXPIRED')),
    cancel_at_period_end   boolean NOT NULL DEFAULT false,
    cancelled_at           timestamptz,
    expired_at             timestamptz,
    cancellation_reason    text,
    paused_at              timestamptz,
    resumed_at             timestamptz,
    dunning_stage          text,
    current_phase_id       uuid,
    payment_terms_days     integer,
    version_track          text NOT NULL DEFAULT 'PINNED',
    test_clock_id          uuid REFERENCES test_clock,
    version                integer NOT NULL DEFAULT 1,
    custom_fields          jsonb NOT NULL DEFAULT '{}',
    metadata               jsonb NOT NULL DEFAULT '{}',
    created_at             timestamptz NOT NULL,
    updated_at             timestamptz NOT NULL,
    deleted_at             timestamptz
);
CREATE INDEX subscription_list ON subscription (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX subscription_status ON subscription (workspace_id, status, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX subscription_billing ON subscription (workspace_id, next_billing_date) WHERE deleted_at IS NULL;
CREATE INDEX subscription_customer ON subscription (customer_id);
CREATE INDEX subscription_plan ON subscription (plan_id);

CREATE TABLE subscription_item (
    id                 uuid PRIMARY KEY,
    workspace_id       uuid NOT NULL,
    subscription_id    uuid NOT NULL REFERENCES subscription,
    product_id         uuid NOT NULL REFERENCES product,
    product_version_id uuid,
    price_id           uuid,
    price_version_id   uuid,
    price_key          text,
    quantity           numeric NOT NULL DEFAULT 1 CHECK (quantity >= 0),
    unit_amount        numeric,
    included_quantity  numeric,
    charge_kind        text NOT NULL CHECK (charge_kind IN ('RECURRING', 'USAGE', 'ONE_TIME')),
    billing_timing     text NOT NULL,
    added_at           timestamptz NOT NULL,
    removed_at         timestamptz,
    metadata           jsonb NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL
);
CREATE INDEX subscription_item_subscription ON subscription_item (subscription_id);
CREATE INDEX subscription_item_product ON subscription_item (product_id);

-- Every subscription has at least one phase, so that current_phase_id is set (subscriptions.md 3.1).
CREATE TABLE subscription_phase (
    id              uuid PRIMARY KEY,
    workspace_id    uuid NOT NULL,
    subscription_id uuid NOT NULL REFERENCES subscription,
    kind            text NOT NULL,
    sequence        integer NOT NULL,
    starts_at       timestamptz NOT NULL,
    ends_at         timestamptz,
    created_at      timestamptz NOT NULL,
    UNIQUE (subscription_id, sequence)
);
