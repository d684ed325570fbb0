-- What the organization owes a counterparty for a period, with the lines that explain it (settlements.md).

ALTER TABLE document_series DROP CONSTRAINT document_series_kind_check;
ALTER TABLE document_series ADD CONSTRAINT document_series_kind_check CHECK (kind IN ('invoice', 'credit_note', 'settlement'));

CREATE TABLE settlement (
    id                uuid PRIMARY KEY,
    organization_id   uuid NOT NULL,
    workspace_id      uuid NOT NULL REFERENCES workspace,
    customer_id       uuid NOT NULL REFERENCES customer,
    settlement_number text,
    currency          text NOT NULL,
    period_start      timestamptz NOT NULL,
    period_end        timestamptz NOT NULL,
    status            text NOT NULL CHECK (status IN ('draft', 'finalized', 'paid', 'void')),
    gross_earnings    numeric NOT NULL,
    total_fees        numeric NOT NULL,
    total_fee_tax     numeric NOT NULL,
    total_withholding numeric NOT NULL,
    net_payout        numeric NOT NULL,
    -- The later settlement that takes a negative payout over; taken back when that is deleted or void.
    carried_into      uuid REFERENCES settlement,
    finalized_at      timestamptz,
    paid_at           timestamptz,
    payout_reference  text,
    void_reason       text,
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    deleted_at        timestamptz,
    CHECK (period_start < period_end),
    CHECK (net_payout = gross_earnings - total_fees - total_fee_tax - total_withholding),
    CHECK (settlement_number IS NULL OR finalized_at IS NOT NULL),
    CHECK ((status = 'paid') = (paid_at IS NOT NULL)),
    CHECK (deleted_at IS NULL OR status = 'draft'),
    CHECK (carried_into IS NULL OR (status = 'finalized' AND net_payout < 0))
);
CREATE INDEX settlement_list ON settlement (workspace_id, created_at DESC, id DESC);
CREATE INDEX settlement_customer ON settlement (customer_id, currency, period_start);
CREATE UNIQUE INDEX settlement_number ON settlement (workspace_id, settlement_number);

CREATE TABLE settlement_line (
    id             uuid PRIMARY KEY,
    workspace_id   uuid NOT NULL,
    settlement_id  uuid NOT NULL REFERENCES settlement,
    ordinal        integer NOT NULL,
    type           text NOT NULL
        CHECK (type IN ('EARNING', 'COMMISSION', 'FEE', 'REFUND', 'CHARGEBACK', 'WITHHOLDING', 'ADJUSTMENT')),
    description    text NOT NULL,
    amount         numeric NOT NULL CHECK (amount > 0 OR type = 'ADJUSTMENT'),
    currency       text NOT NULL,
    tax_rate       numeric,
    tax_amount     numeric,
    transaction_id uuid REFERENCES payment_transaction,
    invoice_id     uuid REFERENCES invoice,
    reference      text,
    -- The settlement whose negative payout this line takes over.
    carried_from   uuid REFERENCES settlement,
    metadata       jsonb NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL,
    UNIQUE (settlement_id, ordinal),
    CHECK ((tax_rate IS NULL) = (tax_amount IS NULL)),
    CHECK (tax_rate IS NULL OR type IN ('COMMISSION', 'FEE'))
);
CREATE TRIGGER settlement_line_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON settlement_line
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE payment_transaction ADD FOREIGN KEY (settlement_id) REFERENCES settlement,
    ADD CHECK (kind <> 'PAYOUT' OR settlement_id IS NOT NULL);
-- A settlement is paid out once.
CREATE UNIQUE INDEX payment_transaction_payout ON payment_transaction (settlement_id) WHERE kind = 'PAYOUT';
