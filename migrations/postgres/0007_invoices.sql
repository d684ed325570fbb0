-- Invoices (billing). A finalized invoice and its lines never change: the database refuses.

-- One row per series, locked last in the finalizing transaction: no number is missing (rule D6).
CREATE TABLE document_series (
    workspace_id uuid NOT NULL REFERENCES workspace,
    kind         text NOT NULL CHECK (kind IN ('invoice', 'credit_note')),
    next_number  bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (workspace_id, kind)
) WITH (fillfactor = 50);

CREATE TABLE invoice (
    id                        uuid PRIMARY KEY,
    organization_id           uuid NOT NULL,
    workspace_id              uuid NOT NULL REFERENCES workspace,
    customer_id               uuid NOT NULL,
    subscription_id           uuid,
    invoice_number            text,
    sequence_number           bigint,
    invoice_type              text NOT NULL CHECK (invoice_type IN ('subscription', 'one_off')),
    status                    text NOT NULL CHECK (status IN ('draft', 'pending_approval', 'finalized', 'overdue', 'paid', 'void', 'error')),
    currency                  text NOT NULL,
    subtotal                  numeric NOT NULL,
    discount_total            numeric NOT NULL DEFAULT 0,
    tax_amount                numeric NOT NULL DEFAULT 0,
    total                     numeric NOT NULL,
    amount_due                numeric NOT NULL,
    amount_paid               numeric NOT NULL DEFAULT 0,
    billing_period_start      timestamptz,
    billing_period_end        timestamptz,
    -- What a run made it for: 'activation', 'renewal', 'closing', 'manual'; with the period it is the key of the run.
    billing_reason            text NOT NULL,
    delivery_date             date,
    due_date                  date,
    payment_terms_days        integer,
    buyer_reference           text,
    customer_profile_at_issue text,
    issued_at                 timestamptz,
    finalized_at              timestamptz,
    sent_at                   timestamptz,
    paid_at                   timestamptz,
    voided_at                 timestamptz,
    void_reason               text,
    notes                     text,
    locale                    text,
    template_id               uuid,
    approval_request_id       uuid,
    seller_snapshot           jsonb,
    buyer_snapshot            jsonb,
    tax_breakdown             jsonb NOT NULL DEFAULT '[]',
    version                   integer NOT NULL DEFAULT 1,
    custom_fields             jsonb NOT NULL DEFAULT '{}',
    metadata                  jsonb NOT NULL DEFAULT '{}',
    created_at                timestamptz NOT NULL,
    updated_at                timestamptz NOT NULL,
    deleted_at                timestamptz,
    CHECK ((status IN ('draft', 'pending_approval')) = (invoice_number IS NULL))
);
CREATE UNIQUE INDEX invoice_number ON invoice (workspace_id, sequence_number);
CREATE UNIQUE INDEX invoice_run_key ON invoice (subscription_id, billing_period_start, billing_period_end, billing_reason)
    WHERE deleted_at IS NULL AND status <> 'void';
CREATE INDEX invoice_list ON invoice (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX invoice_status ON invoice (workspace_id, status, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX invoice_due ON invoice (workspace_id, due_date) WHERE deleted_at IS NULL;
CREATE INDEX invoice_issued ON invoice (workspace_id, issued_at) WHERE deleted_at IS NULL;
CREATE INDEX invoice_customer ON invoice (customer_id, created_at DESC, id DESC);

CREATE TABLE invoice_line (
    id                   uuid PRIMARY KEY,
    workspace_id         uuid NOT NULL,
    invoice_id           uuid NOT NULL REFERENCES invoice,
    position             integer NOT NULL,
    line_type            text NOT NULL,
    charge_kind          text NOT NULL,
    applies_at           text,
    billing_timing       text,
    product_id           uuid,
    price_id             uuid,
    price_version_id     uuid,
    plan_version_id      uuid,
    subscription_item_id uuid,
    metric_key           text,
    price_key            text,
    wallet_currency      text,
    description          text NOT NULL,
    quantity             numeric NOT NULL,
    unit_amount          numeric NOT NULL,
    amount               numeric NOT NULL,
    discount_amount      numeric NOT NULL DEFAULT 0,
    total                numeric NOT NULL,
    period_start         timestamptz,
    period_end           timestamptz,
    tax_rate             numeric NOT NULL DEFAULT 0,
    tax_type             text,
    tax_amount           numeric NOT NULL DEFAULT 0,
    tax_category_code    text NOT NULL,
    tax_exemption_code   text,
    tax_exemption_reason text,
    supply_type          text,
    tax_rule_id          uuid,
    reverse_charge       boolean NOT NULL DEFAULT false,
    atoms                jsonb NOT NULL DEFAULT '[]', -- with tiers and tax components (P11)
    metadata             jsonb NOT NULL DEFAULT '{}',
    UNIQUE (invoice_id, position)
);

-- Only payment, sending, voiding and bookkeeping members of a finalized invoice may change.
CREATE FUNCTION invoice_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    free text[] := ARRAY['status', 'amount_due', 'amount_paid', 'sent_at', 'paid_at', 'voided_at', 'void_reason', 'version', 'updated_at', 'metadata'];
BEGIN
    IF OLD.status IN ('draft', 'pending_approval') THEN
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    IF TG_OP = 'DELETE' OR (to_jsonb(OLD) - free) <> (to_jsonb(NEW) - free) OR NEW.status IN ('draft', 'pending_approval') THEN
        RAISE EXCEPTION 'invoice % is finalized and cannot change', OLD.id USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER invoice_guard BEFORE UPDATE OR DELETE ON invoice FOR EACH ROW EXECUTE FUNCTION invoice_guard();

CREATE FUNCTION invoice_line_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM invoice WHERE id = OLD.invoice_id AND status NOT IN ('draft', 'pending_approval')) THEN
        RAISE EXCEPTION 'invoice % is finalized and cannot change', OLD.invoice_id USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER invoice_line_guard BEFORE UPDATE OR DELETE ON invoice_line FOR EACH ROW EXECUTE FUNCTION invoice_line_guard();

CREATE FUNCTION invoice_line_insert_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM inserted JOIN invoice ON invoice.id = inserted.invoice_id
               WHERE invoice.status NOT IN ('draft', 'pending_approval')) THEN
        RAISE EXCEPTION 'a finalized invoice takes no further line' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER invoice_line_insert_guard AFTER INSERT ON invoice_line
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION invoice_line_insert_guard();
