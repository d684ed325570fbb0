-- Payments of invoices: by hand, through a gateway, and what is given back of them.

ALTER TABLE payment_transaction
    -- What came beyond what the invoice was owed: it is on the customer's wallet.
    ADD COLUMN excess_amount numeric NOT NULL DEFAULT 0,
    -- Of a refund: whether a credit note was issued over it.
    ADD COLUMN is_credited boolean NOT NULL DEFAULT false,
    ADD FOREIGN KEY (invoice_id) REFERENCES invoice,
    ADD CHECK (kind NOT IN ('CHARGE', 'MANUAL_PAYMENT') OR invoice_id IS NOT NULL),
    ADD CHECK (excess_amount >= 0 AND excess_amount <= amount),
    ADD CHECK (excess_amount = 0 OR (kind IN ('CHARGE', 'MANUAL_PAYMENT') AND wallet_id IS NOT NULL)),
    ADD CHECK (NOT is_credited OR kind = 'REFUND');

-- The same transfer, cheque or receipt is recorded once on an invoice; one that was taken back may be recorded anew.
CREATE UNIQUE INDEX payment_transaction_manual ON payment_transaction (invoice_id, source, reference)
    WHERE kind = 'MANUAL_PAYMENT' AND status IN ('SUCCEEDED', 'PARTIALLY_REFUNDED');
-- At most one charge of an invoice is under way.
CREATE UNIQUE INDEX payment_transaction_open_charge ON payment_transaction (invoice_id)
    WHERE kind = 'CHARGE' AND status IN ('PENDING', 'PROCESSING');

-- The wallet of what came beyond the invoice is an outcome, too: known when the money is there, and never changed.
CREATE OR REPLACE FUNCTION payment_transaction_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    outcome CONSTANT text[] := ARRAY['status', 'provider_reference', 'failure_code', 'failure_message', 'refunded_amount',
                                     'processed_at', 'next_check_at', 'checks', 'updated_at', 'wallet_id', 'excess_amount'];
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - outcome = to_jsonb(OLD) - outcome
       AND (OLD.provider_reference IS NULL OR NEW.provider_reference = OLD.provider_reference)
       AND (OLD.wallet_id IS NULL OR NEW.wallet_id = OLD.wallet_id)
       AND (OLD.excess_amount = 0 OR NEW.excess_amount = OLD.excess_amount)
       AND (OLD.status IN ('PENDING', 'PROCESSING') OR NEW.status NOT IN ('PENDING', 'PROCESSING')) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'payment_transaction is append-only but for its outcome' USING ERRCODE = 'integrity_constraint_violation';
END $$;
