-- Usage that is billed more than once: interim invoices (threshold action INVOICE), late usage that is corrected, and the
-- credit notes that take back what was charged too much.

ALTER TABLE usage_window
    -- Position up to which interim invoices have charged the window before its end; null = none has.
    ADD COLUMN invoiced_position bigint,
    -- Closed without an invoice, as the window of a trial or of a pause is: nothing is charged later either.
    ADD COLUMN uncharged boolean NOT NULL DEFAULT false;

-- Up to which position of its window an invoice charges usage: so an event is told its invoice, where a window has several.
ALTER TABLE invoice ADD COLUMN usage_position bigint;

-- What interim invoices have charged of the window, tax included: it is not accrued any more (rule D3).
ALTER TABLE usage_accrual ADD COLUMN invoiced numeric NOT NULL DEFAULT 0;

-- Late usage that was counted in its own window, which is closed, and that no document shows yet: written by the checkpoint,
-- deleted with the document, or when the window is open again and counts it.
CREATE TABLE usage_correction (
    subscription_id uuid NOT NULL,
    window_start    timestamptz NOT NULL,
    position        bigint NOT NULL, -- of the last such event
    PRIMARY KEY (subscription_id, window_start)
) WITH (fillfactor = 70);

CREATE TABLE credit_note (
    id                    uuid PRIMARY KEY,
    organization_id       uuid NOT NULL,
    workspace_id          uuid NOT NULL REFERENCES workspace,
    customer_id           uuid NOT NULL,
    invoice_id            uuid REFERENCES invoice,
    credit_note_number    text,
    sequence_number       bigint,
    currency              text NOT NULL,
    status                text NOT NULL CHECK (status IN ('draft', 'issued', 'partially_applied', 'applied', 'void')),
    reason_code           text NOT NULL,
    reason                text,
    subtotal              numeric NOT NULL,
    tax_amount            numeric NOT NULL DEFAULT 0,
    total                 numeric NOT NULL,
    amount_remaining      numeric NOT NULL,
    template_id           uuid,
    refund_transaction_id uuid,
    version               integer NOT NULL DEFAULT 1,
    metadata              jsonb NOT NULL DEFAULT '{}',
    issued_at             timestamptz,
    voided_at             timestamptz,
    created_at            timestamptz NOT NULL,
    updated_at            timestamptz NOT NULL,
    deleted_at            timestamptz,
    CHECK (credit_note_number IS NOT NULL OR status IN ('draft', 'void'))
);
CREATE UNIQUE INDEX credit_note_number ON credit_note (workspace_id, sequence_number);
CREATE INDEX credit_note_list ON credit_note (workspace_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX credit_note_invoice ON credit_note (invoice_id);
CREATE INDEX credit_note_customer ON credit_note (customer_id, created_at DESC, id DESC);

CREATE TABLE credit_note_line (
    id                uuid PRIMARY KEY,
    workspace_id      uuid NOT NULL,
    credit_note_id    uuid NOT NULL REFERENCES credit_note,
    position          integer NOT NULL,
    invoice_line_id   uuid REFERENCES invoice_line,
    description       text NOT NULL,
    quantity          numeric NOT NULL,
    unit_amount       numeric NOT NULL,
    amount            numeric NOT NULL CHECK (amount >= 0), -- net
    tax_rate          numeric NOT NULL DEFAULT 0,
    tax_category_code text NOT NULL,
    tax_rule_id       uuid,
    tax_amount        numeric NOT NULL DEFAULT 0,
    UNIQUE (credit_note_id, position)
);
CREATE INDEX credit_note_line_invoice ON credit_note_line (invoice_line_id);

-- Only what becomes of the credit, voiding and bookkeeping members of an issued credit note may change.
CREATE FUNCTION credit_note_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    free text[] := ARRAY['status', 'amount_remaining', 'refund_transaction_id', 'voided_at', 'version', 'updated_at', 'metadata'];
BEGIN
    IF OLD.status = 'draft' THEN
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    IF TG_OP = 'DELETE' OR (to_jsonb(OLD) - free) <> (to_jsonb(NEW) - free) OR NEW.status = 'draft' THEN
        RAISE EXCEPTION 'credit note % is issued and cannot change', OLD.id USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER credit_note_guard BEFORE UPDATE OR DELETE ON credit_note FOR EACH ROW EXECUTE FUNCTION credit_note_guard();

CREATE FUNCTION credit_note_line_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM credit_note WHERE id = OLD.credit_note_id AND status <> 'draft') THEN
        RAISE EXCEPTION 'credit note % is issued and cannot change', OLD.credit_note_id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER credit_note_line_guard BEFORE UPDATE OR DELETE ON credit_note_line
    FOR EACH ROW EXECUTE FUNCTION credit_note_line_guard();
