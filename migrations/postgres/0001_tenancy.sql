-- Organizations, workspaces and API keys (access).

CREATE TABLE organization (
    id                 uuid PRIMARY KEY,
    name               text NOT NULL,
    status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    timezone           text NOT NULL DEFAULT 'UTC',
    default_currency   text NOT NULL DEFAULT 'EUR',
    payment_terms_days integer NOT NULL DEFAULT 30 CHECK (payment_terms_days >= 0),
    -- Effective settings (organization-settings): invoice_prefix, invoice_number_padding, usage_grace_period, auto_finalize_invoices.
    settings           jsonb NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL
);

CREATE TABLE workspace (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization,
    name            text NOT NULL,
    mode            text NOT NULL CHECK (mode IN ('live', 'sandbox')),
    -- Signs foreign Kafka records (rule A7).
    ingest_secret   bytea NOT NULL,
    created_at      timestamptz NOT NULL
);

CREATE TABLE api_key (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization,
    workspace_id    uuid NOT NULL REFERENCES workspace,
    key_hash        bytea NOT NULL UNIQUE, -- SHA-256 of the token; the clear text is never stored
    key_prefix      text NOT NULL,
    key_type        text NOT NULL CHECK (key_type IN ('sk_live', 'sk_test')),
    name            text NOT NULL,
    scopes          text[] NOT NULL DEFAULT '{}',
    allowed_ips     text[] NOT NULL DEFAULT '{}',
    expires_at      timestamptz,
    revoked_at      timestamptz,
    last_used_at    timestamptz,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL
);
CREATE INDEX api_key_list ON api_key (workspace_id, created_at DESC, id DESC);
