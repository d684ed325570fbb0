-- Products, plans, prices, meters, bindings (catalog). The frozen states are in entity_version.

CREATE TABLE product (
    id                           uuid PRIMARY KEY,
    organization_id              uuid NOT NULL,
    workspace_id                 uuid NOT NULL REFERENCES workspace,
    external_id                  text,
    name                         text NOT NULL,
    description                  text,
    public_description           text,
    type                         text NOT NULL CHECK (type IN ('FIXED_CHARGE', 'SEAT', 'USAGE')),
    pricing_model                text NOT NULL CHECK (pricing_model IN ('VOLUME', 'STAIRCASE', 'PACKAGE')),
    tax_category                 text NOT NULL CHECK (tax_category IN ('DEFAULT', 'REDUCED', 'ZERO', 'EXEMPT')),
    supply_type                  text NOT NULL CHECK (supply_type IN ('GOODS', 'SERVICES', 'DIGITAL')),
    status                       text NOT NULL CHECK (status IN ('draft', 'published', 'deprecated', 'archived')),
    requires_product_ids         uuid[] NOT NULL DEFAULT '{}',
    invoiceable_standalone       boolean NOT NULL DEFAULT false,
    requires_continuous_coverage boolean NOT NULL DEFAULT false,
    price_key_label              text,
    unmatched_price_key_policy   text NOT NULL CHECK (unmatched_price_key_policy IN ('reject', 'use_default', 'drop')),
    default_price_key            text,
    tiers_on_total               boolean NOT NULL DEFAULT false,
    head_version_id              uuid,
    version                      integer NOT NULL,
    translations                 jsonb NOT NULL DEFAULT '{}',
    custom_fields                jsonb NOT NULL DEFAULT '{}',
    metadata                     jsonb NOT NULL DEFAULT '{}',
    published_at                 timestamptz,
    published_by                 uuid,
    created_at                   timestamptz NOT NULL,
    updated_at                   timestamptz NOT NULL,
    deprecated_at                timestamptz,
    archived_at                  timestamptz,
    deleted_at                   timestamptz
);
CREATE UNIQUE INDEX product_external_id ON product (workspace_id, external_id) WHERE deleted_at IS NULL;
CREATE INDEX product_list ON product (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;

CREATE TABLE plan (
    id                           uuid PRIMARY KEY,
    organization_id              uuid NOT NULL,
    workspace_id                 uuid NOT NULL REFERENCES workspace,
    external_id                  text,
    name                         text NOT NULL,
    description                  text,
    public_description           text,
    status                       text NOT NULL CHECK (status IN ('draft', 'published', 'deprecated', 'archived')),
    version                      integer NOT NULL,
    head_version_id              uuid,
    requires_continuous_coverage boolean NOT NULL DEFAULT false,
    translations                 jsonb NOT NULL DEFAULT '{}',
    custom_fields                jsonb NOT NULL DEFAULT '{}',
    metadata                     jsonb NOT NULL DEFAULT '{}',
    published_at                 timestamptz,
    published_by                 uuid,
    deprecated_at                timestamptz,
    archived_at                  timestamptz,
    deleted_at                   timestamptz,
    created_at                   timestamptz NOT NULL,
    updated_at                   timestamptz NOT NULL
);
CREATE UNIQUE INDEX plan_external_id ON plan (workspace_id, external_id) WHERE deleted_at IS NULL;
CREATE INDEX plan_list ON plan (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;

CREATE TABLE plan_product (
    id                         uuid PRIMARY KEY,
    workspace_id               uuid NOT NULL REFERENCES workspace,
    plan_id                    uuid NOT NULL REFERENCES plan,
    product_id                 uuid NOT NULL REFERENCES product,
    included_quantity          numeric NOT NULL DEFAULT 0 CHECK (included_quantity >= 0),
    included_quantity_per_unit boolean NOT NULL DEFAULT false,
    rollover_enabled           boolean NOT NULL DEFAULT false,
    rollover_max_quantity      numeric,
    rollover_expiry_periods    integer,
    overage_policy             text NOT NULL DEFAULT 'CHARGE' CHECK (overage_policy IN ('CHARGE', 'BLOCK')),
    pool_scope                 text NOT NULL DEFAULT 'SUBSCRIPTION' CHECK (pool_scope IN ('SUBSCRIPTION', 'ITEM')),
    sort_order                 integer NOT NULL DEFAULT 0,
    created_at                 timestamptz NOT NULL,
    updated_at                 timestamptz NOT NULL,
    UNIQUE (plan_id, product_id)
);

CREATE TABLE price (
    id                           uuid PRIMARY KEY,
    organization_id              uuid NOT NULL,
    workspace_id                 uuid NOT NULL REFERENCES workspace,
    product_id                   uuid NOT NULL REFERENCES product,
    plan_id                      uuid REFERENCES plan,
    plan_version                 integer,
    customer_id                  uuid,
    country_code                 text,
    currency                     text NOT NULL,
    price_key                    text,
    kind                         text NOT NULL CHECK (kind IN ('BASE', 'CUSTOMER_OVERRIDE')),
    list_price                   numeric,
    display_name                 text,
    status                       text NOT NULL CHECK (status IN ('draft', 'active', 'archived')),
    tiers                        jsonb NOT NULL, -- of the head version, as on the wire
    formula_id                   uuid,
    custom_dimensions            jsonb NOT NULL DEFAULT '{}',
    billing_interval_unit        text CHECK (billing_interval_unit IN ('daily', 'weekly', 'monthly', 'yearly', 'one_time')),
    billing_interval_count       integer,
    effective_from               timestamptz,
    effective_to                 timestamptz,
    valid_from                   timestamptz,
    valid_to                     timestamptz,
    version                      integer NOT NULL,
    head_version_id              uuid,
    requires_continuous_coverage boolean NOT NULL DEFAULT false,
    metadata                     jsonb NOT NULL DEFAULT '{}',
    created_at                   timestamptz NOT NULL,
    updated_at                   timestamptz NOT NULL,
    archived_at                  timestamptz,
    deleted_at                   timestamptz
);
CREATE INDEX price_list ON price (workspace_id, created_at DESC, id DESC);
CREATE INDEX price_product ON price (product_id);
CREATE INDEX price_plan ON price (workspace_id, plan_id, created_at DESC, id DESC) WHERE plan_id IS NOT NULL;
CREATE INDEX price_customer ON price (workspace_id, customer_id, created_at DESC, id DESC) WHERE customer_id IS NOT NULL;

CREATE TABLE meter (
    id                  uuid PRIMARY KEY,
    organization_id     uuid NOT NULL,
    workspace_id        uuid NOT NULL REFERENCES workspace,
    key                 text NOT NULL,
    name                text NOT NULL,
    metric_key          text NOT NULL,
    function            text NOT NULL,
    value_field         text,
    unique_by_field     text,
    unit_label          text,
    unit_currency_field text,
    dimensions          text[] NOT NULL DEFAULT '{}',
    event_schema        jsonb,
    dedup_key_path      text,
    negative_allowed    boolean NOT NULL DEFAULT false,
    late_event_policy   text NOT NULL DEFAULT 'NEXT_PERIOD',
    "window"            jsonb NOT NULL,
    filter              jsonb,
    formula             jsonb,
    thresholds          jsonb NOT NULL DEFAULT '[]',
    status              text NOT NULL CHECK (status IN ('draft', 'active', 'archived')),
    version             integer NOT NULL,
    head_version_id     uuid,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    archived_at         timestamptz,
    UNIQUE (workspace_id, key)
);
CREATE INDEX meter_list ON meter (workspace_id, created_at DESC, id DESC);

CREATE TABLE product_meter_binding (
    id               uuid PRIMARY KEY,
    organization_id  uuid NOT NULL,
    workspace_id     uuid NOT NULL REFERENCES workspace,
    product_id       uuid NOT NULL REFERENCES product,
    meter_id         uuid NOT NULL REFERENCES meter,
    role             text NOT NULL CHECK (role IN ('PRIMARY', 'FORMULA_INPUT', 'INFORMATIONAL')),
    metric_key       text NOT NULL,
    variable         text,
    formula_bindings jsonb,
    filter           jsonb,
    multiplier       numeric NOT NULL DEFAULT 1,
    "window"         jsonb,
    thresholds       jsonb NOT NULL DEFAULT '[]',
    version          integer NOT NULL,
    head_version_id  uuid,
    status           text NOT NULL CHECK (status IN ('draft', 'scheduled', 'active', 'archived')),
    effective_from   timestamptz,
    effective_to     timestamptz,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL
);
-- One live PRIMARY binding per product and metric (meter-bindings.md).
CREATE UNIQUE INDEX product_meter_binding_primary ON product_meter_binding (product_id, metric_key)
    WHERE role = 'PRIMARY' AND status = 'active';
CREATE INDEX product_meter_binding_list ON product_meter_binding (workspace_id, created_at DESC, id DESC);
CREATE INDEX product_meter_binding_meter ON product_meter_binding (meter_id);
