-- Payments: gateways, payment methods, simulations, the ledger of payments, and top-ups of wallets.

-- The one key under which this database's secrets are encrypted, by its fingerprint: a node with another key must not write,
-- and says why it cannot read.
CREATE TABLE secret_key (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    fingerprint bytea NOT NULL
);

CREATE TABLE payment_gateway (
    id                   uuid PRIMARY KEY,
    organization_id      uuid NOT NULL,
    workspace_id         uuid NOT NULL REFERENCES workspace,
    provider             text NOT NULL CHECK (provider IN ('stripe', 'gocardless', 'mollie', 'adyen')),
    display_name         text,
    mode                 text NOT NULL CHECK (mode IN ('test', 'live')),
    secrets              bytea,  -- sealed; erased when the gateway is removed
    config_keys          text[] NOT NULL,
    provider_settings    jsonb NOT NULL DEFAULT '{}',
    supported_currencies text[] NOT NULL DEFAULT '{}',
    supported_methods    text[] NOT NULL DEFAULT '{}',
    is_enabled           boolean NOT NULL DEFAULT true,
    is_default           boolean NOT NULL DEFAULT false,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL,
    deleted_at           timestamptz,
    CHECK (is_enabled OR NOT is_default),
    CHECK ((deleted_at IS NULL) = (secrets IS NOT NULL))
);
CREATE INDEX payment_gateway_list ON payment_gateway (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX payment_gateway_name ON payment_gateway (workspace_id, provider, mode, display_name)
    NULLS NOT DISTINCT WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX payment_gateway_default ON payment_gateway (workspace_id, mode) WHERE is_default AND deleted_at IS NULL;

CREATE TABLE payment_method (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    workspace_id    uuid NOT NULL REFERENCES workspace,
    customer_id     uuid NOT NULL REFERENCES customer,
    type            text NOT NULL CHECK (type IN ('CREDIT_CARD', 'BANK_ACCOUNT', 'SEPA_DIRECT_DEBIT', 'PAYPAL', 'EXTERNAL')),
    provider        text NOT NULL CHECK (provider IN ('stripe', 'gocardless', 'mollie', 'adyen', 'external')),
    provider_id     text NOT NULL,
    status          text NOT NULL CHECK (status IN ('ACTIVE', 'PENDING', 'EXPIRED', 'FAILED', 'REMOVED')),
    is_default      boolean NOT NULL,
    display_brand   text,
    last4           text,
    exp_month       integer CHECK (exp_month BETWEEN 1 AND 12),
    exp_year        integer CHECK (exp_year BETWEEN 2000 AND 9999),
    bank_name       text,
    account_last4   text,
    metadata        jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    deleted_at      timestamptz,
    CHECK ((status = 'REMOVED') = (deleted_at IS NOT NULL)),
    CHECK (status <> 'REMOVED' OR NOT is_default),
    CHECK (type = 'CREDIT_CARD' OR coalesce(display_brand, last4, exp_month::text, exp_year::text) IS NULL),
    CHECK (type <> 'CREDIT_CARD' OR coalesce(bank_name, account_last4) IS NULL)
);
CREATE INDEX payment_method_list ON payment_method (workspace_id, created_at DESC, id DESC);
CREATE INDEX payment_method_customer ON payment_method (customer_id, created_at DESC, id DESC);
CREATE UNIQUE INDEX payment_method_token ON payment_method (workspace_id, provider, provider_id) WHERE status <> 'REMOVED';
CREATE UNIQUE INDEX payment_method_default ON payment_method (customer_id) WHERE is_default;

CREATE TABLE test_payment_simulation (
    id                uuid PRIMARY KEY,
    workspace_id      uuid NOT NULL REFERENCES workspace,
    payment_method_id uuid NOT NULL REFERENCES payment_method,
    outcome           text NOT NULL,
    created_at        timestamptz NOT NULL
);
CREATE INDEX test_payment_simulation_list ON test_payment_simulation (workspace_id, created_at DESC, id DESC);
CREATE INDEX test_payment_simulation_method ON test_payment_simulation (payment_method_id, created_at DESC, id DESC);

-- One row is one movement of money between a customer and the organization. Append-only but for how it went.
CREATE TABLE payment_transaction (
    id                    uuid PRIMARY KEY,  -- also the idempotency key that the provider gets
    organization_id       uuid NOT NULL,
    workspace_id          uuid NOT NULL REFERENCES workspace,
    customer_id           uuid NOT NULL REFERENCES customer,
    invoice_id            uuid,
    subscription_id       uuid,
    settlement_id         uuid,
    wallet_id             uuid REFERENCES wallet,
    hold_id               uuid,
    payment_method_id     uuid REFERENCES payment_method,
    gateway_id            uuid REFERENCES payment_gateway,
    parent_transaction_id uuid REFERENCES payment_transaction,
    provider              text,
    provider_reference    text,
    direction             text NOT NULL,
    kind                  text NOT NULL,
    status                text NOT NULL,
    amount                numeric NOT NULL CHECK (amount > 0),
    refunded_amount       numeric NOT NULL DEFAULT 0,
    currency              text NOT NULL,
    source                text CHECK (source IN ('BANK_TRANSFER', 'CASH', 'CHECK', 'CARD_TERMINAL', 'EXTERNAL_PROCESSOR', 'OTHER')),
    reference             text,
    failure_code          text,
    failure_message       text,
    attempt               integer NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    -- Whether Kontorion started it by itself: a wallet had fallen below its threshold, an invoice was finalized.
    is_automatic          boolean NOT NULL DEFAULT false,
    processed_at          timestamptz,
    metadata              jsonb NOT NULL DEFAULT '{}',
    -- In real time, while the outcome is open: who works on the row moves it ahead, and nobody else looks at it before.
    next_check_at         timestamptz,
    checks                integer NOT NULL DEFAULT 0,
    created_at            timestamptz NOT NULL,
    updated_at            timestamptz NOT NULL,
    CHECK (direction = CASE WHEN kind IN ('CHARGE', 'MANUAL_PAYMENT', 'WALLET_TOPUP', 'WALLET_PAYMENT') THEN 'INBOUND'
                            WHEN kind IN ('REFUND', 'PAYOUT', 'CHARGEBACK') THEN 'OUTBOUND' ELSE '' END),
    CHECK (status IN ('PENDING', 'PROCESSING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'PARTIALLY_REFUNDED', 'REFUNDED', 'DISPUTED')),
    CHECK ((status IN ('PENDING', 'PROCESSING')) = (processed_at IS NULL)),
    CHECK ((status IN ('PENDING', 'PROCESSING')) = (next_check_at IS NOT NULL)),
    CHECK ((status = 'FAILED') = (failure_code IS NOT NULL)),
    CHECK (CASE status WHEN 'PARTIALLY_REFUNDED' THEN refunded_amount > 0 AND refunded_amount < amount
                       WHEN 'REFUNDED' THEN refunded_amount = amount
                       ELSE refunded_amount = 0 END),
    CHECK ((kind IN ('REFUND', 'CHARGEBACK')) = (parent_transaction_id IS NOT NULL)),
    CHECK (kind <> 'WALLET_TOPUP' OR wallet_id IS NOT NULL),
    CHECK (NOT is_automatic OR kind IN ('WALLET_TOPUP', 'CHARGE')),
    CHECK (gateway_id IS NULL OR provider IS NOT NULL),
    CHECK (status <> 'PROCESSING' OR gateway_id IS NOT NULL)
) WITH (fillfactor = 70);
CREATE INDEX payment_transaction_list ON payment_transaction (workspace_id, created_at DESC, id DESC);
CREATE INDEX payment_transaction_customer ON payment_transaction (customer_id, created_at DESC, id DESC);
CREATE INDEX payment_transaction_invoice ON payment_transaction (invoice_id, created_at DESC, id DESC) WHERE invoice_id IS NOT NULL;
CREATE INDEX payment_transaction_method ON payment_transaction (payment_method_id) WHERE payment_method_id IS NOT NULL;
CREATE INDEX payment_transaction_parent ON payment_transaction (parent_transaction_id) WHERE parent_transaction_id IS NOT NULL;
CREATE UNIQUE INDEX payment_transaction_provider_reference ON payment_transaction (gateway_id, provider_reference);
CREATE INDEX payment_transaction_open ON payment_transaction (next_check_at) WHERE status IN ('PENDING', 'PROCESSING');
CREATE INDEX payment_transaction_open_gateway ON payment_transaction (gateway_id) WHERE status IN ('PENDING', 'PROCESSING');
-- At most one automatic top-up of a wallet is under way.
CREATE UNIQUE INDEX payment_transaction_auto_topup ON payment_transaction (wallet_id)
    WHERE is_automatic AND status IN ('PENDING', 'PROCESSING');

CREATE FUNCTION payment_transaction_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    outcome CONSTANT text[] := ARRAY['status', 'provider_reference', 'failure_code', 'failure_message', 'refunded_amount',
                                     'processed_at', 'next_check_at', 'checks', 'updated_at'];
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - outcome = to_jsonb(OLD) - outcome
       AND (OLD.provider_reference IS NULL OR NEW.provider_reference = OLD.provider_reference)
       AND (OLD.status IN ('PENDING', 'PROCESSING') OR NEW.status NOT IN ('PENDING', 'PROCESSING')) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'payment_transaction is append-only but for its outcome' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER payment_transaction_append_only BEFORE UPDATE OR DELETE ON payment_transaction
    FOR EACH ROW EXECUTE FUNCTION payment_transaction_append_only();

-- Events of providers that have had their effect: a repeated one has none.
CREATE TABLE payment_gateway_event (
    gateway_id   uuid NOT NULL REFERENCES payment_gateway,
    event_id     text NOT NULL,
    workspace_id uuid NOT NULL,
    event_type   text NOT NULL,
    received_at  timestamptz NOT NULL,
    PRIMARY KEY (gateway_id, event_id)
);
CREATE INDEX payment_gateway_event_received ON payment_gateway_event (received_at);

-- Wallets with automatic top-up that an operation left below their threshold. Written under the wallet's lock.
CREATE TABLE wallet_auto_topup (
    wallet_id    uuid PRIMARY KEY REFERENCES wallet,
    workspace_id uuid NOT NULL,
    is_wanted    boolean NOT NULL,
    -- In real time: a top-up that failed is not tried again before.
    not_before   timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE INDEX wallet_auto_topup_wanted ON wallet_auto_topup (not_before) WHERE is_wanted;
