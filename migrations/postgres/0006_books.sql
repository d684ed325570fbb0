-- Double-entry books, wallets and holds (ledger). Entries and transfers are never changed: the database refuses.

CREATE TABLE ledger_account (
    id           uuid PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspace,
    -- wallet_cash, wallet_promotional, wallet_held, receivable, revenue, tax_payable, gateway_clearing, promotional_expense,
    -- manual_clearing, captured_usage, fx, write_off
    kind         text NOT NULL,
    currency     text NOT NULL,
    wallet_id    uuid,                -- of the limited accounts
    stripe       smallint NOT NULL DEFAULT 0, -- workspace accounts are spread over 16 rows and summed on read (P10)
    created_at   timestamptz NOT NULL
);
CREATE UNIQUE INDEX ledger_account_wallet ON ledger_account (wallet_id, kind) WHERE wallet_id IS NOT NULL;
CREATE UNIQUE INDEX ledger_account_workspace ON ledger_account (workspace_id, kind, currency, stripe) WHERE wallet_id IS NULL;

CREATE TABLE ledger_transfer (
    id             uuid PRIMARY KEY,  -- chosen before the first attempt: a repeat is seen (rule D5)
    workspace_id   uuid NOT NULL,
    kind           text NOT NULL,
    reference_type text,
    reference_id   uuid,
    description    text,
    booked_at      timestamptz NOT NULL,
    created_at     timestamptz NOT NULL
);

CREATE TABLE ledger_entry (
    transfer_id  uuid NOT NULL,
    seq          smallint NOT NULL,
    workspace_id uuid NOT NULL,
    account_id   uuid NOT NULL,
    currency     text NOT NULL,
    amount       numeric NOT NULL CHECK (amount <> 0), -- debit > 0, credit < 0
    PRIMARY KEY (transfer_id, seq)
);
CREATE INDEX ledger_entry_account ON ledger_entry (account_id, transfer_id);

-- All entries of a transfer come in one statement; their sum is zero per currency.
CREATE FUNCTION ledger_entry_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM inserted GROUP BY transfer_id, currency HAVING sum(amount) <> 0) THEN
        RAISE EXCEPTION 'entries of a transfer do not add up to zero' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_entry_balanced AFTER INSERT ON ledger_entry
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION ledger_entry_balanced();

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: a correction is a new row', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER ledger_entry_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_transfer_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A wallet's balances are the locked balances of its limited accounts; `ledger verify` recomputes them from the entries.
CREATE TABLE wallet (
    id                             uuid PRIMARY KEY,
    organization_id                uuid NOT NULL,
    workspace_id                   uuid NOT NULL REFERENCES workspace,
    customer_id                    uuid NOT NULL REFERENCES customer,
    currency                       text NOT NULL,
    is_primary                     boolean NOT NULL,
    cash_balance                   numeric NOT NULL DEFAULT 0,
    promotional_balance            numeric NOT NULL DEFAULT 0 CHECK (promotional_balance >= 0),
    promotional_balance_expires_at timestamptz,
    held_balance                   numeric NOT NULL DEFAULT 0 CHECK (held_balance >= 0),
    credit_limit                   numeric CHECK (credit_limit >= 0),
    max_balance                    numeric CHECK (max_balance >= 0),
    max_single_credit              numeric CHECK (max_single_credit >= 0),
    low_balance_threshold          numeric CHECK (low_balance_threshold >= 0),
    auto_topup_enabled             boolean NOT NULL DEFAULT false,
    auto_topup_amount              numeric CHECK (auto_topup_amount > 0),
    created_at                     timestamptz NOT NULL,
    updated_at                     timestamptz NOT NULL,
    UNIQUE (customer_id, currency)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE UNIQUE INDEX wallet_primary ON wallet (customer_id) WHERE is_primary;
CREATE INDEX wallet_list ON wallet (workspace_id, created_at DESC, id DESC);

CREATE TABLE wallet_transaction (
    id                        uuid PRIMARY KEY,
    workspace_id              uuid NOT NULL,
    wallet_id                 uuid NOT NULL,
    customer_id               uuid NOT NULL,
    transfer_id               uuid NOT NULL,
    type                      text NOT NULL,
    source                    text NOT NULL,
    amount                    numeric NOT NULL,
    currency                  text NOT NULL,
    balance_kind              text NOT NULL CHECK (balance_kind IN ('CASH', 'PROMOTIONAL')),
    cash_balance_after        numeric NOT NULL,
    promotional_balance_after numeric NOT NULL,
    group_id                  uuid,
    reference_type            text,
    reference_id              uuid,
    hold_id                   uuid,
    description               text,
    idempotency_key           text,
    metadata                  jsonb NOT NULL DEFAULT '{}',
    created_at                timestamptz NOT NULL
);
CREATE INDEX wallet_transaction_list ON wallet_transaction (wallet_id, created_at DESC, id DESC);
CREATE TRIGGER wallet_transaction_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON wallet_transaction
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE wallet_hold (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    workspace_id    uuid NOT NULL,
    wallet_id       uuid NOT NULL,
    amount          numeric NOT NULL CHECK (amount > 0),
    captured_amount numeric,
    currency        text NOT NULL,
    status          text NOT NULL CHECK (status IN ('PENDING', 'CAPTURED', 'RELEASED', 'EXPIRED')),
    reference_type  text,
    reference_id    uuid,
    description     text,
    subscription_id uuid,
    metric_key      text,
    usage_event_id  uuid,
    expires_at      timestamptz NOT NULL,
    captured_at     timestamptz,
    released_at     timestamptz,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL
);
CREATE INDEX wallet_hold_list ON wallet_hold (wallet_id, created_at DESC, id DESC);
CREATE INDEX wallet_hold_pending ON wallet_hold (wallet_id, expires_at) WHERE status = 'PENDING';
CREATE INDEX wallet_hold_metric ON wallet_hold (subscription_id, metric_key) WHERE status = 'PENDING';
